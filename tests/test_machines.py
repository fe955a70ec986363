"""What to run on which machine: the choice against brute force, and what is said beside it."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jinja2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console, Group

from tradebench import report, store
from tradebench.commands import reporting
from tradebench.devices import DEVICES, GIB
from tradebench.published.accuracies import LABEL
from tradebench.published.comparison import errors
from tradebench.published.held import held
from tradebench.recommend.gentle import MARGIN
from tradebench.recommend.machine_words import answers
from tradebench.report.answers import Answer, Answers, draw
from tradebench.report.fronts import groups
from tradebench.report.predictions import apart
from tradebench.result import Environment, Fit, Kind, Measurement, Result
from tradebench.store import Run
from tradebench.techniques import catalogue
from tradebench.trial import Budget, Evaluate, Model, Trial

ROOT = Path(__file__).parents[1]
REPORT = Path(report.__file__).parent
Slots = Mapping[str, Mapping[str, Any]]
REFERENCE = Model(name="reference")
LLAMA = Model(name="meta-llama/Llama-3.3-70B-Instruct", config="llama-3.3-70b")
H100 = DEVICES["h100-80gb"]
NF4: Slots = {"quantization": {"method": "nf4"}}
INT8: Slots = {"quantization": {"method": "int8"}}
PRUNED: Slots = {"pruning": {"method": "magnitude", "sparsity": 0.5}}
# What the cards of a nominal size report, the least and the most of any.
REPORTED = {
    size: (
        min(d.reported_bytes[0] for d in DEVICES.values() if d.memory_bytes == size * GIB),
        max(d.reported_bytes[1] for d in DEVICES.values() if d.memory_bytes == size * GIB),
    )
    for size in (24, 48, 80, 141)
}


def result(model: Model, kind: Kind, slots: Slots, **more: Any) -> Result:
    trial = Trial(
        model=model,
        budget=Budget(steps=20, sequence=64, data="random" if model is LLAMA else "reference"),
        evaluate=Evaluate(tasks=("mmlu",) if model is LLAMA else ("sort",)),
        techniques=tuple(
            catalogue()[slot][str(fields["method"])].model_validate(fields)
            for slot, fields in slots.items()
        ),
    )
    payload = trial.payload()
    return Result(
        kind=kind,
        suite="asked",
        trial=trial.id,
        repeat=more.pop("repeat", 0),
        label=trial.label,
        model=payload["model"],
        budget=payload["budget"],
        evaluate=payload["evaluate"],
        settings=payload["settings"],
        status="ok",
        environment=Environment(hardware=more.pop("hardware", {})),
        **more,
    )


def planned(
    rank: int = 4,
    *,
    gib: float,
    rate: float,
    above: float = 1.0,
    gpus: int = 1,
    device: str = "h100-80gb",
    model: Model = LLAMA,
    method: str = "lora",
    slots: Slots | None = None,
) -> Result:
    """A prediction: from `gib` to `above` more GiB, and `rate` tokens a second on all GPUs."""
    low, high = int(gib * GIB), int((gib + above) * GIB)
    sharding = {"sharding": {"method": "fsdp2", "degree": gpus}} if gpus > 1 else {}
    least, most = DEVICES[device].reported_bytes
    verdict = "fits" if high <= least else "does not fit" if low > most else "tight"
    seconds = 1000 / rate
    return result(
        model,
        "predicted",
        {"adapters": {"method": method, "rank": rank}, **(slots or {}), **sharding},
        hardware={"predicted_for": DEVICES[device].name},
        measurements={
            "peak_process_bytes": Measurement(value=low, unit="B", interval=(low, high)),
            "peak_reserved_bytes": Measurement(value=low, unit="B"),
            "step_seconds": Measurement(
                value=seconds, unit="s", interval=(0.8 * seconds, 1.5 * seconds)
            ),
            "tokens_per_second": Measurement(value=rate, unit="1/s", better="more"),
        },
        fit=Fit(
            device=device,
            verdict=verdict,
            needed=(low, high),
            capacity=(least, most),
            phase="train",
        ),
    )


def measured(
    slots: Slots,
    *,
    mib: float,
    seconds: float,
    shares: tuple[float, ...] = (),
    **more: Any,
) -> list[Result]:
    """A point of the reference model, a repeat for every accuracy."""
    return [
        result(
            REFERENCE,
            "measured",
            slots,
            repeat=number,
            measurements={
                "peak_tensor_bytes": Measurement(value=int(mib * 2**20), unit="B"),
                "step_seconds": Measurement(value=seconds, unit="s"),
                "tokens_per_second": Measurement(value=100 / seconds, unit="1/s", better="more"),
                **({} if share is None else {"accuracy.sort": share_of(share)}),
                **more.get("measurements", {}),
            },
            hardware=more.get("hardware", {}),
        )
        for number, share in enumerate(shares or (None,))
    ]


def share_of(value: float) -> Measurement:
    return Measurement(value=value, unit="1", better="more")


def run_of(*results: Result, **header: Any) -> Run:
    return Run(
        directory=Path("results/asked/run"),
        header={"suite": "asked", "objectives": [], "limits": {}, **header},
        results=results,
        attempts=results,
        problems=(),
    )


def asked(*results: Result, price: float | None = None) -> Answers:
    found = answers(groups(run_of(*results))[0], price)
    assert found is not None
    return found


def rows(found: Answers) -> dict[str, Answer]:
    return {each.machine: each for each in found.answers}


# Sizes and counts.


def test_the_machines_that_people_ask_about_are_always_there() -> None:
    found = rows(asked(planned(gib=60, rate=100)))

    assert list(found) == ["1 x 24 or 48 GB", "1 x 80 or 141 GB", "2 x 24 GB", "8 x 80 GB"]
    assert found["1 x 80 or 141 GB"].verdict == "fits"
    assert found["8 x 80 GB"].uses == "uses 1 of 8"


def test_sizes_with_one_answer_share_a_row_that_speaks_of_the_smallest() -> None:
    found = rows(asked(planned(gib=10, rate=100)))

    assert list(found) == ["1 x 24, 48, 80 or 141 GB", "2 x 24 GB", "8 x 80 GB"]
    assert found["1 x 24, 48, 80 or 141 GB"].room == "at least 10.9 GiB left"


def test_a_run_that_shards_has_rows_for_as_many_gpus() -> None:
    found = rows(asked(planned(gib=60, rate=100), planned(gib=30, rate=190, gpus=2)))

    assert found["2 x 48, 80 or 141 GB"].uses == ""
    assert found["2 x 48, 80 or 141 GB"].name.endswith("fsdp2 x2")


def test_where_nothing_fits_it_says_by_how_much_and_what_is_enough() -> None:
    found = rows(asked(planned(gib=60, rate=100), planned(gib=16, rate=700, gpus=8)))
    none = found["2 x 24 GB"]

    assert none.verdict == "nothing fits"
    assert none.number is None
    assert "nearest is No. " in none.run
    # The lower end, 60 GiB, against the most that a card of 24 GB reports.
    assert none.room == f"at least {60 - REPORTED[24][1] / GIB:.1f} GiB short"
    assert "No point here takes 2 GPUs, only 1 and 8." in none.sure
    assert any("8 x 24 GB, with No." in each and "1 x 80 GB" in each for each in none.sure)


def test_a_run_of_larger_machines_says_what_it_takes_at_least() -> None:
    found = rows(asked(planned(gib=120, rate=900, gpus=16), planned(gib=50, rate=1800, gpus=32)))

    assert found["1 x 80 GB"].run == "Nothing fits"
    assert found["1 x 80 GB"].sure == (
        "Every point here takes at least 16 GPUs.",
        "What is enough: 32 x 80 GB, with No. 1.",
    )
    assert found["32 x 80 GB"].verdict == "fits"


def test_what_fits_on_some_cards_of_a_size_is_tight_and_names_one() -> None:
    tight = rows(asked(planned(gib=22, rate=100)))["1 x 24 GB"]

    assert tight.verdict == "tight"
    assert tight.sure[0].startswith(
        "Tight: all of the interval fits only on cards that report more, such as "
    )
    assert "RTX A5000" in tight.sure[0]


def test_where_cards_of_a_size_differ_what_surely_fits_on_most_of_them_comes_first() -> None:
    # An L40S reports 44.3 GiB at least, an A6000 47.3, and an RTX 6000 Ada up to 48.
    found = rows(asked(planned(4, gib=46.8, rate=110), planned(8, gib=45.5, rate=100)))

    assert found["1 x 48 GB"].name == "lora r8"
    assert "such as NVIDIA RTX A6000" in found["1 x 48 GB"].sure[0]


def test_a_sharded_answer_leaves_what_such_predictions_were_off_by() -> None:
    off = median_of_sharded()
    roomy = planned(4, gib=20, rate=1000, gpus=2)
    bold = planned(8, gib=(1 - off) * REPORTED[80][0] / GIB - 0.5, rate=1500, gpus=2)
    found = rows(asked(roomy, bold))

    assert found["2 x 80 GB"].name == "lora r4 + fsdp2 x2"
    assert found["2 x 80 GB"].verdict == "fits"
    assert found["2 x 80 GB"].sure == (
        f"Fits, and leaves more than the {100 * off:.1f} % by which sharded memory was off "
        "elsewhere.",
    )
    left = off * REPORTED[80][0] / GIB - 0.5
    assert found["2 x 80 GB"].other == (
        f"No. 2, lora r8 + fsdp2 x2 would do at 33.3 % less and leave {left:.1f} GiB, "
        "if its prediction holds."
    )
    # On larger cards the faster one has the room as well.
    assert found["2 x 141 GB"].name == "lora r8 + fsdp2 x2"


def test_a_sharded_answer_without_that_room_is_tight_and_says_what_it_leaves() -> None:
    off = median_of_sharded()
    tight = rows(asked(planned(gib=70, rate=100, gpus=2)))["2 x 80 GB"]

    assert tight.verdict == "tight"
    left = REPORTED[80][0] / GIB - 71
    assert tight.room == f"at least {left:.2f} GiB left"
    assert tight.sure == (
        f"Tight: all of its interval fits, but it leaves {100 * left * GIB / REPORTED[80][0]:.1f} "
        f"%, less than the {100 * off:.1f} % by which sharded memory was off elsewhere.",
    )
    # One GPU's predictions were not: a narrow fit is one.
    alone = rows(asked(planned(gib=70, rate=100)))["1 x 80 or 141 GB"]
    assert alone.verdict == "fits"


def median_of_sharded() -> float:
    """What the page says sharded reserved memory was off by, from the published rows."""
    rows = [
        abs(one.ratio - 1)
        for one in held()
        if one.published.trial.ranks > 1
        and one.published.reading.counter == "reserved"
        and one.ratio is not None
    ]
    return statistics.median(rows)


def test_an_interval_that_ends_above_every_card_is_tight_as_well() -> None:
    tight = rows(asked(planned(gib=78, rate=100, above=3)))["1 x 80 GB"]

    assert tight.verdict == "tight"
    assert tight.sure[0] == "Tight: it may fit, and the upper end of its interval does not."
    assert tight.room == f"up to {(81 - REPORTED[80][0] / GIB):.2f} GiB short"


def test_a_step_is_that_of_the_planned_card_wherever_the_size_is_another() -> None:
    found = rows(asked(planned(gib=60, rate=100), planned(8, gib=30, rate=50)))

    assert found["1 x 80 or 141 GB"].clock == f"as on {H100.name}"
    assert found["1 x 48 GB"].clock == f"as on {H100.name}"
    own = rows(asked(planned(gib=60, rate=100), planned(8, gib=100, rate=500)))
    assert own["1 x 80 GB"].clock == ""


def test_what_waits_in_the_hosts_memory_is_named() -> None:
    waiting = planned(gib=30, rate=10, gpus=2)
    host = {"peak_host_bytes": Measurement(value=17 * GIB, unit="B")}
    waiting = waiting.model_copy(update={"measurements": {**waiting.measurements, **host}})

    found = rows(asked(waiting))
    assert found["2 x 48, 80 or 141 GB"].host == "and 17.0 GiB of the host's for each GPU"
    assert rows(asked(planned(gib=60, rate=100)))["8 x 80 GB"].host == ""


# What is chosen.


def test_the_larger_rank_is_the_answer_where_it_costs_a_hair_more() -> None:
    found = asked(
        planned(4, gib=50, rate=1000), planned(16, gib=50, rate=999), planned(64, gib=50, rate=900)
    )
    each = rows(found)["1 x 80 or 141 GB"]

    assert each.name == "lora r16"
    assert "Cheapest: No. " in each.other
    assert "lora r4, at 0.1 % less; this row's has rank 16 rather than 4." in each.other


def test_more_bits_come_before_a_larger_rank() -> None:
    found = asked(
        planned(4, gib=30, rate=1000, slots=NF4),
        planned(64, gib=30, rate=990, slots=NF4),
        planned(4, gib=40, rate=980, slots=INT8),
    )
    each = rows(found)["1 x 48, 80 or 141 GB"]

    assert each.name == "int8 + lora r4"
    assert "8 bits for a weight rather than 4" in each.other


def test_methods_that_no_one_can_weigh_stay_apart() -> None:
    found = asked(planned(4, gib=50, rate=1000), planned(64, gib=50, rate=999, method="dora"))

    assert rows(found)["1 x 80 or 141 GB"].name == "lora r4"


def test_what_takes_weights_away_is_named_and_not_the_answer() -> None:
    found = asked(planned(4, gib=50, rate=1000), planned(4, gib=50, rate=2000, slots=PRUNED))
    each = rows(found)["1 x 80 or 141 GB"]

    assert each.name == "lora r4"
    assert "magnitude 50% + lora r4 would do at 50.0 % less, but takes weights away" in each.other


def test_what_takes_weights_away_is_the_answer_where_nothing_else_fits() -> None:
    found = asked(planned(4, gib=100, rate=1000), planned(4, gib=50, rate=2000, slots=PRUNED))

    assert rows(found)["1 x 80 GB"].name == "magnitude 50% + lora r4"


def test_an_answer_that_leaves_little_names_one_that_leaves_more() -> None:
    found = asked(planned(4, gib=77.9, rate=1000), planned(4, gib=50, rate=800, slots=NF4))
    each = rows(found)["1 x 80 or 141 GB"]

    assert each.sure == ("Fits: the upper end of its interval does, barely.",)
    assert each.other.endswith("nf4 + lora r4, at 25.0 % more. It leaves 28.1 GiB.")


def test_costs_follow_the_gpus_that_are_used() -> None:
    found = asked(planned(gib=60, rate=1000, gpus=8), price=3.0)
    each = rows(found)["8 x 80 or 141 GB"]

    # A million tokens at 1,000 a second are 1,000 s on each of 8 GPUs.
    assert each.cost == "2.22 (1.78 to 3.33)"
    assert each.money == "6.67 (5.33 to 10.0)"
    assert "Price of 1M tokens" in [head for head, _ in found.columns]


def test_without_a_price_no_column_has_one() -> None:
    assert not any("Price" in head for head, _ in asked(planned(gib=60, rate=9)).columns)


POINT = st.tuples(
    st.sampled_from([4, 8, 16, 64]),
    st.sampled_from(["none", "int8", "nf4", "pruned"]),
    st.sampled_from([1, 2, 8]),
    st.integers(10, 160),
    st.integers(0, 12),
    st.integers(50, 1500),
)


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(st.lists(POINT, min_size=1, max_size=12, unique_by=lambda each: each[:3]))
def test_every_answer_is_that_of_brute_force(
    drawn: list[tuple[int, str, int, int, int, int]],
) -> None:
    slots: dict[str, Slots] = {"none": {}, "int8": INT8, "nf4": NF4, "pruned": PRUNED}
    results = [
        planned(rank, gib=gib, above=above, rate=rate, gpus=gpus, slots=slots[kind])
        for rank, kind, gpus, gib, above, rate in drawn
    ]

    check(run_of(*results))


def check(run: Run) -> None:
    """Hold every row against all points, straight from the Results."""
    group = groups(run)[0]
    found = answers(group)
    assert found is not None
    numbers = {group.numbers[each.trial]: each for each in run.results if each.status == "ok"}
    for each in found.answers:
        for size in sizes(each):
            able = [r for r in numbers.values() if gpus(r) <= each.gpus and r.fit is not None]
            sure = [r for r in able if needed(r)[1] <= room(r) * REPORTED[size][0]]
            possible = [r for r in able if needed(r)[0] <= REPORTED[size][1]]
            if each.number is None:
                assert not possible
                continue
            chosen = numbers[each.number]
            assert chosen in (sure or possible)
            assert each.verdict == ("fits" if sure else "tight")
            cards = [d.reported_bytes for d in DEVICES.values() if d.memory_bytes == size * GIB]
            bounds = [*sorted(least for least, _ in cards), REPORTED[size][1]]
            pools = [sure, *([r for r in able if needed(r)[1] <= bound] for bound in bounds)]
            pool = next(filter(None, pools), possible)
            pool = [r for r in pool if not {"pruning", "low_rank"} & r.settings.keys()] or pool
            best = max(rate(r) for r in pool)
            # Rates that read the same with three digits are the same.
            near = [r for r in pool if rate(r) * (1 + MARGIN) * 1.005 >= best]
            assert chosen in near
            cheap = [r for r in pool if rate(r) * (1 + MARGIN) * 0.995 >= best]
            assert not [r for r in cheap if kinder(chosen, r)]


def sizes(each: Answer) -> Iterator[int]:
    words = each.machine.partition(" x ")[2].removesuffix(" GB").replace(" or ", ", ").split(", ")
    yield from map(int, words)


def needed(each: Result) -> tuple[int, int]:
    assert each.fit is not None
    return each.fit.needed


def room(each: Result) -> float:
    """The share of a card that a prediction may fill, and still be trusted."""
    return 1 - median_of_sharded() if gpus(each) > 1 else 1.0


def gpus(each: Result) -> int:
    return int(each.settings.get("sharding", {}).get("degree", 1))


def rate(each: Result) -> float:
    value = each.value("tokens_per_second")
    assert value is not None
    return float(value)


def kinder(one: Result, other: Result) -> bool:
    """Whether the other is the same but for a larger rank."""
    first, second = (
        {**r.settings, "adapters": {**r.settings["adapters"], "rank": 0}}
        if "adapters" in r.settings
        else dict(r.settings)
        for r in (one, other)
    )
    ranks = [r.settings.get("adapters", {}).get("rank", 0) for r in (one, other)]
    return first == second and ranks[1] > ranks[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["llama-3.3-70b.plan", "llama-3.3-70b-sharding.plan", "llama-3.3-70b-claims.plan"]
)
def test_the_committed_plans_answer_as_brute_force_does(name: str) -> None:
    check(store.load(ROOT / "results" / name / "example"))


# How sure that is.


def test_a_plan_says_that_it_is_one_and_how_far_predictions_were_off() -> None:
    notes = " ".join(asked(planned(gib=60, rate=100, gpus=8)).notes)

    assert "Everything here is predicted, nothing was measured." in notes
    assert "Accuracy is never predicted" in notes
    for counter in ("allocated", "reserved"):
        rows = [one for one in held() if one.promised and one.published.reading.counter == counter]
        median = errors(rows).median
        assert median is not None
        assert f"{100 * median:.1f} % of {counter} memory ({len(rows)} rows)" in notes
    assert "Sharded, by programs that shard otherwise than this one: " in notes


def test_a_plan_for_single_gpus_speaks_of_no_sharding() -> None:
    assert "Sharded" not in " ".join(asked(planned(gib=60, rate=100)).notes)


def test_published_accuracies_are_those_of_others() -> None:
    found = asked(planned(gib=60, rate=100, slots=NF4))

    assert LABEL in found.published_title
    assert any(line.startswith("nf4 + lora: ") and "LLaMA 65B" in line for line in found.published)
    assert any(line.startswith("lora: ") for line in found.published)
    assert all("reference" not in line for line in found.published)


# What was measured.

FP32: Slots = {"precision": {"method": "fp32"}}
SMALL: Slots = {**FP32, "adapters": {"method": "lora", "rank": 4}}
TINY: Slots = {**FP32, "adapters": {"method": "lora", "rank": 8}}


def test_a_tiny_model_is_held_against_shares_of_its_own_memory() -> None:
    found = asked(
        *measured(FP32, mib=40, seconds=0.05, shares=(0.9, 0.9)),
        *measured(SMALL, mib=18, seconds=0.04, shares=(0.6, 0.62)),
    )
    said = rows(found)

    assert list(said) == [
        "as much memory as fp32 (40.0 MiB)",
        "half as much as fp32 (20.0 MiB)",
        "a quarter of fp32 (10.0 MiB)",
    ]
    assert [each.name for each in found.answers[:2]] == ["fp32", "fp32 + lora r4"]
    assert found.answers[1].goal.startswith("61.0 %")
    assert found.answers[2].room == "8.00 MiB short"
    assert not any(each.cost or each.money for each in found.answers)
    assert any("small reference model" in note for note in found.notes)


def test_of_accuracies_that_noise_does_not_tell_apart_the_quickest_is_run() -> None:
    found = asked(
        *measured(FP32, mib=40, seconds=0.09, shares=(0.90, 0.91, 0.92)),
        *measured(SMALL, mib=20, seconds=0.04, shares=(0.899, 0.908, 0.92)),
        *measured(TINY, mib=18, seconds=0.01, shares=(0.55, 0.56, 0.57)),
    )

    assert found.answers[0].name == "fp32 + lora r4"
    assert "Noise does not tell it from No. " in found.answers[0].other
    assert ", fp32 (91.0 %" in found.answers[0].other


def test_one_answer_to_all_of_the_memory_is_none() -> None:
    group = groups(
        run_of(
            *measured(FP32, mib=40, seconds=0.05, shares=(0.9,)),
            *measured(SMALL, mib=39, seconds=0.05, shares=(0.8,)),
        )
    )[0]

    assert answers(group) is None


def test_what_filled_gpus_is_held_against_their_sizes() -> None:
    gpus = {"gpus": [{"name": "NVIDIA H200"}]}
    found = asked(
        *measured(
            FP32,
            mib=1,
            seconds=0.05,
            shares=(0.9,),
            hardware=gpus,
            measurements={"peak_process_bytes": Measurement(value=60 * GIB, unit="B")},
        )
    )

    assert (
        rows(found)["1 x 80 or 141 GB"].room
        == f"at least {REPORTED[80][0] / GIB - 60:.1f} GiB left"
    )
    assert rows(found)["1 x 80 or 141 GB"].sure == ("Measured in 1 run.",)


def test_a_rehearsal_and_a_run_without_good_points_answer_nothing() -> None:
    rehearsed = planned(gib=60, rate=100).model_copy(
        update={
            "fit": None,
            "measurements": {"peak_tensor_bytes": Measurement(value=GIB, unit="B")},
        }
    )
    bad = planned(gib=60, rate=100).model_copy(
        update={"status": "skipped", "reason": "no", "fit": None, "measurements": {}}
    )

    assert answers(groups(run_of(rehearsed))[0]) is None
    assert answers(groups(run_of(bad))[0]) is None


def test_plans_for_several_devices_answer_nothing() -> None:
    run = run_of(planned(4, gib=60, rate=100), planned(8, gib=60, rate=100, device="a100-80gb"))

    assert answers(groups(run)[0]) is None


# How it is shown.

HOSTILE = "</script><b>|`x` \u202egnp.exe"


def hostile() -> Answers:
    answer = Answer(
        machine="1 x 80 GB",
        gpus=1,
        verdict="tight",
        number=3,
        name=HOSTILE,
        memory="70 GiB",
        sure=("Tight.",),
    )
    none = Answer(machine="2 x 24 GB", gpus=2, verdict="nothing fits", number=None, name="Nothing")
    return Answers(
        title="What to run",
        rule="So.",
        columns=(
            ("Machine", ("machine",)),
            ("Run", ("run", "uses")),
            ("Memory", ("memory", "room")),
            ("How sure", ("sure", "other")),
        ),
        answers=(answer, none),
        notes=("A note.",),
        published_title="Others",
        published=(HOSTILE,),
    )


def test_a_page_shows_hostile_names_as_they_are() -> None:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(REPORT), autoescape=True, undefined=jinja2.StrictUndefined
    )
    page = environment.from_string(
        '{% from "answers.html.j2" import answers_table %}{{ answers_table(found) }}'
    ).render(found=hostile())

    assert "&lt;/script&gt;&lt;b&gt;" in page
    assert "<b>" not in page
    assert page.count("<tr") == 3
    assert page.count("<td ") == 6
    assert 'data-point="3"' in page


def test_a_terminal_has_two_lines_for_a_machine() -> None:
    console = Console(width=100, no_color=True)
    with console.capture() as captured:
        console.print(Group(*draw(asked(planned(gib=60, rate=100)))))
    lines = captured.get().splitlines()

    assert lines[0] == "What to run on which GPUs"
    at = lines.index("1 x 80 or 141 GB: No. 1: lora r4")
    assert "at least 18.1 GiB left" in lines[at + 1]
    assert "What is enough: 1 x 80 GB" not in lines[at + 1]


@pytest.mark.slow
def test_a_report_opens_with_the_answers(tmp_path: Path) -> None:
    run = run_of(
        planned(4, gib=60, rate=100),
        planned(16, gib=30, rate=90, slots=NF4),
        started="",
        ended="",
        objectives=["peak_reserved_bytes", "step_seconds"],
    )
    reporting.write(run, tmp_path, price=2.0)
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    text = (tmp_path / "report.md").read_text(encoding="utf-8")

    assert page.index("What to run on which GPUs") < page.index("What was found")
    assert "| Machine | Run | Memory of a GPU | Step | Cost of 1M tokens (GPU-hours) |" in text
    assert text.index("## What to run") < text.index("### Every point")
    # Two columns of memory are told apart.
    assert "Reserved memory is what PyTorch&#39;s allocator keeps for them" in page
    assert "needed is all that the process takes of the device" in page


@pytest.mark.slow
@pytest.mark.parametrize(
    "directory", sorted(ROOT.glob("results/*/example")), ids=lambda each: each.parent.name
)
def test_every_committed_example_can_be_asked(directory: Path) -> None:
    for group in apart(groups(store.load(directory))):
        found = answers(group, 2.5)
        for each in () if found is None else found.answers:
            assert each.number is None or each.number in group.numbers.values()
            # What was predicted has no accuracy, and what was measured on CPUs no price.
            assert bool(each.goal) == (each.number is not None and bool(group.tasks))
            assert bool(each.money) == (each.number is not None and group.kind == "predicted")
