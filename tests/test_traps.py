"""Traps that give wrong results without an exception: each test fails where its fix is undone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import lm_eval.models.huggingface
import pytest
import torch
from bitsandbytes.functional import has_avx512bf16
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from lm_eval.api.task import ConfigurableTask
from peft.utils.integrations import dequantize_module_weight
from torch import Tensor, nn

from tradebench.program import loop
from tradebench.program.data import collate
from tradebench.program.evaluation import Evaluator
from tradebench.program.model import load_tokenizer, plan_loading
from tradebench.program.perform import prepare
from tradebench.techniques import ContradictionError, Technique
from tradebench.techniques.autocast import Autocast
from tradebench.techniques.magnitude import Magnitude
from tradebench.techniques.targets import decoder_linears
from tradebench.trial import Evaluate, Trial

Compress = Callable[[Trial], nn.Module]
Adapt = Callable[[Trial, nn.Module], nn.Module]
Run = Callable[[Trial], tuple[nn.Module, tuple[float, ...], dict[str, Any]]]
Make = Callable[..., Trial]

LORA = {"method": "lora", "rank": 4}
PRUNED = {"method": "magnitude", "sparsity": 0.5}
FORMATS = {
    "nf4": {"method": "nf4"},
    "nf4-double": {"method": "nf4", "double": True},
    "fp4": {"method": "fp4"},
    "int8": {"method": "int8"},
}
FOUR_BIT = {name: fields for name, fields in FORMATS.items() if name != "int8"}

every_format = pytest.mark.parametrize("fields", FORMATS.values(), ids=FORMATS)
every_4_bit = pytest.mark.parametrize("fields", FOUR_BIT.values(), ids=FOUR_BIT)
where_the_kernel_packs = pytest.mark.skipif(
    not has_avx512bf16(), reason="only CPUs with avx512_bf16 repack weights"
)
quantized_when = pytest.mark.parametrize("in_place", [False, True], ids=["loading", "in place"])


def tokens_of(trial: Trial) -> Tensor:
    materials = prepare(trial)
    examples = materials.examples[: trial.budget.batch]
    return collate(examples, materials.padding, materials.device)["input_ids"]


def evaluate(model: nn.Module, trial: Trial) -> Tensor:
    model.eval()
    with torch.no_grad():
        logits: Tensor = model(tokens_of(trial)).logits
    model.train()
    return logits


def gradients(model: nn.Module, trial: Trial) -> Tensor:
    """The gradients of the adapters, shaken so that none of them is zero by construction."""
    torch.manual_seed(1)
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trainable:
        parameter.data += 0.02 * torch.randn_like(parameter)
    tokens = tokens_of(trial)
    loop.summed_loss(model, {"input_ids": tokens, "labels": tokens}).backward()
    return torch.cat([p.grad.flatten().float() for p in trainable if p.grad is not None])


def pack_again(model: nn.Module) -> None:
    """Undo the fix: let bitsandbytes repack weights, as it does when nobody interferes."""
    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = True


def quantize_in_place(monkeypatch: pytest.MonkeyPatch, in_place: bool) -> None:
    """Leave dense while loading, so that the layers are quantized one by one afterwards."""
    if in_place:
        for kind in Technique.__subclasses__():
            if kind.slot == "quantization":
                monkeypatch.setattr(kind, "load", lambda self, request: request)


# bitsandbytes repacks 4-bit weights in place at the first forward pass in evaluation mode on CPUs
# with avx512_bf16; backward, merging and saving read the packed layout as if it were not.


@every_4_bit
@quantized_when
def test_4_bit_weights_are_kept_from_being_repacked(
    fields: dict[str, Any],
    in_place: bool,
    tiny_trial: Make,
    compressed: Compress,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    quantize_in_place(monkeypatch, in_place)
    model = compressed(tiny_trial({"quantization": fields, "adapters": LORA}))
    layers = [module for module in model.modules() if isinstance(module, Linear4bit)]

    assert len(layers) == 28
    assert not any(layer.support_avx512bf16_for_cpu for layer in layers)


@every_4_bit
@quantized_when
def test_gradients_after_an_evaluation_are_those_without(
    fields: dict[str, Any],
    in_place: bool,
    tiny_trial: Make,
    compressed: Compress,
    adapted: Adapt,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    quantize_in_place(monkeypatch, in_place)
    trial = tiny_trial({"quantization": fields, "adapters": LORA})
    expected = gradients(adapted(trial, compressed(trial)), trial)
    model = compressed(trial)
    evaluate(model, trial)
    found = gradients(adapted(trial, model), trial)

    torch.testing.assert_close(found, expected)


@where_the_kernel_packs
@pytest.mark.filterwarnings("ignore:bitsandbytes..gemv_4bit")  # what is wrong, said by torch
@every_4_bit
def test_gradients_after_an_evaluation_are_wrong_where_weights_are_repacked(
    fields: dict[str, Any], tiny_trial: Make, compressed: Compress, adapted: Adapt
) -> None:
    trial = tiny_trial({"quantization": fields, "adapters": LORA})
    expected = gradients(adapted(trial, compressed(trial)), trial)
    model = compressed(trial)
    pack_again(model)
    evaluate(model, trial)
    found = gradients(adapted(trial, model), trial)

    assert torch.cosine_similarity(found, expected, dim=0) < 0.9


@where_the_kernel_packs
def test_repacked_weights_are_found_out(tiny_trial: Make, compressed: Compress) -> None:
    trial = tiny_trial({"quantization": {"method": "nf4"}, "adapters": LORA})
    model = compressed(trial)
    pack_again(model)
    evaluate(model, trial)

    with pytest.raises(ContradictionError, match="repacked the weights"):
        trial.techniques[0].effect(model)


@every_4_bit
@pytest.mark.parametrize(
    "fixed", [True, pytest.param(False, marks=where_the_kernel_packs)], ids=["fixed", "undone"]
)
def test_merging_after_an_evaluation_computes_what_the_adapter_computed(
    fields: dict[str, Any],
    fixed: bool,
    tiny_trial: Make,
    compressed: Compress,
    adapted: Adapt,
) -> None:
    adapters = {**LORA, "merge": True}
    trial = tiny_trial({"quantization": fields, "adapters": adapters})
    model = adapted(trial, compressed(trial))
    if not fixed:
        pack_again(model)
    expected = evaluate(model, trial)
    merged = trial.techniques[-1].trained(model)
    error = (evaluate(merged, trial) - expected).norm() / expected.norm()

    # The adapter is zero, so only rounding it into the weights may change anything.
    assert (float(error) < 0.1) is fixed


# lm-eval takes the log-softmax in the model's own format; in bf16 that rounds scores until
# different models score the same.


@pytest.fixture
def words() -> ConfigurableTask:
    """Sixty single-word continuations, scored by their log-likelihood."""
    import datasets

    rows = [{"text": f"w{n} w{n + 1}", "answer": f" w{n + 2}"} for n in range(60)]
    return ConfigurableTask(
        config={
            "task": "words",
            "custom_dataset": lambda **_: datasets.DatasetDict(
                {"test": datasets.Dataset.from_list(rows)}
            ),
            "test_split": "test",
            "output_type": "loglikelihood",
            "doc_to_text": "{{text}}",
            "doc_to_target": "{{answer}}",
            "target_delimiter": "",
            "metric_list": [{"metric": "acc"}],
            "num_fewshot": 0,
        }
    )


def scores(trial: Trial, model: nn.Module, task: ConfigurableTask) -> list[float]:
    """Minus the log-likelihood of every item."""
    evaluator = Evaluator(
        Evaluate.model_validate({"batch_size": 1}), load_tokenizer(trial.model), 64
    )
    evaluator.tasks = {"words": task}
    items = evaluator.score(model, trial.techniques).items
    return [item["nll"] for item in items]


def round_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Undo the fix: take the log-softmax in the model's format, as lm-eval does by itself."""
    whole = lm_eval.models.huggingface.HFLM

    def rounded(**settings: Any) -> Any:
        return whole(**{**settings, "softmax_dtype": None})

    monkeypatch.setattr("tradebench.program.evaluation.HFLM", rounded)


BF16 = {"precision": {"method": "bf16"}}
BF16_NF4 = {**BF16, "quantization": {"method": "nf4"}, "adapters": LORA}


def by_hand(trial: Trial, model: nn.Module, task: ConfigurableTask) -> list[float]:
    tokenizer: Any = load_tokenizer(trial.model)
    found = []
    for row in task.dataset["test"]:
        answer = tokenizer(row["answer"])["input_ids"]
        tokens = tokenizer(row["text"])["input_ids"]
        with torch.no_grad():
            logits = model.eval()(torch.tensor([tokens])).logits[0, -1]
        found.append(-float(logits.float().log_softmax(-1)[answer[0]]))
    return found


@pytest.mark.parametrize("settings", [BF16, BF16_NF4], ids=["dense", "nf4"])
def test_scores_of_a_bf16_model_are_taken_in_fp32(
    settings: dict[str, Any],
    words: ConfigurableTask,
    tiny_trial: Make,
    compressed: Compress,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trial = tiny_trial(settings)
    model = compressed(trial)
    expected = by_hand(trial, model, words)
    found = scores(trial, model, words)
    round_scores(monkeypatch)
    rounded = scores(trial, model, words)

    assert found == pytest.approx(expected, abs=1e-5)
    assert rounded != pytest.approx(expected, abs=1e-3)


def test_a_quantized_model_scores_differently_where_rounding_makes_it_equal(
    words: ConfigurableTask,
    tiny_trial: Make,
    compressed: Compress,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dense, packed = tiny_trial(BF16), tiny_trial(BF16_NF4)
    models = [(dense, compressed(dense)), (packed, compressed(packed))]
    true = [scores(trial, model, words) for trial, model in models]
    round_scores(monkeypatch)
    rounded = [scores(trial, model, words) for trial, model in models]
    same = [index for index in range(60) if rounded[0][index] == rounded[1][index]]

    assert same
    assert all(true[0][index] != true[1][index] for index in same)


# With a cache of keys and values, transformers lets packed sequences see each other.


def packed_batch() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Three sequences, padded into three rows and laid end to end in one."""
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(4, 200, (length,), generator=generator) for length in (5, 11, 8)]
    longest = max(map(len, rows))

    def pad(row: Tensor, value: int) -> Tensor:
        return torch.nn.functional.pad(row, (0, longest - len(row)), value=value)

    padded = {
        "input_ids": torch.stack([pad(row, 0) for row in rows]),
        "labels": torch.stack([pad(row, -100) for row in rows]),
    }
    firsts = [torch.cat([torch.tensor([-100]), row[1:]]) for row in rows]
    flat = {
        "input_ids": torch.cat(rows)[None],
        "labels": torch.cat(firsts)[None],
        "position_ids": torch.cat([torch.arange(len(row)) for row in rows])[None],
    }
    return padded, flat


def test_packed_sequences_have_the_loss_of_padded_ones(
    tiny_trial: Make, compressed: Compress
) -> None:
    model = compressed(tiny_trial({}))
    padded, flat = packed_batch()

    torch.testing.assert_close(loop.summed_loss(model, flat), loop.summed_loss(model, padded))


def test_a_loaded_model_keeps_no_cache(tiny_trial: Make, compressed: Compress) -> None:
    model: Any = compressed(tiny_trial({}))

    assert model.config.use_cache is False
    assert model(torch.tensor([[5, 6, 7]])).past_key_values is None


def test_a_cache_would_leak_one_packed_sequence_into_the_next(
    tiny_trial: Make, compressed: Compress
) -> None:
    model: Any = compressed(tiny_trial({}))
    padded, flat = packed_batch()
    inputs = {name: flat[name] for name in ("input_ids", "position_ids")}
    expected = model(padded["input_ids"]).logits[1, :11]
    without = model(**inputs).logits[0, 5:16]
    model.config.use_cache = True
    leaked = model(**inputs).logits[0, 5:16]

    torch.testing.assert_close(without, expected, rtol=1e-4, atol=1e-5)
    assert (leaked - expected).abs().max() > 0.01


# An optimizer revives pruned weights.


class Decaying(loop.AdamW):
    """AdamW with weight decay and with moments from before the pruning."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        for group in self.inner.param_groups:
            group["weight_decay"] = 0.1
            for parameter in group["params"]:
                self.inner.state[parameter] = {
                    "step": torch.ones(()),
                    "exp_avg": torch.full_like(parameter, 0.01),
                    "exp_avg_sq": torch.full_like(parameter, 1e-4),
                }


def train_pruned(trial: Trial, model: nn.Module, make: type[loop.AdamW]) -> loop.AdamW:
    """Three steps of the loop's kind with this optimizer."""
    (pruning,) = trial.techniques
    optimizer: Any = pruning.optimizer(make)(model)
    optimizer.set_learning_rate(1e-2)
    tokens = tokens_of(trial)
    for _ in range(3):
        loop.summed_loss(model, {"input_ids": tokens, "labels": tokens}).backward()
        optimizer.step()
        pruning.stepped(model)
        optimizer.zero_grad()
    return optimizer  # type: ignore[no-any-return]  # the technique returns the factory's own


def zeros_of(model: nn.Module) -> list[Tensor]:
    return [linear.weight == 0 for _, linear in decoder_linears(model)]


def revived(model: nn.Module, zeros: list[Tensor]) -> int:
    pairs = zip(zeros_of(model), zeros, strict=True)
    return sum(int((before & ~now).sum()) for now, before in pairs)


def test_pruned_weights_stay_zero_through_old_momentum_and_weight_decay(
    tiny_trial: Make, compressed: Compress
) -> None:
    trial = tiny_trial({"pruning": PRUNED})
    model = compressed(trial)
    zeros = zeros_of(model)
    train_pruned(trial, model, Decaying)

    assert sum(int(zero.sum()) for zero in zeros) == 4 * (2 * 8192 + 2 * 4096 + 3 * 12288)
    assert revived(model, zeros) == 0


def test_old_momentum_revives_pruned_weights_where_the_mask_is_not_applied_again(
    tiny_trial: Make, compressed: Compress, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = tiny_trial({"pruning": PRUNED})
    model = compressed(trial)
    zeros = zeros_of(model)
    monkeypatch.setattr(Magnitude, "stepped", Technique.stepped)
    train_pruned(trial, model, Decaying)

    assert revived(model, zeros) > 1000
    with pytest.raises(ContradictionError, match=r"sparsity 0\.5 was asked for"):
        trial.techniques[0].effect(model)


def test_pruned_weights_build_up_no_momentum(tiny_trial: Make, compressed: Compress) -> None:
    trial = tiny_trial({"pruning": PRUNED})
    model = compressed(trial)
    zeros = zeros_of(model)
    inner = train_pruned(trial, model, loop.AdamW).inner
    moments = [inner.state[linear.weight]["exp_avg"] for _, linear in decoder_linears(model)]

    assert all(not moment[zero].any() for moment, zero in zip(moments, zeros, strict=True))


def test_training_without_a_mask_revives_pruned_weights(
    tiny_trial: Make, run_trial: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Magnitude, "stepped", Technique.stepped)
    monkeypatch.setattr(Magnitude, "optimizer", Technique.optimizer)

    with pytest.raises(ContradictionError, match=r"sparsity 0\.5 was asked for"):
        run_trial(tiny_trial({"pruning": PRUNED}))


def test_merging_into_a_pruned_base_is_refused(tiny_trial: Make) -> None:
    trial = tiny_trial({"pruning": PRUNED, "adapters": {**LORA, "merge": True}})

    assert trial.conflicts() == (
        "merging an adapter fills the zeros of a pruned base; set merge: false or remask: true",
    )


def test_merging_really_fills_the_zeros_of_a_pruned_base(tiny_trial: Make, run_trial: Run) -> None:
    trial = tiny_trial({"pruning": PRUNED, "adapters": {**LORA, "merge": True}})
    model, _, _ = run_trial(trial)
    merged = trial.techniques[-1].trained(model)

    with pytest.raises(ContradictionError, match=r"but \d+ of the decoder's 491520 weights"):
        trial.techniques[0].effect(merged)


# Quantizing while loading must give what quantizing in place gives, and pruning comes first.


def packed_state(model: nn.Module) -> Iterator[tuple[str, tuple[Tensor, ...]]]:
    """Every packed weight with all its scales."""
    for name, linear in decoder_linears(model):
        weight: Any = linear.weight
        if isinstance(linear, Linear8bitLt):
            yield name, (weight.data, weight.SCB)
        elif isinstance(linear, Linear4bit):
            state = weight.quant_state
            nested = (state.state2.absmax, state.offset) if state.nested else ()
            yield name, (weight.data, state.absmax, *nested)


@every_format
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_quantizing_in_place_gives_what_quantizing_while_loading_gives(
    precision: str,
    fields: dict[str, Any],
    tiny_trial: Make,
    compressed: Compress,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trial = tiny_trial(
        {"precision": {"method": precision}, "quantization": fields, "adapters": LORA}
    )
    assert plan_loading(trial, "cpu").quantization is not None
    loaded = dict(packed_state(compressed(trial)))
    quantize_in_place(monkeypatch, True)
    assert plan_loading(trial, "cpu").quantization is None
    placed = dict(packed_state(compressed(trial)))

    assert (len(loaded), loaded.keys()) == (28, placed.keys())
    for name, tensors in loaded.items():
        assert [t.dtype for t in tensors] == [t.dtype for t in placed[name]]
        assert all(map(torch.equal, tensors, placed[name]))


@every_format
def test_quantizing_in_place_computes_what_quantizing_while_loading_computes(
    fields: dict[str, Any],
    tiny_trial: Make,
    run_trial: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trial = tiny_trial({**BF16, "quantization": fields, "adapters": LORA})
    _, loaded, proven = run_trial(trial)
    quantize_in_place(monkeypatch, True)
    _, placed, proven_in_place = run_trial(trial)

    assert (loaded, proven) == (placed, proven_in_place)


@every_format
def test_pruning_comes_before_quantization_and_its_zeros_survive(
    fields: dict[str, Any], tiny_trial: Make, compressed: Compress
) -> None:
    dense = compressed(tiny_trial({"pruning": PRUNED}))
    trial = tiny_trial({"pruning": PRUNED, "quantization": fields, "adapters": LORA})
    model = compressed(trial)
    assert plan_loading(trial, "cpu").dense_first

    for (_, pruned), (_, packed) in zip(
        decoder_linears(dense), decoder_linears(model), strict=True
    ):
        assert (dequantize_module_weight(packed)[pruned.weight == 0] == 0).all()


def test_a_quantized_model_that_was_not_pruned_first_is_found_out(
    tiny_trial: Make, compressed: Compress
) -> None:
    quantized = tiny_trial({"quantization": {"method": "nf4"}, "adapters": LORA})
    pruned = tiny_trial({"pruning": PRUNED, **quantized.settings})

    with pytest.raises(ContradictionError, match=r"sparsity 0\.5 was asked for"):
        pruned.techniques[0].effect(compressed(quantized))


# peft's dequantize_module_weight moves an int8 weight to where it is and loses its scales on the
# way, so that the next forward pass fails.


@every_format
def test_proving_the_sparsity_of_quantized_weights_leaves_them_alone(
    fields: dict[str, Any], tiny_trial: Make, run_trial: Run
) -> None:
    trial = tiny_trial({"pruning": PRUNED, "quantization": fields, "adapters": LORA})
    model, _, _ = run_trial(trial)
    expected = evaluate(model, trial)
    trial.techniques[0].effect(model)

    assert torch.equal(evaluate(model, trial), expected)


def test_peft_breaks_an_int8_layer_that_it_dequantizes(
    tiny_trial: Make, compressed: Compress
) -> None:
    trial = tiny_trial({"quantization": FORMATS["int8"], "adapters": LORA})
    model = compressed(trial)
    evaluate(model, trial)
    for _, linear in decoder_linears(model):
        dequantize_module_weight(linear)

    with pytest.raises(AttributeError, match="NoneType"):
        evaluate(model, trial)


# What is stored, and what is computed in.


def test_pure_bf16_holds_no_other_parameter(tiny_trial: Make, run_trial: Run) -> None:
    model, _, effects = run_trial(tiny_trial(BF16))

    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert effects["precision"] == {"parameters": {"bfloat16": 558_208}}


@pytest.mark.parametrize(("method", "dtype"), [("bf16_autocast", "bfloat16"), ("fp16", "float16")])
def test_autocast_computes_in_16_bits_on_fp32_parameters(
    method: str, dtype: str, tiny_trial: Make, run_trial: Run
) -> None:
    model, _, effects = run_trial(tiny_trial({"precision": {"method": method}}))

    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert (effects["precision"]["compute"], effects["precision"]["activations"]) == (dtype, dtype)


def test_4_bit_layers_pass_on_fp32_under_autocast(tiny_trial: Make, run_trial: Run) -> None:
    trial = tiny_trial(
        {
            "precision": {"method": "bf16_autocast"},
            "quantization": {"method": "nf4"},
            "adapters": LORA,
        }
    )
    _, _, effects = run_trial(trial)

    assert effects["precision"] == {"compute": "bfloat16", "activations": "float32"}
    assert any("activations stay in fp32" in note for note in trial.cautions())


def test_fp16_without_a_gradient_scaler_is_found_out(
    tiny_trial: Make, run_trial: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Autocast, "optimizer", Technique.optimizer)

    with pytest.raises(ContradictionError, match="no step had scaled gradients"):
        run_trial(tiny_trial({"precision": {"method": "fp16"}}))


def test_fp16_counts_the_steps_that_an_infinite_gradient_left_out(
    tiny_trial: Make, compressed: Compress
) -> None:
    trial = tiny_trial({"precision": {"method": "fp16"}})
    model = compressed(trial)
    (precision,) = trial.techniques
    optimizer = precision.optimizer(loop.AdamW)(model)
    optimizer.set_learning_rate(1e-3)
    before = [parameter.clone() for parameter in model.parameters()]
    tokens = tokens_of(trial)

    def step(scale: float) -> None:
        with precision.forward(tokens.device.type):
            loss = loop.summed_loss(model, {"input_ids": tokens, "labels": tokens})
        optimizer.backward(loss * scale)
        optimizer.step()
        optimizer.zero_grad()

    step(1e36)

    assert all(map(torch.equal, before, model.parameters()))
    with pytest.raises(ContradictionError, match="a gradient was infinite in every step"):
        precision.effect(model)

    step(1 / tokens.numel())

    assert precision.effect(model) == {
        "compute": "float16",
        "activations": "float16",
        "steps": 2,
        "skipped": 1,
    }


def test_4_bit_layers_compute_in_the_precision_of_the_trial(
    tiny_trial: Make, compressed: Compress
) -> None:
    found = {
        method: {
            module.compute_dtype
            for module in compressed(
                tiny_trial(
                    {
                        "precision": {"method": method},
                        "quantization": {"method": "nf4"},
                        "adapters": LORA,
                    }
                )
            ).modules()
            if isinstance(module, Linear4bit)
        }
        for method in ("fp32", "bf16", "bf16_autocast", "fp16")
    }

    assert found == {
        "fp32": {torch.float32},
        "bf16": {torch.bfloat16},
        "bf16_autocast": {torch.bfloat16},
        "fp16": {torch.float16},
    }


WEIGHTS = (128 * 128, 64 * 128, 64 * 128, 128 * 128, 192 * 128, 192 * 128, 128 * 192)
ROWS = (128, 64, 64, 128, 192, 192, 128)


def blocks(weights: int, size: int) -> int:
    return -(-weights // size)


@pytest.mark.parametrize(
    ("fields", "weight_bytes", "scale_bytes"),
    [
        (FORMATS["nf4"], sum(n // 2 for n in WEIGHTS), sum(n // 64 * 4 for n in WEIGHTS)),
        (FORMATS["fp4"], sum(n // 2 for n in WEIGHTS), sum(n // 64 * 4 for n in WEIGHTS)),
        (
            FORMATS["nf4-double"],
            sum(n // 2 for n in WEIGHTS),
            sum(n // 64 + blocks(n // 64, 256) * 4 for n in WEIGHTS),
        ),
        (FORMATS["int8"], sum(WEIGHTS), sum(n * 4 for n in ROWS)),
    ],
    ids=["nf4", "fp4", "nf4-double", "int8"],
)
def test_quantized_bytes_are_those_of_the_closed_form(
    fields: dict[str, Any],
    weight_bytes: int,
    scale_bytes: int,
    tiny_trial: Make,
    run_trial: Run,
) -> None:
    _, _, effects = run_trial(tiny_trial({"quantization": fields, "adapters": LORA}))

    assert effects["quantization"] == {
        "layers": 28,
        "weight_bytes": 4 * weight_bytes,
        "scale_bytes": 4 * scale_bytes,
    }


# What must be refused.


def test_dora_on_int8_is_refused(tiny_trial: Make) -> None:
    trial = tiny_trial({"quantization": FORMATS["int8"], "adapters": {"method": "dora"}})

    assert trial.conflicts() == ("dora crashes on an int8 base in peft; use nf4, or lora on int8",)


@every_format
def test_training_quantized_weights_without_an_adapter_is_refused(
    fields: dict[str, Any], tiny_trial: Make
) -> None:
    (reason,) = tiny_trial({"quantization": fields}).conflicts()

    assert reason.endswith("and take no gradient; add an adapter such as lora")


# Seeds.


@pytest.mark.parametrize("settings", [{}, {"adapters": LORA}], ids=["full", "lora"])
def test_a_seed_decides_every_loss(
    settings: dict[str, Any], tiny_trial: Make, run_trial: Run
) -> None:
    first, again, other = (run_trial(tiny_trial(settings, seed=seed))[1] for seed in (3, 3, 4))

    assert first == again
    assert first != other


def test_a_seed_decides_how_adapters_start(
    tiny_trial: Make, compressed: Compress, adapted: Adapt
) -> None:
    def start(seed: int) -> Tensor:
        trial = tiny_trial({"adapters": LORA}, seed=seed)
        model = adapted(trial, compressed(trial))
        return next(p for n, p in model.named_parameters() if ".lora_A." in n)

    assert torch.equal(start(3), start(3))
    assert not torch.equal(start(3), start(4))
