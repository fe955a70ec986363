"""Predictions kept between plans, so that the same question is answered at once.

A prediction follows from the trial, the target, the files that the trial names, what this machine
has of the Hub, and the code that made it. All of these are part of its key; a change in any of them
makes it anew. So a prediction that had to do without a tokenizer lasts until the tokenizer is here.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import tradebench
from tradebench import configs, store
from tradebench.reference import TASK_NAMES
from tradebench.result import digest
from tradebench.target import Target
from tradebench.trial import FileData, HubData, Trial

LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes", "torchao", "lm_eval", "numpy")
# What a local model's shapes, tokenizer and chat template are written in.
READ = (".json", ".jinja", ".model", ".txt")


def folder() -> Path:
    """Where predictions are kept: below XDG_CACHE_HOME, or ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "tradebench" / "predictions"


class Cache:
    """The predictions that this code has made on this machine; a file per state of the code."""

    def __init__(self, directory: Path | None = None) -> None:
        self._path = (directory or folder()) / f"{_code()}.jsonl"
        self._known: dict[str, Mapping[str, Any]] = {}
        self._file: store.Appender | None = None
        # A plan of a thousand points looks at the Hub's folders once.
        self._fetched = lru_cache(fetched)
        if self._path.is_file():
            for line in self._path.read_text(encoding="utf-8").splitlines():
                try:
                    entry = json.loads(line)
                    self._known[entry["key"]] = entry["prediction"]
                except (ValueError, KeyError, TypeError):
                    continue  # torn or foreign: it is made again

    def get(self, trial: Trial, target: Target) -> Mapping[str, Any] | None:
        """The prediction of this trial, if it was made before."""
        return self._known.get(key(trial, target, self._fetched))

    def put(self, trial: Trial, target: Target, prediction: Mapping[str, Any]) -> None:
        """Keep a prediction."""
        if self._file is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = store.Appender(self._path)
        name = key(trial, target, self._fetched)
        self._known[name] = prediction
        self._file.append(json.dumps({"key": name, "prediction": prediction}))


def fetched(model: str | None, data: bool) -> tuple[str, ...]:
    """Names of the files that this machine has of a model on the Hub, and of all data sets there.

    Tokenizers and data decide shapes, and predictions do without what is not here. A snapshot's
    path has the commit, so that another content has another name; weights are not looked at.
    """
    from huggingface_hub import constants

    hub = Path(constants.HF_HUB_CACHE)
    found: list[Path] = []
    if model is not None:
        files = hub.glob(f"models--{model.replace('/', '--')}/snapshots/*/*")
        found += (file for file in files if file.suffix in READ)
    if data:
        prepared = os.environ.get("HF_DATASETS_CACHE") or Path(constants.HF_HOME) / "datasets"
        found += hub.glob("datasets--*/snapshots/*")
        found += Path(prepared).glob("*")
    return tuple(sorted(map(str, found)))


def key(
    trial: Trial,
    target: Target,
    fetched: Callable[[str | None, bool], tuple[str, ...]] = fetched,
) -> str:
    """Names everything that a prediction follows from, apart from the code."""
    files = [configs.path(trial.model.config)] if trial.model.config else []
    if isinstance(trial.budget.data, FileData):
        files.append(Path(trial.budget.data.file).expanduser())
    files += [Path(file) for file in (target.calibration, target.overheads) if file is not None]
    local = Path(trial.model.name).expanduser()
    if local.is_dir():
        files += sorted(file for file in local.iterdir() if file.suffix in READ)
    contents = [_content(file) for file in files]
    here = fetched(*_of_the_hub(trial))
    return digest([trial.payload(), target.model_dump(), contents, here])


def _of_the_hub(trial: Trial) -> tuple[str | None, bool]:
    """The model that a trial takes from the Hub, if it does, and whether it takes data from it."""
    local = trial.model.name == "reference" or Path(trial.model.name).expanduser().is_dir()
    tasks = set(trial.evaluate.tasks) - set(TASK_NAMES)
    return None if local else trial.model.name, bool(tasks) or isinstance(
        trial.budget.data, HubData
    )


def _content(file: Path) -> str:
    if not file.is_file():
        return ""
    found = file.stat()
    return _digest_of(file, found.st_size, found.st_mtime_ns)


@lru_cache
def _digest_of(file: Path, size: int, changed: int) -> str:
    """A digest of what is in a file: a thousand points may name the same one of many megabytes."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


@lru_cache
def _code() -> str:
    """A digest of tradebench's own sources and of the libraries whose code a prediction runs."""
    root = Path(tradebench.__file__).parent
    sources = hashlib.sha256()
    # The checksums stand for the reference model, its data and its tasks.
    for file in (*sorted(root.rglob("*.py")), root / "reference" / "checksums.json"):
        sources.update(file.read_bytes())
    return digest([sources.hexdigest(), *map(_version, LIBRARIES)])


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"
