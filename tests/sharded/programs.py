"""Programs for tests of sharded trials, each of which runs for real on several ranks."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from tradebench.program import loop
from tradebench.program import perform as program
from tradebench.program.loop import Training
from tradebench.rank import Rank
from tradebench.result import Heartbeat, Listener, Measurement, Outcome
from tradebench.trial import Trial
from tradebench.worlds.meters import Clock
from tradebench.worlds.ranks import place, together
from tradebench.worlds.shards import parts


def record(
    trial: Trial, outcome: Outcome, *, repeat: int, directory: Path, heartbeat: Listener
) -> None:
    """Write the losses, the gradients by step and name, and the effects to a file by the trial."""
    gradients: list[dict[str, torch.Tensor]] = []

    def note(model: torch.nn.Module) -> None:
        gradients.append(
            {
                name: _whole(parameter.grad).clone()
                for name, parameter in model.named_parameters()
                if parameter.grad is not None
            }
        )

    def trained(model: torch.nn.Module) -> None:
        outcome.effects |= {part.slot: part.effect(model) for part in trial.techniques}

    with together(Rank.read()), after_every_step(note):
        training = train(trial, trained=trained)
        if place()[0] == 0:
            found = {"losses": training.losses, "gradients": gradients}
            torch.save(found, directory / f"{trial.id}.pt")


def hold(
    trial: Trial, outcome: Outcome, *, repeat: int, directory: Path, heartbeat: Listener
) -> None:
    """Count what this rank holds of weights, of gradients and of optimizer states."""
    optimizers: list[Any] = []
    make = program.make_optimizer

    def kept(*arguments: Any) -> Any:
        optimizers.append(make(*arguments))
        return optimizers[-1]

    def count(name: str, tensors: Iterable[torch.Tensor]) -> None:
        held = sum(part.nbytes for tensor in tensors for part in parts(tensor))
        outcome.measurements[f"held_{name}_bytes"] = Measurement(value=held, unit="B")

    def note(model: torch.nn.Module) -> None:
        count("gradients", (each.grad for each in model.parameters() if each.grad is not None))

    with together(Rank.read()), after_every_step(note), instead(program, "make_optimizer", kept):
        train(trial, trained=lambda model: count("weights", model.parameters()))
    count("optimizer", optimizers[0].state_tensors())


def generate(
    trial: Trial, outcome: Outcome, *, repeat: int, directory: Path, heartbeat: Listener
) -> None:
    """Have every rank generate another number of tokens, as tasks dealt out would."""
    with together(Rank.read()):
        models: list[Any] = []
        train(trial, trained=models.append)
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

    with together(Rank.read()):
        train(trial, stepped=stepped)


def train(
    trial: Trial,
    *,
    trained: Callable[[Any], None] = lambda model: None,
    stepped: Callable[[int], None] = lambda step: None,
) -> Training:
    """Go through a trial as this rank, without tasks."""

    @contextmanager
    def enter(phase: object) -> Iterator[Callable[[int], None]]:
        yield stepped

    return program.perform(
        trial,
        program.prepare(trial),
        seed=trial.budget.seed,
        meter=Clock("cpu"),
        enter=enter,
        judges=program.Judges(
            before=lambda model, seed: None, trained=trained, after=lambda model: None
        ),
    )


@contextmanager
def after_every_step(note: Callable[[torch.nn.Module], None]) -> Iterator[None]:
    """Have the model seen when its gradients are accumulated."""
    accumulate = loop.accumulate

    def watched(model: torch.nn.Module, *rest: Any) -> float:
        value = accumulate(model, *rest)
        note(model)
        return value

    with instead(loop, "accumulate", watched):
        yield


@contextmanager
def instead(module: object, name: str, function: Callable[..., Any]) -> Iterator[None]:
    """Put a function in the place of another one of a module."""
    before = getattr(module, name)
    setattr(module, name, function)
    try:
        yield
    finally:
        setattr(module, name, before)


def _whole(tensor: Any) -> torch.Tensor:
    found: torch.Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return found


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
