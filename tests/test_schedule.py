"""A step: streams that overlap, against bounds, hand-drawn schedules and an event simulation."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tradebench.devices import find
from tradebench.devices.calibration import Calibration
from tradebench.errors import UserError
from tradebench.predict import collectives
from tradebench.predict.cost import CALL_SECONDS, cost
from tradebench.predict.operations import Operation, Spec
from tradebench.predict.schedule import Piece, Segment, Step, finish, step_seconds

H100 = find("h100-80gb")
RANKS = 8

moments = st.integers(0, 20).map(float)
pieces = st.lists(st.builds(Piece, moments, moments, moments, moments), max_size=8)
drawn = settings(derandomize=True, max_examples=150, deadline=None)


def gather(elements: int) -> Operation:
    part, whole = Spec((elements // RANKS,), "bfloat16"), Spec((elements,), "bfloat16")
    return Operation("c10d._allgather_base_.default", (whole, part), (whole,))


def scatter(elements: int) -> Operation:
    part, whole = Spec((elements // RANKS,), "float32"), Spec((elements,), "float32")
    return Operation("c10d._reduce_scatter_base_.default", (part, whole), (part,))


def matrix(rows: int, width: int = 8192) -> Operation:
    left, right = Spec((rows, width), "bfloat16"), Spec((width, width), "bfloat16")
    return Operation("aten.mm.default", (left, right), (left,))


def small() -> Operation:
    spec = Spec((16,), "float32")
    return Operation("aten.add.Tensor", (spec, spec), (spec,))


def step(*segments: Segment, calibration: Calibration | None = None) -> Step:
    return step_seconds(segments, H100, ranks=RANKS, calibration=calibration)


# The two streams.


@drawn
@given(pieces)
def test_streams_are_never_both_idle_and_never_both_hidden(given_pieces: list[Piece]) -> None:
    computes = sum(piece.computes for piece in given_pieces)
    moves = sum(piece.gathers + piece.scatters for piece in given_pieces)
    issues = sum(piece.issues for piece in given_pieces)

    assert max(computes, moves, issues) <= finish(given_pieces) <= computes + moves + issues


def simulated(given_pieces: list[Piece]) -> float:
    """The same rules, clock tick by clock tick: whoever may work does, one unit at a time.

    Jobs on the network queue in the order of issue: the first gathers, then for each piece the
    next one's gathers and its own scatters. `asked` has the tick at which the host is through with
    the pieces before each, and at last with all of them.
    """
    if not given_pieces:
        return 0.0
    left = [piece.computes for piece in given_pieces]
    queue = [("gathers", 0)]
    for index in range(len(given_pieces)):
        if index + 1 < len(given_pieces):
            queue.append(("gathers", index + 1))
        queue.append(("scatters", index))
    work = [getattr(given_pieces[index], kind) for kind, index in queue]
    asked = [sum(piece.issues for piece in given_pieces[:end]) for end in range(len(left) + 1)]
    clock, computing, moving, begun = 0.0, 0, 0, -1
    while computing < len(left) or moving < len(queue):
        progressed = True
        while progressed:  # whatever takes no time happens at once
            progressed = False
            if computing < len(left):
                ready = moving > queue.index(("gathers", computing))
                ready = ready or not given_pieces[computing].gathers
                if ready and begun < computing and clock >= asked[computing]:
                    begun, progressed = computing, True
                through = clock >= asked[computing + 1]
                if begun == computing and not left[computing] and through:
                    computing, progressed = computing + 1, True
            if (
                moving < len(queue)
                and not work[moving]
                and _may(queue[moving], begun, computing, 0)
            ):
                moving, progressed = moving + 1, True
        if computing == len(left) and moving == len(queue):
            break
        at_network = moving < len(queue) and _may(queue[moving], begun, computing, work[moving])
        if begun == computing and computing < len(left) and left[computing]:
            left[computing] -= 1
        if at_network:
            work[moving] -= 1
        clock += 1
    return clock


def _may(job: tuple[str, int], begun: int, computing: int, work: float) -> bool:
    """Gathers wait for the piece before to begin, scatters for their own to end."""
    kind, index = job
    if not work:  # nothing to do keeps nobody waiting
        return True
    return begun >= index - 1 if kind == "gathers" else computing > index


@drawn
@given(pieces)
def test_a_schedule_is_what_a_clock_sees(given_pieces: list[Piece]) -> None:
    assert finish(given_pieces) == simulated(given_pieces)


@pytest.mark.parametrize(
    ("given_pieces", "expected"),
    [
        ([], 0),
        # One layer: nothing to hide behind.
        ([Piece(2, 3, 4)], 9),
        # Forward: each layer's gathers hide behind the layer before.
        ([Piece(2, 3, 0)] * 4, 2 + 4 * 3),
        # Gathers that take longer are all that counts, but for the last layer's own work.
        ([Piece(3, 2, 0)] * 4, 4 * 3 + 2),
        # Backward: only the last scatters show.
        ([Piece(1, 4, 2)] * 3, 1 + 3 * 4 + 2),
        # A gather that waits behind scatters of two layers earlier delays its layer.
        ([Piece(0, 1, 5), Piece(0, 1, 0), Piece(2, 1, 0)], 9),
        # Who gathers nothing waits for nobody.
        ([Piece(0, 1, 9), Piece(0, 5, 0)], 10),
    ],
)
def test_schedules_drawn_by_hand(given_pieces: list[Piece], expected: float) -> None:
    assert finish(given_pieces) == expected


# Whole steps.


def test_a_step_on_one_device_is_the_sum_of_its_kernels() -> None:
    operations = {matrix(4096): 7, matrix(512): 2}
    found = step(Segment(times=80, operations=operations))
    expected = 80 * sum(
        count * cost(each, H100).seconds.value for each, count in operations.items()
    )

    assert found.seconds.value == pytest.approx(expected)
    assert found.operations == 80 * 9
    assert found.flops == 80 * (7 * 4096 + 2 * 512) * 2 * 8192**2
    assert found.shares["compute"] == pytest.approx(1)


def test_a_segment_repeated_is_that_many_segments() -> None:
    layer = {gather(10**8): 1, matrix(2048): 3, scatter(10**8): 1}
    once = Segment(times=1, operations=layer)

    assert step(Segment(times=5, operations=layer)) == step(*[once] * 5)


def test_communication_is_hidden_as_far_as_there_is_work_to_hide_it() -> None:
    size = 8 * 10**8
    much, little = (
        step(Segment(times=20, operations={gather(size): 1, matrix(rows): 10}))
        for rows in (8192, 64)
    )
    (kind, moved, ranks) = collectives.collective(gather(size)) or pytest.fail("no collective")
    alone = collectives.seconds(kind, moved, ranks, H100).value

    # Only the first layer waits.
    assert much.shares["communication"] * much.seconds.value == pytest.approx(alone)
    assert little.seconds.value == pytest.approx(20 * alone, rel=0.1)
    assert little.shares["communication"] > 0.8


def test_many_small_kernels_wait_for_the_host() -> None:
    found = step(Segment(times=100, operations={small(): 50}))

    assert found.seconds.value == pytest.approx(5000 * CALL_SECONDS.value)
    assert found.shares["host"] > 0.5
    assert found.shares["launch"] == pytest.approx(1 - found.shares["host"])


segments = st.lists(
    st.builds(
        lambda times, rows, calls, moved, kept: Segment(
            times=times,
            operations={
                matrix(rows): 2,
                small(): calls,
                gather(8 * moved): 1,
                **({scatter(8 * moved): 1} if kept else {}),
            },
        ),
        st.integers(1, 4),
        st.integers(1, 9000),
        st.integers(1, 300),
        st.integers(1, 10**8),
        st.booleans(),
    ),
    min_size=1,
    max_size=4,
)


@settings(derandomize=True, max_examples=40, deadline=None)
@given(segments)
def test_shares_add_up_and_ends_keep_their_order(given_segments: list[Segment]) -> None:
    found = step(*given_segments)

    assert sum(found.shares.values()) == pytest.approx(1)
    assert min(found.shares.values()) >= 0
    assert found.seconds.low <= found.seconds.value <= found.seconds.high


def test_a_longer_step_is_never_shorter() -> None:
    layer = {gather(10**8): 1, matrix(2048): 3, small(): 20}
    times = [step(Segment(times=n, operations=layer)).seconds.value for n in range(1, 30)]

    assert times == sorted(times)


def test_ranks_of_an_all_reduce_come_from_the_run() -> None:
    whole = Spec((10**8,), "float32")
    reduce = Operation("c10d.allreduce_.default", (whole,), (whole,))
    segment = Segment(times=1, operations={matrix(64): 1, reduce: 1})
    alone, together = (step_seconds([segment], H100, ranks=ranks).seconds.value for ranks in (1, 8))

    assert together - alone == pytest.approx(
        collectives.seconds("all_reduce", whole.bytes, 8, H100).value, rel=0.05
    )


def test_no_operations_take_no_time() -> None:
    found = step()

    assert (found.seconds.value, found.operations, dict(found.shares)) == (0.0, 0, {})


def test_a_calibration_of_another_device_is_refused() -> None:
    other = Calibration(device="NVIDIA A100-SXM4-80GB", kernel_seconds=1e-6, call_seconds=1e-6)
    with pytest.raises(UserError) as caught:
        step(calibration=other)

    assert str(caught.value) == (
        "'NVIDIA A100-SXM4-80GB' was calibrated, and this is 'NVIDIA H100 80GB HBM3'"
    )


def test_the_hosts_time_is_that_of_the_calibration() -> None:
    segment = Segment(times=100, operations={small(): 50})
    quick, slow = (
        step(
            segment,
            calibration=Calibration(device=H100.name, kernel_seconds=1e-7, call_seconds=call),
        )
        for call in (1e-5, 3e-5)
    )

    assert slow.seconds.value == pytest.approx(3 * quick.seconds.value)
