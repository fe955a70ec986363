"""A trial: one model, one budget, one evaluation and the techniques of one point of a grid."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any, Literal, Self, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
)

from tradebench import devices
from tradebench.result import canonical_json, digest
from tradebench.techniques import Stage, Technique
from tradebench.techniques.stored import misread

T = TypeVar("T", bound=Technique)

BUDGET = "budget"
# The fields of a budget in which points of one suite may differ. Each changes what a step needs;
# the others say how long training goes on and on what, and are the same for whatever is compared.
SHAPE = ("sequence", "batch", "accumulation")
SPLIT = ("batch", "accumulation")


class Settings(BaseModel):
    """A frozen group of settings; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Model(Settings):
    """Which model, and where its weights come from.

    `name` is `reference` (the project's own small Llama), a Hub id, or the path of a local
    folder; `config` names a shape that tradebench ships (llama-3.3-70b …) or a folder with a
    config.json. `weights: random` fills that shape with random values: memory and step time are
    true, accuracy is refused. `layers` keeps only so many of the shape's decoder layers, for a
    machine that is too small for all of them.
    """

    name: str = Field(description="reference, a Hub id, or a local path")
    revision: str | None = Field(None, description="branch, tag or commit of a Hub model")
    config: str | None = Field(None, description="a shipped shape or a folder with config.json")
    weights: Literal["hub", "random"] = Field("hub", description="real weights, or random values")
    layers: int | None = Field(None, ge=1, description="decoder layers of a random model; all")

    @model_serializer(mode="wrap")
    def _fields(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """The fields; `layers` only where it is given, so that trials keep the ids they had."""
        fields: dict[str, Any] = dump(self)
        if self.layers is None:
            del fields["layers"]
        return fields


class FileData(Settings):
    """A local JSONL file: rows of {"messages": [...]}, {"prompt", "answer"} or {"text"}."""

    file: str


class HubData(Settings):
    """A data set of the Hub with the same columns as a local file."""

    hub: str
    revision: str | None = None
    name: str | None = None
    split: str = "train"


class Budget(Settings):
    """How much training, and on what; one optimizer step sees batch x accumulation sequences.

    `warmup` counts the first steps, which train like all others and are left out of the timing.
    `data: random` draws full-length sequences of random tokens.
    """

    steps: int = Field(20, ge=1)
    warmup: int = Field(5, ge=0, description="first steps that are left out of the timing")
    batch: int = Field(1, ge=1, description="sequences per micro-batch")
    sequence: int = Field(512, ge=2, description="longest sequence in tokens; longer ones are cut")
    accumulation: int = Field(1, ge=1, description="micro-batches per optimizer step")
    learning_rate: float = Field(2e-4, gt=0)
    schedule: Literal["linear", "constant"] = Field(
        "linear", description="linear decays to zero over the steps"
    )
    seed: int = Field(0, ge=0)
    data: Literal["reference", "random"] | FileData | HubData = "reference"


class Evaluate(Settings):
    """What lm-eval is asked to do before and after training; all of it is part of the trial's id.

    `limit` takes the first items of each task, `batch_size` is fixed because scores depend on it.
    """

    tasks: tuple[str, ...] = ()
    limit: int | None = Field(None, ge=1, description="items per task; all when absent")
    num_fewshot: int | None = Field(None, ge=0, description="the task's own number when absent")
    chat_template: bool = False
    batch_size: int = Field(16, ge=1)
    max_length: int | None = Field(None, ge=2, description="the model's own limit when absent")
    seed: int = Field(1234, ge=0)


class Trial(BaseModel):
    """One point of a suite. `techniques` are kept in stage order, at most one per slot.

    `varied` names the fields in which the budget is another than the suite's. It is there for the
    label: the budget says the same, and the id knows nothing of it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", ignored_types=(cached_property,))

    model: Model
    budget: Budget = Budget()
    evaluate: Evaluate = Evaluate()
    techniques: tuple[Technique, ...] = ()
    varied: tuple[str, ...] = Field((), exclude=True)

    def model_post_init(self, context: object, /) -> None:
        """Bring the techniques into stage order, so that equal points are equal values."""
        ordered = tuple(sorted(self.techniques, key=lambda part: (part.stage, part.slot)))
        slots = [part.slot for part in ordered]
        if len(set(slots)) < len(slots):
            raise ValueError(f"a slot is filled twice: {', '.join(slots)}")
        object.__setattr__(self, "techniques", ordered)

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """A copy with other fields, which is another trial and has an id of its own."""
        copied = super().model_copy(update=update, deep=deep)
        vars(copied).pop("id", None)  # pydantic copies what is cached
        return copied

    @property
    def settings(self) -> dict[str, dict[str, Any]]:
        """Slot to the settings of its technique."""
        return {part.slot: part.settings() for part in self.techniques}

    @cached_property
    def id(self) -> str:
        """Twelve digits that name model, budget, evaluation and techniques together."""
        return digest(self.payload())

    @property
    def label(self) -> str:
        """What people read: the techniques in order, then what else the suite varies.

        `baseline` where there is neither.
        """
        words = [part.label for part in self.techniques]
        words += [f"{field} {getattr(self.budget, field)}" for field in self.varied]
        return " + ".join(words) or "baseline"

    @property
    def described(self) -> dict[str, dict[str, Any]]:
        """The settings, and what of the budget a suite may vary, as `exclude` names them."""
        return {**self.settings, BUDGET: {name: getattr(self.budget, name) for name in SHAPE}}

    @property
    def ranks(self) -> int:
        """How many processes the trial runs in; each trains on batches of its own."""
        return math.prod(part.ranks for part in self.techniques)

    @property
    def sharded(self) -> bool:
        """Whether a technique deals the model out, be it to one process."""
        return any(self.between(Stage.SHARD, Stage.SHARD))

    @property
    def in_shares(self) -> bool:
        """Whether each of its ranks loads a share of the model, and no rank the whole."""
        return self.ranks > 1 and all(part.piecemeal for part in self.techniques)

    def payload(self) -> dict[str, Any]:
        """Everything that the id is made of, as JSON."""
        return {
            "model": self.model.model_dump(mode="json"),
            "budget": self.budget.model_dump(mode="json"),
            "evaluate": self.evaluate.model_dump(mode="json"),
            "settings": self.settings,
        }

    @classmethod
    def from_payload(cls, payload: Mapping[str, Any]) -> Trial:
        """The trial that `payload` describes."""
        from tradebench.techniques import catalogue

        return cls(
            model=Model.model_validate(payload["model"]),
            budget=Budget.model_validate(payload["budget"]),
            evaluate=Evaluate.model_validate(payload["evaluate"]),
            techniques=tuple(
                catalogue()[slot][fields["method"]].model_validate(fields)
                for slot, fields in payload["settings"].items()
            ),
        )

    def find(self, kind: type[T]) -> T | None:
        """The trial's technique of this class, if it has one."""
        return next((part for part in self.techniques if isinstance(part, kind)), None)

    def method(self, slot: str) -> str | None:
        """The method that fills `slot`, or None where the slot is off."""
        return next((part.method for part in self.techniques if part.slot == slot), None)

    def between(self, first: Stage, last: Stage) -> Iterator[Technique]:
        """The techniques of these stages, both included, in order."""
        return (part for part in self.techniques if first <= part.stage <= last)

    def conflicts(self) -> tuple[str, ...]:
        """Every reason why this point is illegal; empty where it can run."""
        packed = misread(self.model, self.settings.get("quantization", {}))
        own = [reason for part in self.techniques for reason in part.conflicts(self)]
        return (*packed, *own)

    def beyond(
        self, gpu: str, capability: tuple[int, int] | None, memory_bytes: int
    ) -> tuple[str, ...]:
        """Why a GPU of this name, compute capability and memory cannot run it; AMD's have none.

        Each reason comes with a remedy.
        """
        reasons = []
        for part in self.techniques:
            if capability is None and not part.amd:
                lack = f"runs on NVIDIA's GPUs only and {gpu} is none"
            elif capability is not None and capability < (part.capability or (0, 0)):
                lack = (
                    f"needs a GPU of compute capability {_dotted(part.capability)} or later and "
                    f"{gpu} has {_dotted(capability)}"
                )
            else:
                continue
            other = devices.able(part.capability or (0, 0), memory_bytes).id
            reasons.append(f"{part.method} {lack}; use {other} or another {part.slot}")
        return tuple(reasons)

    def cautions(self) -> tuple[str, ...]:
        """What a reader of this point's numbers must know."""
        return tuple(note for part in self.techniques for note in part.cautions(self))


def _dotted(capability: tuple[int, int] | None) -> str:
    major, minor = capability or (0, 0)
    return f"{major}.{minor}"


def changed(before: Technique, after: Technique) -> tuple[str, ...]:
    """The settings in which two techniques of a slot differ, `method` among them.

    What only one of two methods has to choose comes with it, unless it was chosen otherwise.
    """
    names = {**before.settings(), **after.settings()}
    return tuple(name for name in names if _differs(name, before, after))


def reshaped(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[tuple[str, ...], ...]:
    """The changes from one budget's shape to another's, each by its fields.

    Smaller micro-batches and as many more of them to a step are one change: the step is the same.
    """
    names = tuple(name for name in SHAPE if before.get(name) != after.get(name))
    if names[-2:] == SPLIT and sequences(before) == sequences(after):
        return (*((name,) for name in names[:-2]), SPLIT)
    return tuple((name,) for name in names)


def sequences(budget: Mapping[str, Any]) -> int:
    """How many sequences an optimizer step of a budget sees, on every rank."""
    return math.prod(int(budget.get(name, 1)) for name in SPLIT)


def _differs(name: str, before: Technique, after: Technique) -> bool:
    owners = [part for part in (before, after) if name in type(part).model_fields]
    if len(owners) == 1:
        field = type(owners[0]).model_fields[name]
        default: object = field.get_default(call_default_factory=True)
        return bool(getattr(owners[0], name) != default)
    # JSON tells true and 1 apart.
    one, other = (canonical_json(part.settings().get(name)) for part in owners)
    return one != other
