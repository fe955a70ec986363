"""What a reader takes away from a point: its suite file, and its settings for libraries."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tradebench.report.tables import Point
from tradebench.report.units import clean, count
from tradebench.suite.written import one_point

Fields = Mapping[str, Any]


def suite_file(point: Point) -> str:
    """Return a suite of this one point, which runs it again; empty where no suite can."""
    if point.asked is None:
        return ""
    budget = point.asked.budget
    return one_point(
        point.asked,
        Path(),
        question=f"What does {clean(point.name)} cost?",
        remarks=(
            f"It measures {count(budget.steps, 'step')} of batch {budget.batch} and keeps no "
            "weights: for a training of your own, give budget your data and steps.",
        ),
    )


def library_code(point: Point) -> str:
    """Return the point's settings as transformers and peft take them.

    A comment names each technique that those two libraries have no setting for.
    """
    settings = point.settings
    dtype = "float32" if settings.get("precision", {}).get("method") in _WIDE else "bfloat16"
    blocks = []
    for slot, fields in settings.items():
        method = str(fields.get("method", "on"))
        write = _WRITERS.get((slot, method))
        if write is not None:
            blocks.append(write(fields, dtype))
        else:
            blocks.append(f"# {slot}: {clean(method)} has no setting here; run the suite file")
    return "\n".join(blocks) or "# no technique is on: the libraries' defaults"


# The weights stay in fp32 while products are taken in 16 bits.
_WIDE = ("fp32", "bf16_autocast", "fp16")


def _plain(fields: Fields, dtype: str) -> str:
    return f"load = dict(dtype=torch.{dtype})  # to from_pretrained"


def _bits4(fields: Fields, dtype: str) -> str:
    return (
        "quantization = BitsAndBytesConfig(\n"
        "    load_in_4bit=True,\n"
        f'    bnb_4bit_quant_type="{fields["method"]}",\n'
        f"    bnb_4bit_use_double_quant={bool(fields.get('double'))},\n"
        f"    bnb_4bit_compute_dtype=torch.{dtype},\n"
        ")"
    )


def _bits8(fields: Fields, dtype: str) -> str:
    return "quantization = BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=6.0)"


def _lora(fields: Fields, dtype: str) -> str:
    method, rank = fields["method"], fields.get("rank", 16)
    alpha = fields.get("alpha") or (rank if method == "pissa" else 2 * rank)
    targets = fields.get("targets", "all-linear")
    return (
        "adapters = LoraConfig(\n"
        f"    r={rank},\n"
        f"    lora_alpha={alpha:g},\n"
        f"    target_modules={targets if isinstance(targets, str) else list(targets)!r},\n"
        f"    lora_dropout={fields.get('dropout', 0.0):g},\n"
        f"    use_rslora={method == 'rslora'},\n"
        f"    use_dora={method == 'dora'},\n"
        f"    init_lora_weights={'pissa' if method == 'pissa' else True!r},\n"
        '    task_type="CAUSAL_LM",\n'
        ")"
    )


def _checkpointing(fields: Fields, dtype: str) -> str:
    if fields.get("ratio", 1) != 1:
        return "# checkpointing of a share of the layers has no setting here; run the suite file"
    return "training = dict(gradient_checkpointing=True)  # to TrainingArguments"


_WRITERS: Mapping[tuple[str, str], Callable[[Fields, str], str]] = {
    **{("precision", method): _plain for method in ("fp32", "bf16")},
    **{("quantization", method): _bits4 for method in ("nf4", "fp4")},
    ("quantization", "int8"): _bits8,
    **{("adapters", method): _lora for method in ("lora", "rslora", "dora", "pissa")},
    ("checkpointing", "full"): _checkpointing,
}
