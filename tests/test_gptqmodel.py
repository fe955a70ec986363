"""peft imports gptqmodel whenever it is installed, which rewrites variables and prints a banner."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

# What `tradebench[gptq]` would bring, without the numpy that it pins.
PACKAGES = (
    "gptqmodel==7.6.0",
    "optimum==2.3.0",
    "torchao==0.18.0",
    "Device-SMI==0.5.7",
    "LogBar==0.4.15",
    "TokeNicer==0.0.14",
    "Defuser==0.0.28",
    "PyPcre==0.6.4",
)
IMPORTS = "import sys, peft.import_utils as i; print(i.is_gptqmodel_available())"


@pytest.fixture(scope="module")
def gptqmodel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that, put on the path, makes gptqmodel an installed package."""
    folder = tmp_path_factory.mktemp("gptqmodel")
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target"]
    subprocess.run([*install, str(folder), *PACKAGES], check=True, capture_output=True)
    return folder


def run(suite: Path, path: str, isolation: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [
            *(sys.executable, "-m", "tradebench", "run", str(suite), "--fresh"),
            *("--format", "json", "--isolation", isolation),
        ],
        cwd=suite.parent,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path, "GPTQMODEL_CPU_WORKERS": "2"},
    )


@pytest.mark.slow
@pytest.mark.parametrize("isolation", ["fork", "exec"])
def test_a_plain_lora_trial_is_unchanged_by_it(
    gptqmodel: Path, tiny_model_path: str, tmp_path: Path, isolation: str
) -> None:
    suite = tmp_path / "lora.yaml"
    suite.write_text(
        f"model: {{name: tiny, config: {tiny_model_path}, weights: random}}\n"
        "budget: {steps: 3, warmup: 1, batch: 4, sequence: 32, data: random}\n"
        "grid: {adapters: {method: lora, rank: 4}}\n"
    )
    available = subprocess.run(
        [sys.executable, "-c", IMPORTS],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(gptqmodel)},
        check=True,
    )
    assert available.stdout.splitlines()[-1] == "True"

    plain, beside = (_result(run(suite, path, isolation).stdout) for path in ("", str(gptqmodel)))

    assert beside["environment"]["software"]["gptqmodel"] == "7.6.0"
    assert plain["environment"]["software"]["gptqmodel"] is None
    for name in ("PYTORCH_ALLOC_CONF", "CUDA_DEVICE_ORDER"):
        assert beside["environment"]["variables"][name] == plain["environment"]["variables"][name]
    for name in ("peak_tensor_bytes", "train_loss", "trainable_parameters"):
        assert beside["measurements"][name] == plain["measurements"][name]


def _result(printed: str) -> dict[str, Any]:
    """Standard output must be JSON and nothing else: gptqmodel's banner stays out of it."""
    results = json.loads(printed)["results"]
    (result,) = (each for each in results if each["kind"] == "measured")
    assert result["status"] == "ok", result["reason"]
    return dict(result)
