"""Traps that give wrong results without an exception, where they would spring on CUDA.

An evaluation before training must leave quantized weights as they were: gradients that are taken
after one are held against gradients without.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from gpu.rungs import BF16, Settings
from gpu.section import Bench
from tradebench import reference
from tradebench.program.data import collate
from tradebench.program.loop import summed_loss
from tradebench.program.model import load_model
from tradebench.program.perform import Materials, gather
from tradebench.techniques import Stage
from tradebench.trial import Trial

LEAST = 0.99  # cosine; the traps known from CPUs give 0.41
FORMATS: Mapping[str, Settings] = {
    "nf4": {"quantization": {"method": "nf4"}},
    "nf4 double": {"quantization": {"method": "nf4", "double": True}},
    "int8": {"quantization": {"method": "int8"}},
}


def run(bench: Bench, name: str) -> None:
    """Write down every format's cosine.

    Raises:
        RuntimeError: one is too small.
    """
    found = {label: gradients(label, bench) for label in FORMATS}
    bench.write("traps", {"schema": "tradebench.traps/1", "least": LEAST, "formats": found})
    sprung = [label for label, values in found.items() if not values["cosine"] > LEAST]
    if sprung:
        raise RuntimeError(f"an evaluation changes the gradients of {', '.join(sprung)}")


def gradients(label: str, bench: Bench) -> dict[str, float]:
    """Loss and gradients of an adapter without and with an evaluation before."""
    trial = _trial(FORMATS[label], tiny=bench.tiny)
    clean_loss, clean = _step(trial, bench.device, evaluated=False)
    loss, after = _step(trial, bench.device, evaluated=True)
    return {
        "cosine": float(cosine_similarity(clean, after, dim=0)),
        "norm": float(clean.norm()),
        "norm_evaluated": float(after.norm()),
        "loss": clean_loss,
        "loss_evaluated": loss,
    }


def _trial(settings: Settings, *, tiny: bool) -> Trial:
    config = str(reference.CHECKPOINT) if tiny else "llama-3.2-1b"
    model = {"name": config, "config": config, "weights": "random", "layers": 2 if tiny else 4}
    budget = {"steps": 1, "sequence": 32 if tiny else 256, "data": "random"}
    adapters = {"adapters": {"method": "lora", "rank": 8}}
    return Trial.from_payload(
        {
            "model": model,
            "budget": budget,
            "evaluate": {},
            "settings": {**BF16, **adapters, **settings},
        }
    )


def _step(trial: Trial, device: str, *, evaluated: bool) -> tuple[float, Tensor]:
    """The loss and the adapters' gradients, on a model of the same values every time."""
    materials = gather(trial, device, None)
    model = _adapted(trial, materials)
    tokens = collate(materials.examples[:1], materials.padding, device)["input_ids"]
    if evaluated:
        model.eval()
        with torch.no_grad():
            model(tokens)
        model.train()
    loss = summed_loss(model, {"input_ids": tokens, "labels": tokens})
    loss.backward()
    taken = [p.grad.flatten().float() for p in model.parameters() if p.grad is not None]
    return float(loss.detach()), torch.cat(taken)


def _adapted(trial: Trial, materials: Materials) -> nn.Module:
    torch.manual_seed(0)
    model: Any = load_model(trial.model, materials.request)
    for part in trial.between(Stage.LOAD, Stage.FEED):
        model = part.model(model, materials.request)
    # Adapters start at zero on one side, which would leave the other without a gradient.
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.02 * torch.randn_like(parameter)
    return model  # type: ignore[no-any-return]  # transformers makes its classes at run time
