"""Builds the reference model's whole folder anew: data, checkpoint, scores and checksums."""

import dataclasses
import gzip
import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file

from tradebench.reference import (
    CHECKSUMS,
    FINETUNE,
    SCORES,
    TASK_NAMES,
    TASKS,
    checksum,
    data_files,
)
from tradebench.reference.items import finetune_rows, items
from tradebench.reference.score import score
from tradebench.reference.tokenizer import tokenizer
from tradebench.reference.train import Progress, Recipe, train
from tradebench.reference.world import World, make_world


def build(
    out: Path,
    *,
    recipe: Recipe | None = None,
    progress: Progress = lambda step, steps, loss: None,
    limit: int | None = None,
) -> dict[str, Any]:
    """Retrain everything into `out` and return the scores, which `out/scores.json` holds too.

    The data come out byte for byte as shipped. The weights do not: another processor or thread
    count sums in another order. Their scores agree with the frozen ones within a few standard
    errors. `limit` scores only the first so many items of each task.
    """
    recipe = recipe or Recipe()
    world = make_world()
    write_data(world, out)
    model = train(world, recipe, progress)
    write_checkpoint(world, model, out / "checkpoint")
    recorded = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "build": {
            "recipe": dataclasses.asdict(recipe),
            "world_seed": world.seed,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "limit": limit,
        },
        "tasks": score(out, limit=limit),
    }
    _write_json(out / SCORES, recorded)
    write_checksums(out)
    return recorded


def write_data(world: World, out: Path) -> None:
    """Task definitions with their items, and the fine-tuning rows."""
    shutil.copytree(
        TASKS,
        out / "tasks",
        ignore=shutil.ignore_patterns("*.gz", "__pycache__"),
        dirs_exist_ok=True,
    )
    for task in TASK_NAMES:
        # No time of writing in the header: the same items give the same bytes.
        packed = gzip.compress(_lines(items(world, task)).encode(), mtime=0)
        (out / "tasks" / f"{task}.jsonl.gz").write_bytes(packed)
    (out / FINETUNE.name).write_text(_lines(finetune_rows(world)), newline="\n")


def write_checkpoint(world: World, model: transformers.LlamaForCausalLM, folder: Path) -> None:
    """A folder that `from_pretrained` loads: float32 weights, configuration, tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: value.contiguous() for name, value in model.state_dict().items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    model.config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    tokenizer(world).save_pretrained(folder)


def write_checksums(out: Path) -> None:
    """The sha256 of every data file, under its path within `out`."""
    sums = {file.relative_to(out).as_posix(): checksum(file) for file in data_files(out)}
    _write_json(out / CHECKSUMS, sums)


def _lines(rows: Iterable[Mapping[str, object]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def _write_json(file: Path, value: object) -> None:
    file.write_text(json.dumps(value, indent=2) + "\n", newline="\n")
