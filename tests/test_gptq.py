"""GPTQ: predicted without gptqmodel here; quantized, trained and read by it in slow tests.

gptqmodel pins another numpy and is imported by peft wherever it is installed, so it lives in a
folder of its own: slow tests run again with that folder on the path.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tradebench.layers.gptq import StandIn
from tradebench.layers.packed import PackedLinear
from tradebench.program.measure import rehearse
from tradebench.program.model import load_model
from tradebench.program.perform import prepare
from tradebench.result import Outcome
from tradebench.runner.refusal import refuse
from tradebench.techniques import ContradictionError, Stage, catalogue
from tradebench.trial import Trial
from tradebench.worlds.meters import MemoryMeter

Make = Callable[..., Trial]

HERE = find_spec("gptqmodel") is not None
inside = pytest.mark.skipif(not HERE, reason="gptqmodel is not installed")
PACKAGES = (
    "gptqmodel==7.6.0",
    "optimum==2.3.0",
    "Device-SMI==0.5.7",
    "LogBar==0.4.15",
    "TokeNicer==0.0.14",
    "Defuser==0.0.28",
    "PyPcre==0.6.4",
)
LORA = {"method": "lora", "rank": 4}
GPTQ: dict[str, Any] = {"method": "gptq", "bits": 4, "group": 64, "samples": 4}
BITS = (2, 3, 4, 8)
COMPRESSING = 0.05  # how far the predicted peak of compressing may be from the real one


def trial_of(
    quantization: dict[str, Any], *tasks: str, model: str = "reference", **others: Any
) -> Trial:
    budget = {"batch": 2, "sequence": 48, "data": "random"} | others.pop("budget", {})
    return Trial.from_payload(
        {
            "model": {"name": model},
            "budget": budget,
            "evaluate": {"tasks": tasks, "limit": 4, "batch_size": 3},
            "settings": {"quantization": quantization, "adapters": LORA, **others},
        }
    )


# Without gptqmodel.


@pytest.mark.skipif(HERE, reason="gptqmodel is installed")
def test_a_run_without_gptqmodel_is_refused_with_the_command_that_brings_it() -> None:
    trial = trial_of(GPTQ)

    assert trial.conflicts() == ()
    assert refuse(trial) == (
        "gptq needs gptqmodel and optimum, which are not installed; "
        "use pip install 'tradebench[gptq]'",
    )


def test_auto_gptq_is_another_name_for_it() -> None:
    assert catalogue()["quantization"]["auto-gptq"] is catalogue()["quantization"]["gptq"]
    assert catalogue()["quantization"]["gptq"].aliases == {"auto-gptq": "gptq"}


@pytest.mark.parametrize("bits", BITS)
def test_buffers_take_what_the_format_says(bits: int) -> None:
    layer = StandIn(nn.Linear(128, 192), bits, 64)

    assert layer.qweight.nbytes == 128 * 192 * bits // 8
    assert layer.qzeros.nbytes == 2 * 192 * bits // 8
    assert layer.scales.nbytes == 2 * 192 * 2
    assert layer.g_idx.nbytes == 128 * 4
    assert [name for name, _ in layer.named_parameters()] == []


def test_a_product_keeps_the_dense_weight_for_the_way_back() -> None:
    """What a user of gptqmodel pays unless layers are recomputed; nf4 and rtn do not."""
    kept: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.nbytes)
        return tensor

    layer = StandIn(nn.Linear(128, 192, bias=False), 4, 64)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        layer(torch.randn(1, 128, requires_grad=True))

    assert kept == [128 * 192 * 4]


def test_dense_weights_are_a_caution_unless_layers_are_recomputed() -> None:
    (caution,) = trial_of(GPTQ).cautions()

    assert "keeps the dense weights of all layers" in caution
    assert trial_of(GPTQ, checkpointing={"method": "full"}).cautions() == ()


# GPTQ itself, said again in few lines, and rounding to the nearest on the same grid.


def gptq(weight: Tensor, inputs: Tensor, bits: int, group: int, damp: float = 0.1) -> Tensor:
    """Round one column after the other; the rest makes up for the error by the inverse Hessian."""
    weight, found = weight.double().clone(), torch.empty_like(weight, dtype=torch.double)
    hessian = inputs.double().T @ inputs.double()
    hessian += damp * hessian.diagonal().mean() * torch.eye(len(hessian))
    for column in range(weight.shape[1]):
        if column % group == 0:
            part = weight[:, column : column + group]
            low, high = part.amin(1).clamp(max=0), part.amax(1).clamp(min=0)
            scale = (high - low) / (2**bits - 1)
            zero = (-low / scale).round()
        level = (weight[:, column] / scale + zero).round().clamp(0, 2**bits - 1)
        found[:, column] = (level - zero) * scale
        # Of the columns that are left, and no others: the inverse of their own Hessian.
        inverse = torch.linalg.inv(hessian[column:, column:])
        error = (weight[:, column] - found[:, column]) / inverse[0, 0]
        weight[:, column:] -= error[:, None] * inverse[0]
    return found.float()


def layer_and_inputs() -> tuple[nn.Linear, Tensor]:
    """A matrix, and inputs of which some directions are much larger than others."""
    torch.manual_seed(0)
    return nn.Linear(64, 48, bias=False), torch.randn(400, 64) @ torch.randn(64, 64).div(8)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_making_up_for_errors_beats_rounding_to_the_nearest(bits: int) -> None:
    dense, inputs = layer_and_inputs()

    def error(weight: Tensor) -> float:
        return float((inputs @ (weight - dense.weight.detach()).T).norm())

    nearest = error(PackedLinear(dense, bits, 32).weight)

    assert error(gptq(dense.weight.detach(), inputs, bits, 32)) < 0.8 * nearest


# With gptqmodel on the path.


@inside
@pytest.mark.slow
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_the_library_agrees_with_the_algorithm_said_again(bits: int) -> None:
    from gptqmodel.quantization import GPTQ as Library  # noqa: N811  # a class
    from gptqmodel.quantization import QuantizeConfig

    dense, inputs = layer_and_inputs()
    weight = dense.weight.detach().clone()
    expected = gptq(weight, inputs, bits, 32)
    config = QuantizeConfig(bits=bits, group_size=32, sym=False, act_group_aware=False)
    library: Any = Library(dense, qcfg=config)
    library.quantizer.configure(bits=bits, sym=False, perchannel=True)
    library.add_batch(inputs[None], inputs[None] @ weight.T)
    library.fasterquant(percdamp=0.1, group_size=32, actorder=False)

    def error(found: Tensor) -> float:
        return float((inputs @ (found - weight).T).norm())

    # fp32 against double: a few weights fall on the other side of a level.
    assert error(dense.weight.detach()) == pytest.approx(error(expected), rel=0.05)
    assert error(expected) < 0.8 * error(PackedLinear(layer_and_inputs()[0], bits, 32).weight)


def figures(outcome: Outcome, meter: MemoryMeter) -> dict[str, int]:
    found = {name: int(measurement.value) for name, measurement in outcome.measurements.items()}
    return found | {f"peak of {part}": size for part, size in meter.parts.items()}


def agree(trial: Trial) -> None:
    """To the byte but for loading, as always, and compressing, where a stand-in is at work."""
    from tradebench.predict.memory import perform_fake, reach

    meter, outcome = MemoryMeter("cpu", fake=True), Outcome()
    perform_fake(trial, reach(trial).materials, meter, outcome)
    fake = figures(outcome, meter)
    meter, outcome = MemoryMeter("cpu"), Outcome()
    rehearse(trial, prepare(trial), outcome, lambda beat: None, meter)
    real = figures(outcome, meter)
    loading, compressing = "peak_tensor_bytes.load", "peak_tensor_bytes.compress"

    assert fake.pop(compressing) == pytest.approx(real.pop(compressing), rel=COMPRESSING)
    assert fake.pop(loading) == pytest.approx(real.pop(loading), rel=0.01)
    assert fake == real


@inside
@pytest.mark.slow
@pytest.mark.parametrize("bits", BITS)
def test_the_stand_in_takes_the_bytes_of_the_library(
    bits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With evaluations before and after, which leave tensors behind, and without."""
    monkeypatch.setattr("tradebench.worlds.meters.Profiler", lambda: None)

    agree(trial_of({**GPTQ, "bits": bits}, "facts"))
    agree(
        trial_of(
            {**GPTQ, "bits": bits, "desc_act": True, "symmetric": False},
            precision={"method": "bf16"},
            checkpointing={"method": "full", "ratio": 0.5},
        )
    )


def compress(trial: Trial) -> nn.Module:
    request = prepare(trial).request
    torch.manual_seed(0)
    model = load_model(trial.model, request)
    for part in trial.between(Stage.LOAD, Stage.QUANTIZE):
        model = part.model(model, request)
    return model


@inside
@pytest.mark.slow
def test_a_kernel_that_loses_gradients_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    trial = trial_of(GPTQ)
    with monkeypatch.context() as patched:
        patched.setattr("tradebench.techniques.gptq.BACKEND", "auto_trainable")
        model = compress(trial)

    with pytest.raises(ContradictionError, match="gptq must run on gptq_torch to train"):
        trial.techniques[0].effect(model)


@inside
@pytest.mark.slow
def test_a_checkpoint_that_holds_packed_weights_is_read_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from optimum.gptq import GPTQQuantizer
    from transformers import AutoTokenizer

    from tradebench import reference

    monkeypatch.setattr("tradebench.worlds.meters.Profiler", lambda: None)
    trial = trial_of(GPTQ)
    model: Any = load_model(trial.model, prepare(trial).request)
    ids = [[5, 6, 7, 8] * 8]
    dataset = [{"input_ids": ids, "attention_mask": [[1] * 32]}]
    quantizer = GPTQQuantizer(bits=4, group_size=64, dataset=dataset, backend="gptq_torch")
    quantizer.quantize_model(model)
    for layer in model.modules():
        vars(layer).pop("dequantize_weight", None)
    tokens = torch.tensor(ids)
    with torch.no_grad():
        expected = model.eval()(tokens).logits
    quantizer.save(model, str(tmp_path))
    # optimum stores zero points as auto-gptq did, and says so in quantize_config.json alone.
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["quantization_config"]["format"] == "gptq_v2"
    AutoTokenizer.from_pretrained(reference.CHECKPOINT).save_pretrained(tmp_path)
    packed = {name: value for name, value in GPTQ.items() if name != "samples"}
    read = trial_of({**packed, "source": "checkpoint"}, model=str(tmp_path))
    assert read.conflicts() == ()
    found = compress(read)
    with torch.no_grad():
        torch.testing.assert_close(found.eval()(tokens).logits, expected)

    assert read.techniques[0].effect(found)["layers"] == 28
    agree(read)


@inside
@pytest.mark.slow
def test_it_beats_rounding_to_the_nearest_on_the_reference_model() -> None:
    """Over three draws of the calibration data, at 3 and at 2 bits, levels spread alike.

    How far the answers are from those of the dense model, every time; on average over the draws,
    the likelihood of right answers and how many there are, at 2 bits, where they suffer at all.
    """
    scores = {}
    for bits in (3, 2):
        plain = judged({"method": "rtn", "bits": bits, "group": 64}, 0)
        drawn = [
            judged({**GPTQ, "bits": bits, "samples": 64, "symmetric": False}, seed)
            for seed in (0, 1, 2)
        ]
        scores[bits] = (plain, drawn)
    for plain, drawn in scores.values():
        assert all(found["divergence"] < plain["divergence"] for found in drawn)
    plain, drawn = scores[2]

    def mean(name: str) -> float:
        return math.fsum(found[name] for found in drawn) / len(drawn)

    assert mean("answer_nll.facts") < plain["answer_nll.facts"]
    assert mean("accuracy.sort") > plain["accuracy.sort"]


def judged(quantization: dict[str, Any], seed: int) -> dict[str, float]:
    """Scores of two tasks, and the divergence from the dense model's next tokens, in nats."""
    budget = {"batch": 8, "sequence": 128, "seed": seed, "data": "reference"}
    trial = Trial.from_payload(
        {
            "model": {"name": "reference"},
            "budget": budget,
            "evaluate": {"tasks": ("facts", "sort"), "limit": 100, "batch_size": 16},
            "settings": {"quantization": quantization, "adapters": LORA},
        }
    )
    materials = prepare(trial)
    model = compress(trial).eval()
    assert materials.evaluator is not None
    scores = materials.evaluator.score(model, trial.techniques).measurements
    other = prepare(
        trial.model_copy(update={"budget": trial.budget.model_copy(update={"seed": 9})})
    )
    batch = next(other.request.calibration())
    dense = load_model(trial.model, materials.request).eval()
    with torch.no_grad():
        wanted, found = (m(batch["input_ids"]).logits.log_softmax(-1) for m in (dense, model))
    apart = (wanted.exp() * (wanted - found)).sum(-1)[batch["attention_mask"].bool()]
    return {name: value.value for name, value in scores.items()} | {
        "divergence": float(apart.mean())
    }


# All of it, in a process that finds gptqmodel.


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that, put on the path, makes gptqmodel an installed package."""
    folder = tmp_path_factory.mktemp("gptqmodel")
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target"]
    subprocess.run([*install, str(folder), *PACKAGES], check=True, capture_output=True)
    return folder


@pytest.mark.slow
@pytest.mark.skipif(HERE, reason="this is that process")
@pytest.mark.parametrize(
    ("files", "marks"),
    [
        (["test_gptq.py", "test_gptq_checkpoint.py"], "slow"),
        (["test_techniques.py", "test_combinations.py"], "not slow"),
    ],
    ids=["gptq itself", "what every technique keeps to"],
)
def test_it_holds_with_gptqmodel_on_the_path(packages: Path, files: list[str], marks: str) -> None:
    tests = Path(__file__).parent
    path = os.pathsep.join([str(packages), os.environ.get("PYTHONPATH", "")])
    # gptqmodel and what it brings warn of much while they are imported.
    options = ("-q", "-p", "no:cacheprovider", "-m", marks, "-k", "gptq", "-W", "default")
    answer = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *(str(tests / file) for file in files)],
        cwd=tests.parent,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path, "GPTQMODEL_CPU_WORKERS": "2"},
    )

    assert answer.returncode == 0, answer.stdout[-4000:]
    assert "not installed" not in answer.stdout
