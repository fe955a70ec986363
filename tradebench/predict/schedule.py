"""Seconds of a training step, from its operations in the order they are issued.

Three things run side by side. The device computes. Its network moves parameters and gradients: what
a segment needs is gathered while the one before it still computes, and its gradients are scattered
while the next one does, as FSDP2 schedules it; all collectives share one stream, in the order of
issue. And the host issues everything, from the beginning of the step, at which the device is idle:
where it takes longer to ask for a segment than the device for what came before, the device waits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from tradebench.devices import Device
from tradebench.devices.calibration import Calibration
from tradebench.errors import UserError
from tradebench.interval import NOTHING, Interval
from tradebench.predict.collectives import collective, seconds
from tradebench.predict.cost import CALL_FACTOR, CALL_SECONDS, Bound, cost
from tradebench.predict.flops import flops
from tradebench.predict.operations import Operation

Share = Literal["compute", "bandwidth", "launch", "communication", "host"]


@dataclass(frozen=True, kw_only=True)
class Segment:
    """Operations with how often each occurs, the whole being repeated `times` in a row.

    One decoder layer's forward pass, say. Its all-gathers bring what it computes with, whatever
    else is a collective takes away what it has computed.
    """

    times: int
    operations: Mapping[Operation, int]


class Piece(NamedTuple):
    """Seconds of one segment, once: what it waits for, what it does, and what it leaves behind.

    `issues` is what the host takes to ask for all of it.
    """

    gathers: float
    computes: float
    scatters: float
    issues: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Step:
    """What a step takes, and what takes it.

    `shares` add up to 1: kernels by what bounds them, collectives that nothing hides, and the host
    where the device waits for it. `operations` counts calls, `flops` their arithmetic.
    """

    seconds: Interval
    shares: Mapping[Share, float]
    operations: int
    flops: int


def step_seconds(
    segments: Sequence[Segment],
    device: Device,
    *,
    ranks: int = 1,
    calibration: Calibration | None = None,
) -> Step:
    """Seconds of a step of these segments, in their order of issue, on each of `ranks` devices.

    Raises:
        UserError: the calibration is another device's.
    """
    if calibration is not None and calibration.device != device.name:
        raise UserError(f"{calibration.device!r} was calibrated, and this is {device.name!r}")
    bounds: dict[Bound, float] = {"compute": 0.0, "bandwidth": 0.0, "launch": 0.0}
    phases: list[tuple[Interval, Interval, Interval]] = []
    issues: list[Interval] = []
    call = _call_seconds(calibration)
    calls = arithmetic = 0
    for segment in segments:
        gathers = computes = scatters = NOTHING
        for operation, count in segment.operations.items():
            total = count * segment.times
            calls += total
            arithmetic += total * flops(operation)
            shared = collective(operation)
            if shared is None:
                found = cost(operation, device, calibration)
                computes += found.seconds.times(count)
                bounds[found.bound] += found.seconds.value * total
                continue
            taken = seconds(shared.kind, shared.bytes, shared.ranks or ranks, device).times(count)
            if shared.kind in ("all_gather", "broadcast"):
                gathers += taken
            else:
                scatters += taken
        asked = call.times(sum(segment.operations.values()))
        phases += [(gathers, computes, scatters)] * segment.times
        issues += [asked] * segment.times

    issued = [(*parts, asked) for parts, asked in zip(phases, issues, strict=True)]
    step = Interval(
        finish([Piece(*(each.low for each in parts)) for parts in issued]),
        finish([Piece(*(each.value for each in parts)) for parts in issued]),
        finish([Piece(*(each.high for each in parts)) for parts in issued]),
    )
    alone = finish([Piece(*(each.value for each in parts)) for parts in phases])
    return Step(
        seconds=step,
        shares=_shares(bounds, alone, step.value),
        operations=calls,
        flops=arithmetic,
    )


def finish(pieces: Sequence[Piece]) -> float:
    """When the last of the pieces is done, on two streams that a host feeds.

    A piece's gathers may begin once the piece before it computes, and go ahead of that one's
    scatters: FSDP2 holds the parameters of two layers at most. The host asks for one piece after
    the other and waits for none; none begins before it is asked for, nor ends before all of it is.
    """
    if not pieces:
        return 0.0
    computed = issued = 0.0
    network = ready = pieces[0].gathers
    for piece, following in zip(pieces, [*pieces[1:], None], strict=True):
        begun = max(computed, ready, issued)
        issued += piece.issues
        computed = max(begun + piece.computes, issued)
        ready = 0.0
        if following is not None and following.gathers:
            network = ready = max(network, begun) + following.gathers
        if piece.scatters:
            network = max(network, computed) + piece.scatters
    return max(network, computed)


def _call_seconds(calibration: Calibration | None) -> Interval:
    """The host's time for one operation in a model."""
    if calibration is None:
        return CALL_SECONDS
    return CALL_FACTOR.times(calibration.call_seconds)


def _shares(bounds: Mapping[Bound, float], alone: float, step: float) -> dict[Share, float]:
    """What takes a step: kernels, then collectives that outlast them, then the host."""
    if not step:
        return {}
    kernels = sum(bounds.values())
    found: dict[Share, float] = {bound: taken / step for bound, taken in bounds.items()}
    found["communication"] = max(0.0, alone - kernels) / step
    found["host"] = (step - alone) / step
    return found
