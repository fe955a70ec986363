"""One pass of the trial program in this process, under whatever meter a section brings."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from torch import Tensor, nn

from tradebench.program.loop import Training
from tradebench.program.perform import Judges, gather, perform
from tradebench.result import Outcome, Phase
from tradebench.trial import Trial
from tradebench.worlds.meters import Meter, Part


def once(
    trial: Trial, device: str, meter: Meter, outcome: Outcome, training: Training | None = None
) -> None:
    """Go through a trial without tasks; `outcome` has its phase and what its techniques did."""

    @contextmanager
    def enter(phase: Phase) -> Iterator[Callable[[int], None]]:
        outcome.phase = phase
        yield lambda step: None

    def trained(model: nn.Module) -> None:
        for part in trial.techniques:
            outcome.effects[part.slot] = part.effect(model)

    perform(
        trial,
        gather(trial, device, None),
        seed=trial.budget.seed,
        meter=meter,
        enter=enter,
        judges=Judges(before=_ignore, trained=trained, after=_ignore),
        training=training,
    )


class Silent:
    """A meter that measures nothing and touches no device."""

    bytes: int | None = None

    def phase(self, name: Phase) -> AbstractContextManager[None]:
        """Nothing."""
        return nullcontext()

    def part(self, name: Part) -> AbstractContextManager[None]:
        """Nothing."""
        return nullcontext()

    def step(self) -> AbstractContextManager[None]:
        """Nothing."""
        return nullcontext()

    def trains(self, parameters: Iterable[nn.Parameter]) -> None:
        """Nothing."""

    def holds(self, category: str, tensors: Iterable[Tensor]) -> None:
        """Nothing."""


def _ignore(*seen: object) -> None: ...
