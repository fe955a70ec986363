"""What a trial leaves beside its Result: every test item's outcome, and evaluations to share."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from tradebench import reference
from tradebench.result import Measurement, digest
from tradebench.techniques import Stage
from tradebench.trial import Budget, Trial

if TYPE_CHECKING:
    from tradebench.program.evaluation import Scores


def write_items(directory: Path, name: str, items: Iterable[Mapping[str, Any]] | None) -> str:
    """Write one line per item to `directory`/items/`name`.jsonl.gz; the path is relative to it.

    Where there are none to be written, because another rank writes them, it is only named.
    """
    relative = f"items/{name}.jsonl.gz"
    if items is None:
        return relative
    lines = "".join(json.dumps(item, sort_keys=True) + "\n" for item in items)
    # No time stamp: equal outcomes give equal files.
    _write(directory / relative, gzip.compress(lines.encode(), mtime=0))
    return relative


class SharedScores:
    """The evaluation of a compressed model before training, made once for all who share it.

    Trials share it when everything up to quantization is equal: model, evaluation, techniques and
    their code, this program's code, the reference model, the libraries and the device; and, where
    `seed` says that weights or calibration data were drawn, the seed and the budget. A trial of
    several ranks shares with nobody: all ranks have to agree on whether to evaluate.
    """

    def __init__(self, directory: Path, trial: Trial, seed: int | None) -> None:
        parts = list(trial.between(Stage.LOAD, Stage.QUANTIZE))
        key = digest(
            {
                "model": trial.model.model_dump(mode="json"),
                "evaluate": trial.evaluate.model_dump(mode="json"),
                "drawn": None if seed is None else [seed, *_data(trial.budget)],
                "settings": {part.slot: [part.settings(), part.version()] for part in parts},
                "libraries": [
                    version(name) for name in ("torch", "transformers", "lm_eval", "bitsandbytes")
                ],
                "sources": _sources(),
                "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
            }
        )
        self.directory = directory
        self.alone = trial.sharded
        self.path = directory / "before" / f"{key}.json"

    def read(self) -> tuple[dict[str, Measurement], str] | None:
        """The measurements and the path of the items; None where nobody has evaluated it yet."""
        if self.alone or not self.path.exists():
            return None
        found = json.loads(self.path.read_text())
        if not (self.directory / found["items"]).exists():
            return None
        return {
            name: Measurement.model_validate(value) for name, value in found["measurements"].items()
        }, found["items"]

    def write(self, scores: Scores, items: str) -> None:
        """Leave the scores for the trials to come."""
        if self.alone:
            return
        measurements = {
            name: value.model_dump(mode="json") for name, value in scores.measurements.items()
        }
        _write(self.path, json.dumps({"measurements": measurements, "items": items}).encode())


def _data(budget: Budget) -> list[object]:
    """What of a budget decides on the batches that are drawn, beside the seed."""
    whole = budget.model_dump(mode="json")
    return [whole[name] for name in ("data", "batch", "sequence")]


@cache
def _sources() -> str:
    """A digest of the code that scores and of the files that the reference model consists of."""
    files = [*sorted(Path(__file__).parent.glob("*.py")), reference.ROOT / reference.CHECKSUMS]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def _write(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
