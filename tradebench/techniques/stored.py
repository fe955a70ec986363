"""Folders whose weights GPTQ has packed already, and what they say of them; read without torch.

Newer tools say it in the `quantization_config` of config.json. auto-gptq at first wrote a file of
its own, quantize_config.json, beside a config.json that says nothing; transformers looks for the
former alone, and would take such a folder for a dense model with most of its weights missing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tradebench.trial import Model

BESIDE = "quantize_config.json"
# v1 stores each zero point less one, v2 as it is. Who names no format wrote v1.
V1, V2 = "gptq", "gptq_v2"
# What else says that not every layer is packed, or not every one alike.
PARTIAL = ("modules_in_block_to_quantize", "dynamic", "lm_head")
READ = ("model.safetensors", "model.safetensors.index.json")
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth")
BITS, GROUPS = (2, 3, 4, 8), (16, 32, 64, 128, 256, 512, 1024)  # that layers are read in
AGAIN = "quantize the dense model with source: model"


@dataclass(frozen=True, kw_only=True)
class Packed:
    """How a folder's weights are packed, in the words of the technique that reads them.

    `group` is -1 where each row has one scale. `uneven` names the entry by which some layers are
    treated otherwise, None where all are alike. `writer` is who says that they wrote it.
    """

    bits: int
    group: int
    desc_act: bool
    symmetric: bool
    format: str
    uneven: str | None
    writer: str

    method = "gptq"

    @property
    def settings(self) -> dict[str, int | bool | str]:
        """The settings of the technique that reads it as it is."""
        return {
            "method": self.method,
            "bits": self.bits,
            "group": self.group,
            "desc_act": self.desc_act,
            "symmetric": self.symmetric,
            "source": "checkpoint",
        }

    def fields(self) -> dict[str, Any]:
        """The `quantization_config` from which transformers reads it."""
        return {
            "quant_method": self.method,
            "bits": self.bits,
            "group_size": self.group,
            "desc_act": self.desc_act,
            "sym": self.symmetric,
            "checkpoint_format": self.format,
        }


def packed_weights(model: Model) -> Packed | None:
    """What the model's folder says, or that of its config; None where no weights are packed.

    Where both files are there, the older one names the format: `GPTQQuantizer.save` of optimum 2.3
    stores zero points as v1 has them, says so there, and says `gptq_v2` in config.json.
    """
    if model.weights == "random":  # the shape is filled with dense ones
        return None
    for place in (model.name, model.config):
        folder = Path(place).expanduser() if place is not None else None
        if folder is None or not folder.is_dir():
            continue
        beside = _read(folder / BESIDE)
        named = _read(folder / "config.json").get("quantization_config") or beside
        if "bits" in named and named.get("quant_method", Packed.method) == Packed.method:
            return _packed(named, _format(beside) or _format(named) or V1)
    return None


def misread(model: Model, quantization: Mapping[str, Any]) -> list[str]:
    """Why packed weights cannot be read, or not with these settings of quantization.

    Of what lies in the folder only JSON is read, and the names of files.
    """
    packed = packed_weights(model)
    if packed is None:
        return []
    reasons = [f"{model.name} {reason}; {remedy}" for reason, remedy in _unreadable(model, packed)]
    if not reasons and any(quantization.get(key) != v for key, v in packed.settings.items()):
        reasons.append(
            f"{model.name} holds weights that are packed already; use quantization: "
            f"{_written(packed)}"
        )
    return reasons


def _unreadable(model: Model, packed: Packed) -> Iterator[tuple[str, str]]:
    """What keeps a folder from being read, and what to do."""
    if packed.bits not in BITS or packed.group not in GROUPS:
        yield f"is packed in {packed.bits} bits and groups of {packed.group}", AGAIN
    if packed.format not in (V1, V2):
        yield f"is packed in the format {packed.format}, for inference only", AGAIN
    if packed.format == V1 and not packed.symmetric and "gptqmodel" not in packed.writer:
        # Stored less one, zero becomes the largest value; readers disagree on what that means.
        yield "is packed in a format that cannot store a zero point of zero, and may need it", AGAIN
    if packed.uneven is not None:
        yield f"treats some layers otherwise than others, by its {packed.uneven}", AGAIN
    other = _other_weights(model)
    if other is not None:
        yield f"has its weights in {other}", "save them as model.safetensors"


def _written(packed: Packed) -> str:
    """The settings as a suite has them, but for those that are as usual."""
    usual = {"desc_act": False, "symmetric": True}
    fields = (
        f"{name}: {str(value).lower() if isinstance(value, bool) else value}"
        for name, value in packed.settings.items()
        if name not in usual or usual[name] != value
    )
    return f"{{{', '.join(fields)}}}"


def _other_weights(model: Model) -> str | None:
    """A file of weights in the model's folder where none has the name that is read."""
    folder = Path(model.name).expanduser()
    if not folder.is_dir() or any((folder / name).is_file() for name in READ):
        return None
    return next((file.name for file in sorted(folder.iterdir()) if file.suffix in WEIGHTS), None)


def _packed(named: Mapping[str, Any], form: str) -> Packed:
    tools = (named.get("meta") or {}).get("quantizer") or ()
    return Packed(
        bits=named["bits"],
        group=named.get("group_size", -1),
        desc_act=bool(named.get("desc_act", False)),
        symmetric=bool(named.get("sym", True)),
        format=form,
        uneven=next((name for name in PARTIAL if named.get(name)), None),
        writer=tools if isinstance(tools, str) else " ".join(map(str, tools)),
    )


def _format(named: Mapping[str, Any]) -> str | None:
    if named.get("is_marlin_format"):
        return "marlin"
    found = named.get("checkpoint_format") or named.get("format")
    return None if found is None else str(found).lower()


def _read(file: Path) -> dict[str, Any]:
    """The fields of a JSON file; none where it is not there."""
    fields: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    return fields
