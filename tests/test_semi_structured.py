"""2:4 weights stored without their zeros: the same product, the bytes, and torch's own calls."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.functional import linear
from torch.sparse._semi_structured_conversions import sparse_semi_structured_from_dense_cutlass

from tradebench import devices
from tradebench.errors import UserError
from tradebench.layers.semi_structured import SemiStructuredLinear
from tradebench.plan import plan
from tradebench.predict import cost, flops
from tradebench.predict.library import Library
from tradebench.predict.operations import Operation, Spec
from tradebench.predict.point import predict_point
from tradebench.predict.recorder import CALL
from tradebench.target import Target
from tradebench.techniques import ContradictionError, LoadRequest, semi_structured
from tradebench.techniques.magnitude import Magnitude
from tradebench.techniques.semi_structured import SemiStructured
from tradebench.trial import Trial
from tradebench.worlds.fake import fake_world
from tradebench.worlds.shards import ShardTracker

Make = Callable[..., Trial]
Compress = Callable[[Trial], nn.Module]
Run = Callable[[Trial], tuple[nn.Module, tuple[float, ...], dict[str, Any]]]

ROWS, COLUMNS, TOKENS = 48, 64, 8
LORA = {"method": "lora", "rank": 4}
SPARSE = {"pruning": {"method": "semi_structured"}, "adapters": LORA}
PRODUCT = "aten._cslt_sparse_mm.default"


def drawn(rows: int = ROWS, columns: int = COLUMNS) -> nn.Linear:
    """A layer in bf16 without two weights of one size in a row."""
    torch.manual_seed(0)
    layer = nn.Linear(columns, rows).bfloat16()
    sizes = torch.stack([torch.randperm(columns) + 1 for _ in range(rows)])
    layer.weight.data = (sizes * torch.randn(rows, columns).sign()).bfloat16() / columns
    return layer


def pruned(weight: Tensor) -> Tensor:
    """The weight without the two smallest of every four, said in another way."""
    groups = weight.detach().unflatten(1, (-1, 4))
    bigger = (groups.abs()[..., :, None] < groups.abs()[..., None, :]).sum(-1)
    return torch.where(bigger < 2, groups, 0).flatten(1)


# The layer.


def test_the_two_largest_of_every_four_weights_are_kept() -> None:
    layer = drawn()

    assert torch.equal(SemiStructuredLinear(layer).weight, pruned(layer.weight))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_product_and_gradient_are_those_of_the_dense_weight(dtype: torch.dtype) -> None:
    dense = drawn()
    layer, weight = SemiStructuredLinear(dense), pruned(dense.weight)
    inputs = torch.randn(3, 5, COLUMNS).to(dtype).requires_grad_()
    outputs = layer(inputs)
    slope = torch.randn_like(outputs)
    (gradient,) = torch.autograd.grad(outputs, inputs, slope)

    assert torch.equal(
        outputs, linear(inputs.bfloat16(), weight).to(dtype) + dense.bias.detach().to(dtype)
    )
    assert torch.equal(gradient, (slope.bfloat16() @ weight).to(dtype))
    assert outputs.dtype == gradient.dtype == dtype


def test_ten_sixteenths_of_the_dense_bytes_are_stored() -> None:
    layer = SemiStructuredLinear(drawn())
    dense = ROWS * COLUMNS * 2

    assert layer.packed.nbytes == dense * 9 // 16
    assert layer.places.nbytes == dense // 16


def test_nothing_is_kept_for_the_way_back() -> None:
    kept: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.nbytes)
        return tensor

    layer = SemiStructuredLinear(drawn())
    layer.register_parameter("bias", None)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        layer(torch.randn(TOKENS, COLUMNS, requires_grad=True))

    assert kept == []


def test_values_lie_as_torchs_own_packing_has_them() -> None:
    dense = drawn(64)
    values, _ = sparse_semi_structured_from_dense_cutlass(pruned(dense.weight))
    layer = SemiStructuredLinear(dense)

    assert torch.equal(layer.packed.flatten()[: values.numel()], values.flatten())


def test_weights_of_one_size_leave_two_of_four() -> None:
    layer = nn.Linear(COLUMNS, ROWS).bfloat16()
    layer.weight.data.fill_(1)

    assert (SemiStructuredLinear(layer).weight.unflatten(1, (-1, 4)).sum(-1) == 2).all()


def test_two_weights_of_every_four_are_there_even_where_all_are_zero() -> None:
    layer = nn.Linear(COLUMNS, ROWS).bfloat16()
    layer.weight.data.zero_()
    weight = SemiStructuredLinear(layer).weight

    assert (weight.unflatten(1, (-1, 4)).count_nonzero(-1) == 2).all()
    assert float(weight.abs().max()) < 1e-37


# What torch is asked for on a GPU, whose tensors have shapes here and no values.


@pytest.fixture
def cuda() -> Iterator[torch.device]:
    with FakeTensorMode():
        yield torch.device("cuda")


def on_cuda(device: torch.device) -> Any:
    packed = torch.empty(ROWS, COLUMNS * 9 // 16, dtype=torch.bfloat16, device=device)
    return SimpleNamespace(packed=packed, in_features=COLUMNS, out_features=ROWS)


@pytest.mark.filterwarnings("ignore:The PyTorch API of SparseSemiStructuredTensor is in prototype")
@pytest.mark.parametrize("tokens", [TOKENS, TOKENS + 3])
def test_torch_takes_the_weight_as_a_tensor_of_its_own(tokens: int, cuda: torch.device) -> None:
    inputs = torch.empty(tokens, COLUMNS, dtype=torch.bfloat16, device=cuda)

    with torch.no_grad():
        outputs = semi_structured.multiply(inputs, on_cuda(cuda))

    assert outputs.shape == (tokens, ROWS)
    # Fused attention takes no other.
    assert outputs.stride(-1) == 1


@pytest.mark.filterwarnings("ignore:The PyTorch API of SparseSemiStructuredTensor is in prototype")
def test_torch_compresses_a_pruned_weight_and_its_order_is_checked(
    cuda: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight = torch.empty(ROWS, COLUMNS, dtype=torch.bfloat16, device=cuda)
    values = torch.empty(ROWS, COLUMNS // 2, dtype=torch.bfloat16, device=cuda)
    monkeypatch.setattr(torch, "_cslt_compress", lambda dense: on_cuda(cuda).packed)
    monkeypatch.setattr(torch.backends.cusparselt, "is_available", lambda: True)
    compared: list[tuple[torch.Size, torch.Size]] = []

    def equal(one: Tensor, other: Tensor) -> bool:
        compared.append((one.shape, other.shape))
        return len(compared) == 1

    monkeypatch.setattr(torch, "equal", equal)

    with torch.no_grad():
        assert semi_structured.compress(weight, values).shape == (ROWS, COLUMNS * 9 // 16)
        with pytest.raises(UserError, match="an order of its own on this GPU"):
            semi_structured.compress(weight, values)
    assert set(compared) == {(values.flatten().shape,) * 2}


def test_a_build_without_the_library_says_so(
    cuda: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cusparselt, "is_available", lambda: False)
    weight = torch.empty(ROWS, COLUMNS, dtype=torch.bfloat16, device=cuda)

    with pytest.raises(UserError, match="needs cuSPARSELt, which this build of torch lacks; use"):
        semi_structured.compress(weight, weight)


# Prediction.


@pytest.mark.parametrize("tokens", [TOKENS, TOKENS + 3])
def test_on_a_gpu_no_dense_weight_is_made_on_the_way_forward(tokens: int) -> None:
    with fake_world("cuda"):
        layer = SemiStructuredLinear(drawn_fake())
        inputs = torch.empty(tokens, COLUMNS, dtype=torch.bfloat16, requires_grad=True)
        with ShardTracker("cpu") as tracker:
            outputs = layer(inputs)
            forward = tracker.peak
            outputs.sum().backward()
            backward = tracker.peak
    padded = -(-tokens // 8) * 8
    made = 2 * (tokens * ROWS + (padded > tokens) * padded * (COLUMNS + ROWS))
    given = 2 * tokens * COLUMNS + layer.packed.nbytes

    assert forward == given + made
    assert backward > given + 2 * (tokens * ROWS + ROWS * COLUMNS)


def drawn_fake() -> nn.Linear:
    layer = nn.Linear(COLUMNS, ROWS, bias=False, device="meta").bfloat16()
    layer.weight = nn.Parameter(torch.empty(ROWS, COLUMNS, dtype=torch.bfloat16))
    return layer


def test_half_of_the_products_are_made_in_half_the_time_at_best() -> None:
    tokens, rows, columns = 2048, 28_672, 8192
    output = Spec((tokens, rows), "bfloat16")
    inputs = Spec((columns, tokens), "bfloat16")
    packed = Spec((rows, columns * 9 // 16), "bfloat16")
    sparse = Operation(PRODUCT, (packed, inputs), (output,))
    weight = Spec((columns, rows), "bfloat16")
    dense = Operation("aten.mm.default", (Spec((tokens, columns), "bfloat16"), weight), (output,))
    h100 = devices.find("h100-80gb")
    faster, slower = (cost.seconds(each, h100) for each in (sparse, dense))

    assert 2 * flops.flops(sparse) == flops.flops(dense) == 2 * tokens * rows * columns
    assert faster.low == slower.low / 2
    assert faster.value > slower.value  # as on an H200, where the dense product was faster
    assert faster.high > slower.high


@pytest.mark.slow
def test_a_70b_is_predicted_in_its_bytes() -> None:
    def trial(settings: dict[str, Any]) -> Trial:
        shape = {"name": "llama-3.3-70b", "config": "llama-3.3-70b", "weights": "random"}
        budget = {"steps": 2, "warmup": 0, "batch": 1, "sequence": 64, "data": "random"}
        common = {"precision": {"method": "bf16"}, "checkpointing": {"method": "full"}}
        return Trial.from_payload(
            {"model": shape, "budget": budget, "evaluate": {}, "settings": {**common, **settings}}
        )

    trials = [trial({"adapters": LORA}), trial(SPARSE)]
    library = Library(trials, {}, "cuda")
    dense, sparse = (
        predict_point(each, library, Target(device="h200-141gb"))["measurements"] for each in trials
    )
    layer = 2 * 8192 * 8192 + 2 * 1024 * 8192 + 3 * 28_672 * 8192

    saved = dense["peak_weights_bytes"]["value"] - sparse["peak_weights_bytes"]["value"]
    assert saved == 80 * layer * 2 * 6 // 16
    assert sparse["peak_process_bytes.load"]["value"] < 10 * 2**30  # drawn late, one by one


@pytest.mark.slow
def test_a_record_has_the_librarys_product(tiny_trial: Make) -> None:
    trial = tiny_trial({**SPARSE, "precision": {"method": "bf16"}}, steps=2)
    record, _ = Library([trial], {}, "cuda").record(trial)
    names = [record.operations[event - CALL].name for event in record.events if event >= CALL]

    # Seven matrices in each of four layers, in the forward pass of both steps.
    assert names.count(PRODUCT) == 7 * 4 * 2


# The technique.


@pytest.mark.parametrize("precision", ["bf16", "fp32", "bf16_autocast"])
def test_it_trains_and_proves_itself(
    precision: str, tiny_trial: Make, tiny_data_path: str, run_trial: Run
) -> None:
    trial = tiny_trial(
        {**SPARSE, "precision": {"method": precision}},
        data={"file": tiny_data_path},
        batch=12,
        steps=8,
        learning_rate=5e-3,
    )
    model, losses, effects = run_trial(trial)
    weights = 4 * (2 * 128 * 128 + 2 * 64 * 128 + 3 * 192 * 128)

    assert losses[-1] < 0.95 * losses[0]
    assert effects["pruning"] == {
        "layers": 28,
        "weight_bytes": weights * 2 * 10 // 16,
        "bytes_saved": weights * 2 * 6 // 16,
    }
    model.set_submodule("base_model.model.model.layers.1.mlp.up_proj", nn.Linear(128, 192))
    with pytest.raises(ContradictionError, match="1 of 28 linear layers are dense"):
        SemiStructured(method="semi_structured").effect(model)


def test_a_base_that_has_the_pattern_keeps_it(tiny_trial: Make, compressed: Compress) -> None:
    trial = tiny_trial({"precision": {"method": "bf16"}, "adapters": LORA})
    model = compressed(trial)
    request = LoadRequest(device="cpu", dtype=torch.bfloat16, compute_dtype=torch.bfloat16)
    Magnitude(method="magnitude", pattern="2:4").model(model, request)
    before = {name: part.detach().clone() for name, part in model.named_parameters()}
    SemiStructured(method="semi_structured").model(model, request)
    layer: Any = model.get_submodule("model.layers.2.mlp.down_proj")

    assert torch.equal(layer.weight, before["model.layers.2.mlp.down_proj.weight"])


def test_a_model_whose_matrices_are_no_multiples_is_refused_as_it_is_read() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=32,
        hidden_size=32,
        intermediate_size=40,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    request = LoadRequest(device="cpu", dtype=torch.bfloat16, compute_dtype=torch.bfloat16)

    with pytest.raises(UserError, match=r"multiples of 16, but model\.layers\.0\.mlp\.gate_proj"):
        SemiStructured(method="semi_structured").model(LlamaForCausalLM(config), request)


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"adapters": None}, "take no gradient"),
        ({"adapters": {**LORA, "merge": True}}, "cannot merge into compressed"),
        ({"quantization": {"method": "nf4"}}, "compressed already"),
        ({"precision": {"method": "fp8"}}, "leaves none"),
        ({"sharding": {"method": "fsdp2"}}, "split into shares"),
        ({"low_rank": {"method": "svd"}}, "have no zeros"),
        ({"adapters": {**LORA, "method": "pissa"}}, "undoes the zeros"),
    ],
)
def test_what_cannot_go_with_it_says_why(
    settings: dict[str, Any], word: str, tiny_trial: Make
) -> None:
    given = {slot: fields for slot, fields in {**SPARSE, **settings}.items() if fields}
    (reason,) = tiny_trial(given).conflicts()

    assert word in reason


def test_old_gpus_and_those_of_amd_are_refused(tiny_trial: Make) -> None:
    trial = tiny_trial(SPARSE)

    assert trial.beyond("Tesla T4", (7, 5), 16 * devices.GIB) == (
        "semi_structured needs a GPU of compute capability 8.0 or later and Tesla T4 has 7.5; "
        "use a10g-24gb or another pruning",
    )
    assert plan.refuse(trial, devices.find("mi300x-192gb"), None) == (
        "semi_structured runs on NVIDIA's GPUs only and AMD Instinct MI300X is none; "
        "use gb200-186gb or another pruning",
    )
    assert plan.refuse(trial, devices.find("a100-80gb"), None) == ()
