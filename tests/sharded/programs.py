"""Programs for tests of sharded trials, each of which runs for real on several ranks."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from tradebench.program import loop
from tradebench.program.perform import Judges, perform, prepare
from tradebench.rank import Rank
from tradebench.result import Heartbeat, Listener, Outcome
from tradebench.trial import Trial
from tradebench.worlds.meters import Clock
from tradebench.worlds.ranks import place, together


def record(
    trial: Trial, outcome: Outcome, *, repeat: int, directory: Path, heartbeat: Listener
) -> None:
    """Write the losses, the gradients by step and name, and the effects to a file by the trial."""
    gradients: list[dict[str, torch.Tensor]] = []
    accumulate = loop.accumulate

    def watched(model: torch.nn.Module, *rest: Any) -> float:
        value = accumulate(model, *rest)
        gradients.append(
            {
                name: _whole(parameter.grad).clone()
                for name, parameter in model.named_parameters()
                if parameter.grad is not None
            }
        )
        return value

    def trained(model: torch.nn.Module) -> None:
        outcome.effects |= {part.slot: part.effect(model) for part in trial.techniques}

    setattr(loop, "accumulate", watched)  # noqa: B010  # a function of other arguments
    try:
        with together(Rank.read()):
            training = perform(
                trial,
                prepare(trial),
                seed=trial.budget.seed,
                meter=Clock("cpu"),
                enter=_enter,
                judges=Judges(before=_ignore, trained=trained, after=_ignore),
            )
            if place()[0] == 0:
                found = {"losses": training.losses, "gradients": gradients}
                torch.save(found, directory / f"{trial.id}.pt")
    finally:
        setattr(loop, "accumulate", accumulate)  # noqa: B010


def generate(
    trial: Trial, outcome: Outcome, *, repeat: int, directory: Path, heartbeat: Listener
) -> None:
    """Have every rank generate another number of tokens, as tasks dealt out would."""
    with together(Rank.read()):
        models: list[Any] = []
        perform(
            trial,
            prepare(trial),
            seed=trial.budget.seed,
            meter=Clock("cpu"),
            enter=_enter,
            judges=Judges(before=_ignore, trained=models.append, after=_ignore),
        )
        wanted = 2 + 5 * place()[0]
        tokens = (
            models[0]
            .eval()
            .generate(
                torch.tensor([[5, 6, 7]]),
                max_new_tokens=wanted,
                min_new_tokens=wanted,
                use_cache=True,
            )
        )
        (directory / f"generated{place()[0]}.txt").write_text(str(tokens.shape[1] - 3))


def _whole(tensor: Any) -> torch.Tensor:
    found: torch.Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return found


@contextmanager
def _enter(phase: object) -> Iterator[Callable[[int], None]]:
    yield lambda step: None


def _ignore(*seen: object) -> None: ...


def misbehave(
    trial: Trial, outcome: Outcome, *, repeat: int, directory: Path, heartbeat: Listener
) -> None:
    """Train, and let the last rank go wrong in its second step as the model's revision says."""
    outcome.phase = "train"
    heartbeat(Heartbeat(phase="train", step=1, steps=3))

    def stepped(step: int) -> None:
        number, ranks = place()
        if step == 2 and number == ranks - 1:
            FAULTS[trial.model.revision or ""]()

    @contextmanager
    def enter(phase: object) -> Iterator[Callable[[int], None]]:
        yield stepped

    with together(Rank.read()):
        perform(
            trial,
            prepare(trial),
            seed=trial.budget.seed,
            meter=Clock("cpu"),
            enter=enter,
            judges=Judges(before=_ignore, trained=_ignore, after=_ignore),
        )


def _fail() -> None:
    raise ValueError("no good")


def _run_out_of_memory() -> None:
    raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")


FAULTS: dict[str, Callable[[], None]] = {
    "dies": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "hangs": lambda: time.sleep(600),
    "holds": lambda: ctypes.PyDLL(None).sleep(600),
    "fails": _fail,
    "starves": _run_out_of_memory,
}
