"""From a trial to its measurements, in two passes over the same program.

The first is a rehearsal: two training steps, the longest training batch and one evaluation batch,
while every tensor byte is counted. The second is the real one, undisturbed: it gives times,
accuracies and the counters of the device.
"""

from __future__ import annotations

import gc
import math
import os
import random
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from tradebench.program.artifacts import SharedScores, write_items
from tradebench.program.loop import Training
from tradebench.program.model import load_model
from tradebench.program.perform import Enter, Judges, Load, Materials, perform, prepare
from tradebench.rank import Rank
from tradebench.result import Heartbeat, Listener, Measurement, Outcome, Phase
from tradebench.trial import Budget, Trial
from tradebench.worlds.meters import Clock, MemoryMeter, Meter
from tradebench.worlds.ranks import place, together

if TYPE_CHECKING:
    from tradebench.program.evaluation import Scores

REHEARSAL_STEPS = 2  # the first step creates optimizer states, the second meets them
RESAMPLES = 2000
FINAL_SHARE = 0.25  # of the steps: their mean loss is the training loss


def measure(
    trial: Trial, outcome: Outcome, *, repeat: int, directory: Path, heartbeat: Listener
) -> None:
    """Run a trial in this process and fill `outcome` as it goes.

    Repeat k draws and trains with the budget's seed + k. Per-item outcomes go to `directory`/items,
    evaluations that other trials may share to `directory`/before.

    Raises:
        UserError: the model, the data or a task cannot be found.
        DivergedError: a loss was NaN or infinite.
        ContradictionError: a technique did not do what its settings say.
    """
    with together(Rank.read()):
        _measure(trial, outcome, repeat, directory, heartbeat)


def _measure(
    trial: Trial, outcome: Outcome, repeat: int, directory: Path, heartbeat: Listener
) -> None:
    outcome.warnings += trial.cautions()
    outcome.phase = "load"
    heartbeat(Heartbeat(phase="load"))
    materials = prepare(trial)
    if materials.evaluator is not None:
        outcome.warnings += materials.evaluator.skipped
    ranks, cores = place()[1], len(os.sched_getaffinity(0))
    if materials.device == "cpu" and ranks > cores:
        outcome.warnings.append(
            f"{ranks} processes share {cores} cores: step times say nothing about sharding"
        )
    rehearse(trial, materials, outcome, heartbeat)
    gc.collect()
    clock, training = Clock(materials.device), Training()
    judges = RealJudges(trial, materials, outcome, directory, repeat)
    try:
        perform(
            trial,
            materials,
            seed=trial.budget.seed + repeat,
            meter=clock,
            enter=_announcer(outcome, heartbeat, clock, trial.budget.steps),
            judges=judges.judges(),
            training=training,
        )
    finally:
        outcome.measurements |= clock.measurements()
        outcome.measurements |= summarise(trial.budget, training, clock.samples)
    if clock.retries:
        outcome.warnings.append(
            f"the allocator ran full and retried {clock.retries} times: reserved memory is "
            "clipped by the device's capacity"
        )


def rehearse(
    trial: Trial,
    materials: Materials,
    outcome: Outcome,
    heartbeat: Listener,
    meter: MemoryMeter | None = None,
    load: Load = load_model,
) -> None:
    """Count every tensor byte over a short run of the whole program.

    The same in either world: in the fake one, `load` brings a model without weights.
    """
    meter = meter or MemoryMeter(materials.device)
    budget = trial.budget.model_copy(update={"steps": REHEARSAL_STEPS})

    def one_batch(model: nn.Module, seed: int | None = None) -> None:
        assert materials.evaluator is not None, "judges are asked only where there are tasks"
        materials.evaluator.rehearse(model, trial.techniques)

    try:
        with meter.running():
            perform(
                trial.model_copy(update={"budget": budget}),
                materials,
                seed=budget.seed,
                meter=meter,
                enter=_announcer(outcome, heartbeat, meter, budget.steps),
                judges=Judges(before=one_batch, trained=lambda model: None, after=one_batch),
                load=load,
            )
    finally:
        outcome.measurements |= meter.measurements()
    outcome.warnings += meter.disagreements()


class RealJudges:
    """Looks at the model for real: lm-eval before and after, every technique's effect between."""

    def __init__(
        self, trial: Trial, materials: Materials, outcome: Outcome, directory: Path, repeat: int
    ) -> None:
        self.trial = trial
        self.evaluator = materials.evaluator
        self.outcome = outcome
        self.directory = directory
        self.name = f"{trial.id}.{repeat}"

    def judges(self) -> Judges:
        """The three moments."""
        return Judges(before=self.before, trained=self.trained, after=self.after)

    def before(self, model: nn.Module, seed: int | None) -> None:
        """Score the compressed model, or take the scores of a trial that shares it."""
        shared = SharedScores(self.directory, self.trial, seed)
        found = shared.read()
        if found is None:
            scores = self._score(model)
            found = scores.measurements, self._write(scores, "before")
            shared.write(scores, found[1])
        measurements, self.outcome.artifacts["items_before"] = found
        for name, value in measurements.items():
            kind, rest = name.split(".", 1)
            self.outcome.measurements[f"{kind}_before.{rest}"] = value

    def trained(self, model: nn.Module) -> None:
        """Have every technique prove what it did."""
        for part in self.trial.techniques:
            self.outcome.effects[part.slot] = part.effect(model)
        self.outcome.measurements["trainable_parameters"] = Measurement(
            value=sum(p.numel() for p in model.parameters() if p.requires_grad), unit="1"
        )

    def after(self, model: nn.Module) -> None:
        """Score the trained model."""
        scores = self._score(model)
        self.outcome.measurements |= scores.measurements
        self.outcome.artifacts["items_after"] = self._write(scores, "after")

    def _write(self, scores: Scores, moment: str) -> str:
        """Leave every item's outcome; where ranks evaluate together, all have the same."""
        name = f"{self.name}.{moment}"
        return write_items(self.directory, name, scores.items if place()[0] == 0 else None)

    def _score(self, model: nn.Module) -> Scores:
        assert self.evaluator is not None, "judges are asked only where there are tasks"
        return self.evaluator.score(model, self.trial.techniques)


def summarise(
    budget: Budget, training: Training, samples: Sequence[float]
) -> dict[str, Measurement]:
    """Step time, tokens and loss of the steps taken, the warm-up left out of all but the loss.

    Nothing where no step was finished.
    """
    if not training.losses:
        return {}
    steps = len(training.losses)
    warmup = min(budget.warmup, steps - 1)
    timed, tokens = samples[warmup:steps], training.tokens[warmup:]
    padding = sum(training.padding[warmup:])
    final = training.losses[-math.ceil(FINAL_SHARE * steps) :]
    return {
        "step_seconds": Measurement(
            value=statistics.median(timed),
            unit="s",
            samples=tuple(timed),
            interval=median_interval(timed),
        ),
        # Total work over total time: a mean of ratios would weigh short steps too much.
        "tokens_per_second": Measurement(
            value=sum(tokens) / math.fsum(timed), unit="1/s", better="more"
        ),
        "tokens_per_step": Measurement(value=statistics.fmean(tokens), unit="1", better="more"),
        "padding_share": Measurement(value=padding / (sum(tokens) + padding), unit="1"),
        "train_loss": Measurement(
            value=statistics.fmean(final), unit="nat", samples=training.losses
        ),
    }


def median_interval(samples: Sequence[float]) -> tuple[float, float] | None:
    """The 95 % percentile bootstrap interval of the median; None for fewer than two samples."""
    if len(samples) < 2:
        return None
    source = random.Random(0)
    medians = sorted(
        statistics.median(source.choices(samples, k=len(samples))) for _ in range(RESAMPLES)
    )
    return medians[int(0.025 * RESAMPLES)], medians[int(0.975 * RESAMPLES)]


def _announcer(outcome: Outcome, heartbeat: Listener, meter: Meter, steps: int) -> Enter:
    @contextmanager
    def enter(phase: Phase) -> Iterator[Callable[[int], None]]:
        outcome.phase = phase
        heartbeat(Heartbeat(phase=phase, bytes=meter.bytes))
        yield lambda step: heartbeat(
            Heartbeat(phase=phase, step=step, steps=steps, bytes=meter.bytes)
        )

    return enter
