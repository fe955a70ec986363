"""What counts as worse, as users write it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tradebench.errors import UserError
from tradebench.regression.policy import Amount, Policy, load, selects

SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "quantization": {"method": "nf4", "bits": 4},
    "adapters": {"method": "lora"},
}


@pytest.mark.parametrize(
    ("text", "base", "expected"),
    [
        ("5%", 200.0, 10.0),
        ("5 %", -200.0, 10.0),
        ("1pt", 0.8, 0.01),
        ("64MiB", 1e12, 64 * 2**20),
        ("1.5 GB", 0.0, 1.5e9),
        ("3ms", 1.0, 0.003),
        ("0", 1.0, 0.0),
        (0.25, 1.0, 0.25),
        ("1e-3", 1.0, 0.001),
    ],
)
def test_amounts_are_shares_or_units(text: str | float, base: float, expected: float) -> None:
    assert Amount.parse(text).of(base) == pytest.approx(expected)


@pytest.mark.parametrize("text", ["", "%", "five", "5 percent", "-5%", "1e", True, "5%%", "1 mb"])
def test_anything_else_is_no_amount(text: str | float) -> None:
    with pytest.raises(ValueError, match="is no amount"):
        Amount.parse(text)


def test_margin_and_floor_have_both_to_be_exceeded() -> None:
    rule = Policy().rule("peak_reserved_bytes", {}, "measured")

    assert rule is not None
    assert rule.least(80 * 2**30) == pytest.approx(0.8 * 2**30)
    assert rule.least(2**30) == 64 * 2**20


@pytest.mark.parametrize(
    ("metric", "test"),
    [
        ("peak_tensor_bytes", "exact"),
        ("peak_process_bytes.load", "exact"),
        ("step_seconds", "runs"),
        ("accuracy.facts", "items"),
        ("accuracy_before.answers.greedy", "items"),
        ("answer_nll.facts", "items"),
        ("load_seconds", None),
        ("peak_activations_bytes", None),
        ("tokens_per_second", None),
    ],
)
def test_every_metric_has_its_test_or_none(metric: str, test: str | None) -> None:
    rule = Policy().rule(metric, {}, "measured")

    assert (rule.test if rule else None) == test


def test_predictions_are_compared_as_they_stand() -> None:
    rule = Policy().rule("step_seconds", {}, "predicted")

    assert rule is not None
    assert rule.test == "exact"


def test_a_later_line_wins_key_by_key() -> None:
    policy = Policy(
        metrics={"accuracy.*": {"margin": "2pt"}, "train_loss": {"margin": "1%"}},
        overrides={
            "quantization.bits=4": {"accuracy.*": {"margin": "3pt"}},
            "adapters=off": {"accuracy.*": {"margin": "9pt"}},
        },
    )
    quantized = policy.rule("accuracy.facts", SETTINGS, "measured")
    plain = policy.rule("accuracy.facts", {"adapters": {"method": "lora"}}, "measured")

    assert quantized is not None
    assert plain is not None
    assert (quantized.margin, plain.margin) == ("3pt", "2pt")
    assert quantized.test == "items"
    assert policy.rule("train_loss", {}, "measured") is not None


def test_a_metric_can_be_left_out() -> None:
    policy = Policy(metrics={"step_seconds": {"judge": False}})

    assert policy.rule("step_seconds", {}, "measured") is None


@pytest.mark.parametrize(
    ("selector", "expected"),
    [
        ("quantization=nf4", True),
        ("quantization.bits=4, adapters=LoRA", True),
        ("quantization.bits=2", False),
        ("pruning=off", True),
        ("adapters=off", False),
    ],
)
def test_selectors_name_slots_and_fields(selector: str, expected: bool) -> None:
    assert selects(selector, SETTINGS) == expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[metrics]\nx = {margn = 1}", "x: margn: there is no such key: a rule has margin"),
        ("[metrics]\nx = {margin = '5 percent'}", "x: margin: '5 percent' is no amount"),
        ("[metrics]\nx = {test = 'mann-whitney'}", "x: test: Input should be 'exact'"),
        ("[overrides.bits]\nx = {}", "'bits' selects nothing: write slot=method"),
        ("[metric]", "unknown table 'metric', did you mean 'metrics'?"),
        ("[other]", "unknown table 'other': it has [metrics] and [overrides]"),
        ("margin =", "is not readable TOML"),
        ("[metrics]\nx = 5", "metrics.x: Input should be a valid dictionary"),
        ("tool = 5", "[tool.tradebench.check] is no table"),
        ("[tool]\ntradebench = 5", "[tool.tradebench.check] is no table"),
    ],
)
def test_a_mistake_is_one_line_with_its_place(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "p.toml"
    file.write_text(text)

    with pytest.raises(UserError) as caught:
        load(file)

    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_pyproject_holds_a_policy_in_its_own_table(tmp_path: Path) -> None:
    file = tmp_path / "pyproject.toml"
    file.write_text(
        "[project]\nname = 'x'\n[tool.tradebench.check.metrics]\nstep_seconds = {margin = '9%'}\n"
    )

    assert load(file).metrics == {"step_seconds": {"margin": "9%"}}
