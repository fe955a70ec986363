"""The shapes of the decoder's matrices, read from a model's config without torch.

What does not fit a model is refused before anything is loaded, where its config is at hand.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tradebench import configs, reference

if TYPE_CHECKING:
    from tradebench.trial import Model

# Architectures whose decoder layers are four projections of attention and three of a gated MLP.
KNOWN = ("llama", "mistral", "qwen2", "qwen3")


def matrix_shapes(model: Model) -> frozenset[tuple[int, int]]:
    """(out, in) of the decoder's linear layers; empty where the config does not say or is away."""
    fields = _config(model)
    if fields.get("model_type") not in KNOWN:
        return frozenset()
    width, inner = fields["hidden_size"], fields["intermediate_size"]
    heads = fields["num_attention_heads"]
    head = fields.get("head_dim") or width // heads
    queries = heads * head
    keys = (fields.get("num_key_value_heads") or heads) * head
    return frozenset(
        {(queries, width), (keys, width), (width, queries), (inner, width), (width, inner)}
    )


def _config(model: Model) -> dict[str, Any]:
    """The fields of config.json where it is on this machine."""
    if model.config is not None and model.config in configs.names():
        file = configs.path(model.config)
    elif model.config is not None:
        file = Path(model.config) / "config.json"
    elif model.name == "reference":
        file = reference.CHECKPOINT / "config.json"
    else:
        file = Path(model.name).expanduser() / "config.json"
    fields: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    return fields
