"""What the optimizers here share: a torch optimizer as the training loop asks for it.

A step inside the backward pass takes each gradient as soon as it is whole and drops it, so that
gradients never exist all at once. No norm over all gradients is known by then, so none can be
clipped by it.
"""

from __future__ import annotations

import weakref
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from tradebench.techniques.protocol import ContradictionError, Stage, Technique

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from tradebench.techniques.protocol import Effect, Optimizer, OptimizerFactory
    from tradebench.trial import Trial

BETAS, EPSILON = (0.9, 0.999), 1e-8  # of every kind of Adam here, as in the program's default
NOTE = "optimizer_note"  # the attribute of a model that says what its optimizer did


class Stepping:
    """A torch optimizer as the training loop asks for it."""

    def __init__(self, inner: torch.optim.Optimizer) -> None:
        self.inner = inner

    def backward(self, loss: Tensor) -> None:
        """Accumulate the gradients of `loss`."""
        loss.backward()

    def step(self) -> None:
        """Update every parameter that has a gradient."""
        self.inner.step()

    def take(self, parameter: nn.Parameter) -> None:
        """Update this parameter, the only one that has a gradient at this moment."""
        self.inner.step()

    def zero_grad(self) -> None:
        """Drop the gradients, freeing their memory."""
        self.inner.zero_grad(set_to_none=True)

    def set_learning_rate(self, learning_rate: float) -> None:
        """Use this learning rate from the next step on."""
        for group in self.inner.param_groups:
            group["lr"] = learning_rate

    def state_tensors(self) -> Iterator[Tensor]:
        """Every tensor that is kept for a parameter; one that several share comes several times."""
        from torch import Tensor

        for state in self.inner.state.values():
            yield from (value for value in state.values() if isinstance(value, Tensor))


def trainable(model: nn.Module) -> list[nn.Parameter]:
    """What an optimizer updates."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def step_in_backward(optimizer: Stepping, model: nn.Module) -> None:
    """Have each parameter updated, and its gradient dropped, as soon as the gradient is whole.

    Hooks run in the order in which they were registered, so whoever changes gradients, as a mask
    of pruned weights does, has to be there before.
    """
    # A parameter outlives its optimizer: its hook must not keep the states alive.
    reference = weakref.ref(optimizer)

    def take(parameter: nn.Parameter) -> None:
        known = reference()
        if known is not None:
            known.take(parameter)
            parameter.grad = None

    for parameter in trainable(model):
        parameter.register_post_accumulate_grad_hook(take)


def conflicts_in_backward(trial: Trial) -> list[str]:
    """A step inside the backward pass cannot be part of gradients that are still added up."""
    if trial.budget.accumulation == 1:
        return []
    return [
        "a step inside the backward pass cannot wait for further micro batches; set accumulation: 1"
    ]


def conflicts_with_fp16(trial: Trial) -> list[str]:
    """What steps on gradients that a kernel of its own has not unscaled.

    Elsewhere the scaler leaves the first steps out until its scale fits, and with them the states:
    a rehearsal of two steps would find too little memory. Inside a backward pass, and on the host,
    nothing is unscaled at all.
    """
    if trial.method("precision") != "fp16":
        return []
    return ["fp16 gradients are unscaled by the plain fused step of adamw alone; use bf16_autocast"]


def conflict_when_sharded(trial: Trial, reason: str) -> list[str]:
    """The sentence of an optimizer that cannot work on shares, where there are some."""
    return [reason] if trial.method("sharding") is not None else []


@dataclass
class Note:
    """What an optimizer was found to do, as evidence for `effect`; it keeps no state alive.

    `wrapper` is the class that the loop knows, `kind` that of the optimizer inside, and `settings`
    what that goes by. `parameters` have states, `kept` of them one of this name, `bytes` of this
    format; `elements` holds the sizes of the parameters by the format of their largest state.
    `paged` counts those with states in managed memory, `waiting` those whose gradient was still
    there when the first step was over.
    """

    optimizer: weakref.ref[Stepping]
    wrapper: type
    kind: type
    settings: dict[str, Any]
    steps: int = 0
    parameters: int = 0
    paged: int = 0
    waiting: int = 0
    kept: dict[str, int] = field(default_factory=dict)
    bytes: dict[str, int] = field(default_factory=dict)
    elements: dict[str, list[int]] = field(default_factory=dict)


def note(model: nn.Module, optimizer: Stepping) -> None:
    """Leave a note on the model, to be written when a step has been taken."""
    inner = optimizer.inner
    settings = {name: value for name, value in inner.param_groups[0].items() if name != "params"}
    setattr(model, NOTE, Note(weakref.ref(optimizer), type(optimizer), type(inner), dict(settings)))


def write_note(model: nn.Module) -> None:
    """Count a step and, once there are states, what they take."""
    found: Note | None = getattr(model, NOTE, None)
    if found is None:
        return
    found.steps += 1
    optimizer = found.optimizer()
    if optimizer is None or found.parameters or not optimizer.inner.state:
        return
    states = optimizer.inner.state
    found.parameters = len(states)
    found.waiting = sum(parameter.grad is not None for parameter in trainable(model))
    seen: set[int] = set()
    for parameter, state in states.items():
        found.paged += any(getattr(value, "is_paged", False) for value in state.values())
        for name in state:
            found.kept[name] = found.kept.get(name, 0) + 1
        plain = [part for value in state.values() for part in _plain(value)]
        largest = max(plain, key=lambda tensor: tensor.nbytes, default=None)
        if largest is not None:
            sizes = found.elements.setdefault(_format(largest), [])
            sizes += [sum(part.numel() for part in _plain(parameter))]
        for tensor in plain:
            storage = tensor.untyped_storage()._cdata
            if storage not in seen:  # parameters may share a table
                seen.add(storage)
                name = _format(tensor)
                found.bytes[name] = found.bytes.get(name, 0) + tensor.nbytes


def read_note(model: nn.Module, asked: str, kind: type, *, in_backward: bool) -> Note:
    """What was noted about the optimizer that was asked for.

    Raises:
        ContradictionError: another one stepped, or none, or not where it was asked to.
    """
    found: Note | None = getattr(model, NOTE, None)
    if found is None or found.kind is not kind:
        other = "the default optimizer" if found is None else found.kind.__name__
        raise ContradictionError(f"{asked} was asked for, but {other} stepped")
    if not found.parameters:
        raise ContradictionError(f"{asked} was asked for, but it keeps states of no parameter")
    if in_backward != (found.waiting == 0):
        raise ContradictionError(
            f"{asked} was asked for, but {found.waiting} gradients were there at the end of a step"
        )
    return found


class Replacing(Technique):
    """What stands in the place of the default optimizer, and may step inside the backward pass.

    `whole` says why it cannot work on the shares of a sharded model, where it cannot.
    """

    slot, stage, axis = "optimizer", Stage.OPTIMIZER, "method"

    whole: ClassVar[str | None] = None

    in_backward: bool = Field(
        False, description="step inside the backward pass, as soon as a gradient is whole"
    )

    @abstractmethod
    def stepping(self, model: nn.Module) -> Stepping:
        """The optimizer over what trains, its learning rate 0."""

    @property
    def label(self) -> str:
        """`adafactor`, with `in backward`."""
        return f"{self.method} in backward" if self.in_backward else self.method

    def conflicts(self, trial: Trial) -> list[str]:
        """Nothing steps before gradients are whole, or on shares where it needs all of a matrix."""
        reasons = conflicts_with_fp16(trial)
        reasons += conflicts_in_backward(trial) if self.in_backward else []
        return reasons + (conflict_when_sharded(trial, self.whole) if self.whole else [])

    def optimizer(self, factory: OptimizerFactory) -> OptimizerFactory:
        """Take this optimizer in the place of the default."""

        def make(model: nn.Module) -> Optimizer:
            optimizer = self.stepping(model)
            if self.in_backward:
                step_in_backward(optimizer, model)
            note(model, optimizer)
            return optimizer

        return make

    def stepped(self, model: nn.Module) -> None:
        """Note what the optimizer holds."""
        write_note(model)


def state_counts(found: Note, **more: int) -> Effect:
    """The steps, the parameters that have states, and the bytes of all of these."""
    return {
        "steps": found.steps,
        "parameters": found.parameters,
        **more,
        "state_bytes": sum(found.bytes.values()),
    }


def _plain(value: Any) -> Iterator[Tensor]:
    """The plain tensors of a state: of one that is made of others, this process's share of each."""
    from torch import Tensor
    from torch.utils._python_dispatch import is_traceable_wrapper_subclass

    if not isinstance(value, Tensor):
        return
    if not is_traceable_wrapper_subclass(value):
        yield value
        return
    names, _ = value.__tensor_flatten__()
    for name in names:
        yield from _plain(getattr(value, name))


def _format(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
