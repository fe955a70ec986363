"""The rungs of the ladder: trials in the shape of Llama 3.3 70B, as large as 141 GB take.

Weights are random, so nothing is downloaded and every byte is where it would be.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tradebench.trial import Trial

Settings = Mapping[str, Mapping[str, Any]]

SHAPE = "llama-3.3-70b"
STEPS, WARMUP = 3, 1
EXPANDABLE = "expandable_segments:True"

BF16: Settings = {"precision": {"method": "bf16"}}
NF4: Settings = {"quantization": {"method": "nf4"}}
INT8: Settings = {"quantization": {"method": "int8"}}
RECOMPUTED: Settings = {"checkpointing": {"method": "full"}}


def _lora(rank: int) -> Settings:
    return {"adapters": {"method": "lora", "rank": rank}}


@dataclass(frozen=True, kw_only=True)
class Rung:
    """A trial on `layers` decoder layers, and the allocator it runs under.

    `rehearsed` says whether no other rung is like it but for sizes.
    """

    does: str
    layers: int
    sequence: int
    settings: Settings
    batch: int = 1
    accumulation: int = 1
    shape: str = SHAPE
    allocator: str = EXPANDABLE
    rehearsed: bool = False

    def trial(self, *, tiny: bool) -> Trial:
        """The trial itself; a tiny one has the shape of the reference model."""
        from tradebench import reference
        from tradebench.trial import Trial

        config = str(reference.CHECKPOINT) if tiny else self.shape
        name = "meta-llama/Llama-3.3-70B-Instruct" if config == SHAPE else config
        return Trial.from_payload(
            {
                "model": {
                    "name": "reference" if tiny else name,
                    "config": config,
                    "weights": "random",
                    "layers": 2 if tiny else self.layers,
                },
                "budget": {
                    "steps": STEPS,
                    "warmup": WARMUP,
                    "batch": self.batch,
                    "sequence": 32 if tiny else self.sequence,
                    "accumulation": self.accumulation,
                    "data": "random",
                },
                "evaluate": {},
                "settings": self.settings,
            }
        )


# By value: what people run, then what tells techniques apart, then lengths and the other allocator.
# Depths are cut where 80 layers do not fit (a layer has 1.71 GB of weights in 16 bits).
RUNGS: Mapping[str, Rung] = {
    "nf4-r16": Rung(
        does="QLoRA, rank 16, all layers recomputed",
        layers=80,
        sequence=2048,
        settings={**BF16, **NF4, **RECOMPUTED, **_lora(16)},
        rehearsed=True,
    ),
    "bf16-r16": Rung(
        does="LoRA on 60 layers in 16 bits, recomputed",
        layers=60,
        sequence=2048,
        settings={**BF16, **RECOMPUTED, **_lora(16)},
        rehearsed=True,
    ),
    "int8-r16": Rung(
        does="LoRA on 8 bits, recomputed",
        layers=80,
        sequence=1024,
        settings={**BF16, **INT8, **RECOMPUTED, **_lora(16)},
        rehearsed=True,
    ),
    "full": Rung(
        does="full fine-tuning of 8 layers in 16 bits, recomputed",
        layers=8,
        sequence=2048,
        settings={**BF16, **RECOMPUTED},
    ),
    "nf4-half": Rung(
        does="QLoRA, half of the layers recomputed",
        layers=80,
        sequence=2048,
        settings={**BF16, **NF4, "checkpointing": {"method": "full", "ratio": 0.5}, **_lora(16)},
    ),
    "nf4-default": Rung(
        does="QLoRA under the default allocator",
        layers=80,
        sequence=2048,
        settings={**BF16, **NF4, **RECOMPUTED, **_lora(16)},
        allocator="",
    ),
    "nf4-double-4096": Rung(
        does="QLoRA with quantized scales, 4096 tokens",
        layers=80,
        sequence=4096,
        settings={
            **BF16,
            "quantization": {"method": "nf4", "double": True},
            **RECOMPUTED,
            **_lora(64),
        },
    ),
    "nf4-512": Rung(
        does="QLoRA, 2 x 2 sequences of 512 tokens",
        layers=80,
        sequence=512,
        batch=2,
        accumulation=2,
        settings={**BF16, **NF4, **RECOMPUTED, **_lora(16)},
    ),
    "bf16-all": Rung(
        does="LoRA on 30 layers in 16 bits, nothing recomputed",
        layers=30,
        sequence=2048,
        settings={**BF16, **_lora(16)},
    ),
    "bf16-8192": Rung(
        does="LoRA on 30 layers in 16 bits, 8192 tokens, loss in chunks",
        layers=30,
        sequence=8192,
        settings={**BF16, **RECOMPUTED, **_lora(16), "loss": {"method": "chunked", "tokens": 2048}},
    ),
}
