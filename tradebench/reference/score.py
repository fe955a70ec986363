"""Scores a checkpoint on the reference tasks, through lm-eval as every trial does."""

from pathlib import Path
from typing import Any

import lm_eval
import numpy as np
import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import AutoModelForCausalLM, AutoTokenizer

from tradebench.reference import TASK_NAMES

Scores = dict[str, dict[str, Any]]


def score(folder: Path, *, limit: int | None = None) -> Scores:
    """Per task: the number of items, and each metric's value and standard error over items.

    `folder` holds `checkpoint/` and `tasks/`; float32, 128 items at a time. `answers` gains
    `nll`, the mean over items of minus the log-likelihood of the gold answer, in nats.
    """
    model = AutoModelForCausalLM.from_pretrained(folder / "checkpoint", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder / "checkpoint")
    harness = HFLM(
        pretrained=model,
        tokenizer=tokenizer,
        batch_size=128,
        add_bos_token=True,
        max_length=model.config.max_position_embeddings,
    )
    manager = TaskManager(include_path=str(folder / "tasks"), include_defaults=False)
    tasks = manager.load(list(TASK_NAMES))
    for task in tasks["tasks"].values():
        task.set_fewshot_seed(seed=1234)
    # `evaluate`, not `simple_evaluate`: the latter lists every installed package first.
    found = lm_eval.evaluate(
        lm=harness, task_dict=tasks, limit=limit, bootstrap_iters=100, log_samples=True
    )
    return {task: _summary(found["results"][task], found["samples"][task]) for task in TASK_NAMES}


def _summary(result: dict[str, Any], samples: list[dict[str, Any]]) -> dict[str, Any]:
    """The metrics of one task; lm-eval's keys are `metric,filter` and `metric_stderr,filter`."""
    summary: dict[str, Any] = {"items": len(samples)}
    for key, value in result.items():
        name, _, suffix = key.partition(",")
        if suffix and not name.endswith("_stderr") and name != "perplexity":
            error = result[f"{name}_stderr,{suffix}"]
            summary[name] = {"value": float(value), "stderr": float(error)}
    if "perplexity" in samples[0]:
        losses = -np.array([sample["perplexity"] for sample in samples])
        error = losses.std(ddof=1) / np.sqrt(len(losses))
        summary["nll"] = {"value": float(losses.mean()), "stderr": float(error)}
    return summary
