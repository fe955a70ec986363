"""What a technique is: a frozen value whose fields are its settings and whose hooks apply them.

A file in this folder declares one subclass of `Technique`. Every hook has a default that does
nothing, so a file overrides only the hooks it needs. Hooks import torch inside their bodies: the
module itself stays light, because suites are checked without loading torch.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self, get_args

from pydantic import BaseModel, ConfigDict

from tradebench.errors import UserError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from transformers.utils.quantization_config import QuantizationConfigMixin

    from tradebench.trial import Budget, Trial


class Stage(IntEnum):
    """The one order in which techniques are applied, whatever order a suite names them in.

    Weights are pruned and factored while they are dense, then quantized; adapters wrap what is
    left; recomputation wraps layers before sharding wraps them again.
    """

    LOAD = 0
    PRUNE = 1
    FACTOR = 2
    QUANTIZE = 3
    ADAPT = 4
    OPTIMIZER = 5
    RECOMPUTE = 6
    SHARD = 7
    FEED = 8


@dataclass(frozen=True, kw_only=True)
class LoadRequest:
    """How a model is to be loaded, before any weight exists.

    `dtype` is what parameters are stored in, `compute_dtype` what matrix products run in.
    `dense_first` says that a technique before quantization needs dense weights, so nothing may be
    quantized while loading. `drawn_late` says that weights of the decoder's linear layers are drawn
    or read one by one, as quantization asks for them, so that they never exist all at once. `place`
    says which rank loads, and of how many, where each keeps a share of every parameter and no more;
    a layer that takes another's place is then to be passed through `keep`.
    `calibration` starts a stream of training batches, the same one each time, for techniques that
    look at activations before they change weights. `around` is called for every linear layer that
    is quantized in place, with its name, the dense layer, and what quantizes it, and gives the
    layer to put there: a later technique may need the dense weight beside the quantized one.
    """

    device: str
    dtype: torch.dtype
    compute_dtype: torch.dtype
    dense_first: bool = False
    drawn_late: bool = False
    place: tuple[int, int] | None = None
    keep: Callable[[nn.Module], nn.Module] = lambda module: module
    quantization: QuantizationConfigMixin | None = None
    calibration: Callable[[], Iterator[Batch]] = lambda: iter(())
    around: Around = lambda name, linear, quantize: quantize(linear)


class Optimizer(Protocol):
    """What the training loop asks of an optimizer; a technique may wrap it.

    `inner` is the torch optimizer that finally steps.
    """

    inner: torch.optim.Optimizer

    def backward(self, loss: Tensor) -> None:
        """Accumulate the gradients of `loss`."""

    def step(self) -> None:
        """Update the trainable parameters."""

    def zero_grad(self) -> None:
        """Drop the gradients, freeing their memory."""

    def set_learning_rate(self, learning_rate: float) -> None:
        """Use this learning rate from the next step on."""

    def state_tensors(self) -> Iterator[Tensor]:
        """Every tensor held between steps."""


if TYPE_CHECKING:
    # input_ids, labels (IGNORED where a token carries no loss) and attention_mask (1 for real
    # tokens), each of shape (sequences, tokens); a technique may add inputs of the model.
    Batch = Mapping[str, Tensor]
    OptimizerFactory = Callable[[nn.Module], Optimizer]
    LossFunction = Callable[[nn.Module, Batch], Tensor]
    Quantize = Callable[[nn.Linear], nn.Module]
    Around = Callable[[str, nn.Linear, Quantize], nn.Module]
    Effect = dict[str, Any]


# The attribute of a parameter without values: a rank's rows of it, as many as the first rank has.
SHARE = "share"

IGNORED = -100  # the label of a token that carries no loss, as everywhere in torch


@dataclass(frozen=True)
class Example:
    """One row of a batch: token ids, and the label of each token (IGNORED off the answers).

    That is one training sequence; or several, none of which may see another, whose lengths are then
    `packed`. The first token of each follows from nothing and carries no label.
    """

    tokens: tuple[int, ...]
    labels: tuple[int, ...]
    packed: tuple[int, ...] = ()

    @property
    def answers(self) -> int:
        """Tokens that carry loss; the first token is never predicted."""
        return sum(label != IGNORED for label in self.labels[1:])

    def cut(self, length: int) -> Example:
        """The first `length` tokens."""
        return Example(self.tokens[:length], self.labels[:length])


def model_inputs(batch: Batch) -> dict[str, Tensor]:
    """What of a batch the model is given.

    Batches are padded on the right and labels of padding are ignored: under a causal mask no real
    token sees the padding, so the model needs no attention mask and attention keeps its fast path.
    """
    return {name: value for name, value in batch.items() if name not in BOOKKEEPING}


BOOKKEEPING = ("labels", "attention_mask")


class Technique(BaseModel):
    """One way of saving memory, with its settings as fields.

    Class attributes: `slot` is the grid key it fills (at most one technique per slot and point),
    `stage` its place in the order, `axis` its headline setting, `cite` the paper or library it
    comes from. `exact` promises that the loss does not change by a single bit. `cuda_only` holds
    the sentence that says why it cannot run on a CPU, where it cannot. `capability` is the least
    compute capability of an NVIDIA GPU that can run it, where not every one can, and `amd` whether
    AMD's may. `affine` names the settings that are a dimension of some tensors, so that memory
    between two values is a straight line.
    `packages` are those that running it takes beyond tradebench's own, which `extra` brings.
    `builds_with` names the modules of layers that it puts into a model.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    slot: ClassVar[str]
    stage: ClassVar[Stage]
    axis: ClassVar[str]
    cite: ClassVar[str]
    exact: ClassVar[bool] = False
    affine: ClassVar[tuple[str, ...]] = ()
    cuda_only: ClassVar[str | None] = None
    capability: ClassVar[tuple[int, int] | None] = None
    amd: ClassVar[bool] = True
    packages: ClassVar[tuple[str, ...]] = ()
    extra: ClassVar[str | None] = None
    builds_with: ClassVar[tuple[str, ...]] = ()
    aliases: ClassVar[Mapping[str, str]] = {}

    method: str

    @classmethod
    def methods(cls) -> tuple[str, ...]:
        """The method names that this class implements, the default first where it has one."""
        return tuple(get_args(cls.model_fields["method"].annotation))

    @classmethod
    def version(cls) -> str:
        """A digest of the technique's source: a change there makes old results stale."""
        return _source_digest(*cls.sources())

    @classmethod
    def sources(cls) -> tuple[str, ...]:
        """The files that decide what it does: its own, and those of the layers it builds with.

        The file of a class that several techniques share counts as theirs.
        """
        kinds = [kind for kind in cls.__mro__ if issubclass(kind, Technique)]
        files = [inspect.getfile(kind) for kind in kinds if kind is not Technique]
        files += [str(spec.origin) for spec in map(find_spec, cls.builds_with) if spec is not None]
        return tuple(dict.fromkeys(files))

    @classmethod
    def touches(cls) -> tuple[str, ...]:
        """The hooks that this class overrides, in the order they are called."""
        return tuple(hook for hook in HOOKS if getattr(cls, hook) is not getattr(Technique, hook))

    @classmethod
    def summary(cls) -> str:
        """The first line of the docstring."""
        return inspect.getdoc(cls).splitlines()[0]  # type: ignore[union-attr]  # a test holds it

    @classmethod
    def describe(cls) -> dict[str, Any]:
        """Everything that the catalogue says about this technique, as JSON."""
        return {
            "slot": cls.slot,
            "methods": list(cls.methods()),
            "settings": {
                name: field.description or ""
                for name, field in cls.model_fields.items()
                if name != "method"
            },
            "stage": cls.stage.name.lower(),
            "exact": cls.exact,
            "touches": list(cls.touches()),
            "cite": cls.cite,
            "summary": cls.summary(),
        }

    def settings(self) -> dict[str, Any]:
        """The fields as JSON, `method` first."""
        return self.model_dump(mode="json")

    @property
    def label(self) -> str:
        """A few words for tables: the method and, where it has one, the headline setting."""
        value = getattr(self, self.axis)
        return self.method if self.axis == "method" else f"{self.method} {self.axis} {value:g}"

    def kinds(self, layers: int) -> tuple[Hashable, ...]:
        """For each of so many decoder layers, how it is treated: equal values, equal treatment.

        A prediction looks at few layers of every kind and lays them out as here.
        """
        return (None,) * layers

    def arranged(self, kinds: Sequence[Hashable]) -> Self:
        """This technique on another number of layers, each treated as its kind says."""
        return self

    @property
    def ranks(self) -> int:
        """How many processes it takes to apply this technique."""
        return 1

    @property
    def piecemeal(self) -> bool:
        """Whether it works on a model of which a rank holds no whole weight.

        It then goes by shapes alone, or through the weights of linear layers one at a time. What is
        applied before compression or after adapters are there looks at no weight.
        """
        return not Stage.PRUNE <= self.stage <= Stage.ADAPT

    # Before torch is imported.

    def missing(self) -> str | None:
        """Why it cannot run with what is installed here, with the remedy; None where it can."""
        absent = [package for package in self.packages if find_spec(package) is None]
        if not absent:
            return None
        verb = "is" if len(absent) == 1 else "are"
        return (
            f"{self.method} needs {' and '.join(absent)}, which {verb} not installed; "
            f"use pip install 'tradebench[{self.extra}]'"
        )

    def need_packages(self) -> None:
        """Ask for them where a prediction takes them as well.

        Raises:
            UserError: one is not installed.
        """
        reason = self.missing()
        if reason is not None:
            raise UserError(reason)

    def conflicts(self, trial: Trial) -> list[str]:
        """Why this technique cannot be part of the trial: full sentences, each with a remedy."""
        return []

    def cautions(self, trial: Trial) -> list[str]:
        """What a reader of this trial's numbers must know; the trial still runs."""
        return []

    # In the worker, in stage order.

    def load(self, request: LoadRequest) -> LoadRequest:
        """Change how the model will be loaded."""
        return request

    def model(self, model: nn.Module, request: LoadRequest) -> nn.Module:
        """Change the loaded model; `request` says how it was loaded."""
        return model

    def optimizer(self, factory: OptimizerFactory) -> OptimizerFactory:
        """Change how the optimizer is made from the model."""
        return factory

    def examples(self, examples: Sequence[Example], budget: Budget) -> Sequence[Example]:
        """Change an epoch of training examples, shuffled already: micro-batches in its order."""
        return examples

    def batches(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Change the stream of training batches."""
        return batches

    def loss(self, function: LossFunction) -> LossFunction:
        """Change how the summed loss of a batch is computed."""
        return function

    def forward(self, device: str) -> AbstractContextManager[object]:
        """What surrounds every forward pass on `device` (cpu, cuda), in training and evaluation."""
        return nullcontext()

    def stepped(self, model: nn.Module) -> None:
        """Run after each optimizer step."""

    def trained(self, model: nn.Module) -> nn.Module:
        """Change the model once training is over, before it is evaluated."""
        return model

    def effect(self, model: nn.Module) -> Effect:
        """Count what the technique really changed, once training is over and before `trained`.

        Raises:
            ContradictionError: what is found contradicts the settings.
        """
        return {}


HOOKS = (
    "conflicts",
    "load",
    "model",
    "optimizer",
    "examples",
    "batches",
    "loss",
    "forward",
    "stepped",
    "trained",
    "effect",
)


class ContradictionError(Exception):
    """A technique's effect contradicts its settings: the trial must not be reported as valid."""


@lru_cache
def _source_digest(*paths: str) -> str:
    return hashlib.sha256(b"".join(Path(path).read_bytes() for path in paths)).hexdigest()[:12]
