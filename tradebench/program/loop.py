"""The training loop: it names no technique."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from tradebench.result import DivergedError
from tradebench.techniques import Optimizer, Technique
from tradebench.techniques.protocol import IGNORED, model_inputs
from tradebench.techniques.stepping import BETAS, EPSILON, Stepping, trainable
from tradebench.trial import Budget
from tradebench.worlds.meters import Meter
from tradebench.worlds.ranks import total

if TYPE_CHECKING:
    from tradebench.techniques.protocol import Batch, LossFunction


@dataclass
class Training:
    """Loss, tokens and padding beside them, of every step so far: a death keeps them."""

    losses: tuple[float, ...] = ()
    tokens: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()


def train(
    model: nn.Module,
    optimizer: Optimizer,
    batches: Iterator[Batch],
    budget: Budget,
    techniques: Sequence[Technique],
    meter: Meter,
    listen: Callable[[int], None],
    training: Training,
) -> None:
    """Take the budget's steps; the loss is the mean over the answer tokens of the whole batch.

    The whole batch is that of all ranks.

    Raises:
        DivergedError: a loss was NaN or infinite.
    """
    loss = loss_function(techniques)
    for step in range(budget.steps):
        with meter.step():
            micro = [next(batches) for _ in range(budget.accumulation)]
            tokens = sum(int(batch["attention_mask"].sum()) for batch in micro)
            places = sum(batch["attention_mask"].numel() for batch in micro)
            optimizer.set_learning_rate(learning_rate(budget, step))
            value = accumulate(model, optimizer, micro, loss, techniques, meter)
            device = micro[0]["input_ids"].device
            tokens, places = int(total(tokens, device)), int(total(places, device))
            del micro  # so that the memory of the optimizer's step does not depend on the batch
            with meter.part("optimizer"):
                optimizer.step()
                for part in techniques:
                    part.stepped(model)
            meter.holds("optimizer", optimizer.state_tensors())
            optimizer.zero_grad()
        if not math.isfinite(value):
            raise DivergedError(f"the loss became {value} at step {step + 1}")
        training.losses += (value,)
        training.tokens += (tokens,)
        training.padding += (places - tokens,)
        listen(step + 1)


def probe(
    model: nn.Module,
    optimizer: Optimizer,
    micro: Sequence[Batch],
    techniques: Sequence[Technique],
    meter: Meter,
) -> None:
    """Run forward and backward over the longest batches and drop the gradients: no weight moves.

    Twenty steps rarely meet the longest batch of a data set; these foresee its memory. The second
    micro-batch is the first to run beside gradients, and all further ones are like it.
    """
    # An optimizer that steps inside the backward pass steps here, too: by nothing.
    optimizer.set_learning_rate(0.0)
    accumulate(model, optimizer, micro[:2], loss_function(techniques), techniques, meter)
    optimizer.zero_grad()


def loss_function(techniques: Iterable[Technique]) -> LossFunction:
    """The summed loss as the techniques change it."""
    loss: LossFunction = summed_loss
    for part in techniques:
        loss = part.loss(loss)
    return loss


def accumulate(
    model: nn.Module,
    optimizer: Optimizer,
    micro: Sequence[Batch],
    loss: LossFunction,
    techniques: Sequence[Technique],
    meter: Meter,
) -> float:
    """Add up the gradients of the micro-batches and return their loss, over all ranks.

    Every micro-batch is divided by the answer tokens of all of them together, so the gradient is
    that of the whole batch however unevenly the tokens fall.
    """
    device = micro[0]["input_ids"].device
    count = total(sum(answer_tokens(batch) for batch in micro), device)
    summed = 0.0
    for batch in micro:
        with meter.part("forward"), surrounding(techniques, device.type):
            value = loss(model, batch) / count
        with meter.part("backward"):
            optimizer.backward(value)
        summed += float(value.detach())
    return total(summed, device)


def summed_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Cross-entropy in fp32, summed over the answer tokens of a batch.

    Logits have shape (sequences, tokens, vocabulary); each predicts the next token's label.
    """
    logits = model(**model_inputs(batch), use_cache=False).logits[:, :-1]
    labels = batch["labels"][:, 1:]
    return cross_entropy(
        logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="sum"
    )


def answer_tokens(batch: Batch) -> int:
    """Tokens of a batch that carry loss: those with a label, after the shift by one."""
    return int((batch["labels"][:, 1:] != IGNORED).sum())


def learning_rate(budget: Budget, step: int) -> float:
    """The learning rate of a step, counted from 0."""
    if budget.schedule == "constant":
        return budget.learning_rate
    return budget.learning_rate * (1 - step / budget.steps)


@contextmanager
def surrounding(techniques: Iterable[Technique], device: str) -> Iterator[None]:
    """Every technique's context around a forward pass."""
    with ExitStack() as stack:
        for part in techniques:
            stack.enter_context(part.forward(device))
        yield


class AdamW(Stepping):
    """AdamW in torch's fused implementation on every device.

    torch picks another implementation on CPU than on CUDA unless told, and their memory peaks
    differ by a quarter; naming one keeps every world comparable. No weight decay.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__(
            torch.optim.AdamW(
                trainable(model), lr=0.0, betas=BETAS, eps=EPSILON, weight_decay=0.0, fused=True
            )
        )
