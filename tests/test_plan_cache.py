"""Predictions that are kept: found again as long as nothing changes that they follow from."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

import tradebench
from tradebench.plan import cache as module
from tradebench.plan.cache import Cache, folder, key
from tradebench.target import ALLOCATOR, Target
from tradebench.trial import Trial

H100 = Target(device="h100-80gb")
PREDICTION = {"status": "ok", "measurements": {"step_seconds": {"value": 0.25, "unit": "s"}}}


@pytest.fixture(autouse=True)
def cache_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = tmp_path / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(home))
    return home


@pytest.fixture
def code(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Reads the code's digest anew, here and for whoever comes after."""
    module._code.cache_clear()
    yield
    monkeypatch.undo()
    module._code.cache_clear()


def trial_of(settings: Mapping[str, Any] | None = None, **parts: Any) -> Trial:
    return Trial.from_payload(
        {"model": {"name": "reference"}, "budget": {}, "evaluate": {}, "settings": settings or {}}
        | parts
    )


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder with a config, a tokenizer, and weights."""
    path = tmp_path / "model"
    path.mkdir()
    (path / "config.json").write_text('{"hidden_size": 128}')
    (path / "tokenizer.json").write_text("{}")
    (path / "chat_template.jinja").write_text("{{ messages }}")
    (path / "model.safetensors").write_bytes(b"\0" * 64)
    return path


def hit(trial: Trial, target: Target = H100) -> bool:
    """Whether a plan that begins now would find the trial's prediction."""
    return Cache().get(trial, target) is not None


def test_what_was_put_is_found_by_a_later_plan() -> None:
    first = Cache()

    assert first.get(trial_of(), H100) is None

    first.put(trial_of(), H100, PREDICTION)

    assert first.get(trial_of(), H100) == Cache().get(trial_of(), H100) == PREDICTION


def test_the_last_prediction_of_a_point_stands() -> None:
    cache = Cache()
    for value in (1, 2):
        cache.put(trial_of(), H100, {"status": "ok", "measurements": {}, "value": value})

    assert Cache().get(trial_of(), H100) == {"status": "ok", "measurements": {}, "value": 2}


def test_another_point_is_another_question() -> None:
    Cache().put(trial_of(), H100, PREDICTION)
    others = [
        trial_of({"precision": {"method": "bf16"}}),
        trial_of(budget={"batch": 2}),
        trial_of(model={"name": "reference", "layers": 1}),
        trial_of(evaluate={"limit": 3}),
    ]

    assert hit(trial_of())
    assert [hit(other) for other in others] == [False] * 4


def test_another_target_is_another_question() -> None:
    Cache().put(trial_of(), H100, PREDICTION)
    others = [Target(), Target(device="h200-141gb"), Target(device=H100.device, allocator="")]

    assert hit(trial_of(), Target(device=H100.device, allocator=ALLOCATOR))
    assert [hit(trial_of(), other) for other in others] == [False] * 3


def test_a_target_knows_no_other_field() -> None:
    with pytest.raises(ValueError, match="devise"):
        Target.model_validate({"devise": "h100-80gb"})


def test_a_changed_calibration_makes_predictions_anew(tmp_path: Path) -> None:
    file = tmp_path / "calibration.json"
    target = Target(device=H100.device, calibration=str(file))
    file.write_text('{"call_seconds": 1}')
    Cache().put(trial_of(), target, PREDICTION)

    assert hit(trial_of(), target)

    file.write_text('{"call_seconds": 2}')

    assert not hit(trial_of(), target)


def test_a_changed_config_makes_predictions_anew(model: Path) -> None:
    trial = trial_of(model={"name": "tiny", "config": str(model), "weights": "random"})
    Cache().put(trial, H100, PREDICTION)

    assert hit(trial)

    (model / "config.json").write_text('{"hidden_size": 256}')

    assert not hit(trial)


def test_a_shipped_config_is_read_as_well(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    trial = trial_of(model={"name": "tiny", "config": "llama-3.2-1b", "weights": "random"})
    Cache().put(trial, H100, PREDICTION)

    assert hit(trial)

    (tmp_path / "llama-3.2-1b.json").write_text("{}")
    monkeypatch.setattr("tradebench.configs.FOLDER", tmp_path)

    assert not hit(trial)


def test_a_changed_data_file_makes_predictions_anew(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "short"}\n')
    trial = trial_of(budget={"data": {"file": str(rows)}})
    Cache().put(trial, H100, PREDICTION)

    assert hit(trial)

    rows.write_text('{"text": "as short"}\n')

    assert not hit(trial)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "chat_template.jinja"])
def test_a_changed_model_folder_makes_predictions_anew(name: str, model: Path) -> None:
    trial = trial_of(model={"name": str(model)})
    Cache().put(trial, H100, PREDICTION)

    assert hit(trial)

    (model / name).write_text("something else")

    assert not hit(trial)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What this machine has of the Hub: nothing yet."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    return tmp_path


def put(*parts: Path | str) -> None:
    file = Path(*parts)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("")


def test_a_tokenizer_that_was_fetched_since_makes_predictions_anew(hub: Path) -> None:
    """A prediction without it took sequences of full length."""
    trial = trial_of(model={"name": "some/model", "config": "llama-3.2-1b"})
    snapshot = hub / "hub" / "models--some--model" / "snapshots" / "abc"
    Cache().put(trial, H100, PREDICTION)
    put(hub, "hub", "models--another--model", "snapshots", "abc", "tokenizer.json")
    put(snapshot, "model-00001-of-00002.safetensors")

    assert hit(trial)

    put(snapshot, "tokenizer.json")

    assert not hit(trial)


@pytest.mark.parametrize(
    "parts", [{"budget": {"data": {"hub": "some/data"}}}, {"evaluate": {"tasks": ["gsm8k"]}}]
)
@pytest.mark.parametrize("place", ["hub/datasets--some--data/snapshots/abc/x", "datasets/x/y"])
def test_data_that_was_fetched_since_makes_predictions_anew(
    place: str, parts: dict[str, Any], hub: Path
) -> None:
    trial, other = trial_of(**parts), trial_of(evaluate={"tasks": ["facts"]})
    for each in (trial, other):
        Cache().put(each, H100, PREDICTION)
    put(hub, place)

    assert (hit(trial), hit(other)) == (False, True)


def test_changed_overheads_make_predictions_anew(tmp_path: Path) -> None:
    file = tmp_path / "overheads.json"
    target = Target(device=H100.device, overheads=str(file))
    file.write_text('{"context": [1]}')
    Cache().put(trial_of(), target, PREDICTION)

    assert (hit(trial_of(), target), hit(trial_of())) == (True, False)

    file.write_text('{"context": [2]}')

    assert not hit(trial_of(), target)


def test_other_weights_of_the_same_shapes_change_no_prediction(model: Path) -> None:
    trial = trial_of(model={"name": str(model)})
    Cache().put(trial, H100, PREDICTION)
    (model / "model.safetensors").write_bytes(b"\1" * 64)

    assert hit(trial)


def test_a_data_file_that_is_not_there_is_a_question_without_an_answer(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    trial = trial_of(budget={"data": {"file": str(rows)}})
    without = key(trial, H100)
    rows.write_text("")

    assert not hit(trial)
    assert key(trial, H100) != without


def test_other_versions_of_libraries_make_predictions_anew(
    code: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    Cache().put(trial_of(), H100, PREDICTION)

    assert hit(trial_of())

    monkeypatch.setattr(module, "version", lambda name: "9.9" if name == "peft" else version(name))
    module._code.cache_clear()

    assert not hit(trial_of())


@pytest.mark.parametrize("name", ["plan.py", "reference/checksums.json"])
def test_other_code_makes_predictions_anew(
    name: str, code: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if tradebench were a folder of two files."""
    root = tmp_path / "code"
    for file in ("__init__.py", "plan.py", "reference/checksums.json"):
        (root / file).parent.mkdir(exist_ok=True, parents=True)
        (root / file).write_text("")
    monkeypatch.setattr(tradebench, "__file__", str(root / "__init__.py"))
    Cache().put(trial_of(), H100, PREDICTION)

    assert hit(trial_of())

    (root / name).write_text("other")
    module._code.cache_clear()

    assert not hit(trial_of())


def test_a_torn_last_line_costs_its_own_prediction_only(cache_home: Path) -> None:
    bf16 = trial_of({"precision": {"method": "bf16"}})
    Cache().put(trial_of(), H100, PREDICTION)
    Cache().put(bf16, H100, PREDICTION)
    (file,) = folder().iterdir()
    file.write_bytes(file.read_bytes()[:-20])

    assert (hit(trial_of()), hit(bf16)) == (True, False)

    Cache().put(bf16, H100, PREDICTION)

    assert (hit(trial_of()), hit(bf16)) == (True, True)


@pytest.mark.parametrize("line", ["[]", "{}", "null", '{"key": "abc"}', "no JSON", ""])
def test_lines_of_somebody_else_are_passed_over(line: str) -> None:
    Cache().put(trial_of(), H100, PREDICTION)
    (file,) = folder().iterdir()
    file.write_text(f"{line}\n{file.read_text()}{line}\n")

    assert hit(trial_of())


def test_predictions_lie_below_the_cache_home_and_nowhere_else(
    tmp_path: Path, cache_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("HOME", str(here))
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    cache = Cache()
    cache.get(trial_of(), H100)

    assert not cache_home.exists()

    cache.put(trial_of(), H100, PREDICTION)
    written = {path for path in tmp_path.rglob("*") if path.is_file()} - before

    assert {path.parent for path in written} == {cache_home / "tradebench" / "predictions"}
    assert [json.loads(path.read_text())["prediction"] for path in written] == [PREDICTION]


def test_without_a_cache_home_predictions_lie_in_the_users(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path))

    assert folder() == tmp_path / ".cache" / "tradebench" / "predictions"
