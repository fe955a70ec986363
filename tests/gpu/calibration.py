"""The calibration: what `tradebench calibrate` measures, within the time that is left."""

from __future__ import annotations

from gpu.section import Bench
from tradebench.predict.calibrate import LLAMA_70B, REHEARSAL, calibrate

START = 30.0  # seconds for the interpreter, and for a last measurement that runs over


def run(bench: Bench, name: str) -> None:
    """Measure and keep the file that plans are made with."""
    sizes = REHEARSAL if bench.tiny else LLAMA_70B
    found = calibrate(bench.device, max(1.0, bench.seconds - START), sizes)
    bench.write("calibration", found.model_dump(mode="json", by_alias=True))
