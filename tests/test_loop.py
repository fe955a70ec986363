"""The training loop: gradients of the whole batch, the schedule, divergence, and the probe."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn

from tradebench.program.data import collate
from tradebench.program.loop import (
    AdamW,
    Training,
    accumulate,
    answer_tokens,
    learning_rate,
    loss_function,
    probe,
    summed_loss,
    train,
)
from tradebench.program.perform import feed, prepare
from tradebench.result import DivergedError
from tradebench.techniques import Technique
from tradebench.techniques.chunked_loss import ChunkedLoss
from tradebench.techniques.magnitude import Magnitude
from tradebench.techniques.protocol import IGNORED, Example
from tradebench.trial import Budget, Trial
from tradebench.worlds.meters import Clock

if TYPE_CHECKING:
    from tradebench.techniques.protocol import Batch

Make = Callable[..., Trial]
Compress = Callable[[Trial], nn.Module]

METER = Clock("cpu")


def example(length: int, answers: int, seed: int) -> Example:
    """Random tokens, the last of which are the answer."""
    source = torch.Generator().manual_seed(seed)
    tokens = tuple(torch.randint(6, 200, (length,), generator=source).tolist())
    return Example(tokens, (*[IGNORED] * (length - answers), *tokens[length - answers :]))


UNEVEN = [example(5, 1, 0), example(30, 20, 1), example(12, 2, 2), example(9, 8, 3)]


def gradients(model: nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten().double() for p in model.parameters() if p.grad is not None])


def accumulated(model: nn.Module, micro: list[Batch]) -> tuple[float, Tensor]:
    optimizer = AdamW(model)
    value = accumulate(model, optimizer, micro, summed_loss, (), METER)
    found = gradients(model)
    optimizer.zero_grad()
    return value, found


@pytest.fixture
def model(tiny_trial: Make, compressed: Compress) -> nn.Module:
    return compressed(tiny_trial({}))


# One batch, however it is cut.


def test_accumulation_gives_the_gradient_of_the_whole_batch(model: nn.Module) -> None:
    whole_loss, whole = accumulated(model, [collate(UNEVEN, 0, "cpu")])
    loss, found = accumulated(model, [collate([one], 0, "cpu") for one in UNEVEN])

    assert loss == pytest.approx(whole_loss, rel=1e-6)
    assert float(torch.cosine_similarity(found, whole, dim=0)) == pytest.approx(1, abs=1e-9)
    assert float(found.norm() / whole.norm()) == pytest.approx(1, abs=1e-5)


def test_the_gradient_is_that_of_the_mean_over_answer_tokens_computed_by_hand(
    model: nn.Module,
) -> None:
    losses = []
    for one in UNEVEN:
        logits = model(torch.tensor([one.tokens])).logits[0].log_softmax(-1)
        losses += [
            -logits[place - 1, label] for place, label in enumerate(one.labels) if label != IGNORED
        ]
    expected = torch.stack(losses).mean()
    expected.backward()
    by_hand = gradients(model)
    model.zero_grad()
    loss, found = accumulated(model, [collate(UNEVEN[:1], 0, "cpu"), collate(UNEVEN[1:], 0, "cpu")])

    assert loss == pytest.approx(expected.item(), rel=1e-6)
    torch.testing.assert_close(found, by_hand, rtol=1e-4, atol=1e-7)


def test_a_mean_of_micro_batch_means_would_be_another_gradient(model: nn.Module) -> None:
    _, whole = accumulated(model, [collate(UNEVEN, 0, "cpu")])
    parts = [accumulated(model, [collate([one], 0, "cpu")])[1] for one in UNEVEN]
    naive = torch.stack(parts).mean(0)

    assert float((naive - whole).norm() / whole.norm()) > 0.1


def test_padding_without_a_mask_gives_what_a_mask_gives(model: nn.Module) -> None:
    batch = collate(UNEVEN, 0, "cpu")
    _, found = accumulated(model, [batch])
    logits = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
    masked = nn.functional.cross_entropy(
        logits.flatten(0, 1), batch["labels"][:, 1:].flatten(), ignore_index=IGNORED
    )
    masked.backward()

    torch.testing.assert_close(found, gradients(model), rtol=1e-4, atol=1e-7)


def test_the_number_in_the_padding_does_not_matter(model: nn.Module) -> None:
    _, zeros = accumulated(model, [collate(UNEVEN, 0, "cpu")])
    _, others = accumulated(model, [collate(UNEVEN, 77, "cpu")])

    torch.testing.assert_close(zeros, others, rtol=1e-5, atol=1e-8)


def test_the_first_token_is_not_an_answer_token() -> None:
    assert answer_tokens(collate([Example((5, 6, 7), (5, 6, IGNORED))], 0, "cpu")) == 1


# A chunked loss is the loss.


@pytest.mark.parametrize("tokens", [1, 7, 1000])
def test_a_chunked_loss_has_the_loss_and_the_gradient_of_the_plain_one(
    tokens: int, model: nn.Module
) -> None:
    micro = [collate(UNEVEN, 0, "cpu")]
    plain_loss, plain = accumulated(model, micro)
    chunked = loss_function([ChunkedLoss(tokens=tokens)])
    loss = accumulate(model, AdamW(model), micro, chunked, (), METER)

    assert loss == pytest.approx(plain_loss, rel=1e-6)
    assert float((gradients(model) - plain).norm() / plain.norm()) < 1e-6


def test_a_chunked_loss_is_close_in_bf16(tiny_trial: Make, compressed: Compress) -> None:
    model = compressed(tiny_trial({"precision": {"method": "bf16"}}))
    micro = [collate(UNEVEN, 0, "cpu")]
    plain_loss, plain = accumulated(model, micro)
    chunked = loss_function([ChunkedLoss(tokens=7)])
    loss = accumulate(model, AdamW(model), micro, chunked, (), METER)

    assert loss == pytest.approx(plain_loss, rel=1e-3)
    assert float(torch.cosine_similarity(gradients(model), plain, dim=0)) > 0.9999


# Steps.


def run(model: nn.Module, trial: Trial, optimizer: Any = None) -> Training:
    training = Training()
    train(
        model,
        optimizer or AdamW(model),
        feed(trial, prepare(trial), 0),
        trial.budget,
        trial.techniques,
        METER,
        lambda step: None,
        training,
    )
    return training


def test_a_linear_schedule_falls_from_the_rate_towards_zero() -> None:
    budget = Budget(steps=4, learning_rate=0.8)

    assert [learning_rate(budget, step) for step in range(4)] == pytest.approx([0.8, 0.6, 0.4, 0.2])


def test_a_constant_schedule_stays() -> None:
    budget = Budget(steps=3, learning_rate=0.8, schedule="constant")

    assert [learning_rate(budget, step) for step in range(3)] == [0.8, 0.8, 0.8]


def test_every_step_uses_the_rate_of_the_schedule(model: nn.Module, tiny_trial: Make) -> None:
    rates: list[float] = []

    class Recording(AdamW):
        def step(self) -> None:
            rates.append(self.inner.param_groups[0]["lr"])
            super().step()

    run(model, tiny_trial({}, schedule="linear", learning_rate=3e-3), Recording(model))

    assert rates == pytest.approx([3e-3, 2e-3, 1e-3])


def test_training_counts_the_tokens_of_all_micro_batches(
    model: nn.Module, tiny_trial: Make
) -> None:
    training = run(model, tiny_trial({}, accumulation=3))

    assert training.tokens == (3 * 2 * 32,) * 3


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_ends_as_diverged_and_names_the_step(
    broken: float, model: nn.Module, tiny_trial: Make
) -> None:
    class Breaking(AdamW):
        steps = 0

        def step(self) -> None:
            self.steps += 1
            if self.steps == 2:
                next(model.parameters()).data.fill_(broken)

    with pytest.raises(DivergedError, match="the loss became nan at step 3"):
        run(model, tiny_trial({}, steps=5), Breaking(model))


def test_steps_before_a_divergence_are_kept(model: nn.Module, tiny_trial: Make) -> None:
    training, trial = Training(), tiny_trial({}, steps=5)

    def listen(step: int) -> None:
        if step == 2:
            next(model.parameters()).data.fill_(math.nan)

    with pytest.raises(DivergedError):
        train(
            model,
            AdamW(model),
            feed(trial, prepare(trial), 0),
            trial.budget,
            (),
            METER,
            listen,
            training,
        )

    assert (len(training.losses), len(training.tokens)) == (2, 2)
    assert all(map(math.isfinite, training.losses))


def test_masks_are_applied_again_after_every_step(
    tiny_trial: Make, compressed: Compress, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[nn.Module] = []
    monkeypatch.setattr(Magnitude, "stepped", lambda self, model: calls.append(model))
    trial = tiny_trial({"pruning": {"method": "magnitude", "sparsity": 0.5}})
    model = compressed(trial)
    run(model, trial, trial.techniques[0].optimizer(AdamW)(model))

    assert calls == [model] * 3


# The probe.


def test_a_probe_moves_no_weight_and_leaves_no_gradient(model: nn.Module) -> None:
    before = [parameter.clone() for parameter in model.parameters()]
    probe(model, AdamW(model), [collate(UNEVEN, 0, "cpu")] * 3, (), METER)

    assert all(map(torch.equal, before, model.parameters()))
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(("accumulation", "passes"), [(1, 1), (2, 2), (5, 2)])
def test_a_probe_runs_a_second_micro_batch_beside_gradients(
    accumulation: int, passes: int, model: nn.Module
) -> None:
    beside: list[bool] = []
    model.register_forward_pre_hook(
        lambda module, inputs: beside.append(next(module.parameters()).grad is not None)
    )
    probe(model, AdamW(model), [collate(UNEVEN, 0, "cpu")] * accumulation, (), METER)

    assert beside == [False, True][:passes]


def test_the_base_technique_keeps_the_loss() -> None:
    assert loss_function([Technique.model_construct(method="x")]) is summed_loss
