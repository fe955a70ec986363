"""What lies outside the allocator: intervals that hold, and readings that take their place."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tradebench.devices import DEVICES
from tradebench.devices.overheads import MIB, Overheads, Part, load, overhead
from tradebench.errors import UserError

READINGS = {
    "schema": "tradebench.overheads/1",
    "device": "NVIDIA H100 80GB HBM3",
    "context": [520 * MIB, 518 * MIB, 522 * MIB],
    "code": [190 * MIB],
    "communicators": {"8": [900 * MIB, 910 * MIB]},
}


@pytest.fixture
def measured() -> Overheads:
    return Overheads.model_validate(READINGS)


# Uncalibrated.


@settings(derandomize=True, max_examples=60, deadline=None)
@given(st.sampled_from(sorted({d.architecture for d in DEVICES.values()})), st.integers(1, 4096))
def test_an_interval_is_the_sum_of_its_parts_and_every_part_has_a_source(
    architecture: str, ranks: int
) -> None:
    found = overhead(architecture, ranks=ranks)

    assert 0 < found.low < found.typical < found.high
    for end in ("low", "typical", "high"):
        assert getattr(found, end) == sum(getattr(part, end) for part in found.parts)
    assert all(len(part.source) > 20 for part in found.parts)
    assert found.assumed == tuple(part.name for part in found.parts)


@pytest.mark.parametrize(("architecture", "reading"), [("sm_86", 256 * MIB), ("sm_80", 616 * MIB)])
def test_contexts_that_others_read_lie_inside(architecture: str, reading: int) -> None:
    context = overhead(architecture).parts[0]

    assert context.low < reading < context.high


@pytest.mark.parametrize(
    ("architecture", "ranks", "reading"),
    [
        ("sm_90", 1, 1.79 * 2**30),
        ("sm_80", 2, (616 + 544) * MIB),
        ("sm_80", 4, (616 + 688) * MIB),
        ("sm_90", 8, 1.06e9),  # with a communicator, before an all-to-all
        ("sm_90", 8, 4.34e9),  # and after it
    ],
)
def test_processes_that_others_read_lie_inside(
    architecture: str, ranks: int, reading: float
) -> None:
    found = overhead(architecture, ranks=ranks)

    assert found.low < reading < found.high


def test_one_process_has_no_communicator_and_more_have_one() -> None:
    def names(architecture: str, ranks: int) -> list[str]:
        return [part.name for part in overhead(architecture, ranks=ranks).parts]

    assert names("sm_90", 1) == ["context", "code"]
    assert names("sm_90", 2) == ["context", "code", "communicator"]
    assert names("sm_90", 8) == ["context", "code", "communicator", "multicast"]
    assert names("sm_89", 8) == ["context", "code", "communicator"]


def test_multicast_buffers_are_those_of_the_log_and_stop_at_one_switch() -> None:
    one, many = (overhead("sm_90", ranks=ranks).parts[-1].high for ranks in (8, 64))

    assert one == many == 2_415_919_104


# Calibrated.


def test_readings_take_the_place_of_what_was_assumed(measured: Overheads) -> None:
    found = overhead("sm_90", measured=measured)

    assert (found.low, found.typical, found.high) == (708 * MIB, 710 * MIB, 712 * MIB)
    assert found.assumed == ()
    assert "NVIDIA H100" in found.parts[0].source


def test_readings_of_communicators_hold_for_their_number_of_ranks(measured: Overheads) -> None:
    eight, four = (overhead("sm_90", ranks=ranks, measured=measured) for ranks in (8, 4))

    assert eight.assumed == ()
    assert eight.typical == (520 + 190 + 905) * MIB
    assert four.assumed == ("communicator", "multicast")
    assert four.parts[2:] == overhead("sm_90", ranks=4).parts[2:]


def test_a_file_comes_back_as_it_was(tmp_path: Path, measured: Overheads) -> None:
    file = tmp_path / "overheads.json"
    file.write_text(json.dumps(READINGS))

    assert load(file) == measured


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('{"device": "x", "code": [1]}', "context: Field required"),
        ('{"device": "x", "code": [1], "context": []}', "context: Tuple should have at least 1"),
        ('{"device": "x", "code": [1], "context": [-1]}', "context.0: Input should be greater"),
        (json.dumps({**READINGS, "schema": "other/1"}), "is 'other/1', not"),
        ("words", "the file: Invalid JSON"),
    ],
)
def test_a_file_that_holds_something_else_is_a_sentence(
    text: str, sentence: str, tmp_path: Path
) -> None:
    file = tmp_path / "overheads.json"
    file.write_text(text)

    with pytest.raises(UserError, match=sentence):
        load(file)


def test_a_file_that_is_not_there_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file"):
        load(tmp_path / "none.json")


def test_a_part_that_falls_is_none() -> None:
    with pytest.raises(ValueError, match="do not rise"):
        Part(name="context", low=2, typical=1, high=3, source="nobody")
