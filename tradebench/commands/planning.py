"""`tradebench plan`: a suite predicted, or what others have published."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tradebench import devices, store
from tradebench.commands import header, reporting
from tradebench.devices import Device, calibration, overheads
from tradebench.devices.files import require_device
from tradebench.errors import UserError
from tradebench.plan import validate
from tradebench.plan.cache import Cache
from tradebench.plan.plan import Plan, cores, keep, make
from tradebench.plan.progress import progress
from tradebench.published import expressed, results
from tradebench.published.comparison import Prediction
from tradebench.suite import Suite
from tradebench.target import Target

NO_DEVICE = "none"
USUAL = "h100-80gb"  # the device that is meant where none is named
VALIDATION = "validation"  # the suite that published rows belong to


@dataclass(frozen=True, kw_only=True)
class Aim:
    """The device that a plan is made for, if any, and what is known of it beside its data sheet."""

    device: Device | None
    target: Target


def aim(gpu: str, efficiencies: Path | None, outside: Path | None) -> Aim:
    """What to plan for, with every file read once before anything is predicted from it.

    `efficiencies` is a calibration, `outside` the overheads of processes on the device.

    Raises:
        UserError: there is no such device, or a file is none of its own.
    """
    device = None if gpu == NO_DEVICE else devices.find(gpu)
    given = {"--calibration": efficiencies, "--overheads": outside}
    for option, file in given.items():
        if file is not None and device is None:
            raise UserError(f"{option} needs the device that was measured: name it with --gpu")
    if efficiencies is not None and device is not None:
        require_device(efficiencies, calibration.load(efficiencies).device, device)
    if outside is not None and device is not None:
        require_device(outside, overheads.load(outside).device, device)
    return Aim(
        device=device,
        target=Target(
            device=device.id if device else None,
            calibration=str(efficiencies) if efficiencies else None,
            overheads=str(outside) if outside else None,
        ),
    )


def plan(
    suite: Suite,
    aim: Aim,
    out: Path,
    *,
    gpus: int | None,
    fresh: bool,
    processes: int | None,
    price: float | None = None,
) -> tuple[Path, Plan]:
    """Predict every point of a suite, and keep it with its report in a run directory.

    `price` is that of a GPU for an hour, and makes money of the report's GPU-hours.
    """
    trials = suite.trials()
    with progress(sum(not trial.conflicts() for trial in trials)) as bar:
        made = make(
            suite.name,
            trials,
            aim.target,
            aim.device,
            gpus=gpus,
            cache=None if fresh else Cache(),
            processes=processes,
            watch=bar,
        )
    said = header.of_suite(suite)
    if aim.device is not None:
        # What a device has is a requirement like any other, and is drawn like one.
        said["limits"] = {**said["limits"], "peak_process_bytes": aim.device.reported_bytes[0]}
    directory = store.create_run(out, f"{suite.name}.plan", said)
    keep(made, directory)
    store.end_run(directory)
    reporting.write(store.load(directory), directory / "report", price=price)
    return directory, made


def hold_against_published(
    out: Path, *, processes: int | None
) -> tuple[Path, Mapping[str, Prediction | str]]:
    """Predict what others have published, and keep both with their report in a run directory."""
    with progress(len(expressed())) as bar:
        found = validate.predictions(processes=processes or cores(), watch=bar)
    directory = store.create_run(out, VALIDATION, {**QUESTION, **header.of_command()})
    for kind, kept in (("published", results()), ("plan", validate.results(found))):
        lines = "".join(f"{result.to_json()}\n" for result in kept)
        store.write_text(directory / f"trials.{kind}.jsonl", lines)
    store.end_run(directory)
    reporting.write(store.load(directory), directory / "report")
    return directory, found


QUESTION = {
    "question": "How far are predictions from what others have measured and published?",
    "suite_text": "",
    "objectives": [],
    "limits": {},
}
