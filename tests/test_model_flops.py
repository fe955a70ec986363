"""FLOPs per token: the closed form reproduces what others published of their own runs.

A publication that gives tokens per second and model FLOP/s, or a utilisation, has said how many
FLOPs it counts for a token. Which of the definitions it uses is what these tests find.
"""

from __future__ import annotations

import pytest

from tradebench.devices import find
from tradebench.predict.model_flops import model_flops_per_token

# mosaicml/llm-foundry@8c8dd48 scripts/train/benchmarking/README.md: layers, width, parameters (the
# embedding is the head, too, and so are learned positions counted), sequence, tokens per second and
# GPU, MFU and HFU in percent. Attention is whole; what is recomputed is so in every layer.
FOUNDRY = [
    ("h100-80gb", 80, 8192, 64862437376, 2048, 1007, 41.25, 55.0),
    ("h100-80gb", 80, 8192, 64862437376, 2048, 1058, 43.36, 57.81),
    ("h100-80gb", 80, 8192, 64862437376, 2048, 882, 36.15, 48.2),
    ("a100-80gb", 80, 8192, 64862437376, 2048, 410, 53.33, 71.1),
    ("h100-80gb", 32, 4096, 6658859008, 2048, 10643, 46.44, 46.44),
    ("h100-80gb", 32, 4096, 6667247616, 4096, 8611, 40.42, 53.9),
    ("h100-80gb", 32, 4096, 6684024832, 8192, 6935, 37.14, 49.52),
    ("a100-80gb", 32, 4096, 6667247616, 4096, 3684, 54.84, 73.12),
    ("a100-40gb", 32, 4096, 6658859008, 2048, 3679, 50.92, 67.89),
]


@pytest.mark.parametrize(
    ("gpu", "layers", "width", "parameters", "sequence", "tokens", "mfu", "hfu"), FOUNDRY
)
def test_foundrys_utilisation_is_six_per_parameter_and_whole_attention(
    gpu: str,
    layers: int,
    width: int,
    parameters: int,
    sequence: int,
    tokens: int,
    mfu: float,
    hfu: float,
) -> None:
    peak = find(gpu).rates["bf16"]
    needed, done = (
        model_flops_per_token(
            parameters=parameters,
            layers=layers,
            width=width,
            sequence=sequence,
            recomputed=recomputed,
        )
        for recomputed in (0.0, 0.0 if hfu == mfu else 1.0)
    )

    # Tokens per second are rounded to whole ones: 0.12 % of 410.
    assert 100 * tokens * needed / peak == pytest.approx(mfu, rel=0.002)
    assert 100 * tokens * done / peak == pytest.approx(hfu, rel=0.002)


# Parameters of the model but the table of embeddings, layers, width.
LLAMA = {
    "llama-2-7b": (6_738_415_616 - 32000 * 4096, 32, 4096),
    "llama-2-13b": (13_015_864_320 - 32000 * 5120, 40, 5120),
    "llama-2-70b": (68_976_648_192 - 32000 * 8192, 80, 8192),
    "llama-3-8b": (8_030_261_248 - 128256 * 4096, 32, 4096),
    "llama-3-70b": (70_553_706_496 - 128256 * 8192, 80, 8192),
}


def of(model: str, sequence: int, *, causal: bool = False, trained: float = 1.0) -> float:
    parameters, layers, width = LLAMA[model]
    return model_flops_per_token(
        parameters=parameters,
        layers=layers,
        width=width,
        sequence=sequence,
        causal=causal,
        trained=trained,
    )


# NVIDIA/NeMo@8e3d65dcfe docs performance_summary (NeMo 24.07), pre-training: sequence, tokens per
# second and GPU, model TFLOP/s.
NEMO = [
    ("llama-2-7b", 4096, 16934, 780),
    ("llama-3-8b", 8192, 12273, 711),
    ("llama-3-70b", 8192, 1524, 734),
]


@pytest.mark.parametrize(("model", "sequence", "tokens", "teraflops"), NEMO)
def test_nemo_leaves_the_embedding_out_and_counts_attention_whole(
    model: str, sequence: int, tokens: int, teraflops: int
) -> None:
    assert of(model, sequence) * tokens == pytest.approx(teraflops * 1e12, rel=0.002)


# NVIDIA-NeMo/Megatron-Bridge@067f987 docs/performance-summary-archive.md: the first three are
# pre-training (25.11, 25.09, 25.11), the others fine-tuning (26.06).
MEGATRON = [
    ("llama-3-70b", 8192, 1602, 719),
    ("llama-3-70b", 8192, 1619, 727),
    ("llama-3-8b", 8192, 14451, 744),
    ("llama-3-70b", 4096, 4819, 2083),
    ("llama-3-70b", 4096, 4312, 1877),
    ("llama-3-70b", 4096, 3864, 1671),
]


@pytest.mark.parametrize(("model", "sequence", "tokens", "teraflops"), MEGATRON)
def test_megatron_counts_the_causal_half_of_attention(
    model: str, sequence: int, tokens: int, teraflops: int
) -> None:
    assert of(model, sequence, causal=True) * tokens == pytest.approx(teraflops * 1e12, rel=0.006)


# The same two sources: tokens per second and model TFLOP/s of fine-tuning on packed short answers,
# whose attention is next to nothing; first all weights (NeMo), then LoRA (Megatron-Bridge).
PACKED = [
    ("llama-2-7b", 1.0, 16891, 673),
    ("llama-2-13b", 1.0, 10176, 787),
    ("llama-2-70b", 1.0, 1816, 749),
    ("llama-3-70b", 0.0, 7481, 2086),
    ("llama-3-70b", 0.0, 7447, 2072),
    ("llama-3-70b", 0.0, 2643, 735),
]


@pytest.mark.parametrize(("model", "trained", "tokens", "teraflops"), PACKED)
def test_adapters_take_four_per_parameter_and_full_training_six(
    model: str, trained: float, tokens: int, teraflops: int
) -> None:
    assert of(model, 64, trained=trained) * tokens == pytest.approx(teraflops * 1e12, rel=0.006)


# foundation-model-stack/fms-fsdp@5a296af README.md, 128 A100: a utilisation of 61 %.
def test_fms_counts_all_parameters_and_attention_whole() -> None:
    needed = model_flops_per_token(parameters=13_015_864_320, layers=40, width=5120, sequence=4096)

    assert 100 * 2150 * needed / find("a100-80gb").rates["bf16"] == pytest.approx(61, abs=0.5)


def test_recomputing_everything_is_a_third_more() -> None:
    plain, twice = (
        model_flops_per_token(
            parameters=10**9, layers=10, width=1000, sequence=1000, recomputed=recomputed
        )
        for recomputed in (0.0, 1.0)
    )

    assert twice == pytest.approx(4 / 3 * plain)
