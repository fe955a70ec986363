"""One technique at a time: what it changes, how complex it is, and what is said about it."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from tradebench import pairs, report, store
from tradebench.errors import UserError
from tradebench.published.claims import Claim, claims, claims_about
from tradebench.report import claims as report_claims
from tradebench.report import figures, fronts
from tradebench.report.changes import Change
from tradebench.report.claims import Comparison, Pairing, comparison, judge
from tradebench.report.complexity import complexity
from tradebench.result import CATEGORIES, Kind, Measurement, Result, digest
from tradebench.store import Run
from tradebench.techniques import techniques
from tradebench.trial import Trial

Settings = Mapping[str, Mapping[str, Any]]

FP32 = {"method": "fp32"}
BF16 = {"method": "bf16"}
LORA = {"method": "lora", "rank": 16}
NF4 = {"method": "nf4", "double": False}
FULL = {"method": "full", "ratio": 1.0}
MEMORY, TIME, ACCURACY = "peak_tensor_bytes", "step_seconds", "accuracy.guilds"
LARGE = {"name": "large", "config": "llama-3.3-70b", "weights": "random"}

# The points of one technique at a time, from two baselines: settings, MiB, seconds.
POINTS: Sequence[tuple[Settings, float, float]] = (
    ({"precision": FP32}, 400, 1.0),
    ({"precision": BF16}, 200, 0.9),
    ({"precision": FP32, "adapters": LORA}, 300, 0.8),
    ({"precision": FP32, "checkpointing": FULL}, 100, 1.3),
    ({"precision": FP32, "adapters": LORA, "quantization": NF4}, 75, 1.0),
    ({"precision": FP32, "adapters": LORA, "checkpointing": FULL}, 60, 1.2),
)
EFFECTS = {
    "precision": {"parameters": {"float32": 10}},
    "adapters": {"layers": 4},
    "checkpointing": {"layers": 4},
    "quantization": {"layers": 4},
    "sharding": {"units": 4},
}


def result(
    settings: Settings,
    peak: float,
    seconds: float,
    *,
    kind: Kind = "measured",
    model: Mapping[str, Any] | None = None,
) -> Result:
    found = {
        MEMORY: Measurement(value=int(peak * 2**20), unit="B"),
        TIME: Measurement(value=seconds, unit="s"),
    }
    shares = {"activations": 0.9, "weights": 0.06, "optimizer": 0.04}
    for category in CATEGORIES:
        value = int(peak * 2**20 * shares.get(category, 0))
        found[f"peak_{category}_bytes"] = Measurement(value=value, unit="B")
    if kind == "measured":
        found[ACCURACY] = Measurement(value=0.5, unit="1", better="more", interval=(0.4, 0.6))
    trial = digest([settings, model])
    precision = settings["precision"]["method"]
    effects = {slot: EFFECTS[slot] for slot in settings}
    if precision == "bf16":
        effects["precision"] = {"parameters": {"bfloat16": 10}}
    return Result(
        kind=kind,
        suite="claims",
        trial=trial,
        label=" + ".join(str(fields["method"]) for fields in settings.values()),
        model=model or {"name": "reference"},
        budget={"steps": 4},
        evaluate={},
        settings=settings,
        status="ok",
        measurements=found,
        effects=effects if kind == "measured" else {},
    )


def run_of(results: Sequence[Result], **header: Any) -> Run:
    full: dict[str, Any] = {"suite": "claims", "design": "each", "started": None, "ended": None}
    full |= {"objectives": [MEMORY, TIME, ACCURACY], **header}
    return Run(
        directory=Path("nowhere"),
        header=full,
        results=tuple(results),
        attempts=tuple(results),
        problems=(),
    )


def measured() -> Run:
    return run_of([result(*point) for point in POINTS])


def planned() -> Run:
    results = [result(*point, kind="predicted", model=LARGE) for point in POINTS]
    return run_of(results, objectives=[MEMORY, TIME])


def compared(run: Run, beside: Run | None = None) -> Comparison:
    found = comparison(run, beside)
    assert found is not None
    return found


def rows(found: Comparison) -> dict[tuple[str, str], tuple[str, ...]]:
    return {(entry.name, entry.without): found.cells(entry) for entry in found.entries}


# What is said.


def test_every_claim_has_a_source_that_can_be_looked_up() -> None:
    for claim in claims():
        assert re.search(r"arXiv:\d{4}\.\d{5}|https://", claim.source), claim
        assert claim.says.endswith(".")
        assert claim.about


def test_a_claim_is_about_techniques_that_are_spelled_as_in_the_catalogue() -> None:
    known = {(kind.slot, method) for kind in techniques() for method in kind.methods()}
    said = {(claim.slot, method) for claim in claims() for method in claim.methods}

    assert {("adapters", "lora"), ("checkpointing", "full"), ("quantization", "nf4")} <= said
    # A slot that the catalogue has may get more methods; the words for both are the field's own.
    assert all(re.fullmatch(r"[a-z0-9_]+", word) for pair in said | known for word in pair)


def test_a_claim_about_nothing_that_is_known_does_no_harm(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    claim = claims()[0].model_copy(update={"slot": "teleportation", "methods": ("beam",)})
    monkeypatch.setattr(report_claims, "claims_about", lambda slot, method: [])

    assert compared(measured()).verdicts == ()
    assert claims_about(claim.slot, "beam") == ()


@pytest.mark.parametrize(
    "fields",
    [
        {"quantity": "memory"},
        {"quantity": "memory", "change": -0.5},
        {"quantity": "accuracy", "change": -0.5, "evidence": "measured"},
        {"quantity": "memory", "change": -0.5, "evidence": "measured", "cannot": "it is so"},
    ],
)
def test_a_number_without_evidence_is_no_claim(fields: dict[str, Any]) -> None:
    claim = {"slot": "loss", "methods": ["chunked"], "says": "x.", "about": "y", "source": "z"}

    with pytest.raises(ValidationError, match="needs change and evidence, or cannot"):
        Claim.model_validate(claim | fields)


# Pairs.


def test_each_technique_is_held_against_the_same_point_without_it() -> None:
    found = rows(compared(measured()))

    assert found["lora r16", "fp32"][:2] == ("-25.0 %", "-20.0 %")
    assert found["checkpointing 1", "fp32"][:2] == ("-75.0 %", "+30.0 %")
    assert found["checkpointing 1", "fp32 + lora"][:2] == ("-80.0 %", "+50.0 %")
    assert found["nf4", "fp32 + lora"][:2] == ("-75.0 %", "+25.0 %")


def test_a_precision_is_held_against_fp32() -> None:
    found = compared(measured())
    text = [found.cells(entry) for entry in found.entries if entry.name == "bf16"]

    # Its effect says that no parameter is fp32 any more, which is what it is for.
    assert text == [("-50.0 %", "-10.0 %", "0 ± 14 points")]


def test_every_pair_differs_in_its_slot_alone() -> None:
    found = compared(measured())

    assert len(found.entries) == 6
    for entry in found.entries:
        for pairing in entry.pairings:
            ours, theirs = pairing.before.settings, pairing.after.settings
            unequal = {slot for slot in theirs if ours.get(slot) != theirs[slot]}
            assert unequal == {pairing.slot}


def test_kinds_stand_in_columns_of_their_own() -> None:
    found = compared(measured(), planned())
    shown = dict(zip(found.heads, found.cells(found.entries[0]), strict=True))

    assert [head.partition(", ")[2].split()[0] for head in found.heads] == [
        *["measured"] * 3,
        *["predicted"] * 2,
    ]
    assert not any("Accuracy" in head and "predicted" in head for head in shown)


def test_a_technique_that_did_not_take_effect_is_not_compared() -> None:
    results = [result(*point) for point in POINTS]
    broken = results[2].model_copy(update={"effects": {"precision": EFFECTS["precision"]}})
    found = compared(run_of([*results[:2], broken]))
    (entry,) = [entry for entry in found.entries if entry.name == "lora r16"]

    assert "shows no effect" in entry.remarks[0]
    assert set(found.cells(entry)) == {""}


def test_only_one_technique_at_a_time_is_compared() -> None:
    assert comparison(run_of(measured().results, design="product")) is None


def test_what_lies_beside_must_predict() -> None:
    with pytest.raises(UserError, match="holds no prediction; make it by tradebench plan"):
        comparison(measured(), measured())


# Verdicts.


def pairing(change: Change | None, kind: Kind = "measured", name: str = MEMORY) -> Pairing:
    points = [result(*point, kind=kind) for point in POINTS[:3:2]]
    (group,) = fronts.groups(run_of(points, objectives=[MEMORY]))
    return Pairing(
        group=group,
        slot="adapters",
        before=group.points[0],
        after=group.points[1],
        refusal="",
        changes={} if change is None else {name: change},
    )


def claim_of(**fields: Any) -> Claim:
    base = {
        "slot": "adapters",
        "methods": ("lora",),
        "says": "Half the memory.",
        "about": "a model",
        "source": "https://example.org",
        "quantity": "memory",
        "change": -0.5,
        "evidence": "measured",
    }
    return Claim.model_validate(base | fields)


@pytest.mark.parametrize(
    ("value", "error", "word"),
    [
        (-0.5, None, "supported"),
        (-0.9, None, "supported"),  # more than was claimed
        (-0.41, None, "supported"),  # within ten points
        (-0.39, None, "not supported"),
        (0.2, 0.1, "not supported"),
        (-0.45, 0.04, "supported"),
        (-0.45, 0.06, "cannot be said here"),  # the interval crosses the mark
        (-0.35, 0.06, "cannot be said here"),
    ],
)
def test_a_number_is_judged_with_the_whole_of_its_interval(
    value: float, error: float | None, word: str
) -> None:
    verdict = judge("lora", claim_of(), [pairing(Change(value=value, error=error))])

    assert verdict.word == word
    assert "claimed -50 %" in verdict.reason


def test_a_cost_may_be_smaller_than_claimed() -> None:
    claim = claim_of(quantity="time", change=0.3)
    words = [
        judge("lora", claim, [pairing(Change(value=value), name=TIME)]).word
        for value in (-0.1, 0.3, 0.39, 0.41)
    ]

    assert words == ["supported", "supported", "supported", "not supported"]


def test_accuracy_of_a_small_model_decides_nothing() -> None:
    claim = claim_of(quantity="accuracy", change=None, evidence=None)
    found = pairing(Change(value=0.0, points=True), name=ACCURACY)

    assert judge("lora", claim, [found]).word == "cannot be said here"
    assert "says nothing about the models" in judge("lora", claim, [found]).reason


def test_without_a_plan_what_depends_on_size_cannot_be_said() -> None:
    verdict = judge("lora", claim_of(evidence="predicted"), [])

    assert verdict.word == "cannot be said here"
    assert "no plan of a larger one" in verdict.reason


def test_measurements_never_decide_what_a_prediction_has_to() -> None:
    alone = {each.claim: each.word for each in compared(measured()).verdicts}
    beside = {each.claim: each for each in compared(measured(), planned()).verdicts}
    (memory,) = [
        claim
        for claim in alone
        if claim.slot == "adapters" and claim.evidence == "predicted" and claim.quantity == "memory"
    ]

    assert alone[memory] == "cannot be said here"
    assert beside[memory].word == "not supported"
    assert "-25.0 % when added to fp32, predicted for large" in beside[memory].reason


def test_a_part_that_is_hardly_in_the_peak_decides_nothing() -> None:
    claim = claim_of(quantity="optimizer")  # four per cent of every peak here
    found = judge("lora", claim, [pairing(Change(value=-0.9), name="peak_optimizer_bytes")])

    assert found.word == "cannot be said here"
    assert "optimizer are 4.0 % of the peak" in found.reason


def test_the_plainest_company_that_can_decide_does() -> None:
    unclear, clear = pairing(None), pairing(Change(value=-0.5))

    assert judge("lora", claim_of(), [unclear, clear]).word == "supported"
    assert judge("lora", claim_of(), [unclear]).reason.startswith("no change of peak tensor")


def test_company_that_decides_otherwise_is_told_as_well() -> None:
    found = [pairing(Change(value=-0.3)), pairing(Change(value=-0.6))]
    verdict = judge("lora", claim_of(), found)

    assert verdict.word == "not supported"
    assert "-30.0 %" in verdict.reason
    assert "Elsewhere supported: peak tensor memory -60.0 %" in verdict.reason


# Complexity.


def test_complexity_is_what_can_be_counted() -> None:
    for kind in techniques():
        for method in kind.methods():
            found = complexity(kind.slot, method)
            refused = [
                pair
                for pair in pairs.pairs()
                if pair.verdict == "refused"
                and (kind.slot, method)
                in {(each.slot, each.method) for each in (pair.first, pair.second)}
            ]
            trial = Trial.from_payload(
                {
                    "model": {"name": "reference"},
                    "budget": {},
                    "evaluate": {},
                    "settings": {kind.slot: {"method": method}},
                }
            )

            assert found.settings == len(set(kind.model_fields) - {"method"})
            assert found.refused == len(refused)
            assert bool(found.needs) == bool(trial.conflicts())
            assert found.needs in ("", "a quantized base" if method == "loftq" else "an adapter")


def test_packages_are_those_that_the_technique_imports() -> None:
    assert complexity("quantization", "nf4").packages == ("bitsandbytes",)
    assert "peft" in complexity("adapters", "lora").packages
    assert complexity("checkpointing", "full").packages == ()


def test_complexity_is_spelled_in_its_counts() -> None:
    text = complexity("quantization", "int8").text

    assert re.fullmatch(
        r"0 settings · 1 package \(bitsandbytes\) · refused with \d+ of \d+ · needs an adapter",
        text,
    )


# Page, Markdown and command.


def test_page_and_markdown_tell_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "draw", lambda *_: [])  # drawn and looked at elsewhere
    report.write(measured(), tmp_path, planned())
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    text = (tmp_path / "report.md").read_text(encoding="utf-8").replace("\\", "")

    for shown in (page, text):
        assert "One technique at a time" in shown
        assert "Complexity is counted" in shown
        assert "arXiv:2106.09685" in shown
        assert "cannot be said here" in shown
        assert "-25.0 %" in shown
        assert "predicted for large" in shown


def keep(folder: Path, name: str, run: Run) -> Path:
    directory = store.create_run(folder, name, dict(run.header))
    lines = "".join(f"{each.to_json()}\n" for each in run.results)
    (directory / "trials.local.jsonl").write_text(lines, encoding="utf-8")
    return directory


@pytest.mark.slow
def test_the_command_takes_a_plan_beside_a_run(tmp_path: Path) -> None:
    ours, plan = keep(tmp_path, "claims", measured()), keep(tmp_path, "claims.plan", planned())
    words = ["report", str(ours), "--beside", str(plan), "--out", str(tmp_path / "report")]
    done = subprocess.run(
        [sys.executable, "-m", "tradebench", *words], capture_output=True, text=True
    )

    assert done.returncode == 0, done.stderr
    assert "predicted for large" in (tmp_path / "report" / "index.html").read_text()


def test_the_command_refuses_a_plan_that_is_none(tmp_path: Path) -> None:
    ours = keep(tmp_path, "claims", measured())
    words = ["report", str(ours), "--beside", str(ours)]
    done = subprocess.run(
        [sys.executable, "-m", "tradebench", *words], capture_output=True, text=True
    )

    assert done.returncode == 2
    assert done.stderr.strip().endswith("holds no prediction; make it by tradebench plan")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.slow
def test_a_setting_of_a_plan_stands_below_that_of_the_run_on_axes_of_its_own(
    tmp_path: Path,
) -> None:
    def sharded(degree: int, size: float, **more: Any) -> Result:
        settings: Settings = {
            "precision": FP32,
            "sharding": {"method": "fsdp2", "degree": degree, "reshard": True, "offload": False},
        }
        return result(settings, size / degree, 1.0 + degree, **more)

    ours = run_of([sharded(degree, 100) for degree in (1, 2, 4)], design="product")
    plan = run_of(
        [sharded(degree, 1e6, kind="predicted", model=LARGE) for degree in (8, 64, 1024)],
        objectives=[MEMORY, TIME],
    )
    paths = report.write(ours, tmp_path, plan)
    figure = (tmp_path / "series-sharding-degree.svg").read_text(encoding="utf-8")
    text = (tmp_path / "report.md").read_text(encoding="utf-8")

    assert [path.stem for path in paths].count("series-sharding-degree") == 2
    assert "Measured on the reference model" in figure
    assert "Predicted for large (shape llama-3.3-70b)" in figure
    # Neither of the two has a panel in which the other's degrees are.
    panels = [
        {found for found in ("4", "1024") if f"<!-- {found} -->" in panel or f">{found}<" in panel}
        for panel in figure.split('<g id="axes_')[1:]
    ]
    assert panels
    assert all(len(panel) == 1 for panel in panels), panels
    assert "Measured on the reference model: The points of a line" in text
    assert "Predicted for large (shape llama-3.3-70b), random weights: The points" in text
    kinds = {row.split(",")[1] for row in (tmp_path / "trials.csv").read_text().splitlines()[1:]}
    assert kinds == {"measured", "predicted"}
