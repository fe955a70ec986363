"""Predicting a trial's memory: its rehearsal in the fake world, without weights and without a GPU.

There are no formulas here. The program that measures runs on fake tensors, techniques and all, and
on a CPU the two agree to the byte.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from tradebench.errors import UserError
from tradebench.program.measure import rehearse
from tradebench.program.model import (
    draw,
    lay_out,
    load_tokenizer,
    plan_loading,
    read_shares,
    stored_dtype,
)
from tradebench.program.perform import Load, Materials, gather
from tradebench.result import Outcome
from tradebench.techniques import LoadRequest, Stage
from tradebench.trial import HubData, Model, Trial
from tradebench.worlds.fake import Outliers, fake_world, load
from tradebench.worlds.meters import MemoryMeter


def predict_memory(trial: Trial) -> Outcome:
    """Tensor peaks of every phase, and of training by category, as the trial's rehearsal has them.

    Of the model only its config is read, never a weight. Training data and tasks are read as ever,
    because their lengths decide the shapes; where the tokenizer or a data set of the Hub cannot be
    reached, sequences of full length stand in for them and a warning says so. What only a device
    has is not predicted: the slack of its allocator, and what kernels keep to themselves.

    Raises:
        UserError: the config, a file or a task cannot be found or read.
    """
    outcome = Outcome(warnings=[*trial.cautions()])
    reached = reach(trial)
    outcome.warnings += reached.warnings
    perform_fake(trial, reached.materials, MemoryMeter("cpu", fake=True), outcome)
    return outcome


@dataclass(frozen=True)
class Reached:
    """What a rehearsal needs beside the model, and a sentence for whatever was out of reach."""

    materials: Materials
    warnings: list[str]


def perform_fake(
    trial: Trial,
    materials: Materials,
    meter: MemoryMeter,
    outcome: Outcome,
    device: Literal["cpu", "cuda"] = "cpu",
    outliers: Outliers = "none",
) -> None:
    """Take a trial through its rehearsal without weights, as on this device, telling `meter`."""
    request = replace(plan_loading(trial, "cpu"), calibration=materials.request.calibration)
    loader = _loader(trial, request)
    with fake_world(device, trial.ranks, outliers):
        rehearse(
            trial, replace(materials, request=request), outcome, lambda beat: None, meter, loader
        )


def reach(trial: Trial) -> Reached:
    """What a rehearsal needs beside the model, as far as it can be reached.

    The same for all trials of one model, budget and evaluation.

    Raises:
        UserError: the config, a file or a task cannot be found or read.
    """
    warnings = []
    tokenizer = None
    try:
        tokenizer = load_tokenizer(trial.model)
        materials = gather(trial, "cpu", tokenizer)
    except UserError as error:
        reached = tokenizer is not None or trial.model.weights == "random"
        if reached and not isinstance(trial.budget.data, HubData):
            raise
        warnings.append(f"{error}: memory is predicted for sequences of full length")
        if tokenizer is None and trial.evaluate.tasks:
            warnings.append("memory is predicted without evaluation: it needs the tokenizer")
        budget = trial.budget.model_copy(update={"data": "random"})
        materials = gather(trial.model_copy(update={"budget": budget}), "cpu", tokenizer)
    if materials.evaluator is not None:
        warnings += materials.evaluator.skipped
    return Reached(materials, warnings)


def _loader(trial: Trial, request: LoadRequest) -> Load:
    """Loads the fake model; its shapes are laid out here, outside the fake world."""
    skeleton = lay_out(trial.model, request)
    stored = stored_dtype(trial.model)

    def unread(name: str, shape: torch.Size, first: int, count: int, room: int) -> Tensor:
        return torch.empty((room, *shape[1:]), dtype=stored)

    def quantize(dense: nn.Module) -> nn.Module:
        for part in trial.between(Stage.QUANTIZE, Stage.QUANTIZE):
            dense = part.model(dense, replace(request, quantization=None))
        return dense

    def load_fake(model: Model, request: LoadRequest) -> nn.Module:
        if trial.model.weights == "random":
            return draw(skeleton, request)
        if request.place is not None:
            return read_shares(skeleton, unread, request)
        return load(skeleton, stored, quantize if request.quantization is not None else None)

    return load_fake
