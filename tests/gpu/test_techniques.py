"""The catalogue on the device: every technique has its trial, and each comes to a Result."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from gpu import predictions, techniques
from gpu.run import PARTS
from gpu.section import Bench
from tradebench.result import Result
from tradebench.techniques import catalogue
from tradebench.techniques import techniques as kinds
from tradebench.trial import Trial


@pytest.mark.parametrize("tiny", [True, False])
def test_every_technique_and_every_switch_has_a_legal_trial(tiny: bool) -> None:
    found = dict(techniques.trials(tiny=tiny))
    switches = {
        (kind.slot, method, name)
        for kind in kinds()
        for method in kind.methods()
        for name, field in kind.model_fields.items()
        if field.annotation is bool
    }

    assert {(kind.slot, method) for kind in kinds() for method in kind.methods()} == {
        tuple(name.split("-")) for name in found if name.count("-") == 1
    }
    assert switches == {tuple(name.split("-")) for name in found if name.count("-") == 2}
    assert {name: trial.conflicts() for name, trial in found.items() if trial.conflicts()} == {}
    for name, trial in found.items():
        slot, method, *switch = name.split("-")
        fields = catalogue()[slot][method].model_fields
        assert trial.method(slot) == method
        for thrown in switch:
            settings: Any = next(part for part in trial.techniques if part.slot == slot)
            assert getattr(settings, thrown) is not fields[thrown].default


def test_parts_hold_every_trial_once_and_what_needs_a_gpu_first() -> None:
    parts = techniques.parts(tiny=True)
    names = [name for name, _ in itertools.chain.from_iterable(parts)]
    first = [
        name
        for name, trial in techniques.trials(tiny=True)
        if any(part.cuda_only is not None for part in trial.techniques)
    ]

    assert len(parts) == PARTS
    assert names == list(dict(techniques.trials(tiny=True)))
    assert set(first) <= {name for name, _ in parts[0]}


def test_what_a_machine_refuses_is_skipped_with_the_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tradebench.environment.gpu", lambda: None)
    trial = dict(techniques.trials(tiny=True))["pruning-semi_structured"]
    result = techniques.made(trial, "cpu")

    assert result.status == "skipped"
    assert "no CPU has them; predict it with tradebench plan" in (result.reason or "")


def small(name: str) -> Trial:
    return dict(techniques.trials(tiny=True))[name]


def test_a_trial_that_fails_costs_no_other_one_its_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(techniques, "parts", lambda tiny: [list(GIVEN.items())])
    monkeypatch.setattr(techniques, "made", lambda trial, device: GONE[trial.id])
    bench = Bench(device="cpu", tiny=True, out=tmp_path, seconds=60.0)
    GONE.update({GIVEN["a"].id: of(GIVEN["a"], "failed"), GIVEN["b"].id: of(GIVEN["b"], "ok")})

    with pytest.raises(RuntimeError, match=r"^a: it went wrong$"):
        techniques.run(bench, "1")
    assert {path.name for path in (tmp_path / "techniques").iterdir()} == {"a.json", "b.json"}


GIVEN = {"a": small("loss-chunked"), "b": small("data-packing")}
GONE: dict[str, Result] = {}


def of(trial: Trial, status: str, **values: float) -> Result:
    return Result.model_validate(
        {
            "suite": "gpu-techniques",
            "trial": trial.id,
            "label": trial.label,
            **trial.payload(),
            "status": status,
            "reason": None if status == "ok" else "it went wrong",
            "measurements": {name: {"value": value, "unit": "B"} for name, value in values.items()},
        }
    )


@pytest.mark.slow
def test_every_trial_has_its_prediction_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "techniques" / "semi_structured.json"
    path.parent.mkdir()
    path.write_text(of(small("pruning-semi_structured"), "ok", peak_allocated_bytes=1e9).to_json())
    (tmp_path / "techniques" / "z.json").write_text(of(GIVEN["a"], "skipped").to_json())
    found = predictions.beside(path, device="h200-141gb", calibration=None)

    assert found is not None
    (figure,) = found["figures"]
    assert (found["name"], found["reason"]) == ("techniques/semi_structured", None)
    assert (figure["name"], figure["measured"]) == ("peak_allocated_bytes", 1e9)
    assert 0 < figure["predicted"] < 1e9
    assert not figure["within"]
    assert predictions.beside(path.with_stem("z"), device="h200-141gb", calibration=None) is None
