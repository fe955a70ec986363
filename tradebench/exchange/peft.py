"""Results of peft's `method_comparison`, as published evidence.

What its files say otherwise than its code measures is put right here, and every Result says so:
the time of training includes evaluations, and the peak does too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from tradebench.exchange.flat import label
from tradebench.result import Environment, Measurement, Result, digest

ITEMS = 1319  # of GSM8K's test set, behind every test accuracy
Z95 = 1.959964
METHODS = {"use_dora": "dora", "use_rslora": "rslora"}
MARKS = (
    "Published by peft's method_comparison, not measured here.",
    "Its peak is what was reserved beyond the start of training, and covers the evaluations with "
    "generation in between: the peak of training alone may be lower.",
)


def read(content: Any, suite: str) -> list[Result]:
    """The one Result that a file holds."""
    run, train, meta = content["run_info"], content["train_info"], content["meta_info"]
    config = run["train_config"]
    settings = _settings(config, run.get("peft_config"))
    payload = {
        "model": {
            "name": config["model_id"],
            "revision": meta["model_info"]["sha"],
            "config": None,
            "weights": "hub",
        },
        "budget": {
            "steps": config["max_steps"],
            "warmup": 0,
            "batch": config["batch_size"],
            "sequence": config["max_seq_length"],
            "accumulation": 1,
            "learning_rate": config["optimizer_kwargs"]["lr"],
            "schedule": config["lr_scheduler"],
            "seed": config["seed"],
            "data": {"hub": "meta-math/MetaMathQA"},
        },
        "evaluate": {"tasks": ["gsm8k"]},
        "settings": settings,
    }
    error = str(run.get("error_msg") or "")
    succeeded = train["status"] == "success"
    out_of_memory = "out of memory" in error.lower()
    measured, marks = _measurements(train) if succeeded else ({}, [])
    return [
        Result.model_validate(
            {
                "kind": "published",
                "suite": suite,
                "trial": digest(payload),
                "label": label(settings),
                **payload,
                "status": "ok" if succeeded else "oom" if out_of_memory else "failed",
                "reason": None if succeeded else error or f"its status is {train['status']}",
                "measurements": measured,
                "warnings": (*MARKS, *marks),
                "environment": _environment(meta),
                "started": run["created_at"],
                "seconds": run["total_time"],
                "source": f"huggingface/peft method_comparison, {run['experiment_name']}",
            }
        )
    ]


def _settings(
    config: Mapping[str, Any], adapter: Mapping[str, Any] | None
) -> dict[str, dict[str, Any]]:
    """Slot to settings, in the words of this catalogue where it has them."""
    found: dict[str, dict[str, Any]] = {}
    if config["dtype"] == "bfloat16":
        found["precision"] = {"method": "bf16_autocast" if config["use_amp"] else "bf16"}
    if adapter is not None:
        kind = str(adapter["peft_type"]).lower()
        special = next((name for key, name in METHODS.items() if adapter.get(key)), kind)
        found["adapters"] = {
            "method": special,
            **{
                ours: adapter[theirs]
                for ours, theirs in (
                    ("rank", "r"),
                    ("alpha", "lora_alpha"),
                    ("targets", "target_modules"),
                )
                if adapter.get(theirs) is not None
            },
        }
    if config["optimizer_type"] != "AdamW":
        found["optimizer"] = {"method": str(config["optimizer_type"]).lower()}
    if config["use_gc"]:
        found["checkpointing"] = {"method": "full", "ratio": 1.0}
    return found


def _measurements(train: Mapping[str, Any]) -> tuple[dict[str, Measurement], list[str]]:
    windows = [each for each in train["metrics"] if "train time" in each]
    last = train["metrics"][-1]
    found = {
        "peak_reserved_bytes": Measurement(value=int(train["accelerator_memory_max"]), unit="B"),
        "trainable_parameters": Measurement(value=int(train["num_trainable_params"]), unit="1"),
        "train_loss": Measurement(value=float(last["train loss"]), unit="nat"),
        "accuracy.gsm8k": _accuracy(float(last["test accuracy"])),
    }
    if not windows:
        return found, []
    # Windows hold equally many steps; their own clocks stop during evaluations.
    steps, seconds = int(windows[-1]["step"]), math.fsum(each["train time"] for each in windows)
    size = steps / len(windows)
    found["step_seconds"] = Measurement(
        value=seconds / steps,
        unit="s",
        samples=tuple(each["train time"] / size for each in windows),
    )
    tokens = int(last["train total tokens"])
    found["tokens_per_second"] = Measurement(value=tokens / seconds, unit="1/s", better="more")
    mark = (
        f"Its train_time of {train['train_time']:.0f} s covers evaluations; the {seconds:.0f} s "
        "of its windows of training are used instead."
    )
    return found, [mark]


def _accuracy(value: float) -> Measurement:
    """With the Wilson interval of its items."""
    center = (value + Z95**2 / (2 * ITEMS)) / (1 + Z95**2 / ITEMS)
    half = math.sqrt(value * (1 - value) / ITEMS + Z95**2 / (4 * ITEMS**2))
    half *= Z95 / (1 + Z95**2 / ITEMS)
    return Measurement(
        value=value, unit="1", better="more", interval=(center - half, center + half)
    )


def _environment(meta: Mapping[str, Any]) -> Environment:
    packages = {
        name.removesuffix("-version"): version
        for name, version in meta["package_info"].items()
        if name.endswith("-version")
    }
    system = meta["system_info"]
    return Environment(
        software={**packages, "system": system["system"]},
        hardware={"gpus": [{"name": system["accelerator"]}], "machine": system["machine"]},
    )
