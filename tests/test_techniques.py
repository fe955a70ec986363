"""What every technique must keep to, over the whole catalogue: a new file is tested at once."""

from __future__ import annotations

import importlib
import inspect
import json
import re
import subprocess
import sys
import weakref
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import pytest
import torch
from torch import nn
from torch.distributed.tensor import DTensor

from tradebench.program.data import collate
from tradebench.program.loop import summed_loss, surrounding
from tradebench.program.perform import prepare
from tradebench.techniques import (
    ContradictionError,
    LoadRequest,
    Stage,
    Technique,
    catalogue,
    techniques,
)
from tradebench.techniques.targets import of_adapter
from tradebench.trial import Trial

Compress = Callable[[Trial], nn.Module]
Adapt = Callable[[Trial, nn.Module], nn.Module]
Run = Callable[[Trial], tuple[nn.Module, tuple[float, ...], dict[str, Any]]]

# The tiny batch holds 62 tokens, which the default would take in one chunk.
FITTING: dict[str, dict[str, Any]] = {
    "chunked": {"tokens": 16},
    "galore": {"rank": 4},
    "vera": {"initial": 1.0},
    "wanda": {"samples": 2},
    "sparsegpt": {"samples": 2},
}
NF4 = {"method": "nf4"}
LORA = {"method": "lora", "rank": 4}
DESCRIBING = ("conflicts", "effect")


def examples() -> list[dict[str, Any]]:
    """Every method at its defaults, and again with each of its switches thrown."""
    found = []
    for technique in techniques():
        for method in technique.methods():
            plain = {"slot": technique.slot, "method": method, **FITTING.get(method, {})}
            fields = technique.model_fields.items()
            thrown = {name: not field.default for name, field in fields if field.annotation is bool}
            found += [plain, *({**plain, name: value} for name, value in thrown.items())]
    return found


def name(example: dict[str, Any]) -> str:
    return "-".join(key if value is True else str(value) for key, value in example.items())


every_technique = pytest.mark.parametrize("technique", techniques(), ids=lambda kind: kind.__name__)
every_example = pytest.mark.parametrize("example", examples(), ids=name)
every_runnable = pytest.mark.parametrize(
    "example",
    [x for x in examples() if catalogue()[x["slot"]][x["method"]].cuda_only is None],
    ids=name,
)


def technique_of(example: dict[str, Any]) -> Technique:
    fields = {key: value for key, value in example.items() if key != "slot"}
    return catalogue()[example["slot"]][example["method"]].model_validate(fields)


def legal_settings(example: dict[str, Any], make: Callable[..., Trial]) -> dict[str, Any]:
    """The example alone, or beside lora where it cannot train alone, or nf4."""
    alone = {example["slot"]: technique_of(example).settings()}
    helpers: tuple[dict[str, Any], ...] = ({}, {"adapters": LORA}, {"quantization": NF4})
    points = [{**helper, **alone} for helper in helpers]
    return next(point for point in points if not make(point).conflicts())


def sentence(text: str) -> bool:
    """A clause in plain words, then a remedy or a consequence after a semicolon or a colon."""
    return bool(re.fullmatch(r"[\w][^{}\[\]<>]{15,}[;:] [^{}\[\]<>]{8,}[\w%]", text))


# What is known without torch.


def test_the_catalogue_is_found_without_importing_torch() -> None:
    program = (
        "import sys; from tradebench.techniques import catalogue; from tradebench.trial import *; "
        "parts = [t.model_construct(**{k: f.default for k, f in t.model_fields.items()} "
        "| {'method': m}) for s in catalogue().values() for m, t in s.items()]; "
        "trials = [Trial(model=Model(name='x'), techniques=(part,)) for part in parts]; "
        "said = [(t.conflicts(), t.cautions(), t.label, t.id) for t in trials]; "
        "assert len(said) > 9 and any(c for c, *_ in said); "
        "print('torch' in sys.modules)"
    )
    answer = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )

    assert answer.stdout.strip() == "False"


@every_technique
def test_a_technique_says_what_it_is_and_where_it_comes_from(technique: type[Technique]) -> None:
    module = importlib.import_module(technique.__module__)

    assert len((module.__doc__ or "").strip()) > 40
    assert (technique.__doc__ or "").strip().endswith(".")
    assert re.search(r"arXiv:\d{4}\.\d{5}|https://", technique.cite)


@every_technique
def test_a_technique_has_a_place_in_the_order(technique: type[Technique]) -> None:
    assert technique.stage in Stage
    assert re.fullmatch(r"[a-z_]+", technique.slot)
    assert technique.axis in technique.model_fields


@every_technique
def test_a_technique_overrides_a_hook_that_acts(technique: type[Technique]) -> None:
    assert set(technique.touches()) - set(DESCRIBING)


@every_technique
def test_a_technique_can_be_proven(technique: type[Technique]) -> None:
    assert "effect" in technique.touches()


@every_technique
def test_every_hook_says_what_it_does(technique: type[Technique]) -> None:
    silent = [hook for hook in technique.touches() if not getattr(technique, hook).__doc__]

    assert silent == []


@every_technique
def test_every_setting_says_what_it_sets(technique: type[Technique]) -> None:
    described = technique.describe()

    assert [key for key, text in described["settings"].items() if not text] == []
    assert json.loads(json.dumps(described)) == described


@every_technique
def test_settings_are_frozen(technique: type[Technique]) -> None:
    value: Any = technique(method=technique.methods()[0])

    with pytest.raises(ValueError, match="frozen"):
        value.method = "other"


@every_technique
def test_an_unknown_setting_is_refused(technique: type[Technique]) -> None:
    with pytest.raises(ValueError, match="colour"):
        technique.model_validate({"method": technique.methods()[0], "colour": "red"})


@every_example
def test_settings_survive_json(example: dict[str, Any]) -> None:
    technique = technique_of(example)

    assert type(technique).model_validate(json.loads(json.dumps(technique.settings()))) == technique


@every_example
def test_a_trial_keeps_its_id_through_its_payload(
    example: dict[str, Any], tiny_trial: Callable[..., Trial]
) -> None:
    trial = tiny_trial({example["slot"]: technique_of(example).settings()})
    again = Trial.from_payload(json.loads(json.dumps(trial.payload())))

    assert (again, again.id) == (trial, trial.id)


@every_example
def test_a_technique_changes_the_id_and_the_label(
    example: dict[str, Any], tiny_trial: Callable[..., Trial]
) -> None:
    baseline = tiny_trial({})
    trial = tiny_trial({example["slot"]: technique_of(example).settings()})

    assert trial.id != baseline.id
    assert (baseline.label, trial.label) == ("baseline", technique_of(example).label)


def test_every_example_has_a_label_of_its_own() -> None:
    labels = [technique_of(example).label for example in examples()]

    assert sorted(labels) == sorted(set(labels))


@every_example
def test_conflicts_and_cautions_are_full_sentences(
    example: dict[str, Any], tiny_trial: Callable[..., Trial]
) -> None:
    said = [
        text
        for other in [{"slot": example["slot"]}, *examples()]
        if example["slot"] != other["slot"] or "method" not in other
        for trial in [
            tiny_trial(
                {
                    part["slot"]: technique_of(part).settings()
                    for part in (example, other)
                    if "method" in part
                }
            )
        ]
        for text in (*trial.conflicts(), *trial.cautions())
    ]

    assert [text for text in said if not sentence(text)] == []


# What is true of a model.


@every_runnable
def test_a_technique_trains_and_proves_itself(
    example: dict[str, Any],
    tiny_trial: Callable[..., Trial],
    tiny_data_path: str,
    run_trial: Run,
) -> None:
    trial = tiny_trial(
        legal_settings(example, tiny_trial),
        data={"file": tiny_data_path},
        batch=12,  # all of the data, so every step sees the same batch
        steps=8,
        learning_rate=5e-3,
    )
    _, losses, effects = run_trial(trial)

    assert losses[-1] < 0.9 * losses[0]
    assert effects[example["slot"]]
    assert json.loads(json.dumps(effects)) == effects


def without_hooks(technique: type[Technique], monkeypatch: pytest.MonkeyPatch) -> None:
    """Drop the technique silently: it keeps its settings and changes nothing."""
    for hook in technique.touches():
        if hook not in DESCRIBING:
            monkeypatch.setattr(technique, hook, getattr(Technique, hook))


def load_as_bf16(self: Technique, request: LoadRequest) -> LoadRequest:
    return replace(request, dtype=torch.bfloat16)


@every_runnable
def test_a_technique_that_was_dropped_is_found_out(
    example: dict[str, Any],
    tiny_trial: Callable[..., Trial],
    run_trial: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trial = tiny_trial(legal_settings(example, tiny_trial))
    technique = type(technique_of(example))
    without_hooks(technique, monkeypatch)
    if example["method"] == "fp32":  # what a model is loaded in when nobody asks
        monkeypatch.setattr(technique, "load", load_as_bf16)

    with pytest.raises(ContradictionError, match=r"\w+ .*\w+"):
        run_trial(trial)


@every_runnable
def test_the_baseline_shows_no_trace_of_a_technique(
    example: dict[str, Any], tiny_trial: Callable[..., Trial], run_trial: Run
) -> None:
    used_by_default = example["method"] == "fp32"
    model, _, _ = run_trial(
        tiny_trial({"precision": {"method": "bf16"}} if used_by_default else {})
    )

    with pytest.raises(ContradictionError):
        technique_of(example).effect(model)


@pytest.mark.parametrize("example", [x for x in examples() if technique_of(x).exact], ids=name)
@pytest.mark.parametrize(
    "others",
    [
        {},
        {"precision": {"method": "bf16_autocast"}},
        {"quantization": {"method": "nf4"}, "adapters": LORA},
        {"adapters": {**LORA, "dropout": 0.5}},  # what is recomputed is dropped again
    ],
    ids=["alone", "autocast", "qlora", "dropout"],
)
def test_an_exact_technique_keeps_every_loss_bit_for_bit(
    example: dict[str, Any],
    others: dict[str, Any],
    tiny_trial: Callable[..., Trial],
    run_trial: Run,
) -> None:
    settings = {**others, example["slot"]: technique_of(example).settings()}
    _, expected, _ = run_trial(tiny_trial(others))
    _, losses, _ = run_trial(tiny_trial(settings))

    assert losses == expected


ADAPTERS = [example for example in examples() if example["slot"] == "adapters"]
# LoftQ starts nearer the dense model than its base is.
STILL = [example for example in ADAPTERS if example["method"] != "loftq"]


@pytest.mark.parametrize("example", STILL, ids=name)
def test_an_adapter_starts_from_the_loss_of_its_base(
    example: dict[str, Any], tiny_trial: Callable[..., Trial], run_trial: Run
) -> None:
    _, baseline, _ = run_trial(tiny_trial({}, steps=1))
    _, adapted, _ = run_trial(tiny_trial({"adapters": technique_of(example).settings()}, steps=1))

    # DoRA divides by the norm that it multiplies with, which rounds.
    assert adapted[0] == pytest.approx(baseline[0], rel=1e-6)


@every_runnable
def test_a_prior_evaluation_leaves_the_gradients_alone(
    example: dict[str, Any],
    tiny_trial: Callable[..., Trial],
    compressed: Compress,
    adapted: Adapt,
) -> None:
    trial = tiny_trial(legal_settings(example, tiny_trial))
    never = compressed(trial)
    evaluated = compressed(trial)
    evaluate(evaluated, trial)
    never, evaluated = adapted(trial, never), adapted(trial, evaluated)
    evaluate(evaluated, trial)
    expected, found = gradients(never, trial), gradients(evaluated, trial)

    assert float(expected.norm()) > 0
    assert torch.cosine_similarity(found, expected, dim=0) > 0.99
    assert float(found.norm() / expected.norm()) == pytest.approx(1, abs=0.02)


def first_batch(trial: Trial) -> dict[str, torch.Tensor]:
    materials = prepare(trial)
    examples = materials.examples[: trial.budget.batch]
    return dict(collate(examples, materials.padding, materials.device))


def evaluate(model: nn.Module, trial: Trial) -> None:
    """One forward pass as an evaluation takes it."""
    tokens = first_batch(trial)["input_ids"]
    model.eval()
    with torch.no_grad(), surrounding(trial.techniques, tokens.device.type):
        model(tokens)
    model.train()


def gradients(model: nn.Module, trial: Trial) -> torch.Tensor:
    """The gradients of everything that trains, in one vector.

    An adapter whose update starts at zero passes no gradient to its first matrix, so everything
    that trains is shaken a little first.
    """
    torch.manual_seed(1)
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trainable:
        values = local(parameter.data)
        values += 0.02 * torch.randn_like(values)
    loss = summed_loss
    for part in trial.techniques:
        loss = part.loss(loss)  # type: ignore[assignment]  # one loss function for another
    batch = first_batch(trial)
    with surrounding(trial.techniques, batch["input_ids"].device.type):
        value = loss(model, batch)
    value.backward()
    return torch.cat([local(p.grad).flatten().float() for p in trainable if p.grad is not None])


def local(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor's values, of which a sharded one has all where there is one process."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


# What only some techniques can be asked.


def test_a_frozen_adapter_is_found_out(tiny_trial: Callable[..., Trial], run_trial: Run) -> None:
    trial = tiny_trial({"adapters": LORA})
    model, _, _ = run_trial(trial)
    next(p for p in model.parameters() if p.requires_grad).requires_grad_(False)

    with pytest.raises(ContradictionError, match="1 of them frozen"):
        trial.techniques[0].effect(model)


def test_a_base_that_trains_beside_its_adapter_is_found_out(
    tiny_trial: Callable[..., Trial], run_trial: Run
) -> None:
    trial = tiny_trial({"adapters": LORA})
    model, _, _ = run_trial(trial)
    next(p for p in model.parameters() if not p.requires_grad).requires_grad_(True)

    with pytest.raises(ContradictionError, match="1 base parameters that train"):
        trial.techniques[0].effect(model)


def test_an_adapter_that_never_moved_is_found_out(
    tiny_trial: Callable[..., Trial], run_trial: Run
) -> None:
    trial = tiny_trial({"adapters": LORA})
    model, _, _ = run_trial(trial)
    next(p for n, p in model.named_parameters() if ".lora_B." in n).data.zero_()

    with pytest.raises(ContradictionError, match="1 of 28 lora adapters were not moved"):
        trial.techniques[0].effect(model)


def test_an_adapter_target_that_does_not_exist_is_found_out(
    tiny_trial: Callable[..., Trial], run_trial: Run
) -> None:
    trial = tiny_trial({"adapters": {**LORA, "targets": ["q_proj", "query"]}})

    with pytest.raises(ContradictionError, match="no layer named query got an adapter"):
        run_trial(trial)


def test_adapters_go_where_they_are_told(tiny_trial: Callable[..., Trial], run_trial: Run) -> None:
    _, _, effects = run_trial(tiny_trial({"adapters": {**LORA, "targets": ["q_proj", "v_proj"]}}))

    assert effects["adapters"]["layers"] == 8


def test_a_rank_that_was_not_used_is_found_out(
    tiny_trial: Callable[..., Trial], run_trial: Run
) -> None:
    model, _, _ = run_trial(tiny_trial({"adapters": LORA}))
    wider = tiny_trial({"adapters": {**LORA, "rank": 8}}).techniques[0]

    with pytest.raises(ContradictionError, match="rank 8 was asked for"):
        wider.effect(model)


@pytest.mark.parametrize(
    ("around", "dtype", "expected"),
    [
        ({"precision": {"method": "bf16"}}, "fp32", torch.float32),
        ({"precision": {"method": "bf16"}}, "model", torch.bfloat16),
        (
            {"precision": {"method": "bf16"}, "quantization": {"method": "nf4"}},
            "model",
            torch.bfloat16,
        ),
        ({"precision": {"method": "bf16_autocast"}}, "model", torch.float32),
        ({}, "model", torch.float32),
    ],
)
@pytest.mark.parametrize("method", ["lora", "dora"])
def test_adapters_are_in_the_format_that_they_are_told(
    around: dict[str, Any],
    dtype: str,
    expected: torch.dtype,
    method: str,
    tiny_trial: Callable[..., Trial],
    run_trial: Run,
) -> None:
    adapters = {**LORA, "method": method, "dtype": dtype}
    model, _, effects = run_trial(tiny_trial({**around, "adapters": adapters}))
    formats = {parameter.dtype for parameter in model.parameters() if parameter.requires_grad}

    assert formats == {expected}
    assert effects["adapters"]["layers"] == 28


@pytest.mark.parametrize(
    ("given", "asked", "sentence"),
    [
        ({"dtype": "model"}, {}, "adapters in float32 were asked for, but some are in bfloat16"),
        ({}, {"dtype": "model"}, "adapters in bfloat16 were asked for, but some are in float32"),
        ({"dropout": 0.1}, {}, r"a dropout of 0 was asked for, but adapters drop \[0.1\]"),
        ({}, {"dropout": 0.5}, r"a dropout of 0.5 was asked for, but adapters drop \[0.0\]"),
    ],
)
def test_another_format_or_dropout_of_adapters_is_found_out(
    given: dict[str, Any],
    asked: dict[str, Any],
    sentence: str,
    tiny_trial: Callable[..., Trial],
    run_trial: Run,
) -> None:
    bf16 = {"precision": {"method": "bf16"}}
    model, _, _ = run_trial(tiny_trial({**bf16, "adapters": {**LORA, **given}}))
    (wrong,) = tiny_trial({"adapters": {**LORA, **asked}}).techniques

    with pytest.raises(ContradictionError, match=sentence):
        wrong.effect(model)


def test_dropout_is_drawn_anew_at_every_step_of_training_and_never_in_an_evaluation(
    tiny_trial: Callable[..., Trial], run_trial: Run
) -> None:
    trial = tiny_trial({"adapters": {**LORA, "dropout": 0.5}})
    model, _, _ = run_trial(trial)
    tokens = first_batch(trial)["input_ids"]

    def answers() -> int:
        with torch.no_grad():
            return len({model(tokens).logits.sum().item() for _ in range(3)})

    assert (answers(), model.eval() and answers()) == (3, 1)


def test_dropout_and_format_are_part_of_settings_and_label_where_they_are_not_as_usual() -> None:
    lora: Any = catalogue()["adapters"]["lora"]
    kind = partial(lora, method="lora")
    usual = {"method": "lora", "rank": 8, "alpha": None, "targets": "all-linear", "merge": False}
    other = {"dropout": 0.1, "dtype": "model"}

    assert kind(rank=8).settings() == usual
    assert kind(rank=8, **other).settings() == {**usual, **other}
    assert kind(rank=8).label == "lora r8"
    assert kind(rank=8, merge=True, **other).label == "lora r8 dropout 0.1 dtype model merged"


def test_adapters_that_round_are_a_caution(tiny_trial: Callable[..., Trial]) -> None:
    def cautions(precision: str, dtype: str) -> tuple[str, ...]:
        settings = {"precision": {"method": precision}, "adapters": {**LORA, "dtype": dtype}}
        return tuple(tiny_trial(settings).cautions())

    (caution,) = cautions("bf16", "model")

    assert sentence(caution)
    assert cautions("bf16", "fp32") == cautions("fp32", "model") == ()


@pytest.mark.parametrize(
    ("given", "asked"),
    [
        ({"method": "nf4"}, {"method": "fp4"}),
        ({"method": "nf4"}, {"method": "nf4", "double": True}),
        ({"method": "nf4", "double": True}, {"method": "nf4"}),
    ],
)
def test_another_4_bit_format_is_found_out(
    given: dict[str, Any],
    asked: dict[str, Any],
    tiny_trial: Callable[..., Trial],
    compressed: Compress,
) -> None:
    model = compressed(tiny_trial({"quantization": given, "adapters": LORA}))
    wrong = tiny_trial({"quantization": asked, "adapters": LORA}).techniques[0]

    with pytest.raises(ContradictionError, match=f"{wrong.label} was asked for"):
        wrong.effect(model)


def test_one_dense_layer_among_quantized_ones_is_found_out(
    tiny_trial: Callable[..., Trial], compressed: Compress
) -> None:
    trial = tiny_trial({"quantization": {"method": "nf4"}, "adapters": LORA})
    model = compressed(trial)
    model.set_submodule("model.layers.1.mlp.up_proj", nn.Linear(128, 192))

    with pytest.raises(ContradictionError, match="1 of 28 linear layers are still dense"):
        trial.techniques[0].effect(model)


@pytest.mark.parametrize(
    ("chosen", "layers"),
    [
        ({"ratio": 0.01}, {0}),
        ({"ratio": 0.5}, {0, 2}),
        ({"ratio": 1.0}, {0, 1, 2, 3}),
        ({"layers": (0, 1, 3)}, {0, 1, 3}),
    ],
    ids=str,
)
def test_checkpointing_recomputes_its_share_of_the_layers_or_those_that_it_names(
    chosen: dict[str, Any], layers: set[int], tiny_trial: Callable[..., Trial], run_trial: Run
) -> None:
    trial = tiny_trial({"checkpointing": {"method": "full", **chosen}})
    model, _, effects = run_trial(trial)
    ran = {
        index
        for index in range(4)
        if model.get_submodule(f"model.layers.{index}.self_attn").recomputations
    }

    assert ran == layers
    assert effects["checkpointing"] == {"layers": len(layers), "recomputations": 3 * len(layers)}


def test_a_layer_that_was_not_recomputed_is_found_out(
    tiny_trial: Callable[..., Trial], run_trial: Run
) -> None:
    model, _, _ = run_trial(tiny_trial({"checkpointing": {"method": "full", "ratio": 0.5}}))
    whole = tiny_trial({"checkpointing": {"method": "full"}}).techniques[0]

    with pytest.raises(ContradictionError, match=r"layers \[0, 2\] of 4 were recomputed"):
        whole.effect(model)


def test_named_layers_are_part_of_settings_and_label_where_there_are_some() -> None:
    kind: Any = catalogue()["checkpointing"]["full"]

    assert kind(ratio=0.5).settings() == {"method": "full", "ratio": 0.5}
    assert kind(layers=(0, 2)).settings() == {"method": "full", "ratio": 1.0, "layers": [0, 2]}
    assert kind(ratio=0.5).label == "checkpointing 0.5"
    assert kind(layers=(0, 2)).label == "checkpointing layers 0, 2"


@pytest.mark.parametrize("technique", techniques(), ids=lambda kind: kind.__name__)
def test_a_technique_arranged_for_other_layers_treats_each_as_before(
    technique: type[Technique],
) -> None:
    value: Any = technique(method=technique.methods()[0])
    kinds = value.kinds(10)
    chosen = (0, 1, 4, 9)
    arranged = value.arranged([kinds[layer] for layer in chosen])

    assert len(kinds) == 10
    assert arranged.kinds(4) == tuple(kinds[layer] for layer in chosen)
    assert value.arranged(kinds).kinds(10) == kinds


@pytest.mark.parametrize("tokens", [1, 7, 62, 1000])
def test_a_chunked_loss_is_the_loss(
    tokens: int, tiny_trial: Callable[..., Trial], run_trial: Run
) -> None:
    _, expected, _ = run_trial(tiny_trial({}))
    _, losses, effects = run_trial(tiny_trial({"loss": {"method": "chunked", "tokens": tokens}}))

    assert losses == pytest.approx(expected, rel=1e-5)
    assert effects["loss"] == {"largest_chunk": min(tokens, 62)}


def test_a_merged_adapter_leaves_a_plain_model_that_computes_the_same(
    tiny_trial: Callable[..., Trial], run_trial: Run
) -> None:
    trial = tiny_trial({"adapters": {**LORA, "merge": True}})
    model, _, _ = run_trial(trial)
    tokens = first_batch(trial)["input_ids"]
    with torch.no_grad():
        expected = model.eval()(tokens).logits
        merged = trial.techniques[0].trained(model)
        found = merged(tokens).logits

    assert [n for n, _ in merged.named_parameters() if "lora" in n] == []
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", ["lora", "oft", "vera"])
def test_merging_lets_go_of_every_adapter(
    method: str, tiny_trial: Callable[..., Trial], compressed: Compress, adapted: Adapt
) -> None:
    """A graph in which a weight that was rotated holds itself would keep them for good."""
    trial = tiny_trial({"adapters": {"method": method, "merge": True}})
    model = adapted(trial, compressed(trial))
    adapters = [
        weakref.ref(parameter.untyped_storage())
        for name, parameter in model.named_parameters()
        if of_adapter(model, name)
    ]
    model = trial.techniques[0].trained(model)

    assert len(adapters) >= 28
    assert [storage for storage in adapters if storage() is not None] == []


def test_an_unmerged_adapter_stays() -> None:
    model = nn.Linear(2, 2)

    assert catalogue()["adapters"]["lora"](method="lora").trained(model) is model


def test_techniques_are_listed_in_stage_order() -> None:
    stages = [technique.stage for technique in techniques()]

    assert stages == sorted(stages)


def test_hooks_that_are_not_overridden_change_nothing() -> None:
    class Idle(Technique):
        """Does nothing."""

        slot, stage, axis, cite = "idle", Stage.FEED, "method", "nobody"
        method: Literal["idle"]

    idle, model, stream = Idle(method="idle"), nn.Linear(2, 2), iter(())
    with idle.forward("cpu"):
        idle.stepped(model)

    assert Idle.touches() == ()
    assert idle.batches(stream) is stream
    assert idle.loss(summed_loss) is summed_loss
    assert idle.trained(model) is model
    assert idle.effect(model) == {}


def test_two_classes_cannot_offer_the_same_method(monkeypatch: pytest.MonkeyPatch) -> None:
    class Twin(Technique):
        """Claims a method that is taken."""

        slot, stage, axis, cite = "adapters", Stage.ADAPT, "method", "nobody"
        method: Literal["lora"]

    monkeypatch.setattr("tradebench.techniques.techniques", lambda: (*techniques(), Twin))

    with pytest.raises(TypeError, match="both offer adapters: lora"):
        catalogue.__wrapped__()


def test_an_entry_point_adds_a_technique(monkeypatch: pytest.MonkeyPatch) -> None:
    class Guest(Technique):
        """Comes from another package."""

        slot, stage, axis, cite = "guest", Stage.FEED, "method", "nobody"
        method: Literal["plain"]

    class Point:
        def load(self) -> type[Technique]:
            return Guest

    monkeypatch.setattr("tradebench.techniques.entry_points", lambda group: [Point()])

    assert Guest in techniques.__wrapped__()


def test_a_changed_source_file_makes_another_version() -> None:
    versions = {technique.version() for technique in techniques()}
    files = {inspect.getfile(technique) for technique in techniques()}

    assert len(versions) == len(files)
