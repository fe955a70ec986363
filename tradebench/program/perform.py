"""The trial program: load, compress, evaluate, fine-tune, evaluate. It names no technique."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice, repeat
from typing import TYPE_CHECKING

import torch
from torch import nn

from tradebench.program import data
from tradebench.program.data import Calibration
from tradebench.program.loop import AdamW, Training, probe, train
from tradebench.program.model import (
    load_model,
    load_tokenizer,
    longest_input,
    plan_loading,
    vocabulary,
)
from tradebench.result import Phase
from tradebench.techniques import LoadRequest, Optimizer, Stage
from tradebench.trial import Model, Trial
from tradebench.worlds.meters import Meter
from tradebench.worlds.ranks import place

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from tradebench.program.evaluation import Evaluator
    from tradebench.techniques.protocol import Batch, Example, OptimizerFactory

Enter = Callable[[Phase], AbstractContextManager[Callable[[int], None]]]
Judge = Callable[[nn.Module], None]
# The seed is None where the compressed model is the same for every seed.
JudgeOfCompressed = Callable[[nn.Module, int | None], None]
Load = Callable[[Model, LoadRequest], nn.Module]


@dataclass(frozen=True, kw_only=True)
class Materials:
    """What every pass over a trial shares: everything but the model."""

    device: str
    request: LoadRequest
    examples: Sequence[Example]
    padding: int
    evaluator: Evaluator | None


@dataclass(frozen=True, kw_only=True)
class Judges:
    """Who looks at the model: before training, once it is trained, and after training."""

    before: JudgeOfCompressed
    trained: Judge
    after: Judge


def prepare(trial: Trial) -> Materials:
    """Read the tokenizer, the training data and the tasks.

    Raises:
        UserError: one of them cannot be found or read.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return gather(trial, device, load_tokenizer(trial.model))


def gather(trial: Trial, device: str, tokenizer: PreTrainedTokenizerBase | None) -> Materials:
    """The training data and the tasks as this tokenizer cuts them; without one, no tasks.

    Raises:
        UserError: one of them cannot be found or read.
    """
    evaluator = None
    if trial.evaluate.tasks and tokenizer is not None:
        # lm-eval takes seconds to import, and is not on every machine that only trains.
        from tradebench.program.evaluation import Evaluator

        evaluator = Evaluator(trial.evaluate, tokenizer, longest_input(trial.model))
    padding = 0 if tokenizer is None or tokenizer.pad_token_id is None else tokenizer.pad_token_id
    examples = data.load_examples(trial.budget, tokenizer, vocabulary(trial.model))
    calibration = partial(data.batches, examples, trial.budget, padding, trial.budget.seed, device)
    return Materials(
        device=device,
        request=replace(plan_loading(trial, device), calibration=calibration),
        examples=examples,
        padding=padding,
        evaluator=evaluator,
    )


def perform(
    trial: Trial,
    materials: Materials,
    *,
    seed: int,
    meter: Meter,
    enter: Enter,
    judges: Judges,
    training: Training | None = None,
    load: Load = load_model,
) -> Training:
    """Go through the whole trial once, telling `meter` where it is.

    `enter` announces each phase to whoever watches and takes the steps done inside it. `training`
    is filled step by step. `load` brings the model, with its weights or without.
    """
    techniques = trial.techniques
    drawn = partial(data.batches, materials.examples, trial.budget, materials.padding)
    calibration = Calibration(partial(drawn, seed, materials.device))
    request = replace(materials.request, calibration=calibration)
    training = training or Training()
    with enter("load"), meter.phase("load"):
        torch.manual_seed(seed)
        model = load(trial.model, request)
    with enter("compress"), meter.phase("compress"):
        for part in trial.between(Stage.LOAD, Stage.QUANTIZE):
            model = part.model(model, request)
        if trial.sharded:
            # What is evaluated before training is in shares as well: no rank could hold it whole.
            model = _finish(trial, model, request, seed)
    if materials.evaluator is not None:
        with enter("evaluate_before"), meter.phase("evaluate_before"):
            seeded = calibration.looked_at or trial.model.weights == "random"
            judges.before(model, seed if seeded else None)
    with enter("train") as listen, meter.phase("train"):
        if not trial.sharded:
            model = _finish(trial, model, request, seed)
        meter.holds("weights", model.parameters())
        # Before an optimizer that drops each gradient once it is accumulated.
        meter.trains(parameter for parameter in model.parameters() if parameter.requires_grad)
        optimizer = make_optimizer(trial, model)
        meter.holds("weights", model.buffers())
        stream = feed(trial, materials, seed)
        train(model, optimizer, stream, trial.budget, techniques, meter, listen, training)
        if data.uneven(arranged(trial, materials.examples)):
            for micro in longest(trial, materials):
                probe(model, optimizer, micro, techniques, meter)
    del optimizer, stream
    judges.trained(model)
    if materials.evaluator is not None:
        with enter("evaluate_after"), meter.phase("evaluate_after"):
            # The last one first: an adapter is merged before the mask below it is applied again.
            for part in reversed(techniques):
                model = part.trained(model)
            judges.after(model)
    return training


def _finish(trial: Trial, model: nn.Module, request: LoadRequest, seed: int) -> nn.Module:
    """Apply what follows compression: the model as it is trained."""
    torch.manual_seed(seed)
    for part in trial.between(Stage.ADAPT, Stage.FEED):
        model = part.model(model, request)
    return model


def feed(trial: Trial, materials: Materials, seed: int) -> Iterator[Batch]:
    """The micro-batches that this rank trains on, as the trial's techniques change them."""
    stream = data.batches(
        materials.examples,
        trial.budget,
        materials.padding,
        seed,
        materials.device,
        partial(arranged, trial),
        place(),
    )
    for part in trial.techniques:
        stream = part.batches(stream)
    return stream


def arranged(trial: Trial, epoch: Sequence[Example]) -> Sequence[Example]:
    """An epoch of training examples, as the trial's techniques change it."""
    for part in trial.techniques:
        epoch = part.examples(epoch, trial.budget)
    return epoch


def longest(trial: Trial, materials: Materials) -> list[list[Batch]]:
    """The micro-batches that need most memory, as many of each as one optimizer step takes.

    That is the longest with the most answers; and, where techniques make another shape of it, the
    one with the most tokens.
    """
    examples = arranged(trial, materials.examples)
    answers = _repeated(trial, materials, data.longest(examples, trial.budget))
    tokens = _repeated(trial, materials, data.fullest(examples, trial.budget))
    alike = _shapes(answers[0]) == _shapes(tokens[0])
    return [answers] if alike else [answers, tokens]


def _shapes(batch: Batch) -> dict[str, torch.Size]:
    """What of a batch decides memory: packed rows bring positions, and with them a mask."""
    return {name: values.shape for name, values in batch.items()}


def _repeated(trial: Trial, materials: Materials, chosen: Sequence[Example]) -> list[Batch]:
    """A step of nothing but these examples, through every technique."""
    stream: Iterator[Batch] = (
        data.collate(examples, materials.padding, materials.device) for examples in repeat(chosen)
    )
    for part in trial.techniques:
        stream = part.batches(stream)
    return list(islice(stream, trial.budget.accumulation))


def make_optimizer(trial: Trial, model: nn.Module) -> Optimizer:
    """AdamW over what trains, or what a technique puts in its place, as all others wrap it.

    Those others, a mask of gradients or their scaling, come earlier in the stage order and would be
    lost inside an optimizer that is replaced.
    """
    instead = list(trial.between(Stage.OPTIMIZER, Stage.OPTIMIZER))
    factory: OptimizerFactory = AdamW
    for part in (*instead, *(part for part in trial.techniques if part not in instead)):
        factory = part.optimizer(factory)
    return factory(model)
