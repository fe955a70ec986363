"""The reference model: a small Llama with its tasks, frozen, for measuring accuracy offline.

It is a real transformers checkpoint, trained from scratch on a made-up micro-world, so that every
technique runs on it unchanged within seconds. Its accuracies say how techniques compare on this
model and nothing about a larger one.
"""

import gzip
import hashlib
import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent
CHECKPOINT = ROOT / "checkpoint"
TASKS = ROOT / "tasks"
FINETUNE = ROOT / "finetune.jsonl"
SCORES = "scores.json"
CHECKSUMS = "checksums.json"

TASK_NAMES = (
    "facts",
    "recall",
    "agreement",
    "brackets",
    "addition",
    "sort",
    "answers",
    "guilds",
)
CHANCE = {
    "facts": 1 / 8,
    "recall": 1 / 4,
    "agreement": 1 / 2,
    "brackets": 1 / 4,
    "addition": 1 / 8,
    "sort": 0.0,
    "answers": 0.0,
    "guilds": 1 / 8,
}
MEMORISED = frozenset({"addition", "guilds"})
"""Tasks whose items are trained on exactly as they are asked: tables learnt by heart."""


def data_files(folder: Path = ROOT) -> list[Path]:
    """Every file whose content decides a score: the checkpoint, the items, the training rows."""
    found = [*folder.glob("checkpoint/*"), *folder.glob("tasks/*.jsonl.gz")]
    return sorted([*found, folder / FINETUNE.name, folder / SCORES])


def checksum(file: Path) -> str:
    """The sha256 of a file's bytes."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def verify(folder: Path = ROOT) -> list[str]:
    """Names of files that are missing, changed or unknown to the checksums; none if intact."""
    expected: dict[str, str] = json.loads((folder / CHECKSUMS).read_text())
    found = {
        file.relative_to(folder).as_posix(): checksum(file)
        for file in data_files(folder)
        if file.is_file()
    }
    names = sorted({*expected, *found})
    return [name for name in names if expected.get(name) != found.get(name)]


def read_items(task: str, folder: Path = ROOT) -> list[dict[str, Any]]:
    """A task's items in their order, as lm-eval reads them."""
    text = gzip.decompress((folder / "tasks" / f"{task}.jsonl.gz").read_bytes()).decode()
    return [json.loads(line) for line in text.splitlines()]


def info(folder: Path = ROOT) -> dict[str, Any]:
    """What is shipped: parameters, sizes in bytes, sha256, and each task with its build score."""
    recorded: dict[str, Any] = json.loads((folder / SCORES).read_text())
    return {
        "parameters": recorded["parameters"],
        "checkpoint_bytes": sum(f.stat().st_size for f in folder.glob("checkpoint/*")),
        "data_bytes": sum(f.stat().st_size for f in folder.glob("tasks/*.jsonl.gz")),
        "finetune_rows": len((folder / FINETUNE.name).read_text().splitlines()),
        "sha256": checksum(folder / "checkpoint" / "model.safetensors"),
        "changed": verify(folder),
        "build": recorded["build"],
        "tasks": {
            task: {
                "items": len(read_items(task, folder)),
                "chance": CHANCE[task],
                "memorised": task in MEMORISED,
                "scores": recorded["tasks"][task],
            }
            for task in TASK_NAMES
        },
    }
