"""A job: everything that a worker is told about the one attempt that it makes."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from tradebench import store
from tradebench.rank import PATIENCE_SECONDS
from tradebench.result import Environment, Phase, digest

Isolation = Literal["fork", "exec"]

PROGRAM = "tradebench.program.measure:measure"

# What a trial imports: paid once per sweep by the template, or by every fresh interpreter.
# transformers and lm_eval import lazily, so their submodules are named.
PRELOAD = (
    "torch",
    "transformers.models.llama.modeling_llama",
    "peft",
    "bitsandbytes",
    "lm_eval.evaluator",
    "lm_eval.models.huggingface",
    "datasets",
)

# Seconds without a sign of life after which a trial counts as hung. Loading and evaluating are
# silent for long legitimately; a training step reports itself.
SILENCE: Mapping[Phase | Literal["start"], float] = {
    "start": 900.0,
    "load": 3600.0,
    "compress": 7200.0,
    "evaluate_before": 7200.0,
    "train": 1800.0,
    "evaluate_after": 7200.0,
}


class Job(BaseModel):
    """One attempt at one point, as JSON in `run`: `work/<key>/job.json`.

    `label` is what people read, which only a trial's suite knows in full. `run` is where files
    beside the Result go, absolute: the run directory or the writer's folder in it. `program` names
    a function as `module:function`, and `preload` what is imported before the memory cap counts.
    `silence` holds, per phase, the seconds without a heartbeat after which the trial counts as
    hung. It is made by so many `ranks` together, each with `threads` of its own; one that keeps the
    others waiting for more than `patience` seconds counts as hung. `launcher` is a command that
    starts them in the runner's place, on several machines that share the run directory; its workers
    send no heartbeats.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", ignored_types=(cached_property,))

    suite: str
    label: str
    trial: Mapping[str, Any]
    repeat: int
    attempt: int
    run: Path
    program: str = PROGRAM
    preload: tuple[str, ...] = PRELOAD
    environment: Environment = Environment()
    ranks: int = 1
    threads: int = 1
    memory_cap: int | None = None
    timeout: float | None = None
    silence: Mapping[Phase | Literal["start"], float] = SILENCE
    patience: float = PATIENCE_SECONDS
    launcher: tuple[str, ...] = ()

    @cached_property
    def key(self) -> str:
        """Names the attempt, and its folder and log."""
        return f"{digest(self.trial)}.{self.repeat}.{self.attempt}"

    @property
    def directory(self) -> Path:
        """Where the worker finds this job and leaves its Result."""
        return self.run / "work" / self.key

    @property
    def log(self) -> Path:
        """What the worker prints, or the first of several."""
        return self.log_of(0)

    def log_of(self, rank: int) -> Path:
        """What the worker of this rank prints."""
        return self.run / self.artifacts[_of_rank("log", rank)]

    @property
    def artifacts(self) -> dict[str, str]:
        """The files that every attempt leaves, relative to `run`."""
        names = [_of_rank(self.key, rank) for rank in range(self.ranks)]
        return {_of_rank("log", rank): f"logs/{name}.txt" for rank, name in enumerate(names)}

    def result(self, rank: int = 0) -> Path:
        """Where the worker of this rank leaves its Result."""
        return self.directory / f"{_of_rank('result', rank)}.json"

    def write(self) -> None:
        """Lay the job down for a worker."""
        self.directory.mkdir(parents=True)
        store.write_text(self.directory / "job.json", self.model_dump_json())

    @classmethod
    def read(cls, directory: Path) -> Job:
        """The job that lies in `directory`."""
        return cls.model_validate_json((directory / "job.json").read_bytes())


def _of_rank(name: str, rank: int) -> str:
    """A name for one of several; the first has that of one alone."""
    return f"{name}.rank{rank}" if rank else name
