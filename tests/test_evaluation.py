"""Accuracy: lm-eval's own figures, item by item, without disturbing what is trained."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Mapping
from typing import Any

import datasets
import lm_eval
import pytest
import torch
from lm_eval.api.task import ConfigurableTask
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from torch import nn

from tradebench import reference
from tradebench.errors import UserError
from tradebench.program.evaluation import Evaluator, wilson
from tradebench.program.model import load_model, load_tokenizer, plan_loading
from tradebench.trial import Evaluate, Model, Trial
from tradebench.worlds.memory import Tracker

TASKS = ("facts", "sort", "answers", "guilds")
LENGTH = 256


@pytest.fixture(scope="module")
def model() -> nn.Module:
    """The reference model, damaged so that its answers are neither all right nor all wrong."""
    trial = Trial(model=Model(name="reference"))
    loaded = load_model(trial.model, plan_loading(trial, "cpu"))
    torch.manual_seed(0)
    for parameter in loaded.parameters():
        parameter.data += 0.3 * parameter.data.std() * torch.randn_like(parameter)
    return loaded


def evaluator(**settings: Any) -> Evaluator:
    tokenizer: Any = load_tokenizer(Model(name="reference"))
    return Evaluator(Evaluate.model_validate(settings), tokenizer, LENGTH)


def harness(model: nn.Module, batch: int) -> HFLM:
    return HFLM(
        pretrained=model,
        tokenizer=load_tokenizer(Model(name="reference")),
        batch_size=batch,
        max_length=LENGTH,
        add_bos_token=True,
        softmax_dtype="float32",
    )


@pytest.fixture(scope="module")
def both(model: nn.Module) -> tuple[Any, Mapping[str, Any]]:
    """The same items scored here and by lm-eval's own entry point."""
    scores = evaluator(tasks=TASKS, limit=40).score(model, ())
    found = lm_eval.simple_evaluate(
        model=harness(model, 16),
        tasks=list(TASKS),
        task_manager=TaskManager(include_path=str(reference.TASKS), include_defaults=False),
        limit=40,
        bootstrap_iters=0,
        log_samples=True,
    )
    model.train()
    return scores, found


# lm-eval's own figures.


@pytest.mark.parametrize(
    ("name", "task", "key"),
    [
        ("accuracy.facts", "facts", "acc,none"),
        ("accuracy.guilds", "guilds", "acc,none"),
        ("accuracy.sort", "sort", "exact_match,strip"),
        ("accuracy.answers.greedy", "answers", "acc,none"),
    ],
)
def test_an_accuracy_is_that_of_lm_eval_to_the_last_digit(
    name: str, task: str, key: str, both: tuple[Any, Mapping[str, Any]]
) -> None:
    scores, found = both

    assert scores.measurements[name].value == found["results"][task][key]


def test_the_damaged_model_is_sometimes_right_and_sometimes_wrong(
    both: tuple[Any, Mapping[str, Any]],
) -> None:
    values = [both[0].measurements[f"accuracy.{task}"].value for task in ("facts", "sort")]

    assert all(0 < value < 1 for value in values)


@pytest.mark.parametrize(("task", "metric"), [("facts", "acc"), ("sort", "exact_match")])
def test_every_item_has_the_outcome_that_lm_eval_gives_it(
    task: str, metric: str, both: tuple[Any, Mapping[str, Any]]
) -> None:
    scores, found = both
    here = {i["doc_id"]: i["metrics"][metric] for i in scores.items if i["task"] == task}
    there = {sample["doc_id"]: sample[metric] for sample in found["samples"][task]}

    assert list(here) == list(range(40))
    assert here == there


def test_the_nll_of_a_choice_is_that_of_the_right_one_by_hand(
    model: nn.Module, both: tuple[Any, Mapping[str, Any]]
) -> None:
    rows = [
        (row["prompt"], row["choices"][row["gold"]]) for row in reference.read_items("facts")[:40]
    ]
    found = [item["nll"] for item in both[0].items if item["task"] == "facts"]

    assert found == pytest.approx([by_hand(model, *row) for row in rows], abs=2e-5)


def test_the_nll_of_an_answer_is_computed_in_fp32_by_hand(
    model: nn.Module, both: tuple[Any, Mapping[str, Any]]
) -> None:
    rows = [(row["prompt"], row["answer"]) for row in reference.read_items("answers")[:40]]
    expected = [by_hand(model, *row) for row in rows]
    found = both[0].measurements["answer_nll.answers"].value

    assert found == pytest.approx(sum(expected) / 40, rel=1e-5)


def by_hand(model: nn.Module, prompt: str, answer: str) -> float:
    tokenizer: Any = load_tokenizer(Model(name="reference"))
    tokens = tokenizer(f"{prompt} {answer}")["input_ids"]
    start = len(tokenizer(prompt)["input_ids"])
    with torch.no_grad():
        scores = model(torch.tensor([tokens])).logits[0].float().log_softmax(-1)
    return -sum(float(scores[place - 1, tokens[place]]) for place in range(start, len(tokens)))


def test_scores_are_plain_json(both: tuple[Any, Mapping[str, Any]]) -> None:
    scores, _ = both
    measured = {name: value.model_dump() for name, value in scores.measurements.items()}

    assert all(type(value["value"]) is float for value in measured.values())
    assert json.loads(json.dumps(scores.items, allow_nan=False)) == scores.items


def test_a_limit_takes_the_first_items(model: nn.Module) -> None:
    items = evaluator(tasks=("facts",), limit=5).score(model, ()).items

    assert [item["doc_id"] for item in items] == [0, 1, 2, 3, 4]


# Nothing is disturbed.


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("action", ["score", "rehearse"])
def test_the_mode_of_the_model_comes_back(action: str, training: bool, model: nn.Module) -> None:
    model.train(training)
    getattr(evaluator(tasks=("facts",), limit=2), action)(model, ())
    after = model.training
    model.train()

    assert after is training


def test_an_evaluation_leaves_the_random_state_alone(model: nn.Module) -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    evaluator(tasks=("facts", "sort"), limit=2).score(model, ())

    assert torch.equal(torch.rand(3), expected)


def test_an_evaluation_leaves_no_gradient_and_no_weight_changed(model: nn.Module) -> None:
    before = [parameter.clone() for parameter in model.parameters()]
    evaluator(tasks=("facts", "sort"), limit=2).score(model, ())

    assert all(map(torch.equal, before, model.parameters()))
    assert all(parameter.grad is None for parameter in model.parameters())


# Tasks of our own.


def task(shots: int | None = 0, **config: Any) -> ConfigurableTask:
    """Twelve items of words that the reference model knows."""
    rows = [
        {"text": f"question : {row['prompt'].split()[-4]}", "gold": row["gold"], **row}
        for row in reference.read_items("facts")[:12]
    ]
    made = {
        "task": "own",
        "custom_dataset": lambda **_: datasets.DatasetDict(
            {"test": datasets.Dataset.from_list(rows)}
        ),
        "test_split": "test",
        "fewshot_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "prompt",
        "doc_to_choice": "choices",
        "doc_to_target": "gold",
        "metric_list": [{"metric": "acc"}],
        **({} if shots is None else {"num_fewshot": shots}),
    }
    return ConfigurableTask(config={**made, **config})


def with_task(made: ConfigurableTask, **settings: Any) -> Evaluator:
    own = evaluator(**settings)
    own._settle(made)
    own.tasks = {"own": made}
    return own


def test_every_evaluation_sees_the_same_few_shot_examples(model: nn.Module) -> None:
    own = with_task(task(3))
    own.rehearse(model, ())
    first, second = (own.score(model, ()).items for _ in range(2))

    assert first == second


def test_few_shot_examples_would_differ_if_the_seed_were_set_once(
    model: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = with_task(task(3))
    own._draw_examples_anew()
    monkeypatch.setattr(own, "_draw_examples_anew", lambda: None)
    first, second = (own.score(model, ()).items for _ in range(2))

    assert first != second


@pytest.mark.parametrize(
    ("own", "wanted", "expected"),
    [(None, None, 0), (None, 2, 2), (3, None, 3), (3, 2, 2), (0, 2, 0)],
)
def test_the_number_of_shots_is_settled_as_lm_eval_does(
    own: int | None, wanted: int | None, expected: int
) -> None:
    made = task(own)
    with_task(made, num_fewshot=wanted)

    assert made.get_config("num_fewshot") == expected


def test_several_filters_of_a_task_keep_their_figures_apart(model: nn.Module) -> None:
    def filtered(name: str, pattern: str) -> dict[str, Any]:
        steps = [{"function": "regex", "regex_pattern": pattern}, {"function": "take_first"}]
        return {"name": name, "filter": steps}

    own = with_task(
        task(
            output_type="generate_until",
            doc_to_choice=None,
            doc_to_target="{{choices[gold]}}",
            generation_kwargs={"until": ["."], "max_gen_toks": 2},
            metric_list=[{"metric": "exact_match"}],
            filter_list=[filtered("word", r"(\w+)"), filtered("never", r"(@)")],
        )
    )
    scores = own.score(model, ())
    rights = [item["metrics"]["exact_match"] for item in scores.items]

    assert len(scores.items) == 12
    assert scores.measurements["accuracy.own"].value == pytest.approx(sum(rights) / 12)
    assert sum(rights) > 0
    assert scores.measurements["accuracy.own.exact_match.never"].value == 0


def test_a_right_choice_given_as_a_word_is_found(model: nn.Module) -> None:
    by_index = with_task(task()).score(model, ())
    by_word = with_task(task(doc_to_target="{{choices[gold]}}")).score(model, ())

    assert [i["nll"] for i in by_word.items] == [i["nll"] for i in by_index.items]


def test_a_metric_that_falls_when_it_improves_says_so(model: nn.Module) -> None:
    own = with_task(
        task(
            output_type="loglikelihood_rolling",
            doc_to_text="",
            doc_to_choice=None,
            doc_to_target="prompt",
            metric_list=[{"metric": "word_perplexity", "higher_is_better": False}],
        )
    )
    measurement = own.score(model, ()).measurements["accuracy.own"]

    assert measurement.better == "less"
    assert measurement.value > 1


# What cannot be scored.


def test_a_task_out_of_reach_is_skipped_with_its_reason_and_never_scored(model: nn.Module) -> None:
    scores = evaluator(tasks=("hellaswag", "facts"), limit=2).score(model, ())

    (reason,) = scores.skipped
    assert reason.startswith("task hellaswag was skipped: its data is not available (Couldn't rea")
    assert not any("hellaswag" in name for name in scores.measurements)
    assert {item["task"] for item in scores.items} == {"facts"}


def test_an_evaluation_of_nothing_measures_nothing(model: nn.Module) -> None:
    nothing = evaluator(tasks=("hellaswag",))
    nothing.rehearse(model, ())

    assert nothing.score(model, ()).measurements == {}


@pytest.mark.slow
def test_an_unknown_task_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(
        UserError, match=r"^lm-eval knows no task 'helaswag', did you mean 'hellasw"
    ):
        evaluator(tasks=("helaswag",))


# The memory that an evaluation needs.


@pytest.mark.parametrize("name", ["facts", "recall", "sort", "answers", "brackets"])
def test_the_longest_request_is_as_long_as_any_that_the_model_sees(
    name: str, model: nn.Module
) -> None:
    own = evaluator(tasks=(name,), limit=50)
    seen: list[int] = []

    def look(module: nn.Module, inputs: Any, named: Mapping[str, Any]) -> None:
        tokens = inputs[0] if inputs else named["input_ids"]
        cache = named.get("past_key_values")
        seen.append(tokens.shape[1] + (cache.get_seq_length() if cache is not None else 0))

    hook = model.register_forward_pre_hook(look, with_kwargs=True)
    own.score(model, ())
    hook.remove()

    (longest,) = own.longest.values()
    assert max(seen) <= longest <= max(seen) + 8


@pytest.mark.parametrize("name", ["facts", "recall", "sort", "answers"])
def test_a_rehearsal_needs_at_least_the_memory_of_the_evaluation(
    name: str, model: nn.Module
) -> None:
    own = evaluator(tasks=(name,), limit=50)

    assert peak(own.score, model) <= peak(own.rehearse, model)


def peak(action: Callable[..., object], model: nn.Module) -> int:
    gc.collect()
    tracker = Tracker("cpu")
    tracker.label(model.parameters(), "weights")
    with tracker:
        action(model, ())
    return tracker.peak


def test_the_interval_of_a_share_stays_inside_0_and_1() -> None:
    assert wilson(1.0, 10) == pytest.approx((0.722467, 1.0), abs=1e-6)
    assert wilson(0.5, 100) == pytest.approx((0.403832, 0.596168), abs=1e-6)
    assert wilson(0.3, 0) == (0.0, 1.0)
