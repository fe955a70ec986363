"""Folders of weights in auto-gptq's format: read as they are, or refused before a trial starts.

The folders are made here, bit by bit as that format is documented, from the reference model. Tests
that read weights need gptqmodel; test_gptq.py runs them with it on the path.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tradebench import reference
from tradebench.errors import UserError
from tradebench.predict.memory import predict_memory
from tradebench.program.measure import rehearse
from tradebench.program.model import load_model
from tradebench.program.perform import prepare
from tradebench.result import Outcome
from tradebench.techniques import catalogue
from tradebench.techniques.stored import BITS, GROUPS
from tradebench.trial import Trial
from tradebench.worlds.meters import MemoryMeter

Compress = Callable[[Trial], nn.Module]
Run = Callable[[Trial], tuple[nn.Module, tuple[float, ...], dict[str, Any]]]

HERE = find_spec("gptqmodel") is not None
inside = pytest.mark.skipif(not HERE, reason="gptqmodel is not installed")
LORA = {"method": "lora", "rank": 4}
GROUP = 64
SAYS: dict[str, Any] = {
    "bits": 4,
    "group_size": GROUP,
    "damp_percent": 0.01,
    "desc_act": False,
    "sym": True,
    "true_sequential": True,
}


def trial_of(model: Path, quantization: dict[str, Any] | None, **others: Any) -> Trial:
    slot = {} if quantization is None else {"quantization": quantization}
    return Trial.from_payload(
        {
            "model": {"name": str(model)},
            "budget": {"steps": 3, "warmup": 1, "batch": 2, "sequence": 48, "data": "random"},
            "evaluate": {},
            "settings": {**slot, "adapters": LORA, **others},
        }
    )


def read(bits: int = 4, **others: Any) -> dict[str, Any]:
    return {"method": "gptq", "bits": bits, "group": GROUP, "source": "checkpoint", **others}


def folder(place: Path, config: dict[str, Any] | None, beside: dict[str, Any] | None) -> Path:
    """The reference model's config and tokenizer, with what is said of packed weights."""
    place.mkdir(exist_ok=True)
    for file in reference.CHECKPOINT.glob("*.json"):
        shutil.copy(file, place / file.name)
    if config is not None:
        fields = json.loads((place / "config.json").read_text())
        fields["quantization_config"] = {"quant_method": "gptq", **config}
        (place / "config.json").write_text(json.dumps(fields))
    if beside is not None:
        (place / "quantize_config.json").write_text(json.dumps(beside))
    return place


# Before a trial starts, without gptqmodel.


@pytest.mark.slow
@pytest.mark.parametrize("where", ["config.json", "quantize_config.json"])
def test_a_folder_of_packed_weights_is_planned_from_its_config_alone(
    tmp_path: Path, where: str
) -> None:
    said = (SAYS, None) if where == "config.json" else (None, SAYS)
    trial = trial_of(folder(tmp_path, *said), read())
    weights = predict_memory(trial).measurements["peak_weights_bytes"].value
    dense = 4 * 2 * 1024 * 128  # the embedding and the output head

    assert trial.conflicts() == ()
    assert trial.label == "gptq 4-bit g64 checkpoint + lora r4"
    assert weights - dense < 753_664  # bytes: a quarter of what the decoder's are in fp32


@pytest.mark.parametrize(
    ("said", "asked", "reason"),
    [
        ({}, read(3), "holds weights that are packed already; use quantization: {method: gptq, "
         "bits: 4, group: 64, source: checkpoint}"),
        ({"desc_act": True}, read(), "use quantization: {method: gptq, bits: 4, group: 64, "
         "desc_act: true, source: checkpoint}"),
        ({}, {"method": "gptq", "bits": 4, "group": 64}, "holds weights that are packed already"),
        ({}, {"method": "nf4"}, "holds weights that are packed already"),
        ({}, None, "holds weights that are packed already"),
        ({"group_size": -1}, read(), "is packed in 4 bits and groups of -1; quantize the dense"),
        ({"checkpoint_format": "marlin"}, read(), "is packed in the format marlin, for inference"),
        ({"is_marlin_format": True}, read(), "is packed in the format marlin, for inference"),
        ({"sym": False}, read(symmetric=False), "cannot store a zero point of zero"),
        ({"dynamic": {"-:down": {}}}, read(), "treats some layers otherwise than others"),
    ],
)  # fmt: skip
def test_what_a_folder_says_is_held_against_what_is_asked(
    tmp_path: Path, said: dict[str, Any], asked: dict[str, Any] | None, reason: str
) -> None:
    trial = trial_of(folder(tmp_path, None, SAYS | said), asked)

    (found,) = trial.conflicts()
    assert reason in found


@pytest.mark.parametrize(
    "said",
    [
        {"checkpoint_format": "gptq_v2"},
        {"checkpoint_format": "gptq", "meta": {"quantizer": ["gptqmodel:4.0.0"]}},
    ],
)
def test_asymmetric_weights_are_read_where_zero_points_are_certain(
    tmp_path: Path, said: dict[str, Any]
) -> None:
    packed = folder(tmp_path, SAYS | {"sym": False} | said, None)

    assert trial_of(packed, read(symmetric=False)).conflicts() == ()


def test_weights_that_are_not_packed_cannot_be_read_as_packed(tmp_path: Path) -> None:
    dense = folder(tmp_path, None, None)
    random = trial_of(dense, read())
    weights = {"weights": "random", "config": str(dense)}
    random = random.model_copy(update={"model": random.model.model_copy(update=weights)})

    assert "neither in config.json nor in quantize_config" in trial_of(dense, read()).conflicts()[0]
    assert random.conflicts() == ("random weights are not packed; leave source: checkpoint out",)


def test_a_model_of_the_hub_is_planned_as_it_is_said_to_be() -> None:
    trial = trial_of(Path("some/model-GPTQ"), read())

    assert trial.conflicts() == ()


@pytest.mark.slow
def test_random_values_fill_the_shape_of_a_packed_folder(tmp_path: Path) -> None:
    trial = trial_of(folder(tmp_path, SAYS, None), None)
    weights = {"weights": "random", "config": str(tmp_path)}
    trial = trial.model_copy(update={"model": trial.model.model_copy(update=weights)})

    assert trial.conflicts() == ()
    assert predict_memory(trial).measurements["peak_weights_bytes"].value > 0


@pytest.mark.parametrize("name", ["gptq_model-4bit-128g.safetensors", "pytorch_model.bin"])
def test_weights_of_another_name_or_format_are_refused(tmp_path: Path, name: str) -> None:
    packed = folder(tmp_path, None, SAYS)
    (packed / name).touch()
    (found,) = trial_of(packed, read()).conflicts()

    assert found == f"{packed} has its weights in {name}; save them as model.safetensors"
    (packed / "model.safetensors").touch()
    assert trial_of(packed, read()).conflicts() == ()


def test_how_to_quantize_is_no_setting_of_weights_that_are_packed() -> None:
    gptq = catalogue()["quantization"]["gptq"]

    assert not {"samples", "damp"} & gptq.model_validate(read()).settings().keys()
    with pytest.raises(ValueError, match="use source: model, or leave samples out"):
        gptq.model_validate(read(samples=4))


def test_what_is_read_is_what_can_be_asked_for() -> None:
    fields = catalogue()["quantization"]["gptq"].model_fields

    assert get_args(fields["bits"].annotation) == BITS
    assert get_args(fields["group"].annotation) == GROUPS


@pytest.mark.slow
def test_weights_that_another_library_packed_are_no_baseline(
    tmp_path: Path, compressed: Compress
) -> None:
    packed: Any = compressed(trial_of(reference.CHECKPOINT, {"method": "nf4"}))
    packed.save_pretrained(folder(tmp_path, None, None))
    plain = trial_of(tmp_path, None)

    with pytest.raises(UserError, match="packed already, by bitsandbytes"):
        load_model(plain.model, prepare(plain).request)


# A folder of packed weights, made by hand.


def packed_words(values: NDArray[np.int64], bits: int) -> Tensor:
    """Integers along the first dimension as one row of bits, the lowest first, in 32-bit words."""
    digits = (values[:, None, :] >> np.arange(bits)[:, None]) & 1
    row = digits.reshape(-1, values.shape[1]).T.astype(np.uint8)
    words = np.packbits(row, axis=1, bitorder="little").copy().view(np.int32)
    return torch.from_numpy(words.T.copy())


def quantize(
    weight: Tensor, bits: int, *, symmetric: bool, order: NDArray[np.int64]
) -> tuple[dict[str, NDArray[Any]], Tensor]:
    """Levels, scales and zero points of a matrix, and the dense matrix that they stand for.

    `order` says which group each column is in.
    """
    dense = weight.float().T.numpy()  # the format stores the transpose
    top, levels = 2**bits - 1, np.empty(dense.shape, np.int64)
    groups = int(order.max()) + 1
    scales = np.empty((groups, dense.shape[1]), np.float16)
    zeros = np.empty((groups, dense.shape[1]), np.int64)
    for group in range(groups):
        part = dense[order == group]
        low, high = part.min(0).clip(max=0), part.max(0).clip(min=0)
        if symmetric:
            high = np.maximum(high, -low)
            low = -high
        scales[group] = ((high - low) / top).astype(np.float16)
        scale = scales[group].astype(np.float32)
        zeros[group] = (top + 1) // 2 if symmetric else (-low / scale).round().clip(1, top)
        levels[order == group] = (part / scale + zeros[group]).round().clip(0, top)
    means = scales[order] * (levels - zeros[order]).astype(np.float16)
    parts: dict[str, NDArray[Any]] = {"levels": levels, "scales": scales, "zeros": zeros}
    return parts, torch.from_numpy(means.T.astype(np.float32))


def pack_reference(
    place: Path, bits: int, less: int, *, symmetric: bool = True, permuted: bool = False
) -> dict[str, Tensor]:
    """Write the reference model's weights packed; returns what each matrix then is.

    `less` is what the format stores zero points less.
    """
    tensors = load_file(reference.CHECKPOINT / "model.safetensors")
    stands_for = {}
    for name in [name for name in tensors if name.endswith("_proj.weight")]:
        weight, stem = tensors.pop(name), name.removesuffix(".weight")
        order = np.arange(weight.shape[1]) // GROUP
        if permuted:
            order = np.random.default_rng(0).permutation(order)
        parts, stands_for[stem] = quantize(weight, bits, symmetric=symmetric, order=order)
        tensors[f"{stem}.qweight"] = packed_words(parts["levels"], bits)
        stored = (parts["zeros"] - less).T
        tensors[f"{stem}.qzeros"] = packed_words(stored, bits).T.contiguous()
        tensors[f"{stem}.scales"] = torch.from_numpy(parts["scales"])
        tensors[f"{stem}.g_idx"] = torch.from_numpy(order.astype(np.int32))
    save_file(tensors, place / "model.safetensors", metadata={"format": "pt"})
    return stands_for


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """The dense weight of every packed layer, by what it makes of the identity."""
    layers: dict[str, Any] = {
        name: layer for name, layer in model.named_modules() if hasattr(layer, "qweight")
    }
    with torch.no_grad():
        return {name: layer(torch.eye(layer.in_features)).T for name, layer in layers.items()}


# With gptqmodel on the path.

Said = Callable[[Path, dict[str, Any]], Path]


def alone(place: Path, said: dict[str, Any]) -> Path:
    """As auto-gptq left it at first."""
    return folder(place, None, said)


def within(place: Path, said: dict[str, Any]) -> Path:
    return folder(place, said, None)


@inside
@pytest.mark.slow
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("said", [alone, within])
@pytest.mark.parametrize("form", [None, "gptq", "gptq_v2"])
def test_packed_weights_are_read_to_the_bit(
    tmp_path: Path, bits: int, said: Said, form: str | None, compressed: Compress
) -> None:
    """Zero points are stored less one, unless the folder says that it is of the second format."""
    says = SAYS | {"bits": bits} | ({} if form is None else {"checkpoint_format": form})
    packed = said(tmp_path, says)
    expected = pack_reference(packed, bits, less=0 if form == "gptq_v2" else 1)
    trial = trial_of(packed, read(bits))

    assert trial.conflicts() == ()
    found = weights_of(compressed(trial))
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        assert torch.equal(found[name], weight), name


@inside
@pytest.mark.slow
@pytest.mark.parametrize("bits", BITS)
def test_asymmetric_and_reordered_weights_are_read_to_the_bit(
    tmp_path: Path, bits: int, compressed: Compress
) -> None:
    says = {"bits": bits, "sym": False, "desc_act": True, "checkpoint_format": "gptq_v2"}
    packed = alone(tmp_path, SAYS | says)
    expected = pack_reference(packed, bits, less=0, symmetric=False, permuted=True)
    trial = trial_of(packed, read(bits, symmetric=False, desc_act=True))

    assert trial.conflicts() == ()
    found = weights_of(compressed(trial))
    assert all(torch.equal(found[name], weight) for name, weight in expected.items())


@inside
@pytest.mark.slow
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize(("less", "form", "held"), [(1, "gptq_v2", "gptq"), (0, None, "gptq_v2")])
def test_a_folder_that_names_the_wrong_format_is_found_out(
    tmp_path: Path, bits: int, less: int, form: str | None, held: str, compressed: Compress
) -> None:
    says = SAYS | {"bits": bits} | ({} if form is None else {"checkpoint_format": form})
    packed = within(tmp_path, says)
    pack_reference(packed, bits, less)

    with pytest.raises(UserError, match=f"the weights are in the format {held}, but said"):
        compressed(trial_of(packed, read(bits)))


@inside
@pytest.mark.slow
def test_the_older_file_names_the_format_where_the_two_differ(
    tmp_path: Path, compressed: Compress
) -> None:
    """As optimum 2.3 writes them."""
    packed = folder(tmp_path, SAYS | {"format": "gptq_v2"}, SAYS | {"format": "gptq"})
    expected = pack_reference(packed, 4, less=1)
    found = weights_of(compressed(trial_of(packed, read())))

    assert all(torch.equal(found[name], weight) for name, weight in expected.items())


@inside
@pytest.mark.slow
@pytest.mark.parametrize("said", [alone, within])
def test_adapters_train_on_it_as_predicted(
    tmp_path: Path, said: Said, run_trial: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tradebench.worlds.meters.Profiler", lambda: None)
    packed = said(tmp_path, SAYS)
    pack_reference(packed, 4, less=1)
    trial, real = trial_of(packed, read()), Outcome()
    fake = predict_memory(trial).measurements
    rehearse(trial, prepare(trial), real, lambda beat: None, MemoryMeter("cpu"))

    assert real.measurements.keys() == fake.keys()
    for name in fake.keys() - {"peak_tensor_bytes.load"}:
        assert fake[name].value == real.measurements[name].value, name
    assert run_trial(trial)[2]["quantization"]["layers"] == 28
