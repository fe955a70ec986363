"""Optimizers against references: the papers' formulas, closed forms, other implementations."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tradebench import devices
from tradebench.environment import Gpu
from tradebench.plan import plan
from tradebench.predict.library import Library
from tradebench.predict.memory import perform_fake, reach
from tradebench.predict.record import Record, RecordingMeter
from tradebench.program.data import collate
from tradebench.program.loop import probe, summed_loss
from tradebench.program.measure import rehearse
from tradebench.program.perform import make_optimizer, prepare
from tradebench.result import Outcome
from tradebench.runner import refusal
from tradebench.techniques import ContradictionError, Optimizer, catalogue
from tradebench.techniques.galore import leading_vectors, projected_adamw
from tradebench.techniques.stepping import Stepping
from tradebench.trial import Trial
from tradebench.worlds.memory import Tracker
from tradebench.worlds.meters import Clock, MemoryMeter

pytestmark = pytest.mark.usefixtures("quick_collections")

Make = Callable[..., Trial]
Run = Callable[[Trial], tuple[nn.Module, tuple[float, ...], dict[str, Any]]]
Compress = Callable[[Trial], nn.Module]
Settings = Mapping[str, Any]

ROWS, COLUMNS, STEPS, RATE = 64, 96, 20, 1e-2
PARAMETERS = 558_208  # of the tiny model
ADAMW = {"method": "adamw"}


# On matrices with gradients made up by hand.


def matrices() -> nn.ParameterDict:
    """A matrix large enough to be quantized, one that is not, and a vector."""
    torch.manual_seed(0)
    return nn.ParameterDict(
        {
            "large": torch.randn(ROWS, COLUMNS),
            "small": torch.randn(8, 16),
            "vector": torch.randn(COLUMNS),
        }
    )


def gradients() -> Iterator[dict[str, Tensor]]:
    """The gradients of every step, of sizes far apart."""
    source = torch.Generator().manual_seed(1)
    model = matrices()
    for _ in range(STEPS):
        yield {
            name: torch.randn(part.shape, generator=source) * 10 ** (index - 2)
            for index, (name, part) in enumerate(model.named_parameters())
        }


def stepped(optimizer: Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """What the matrices are after all steps."""
    optimizer.set_learning_rate(RATE)
    parameters = dict(model.named_parameters())
    for made in gradients():
        for name, gradient in made.items():
            parameters[name].grad = gradient.clone()
        optimizer.step()
        optimizer.zero_grad()
    return {name: part.detach().clone() for name, part in parameters.items()}


def of(settings: Settings, model: nn.Module) -> Optimizer:
    technique = catalogue()["optimizer"][settings["method"]].model_validate(settings)
    return technique.optimizer(lambda model: pytest.fail("it is to be replaced"))(model)


def reference() -> dict[str, Tensor]:
    """AdamW written down from the paper, in double precision."""
    model = {name: part.detach().double() for name, part in matrices().named_parameters()}
    first = {name: torch.zeros_like(part) for name, part in model.items()}
    second = {name: torch.zeros_like(part) for name, part in model.items()}
    for step, made in enumerate(gradients(), start=1):
        for name, gradient in made.items():
            gradient = gradient.double()
            first[name] = 0.9 * first[name] + 0.1 * gradient
            second[name] = 0.999 * second[name] + 0.001 * gradient**2
            mean, square = first[name] / (1 - 0.9**step), second[name] / (1 - 0.999**step)
            model[name] = model[name] - RATE * mean / (square.sqrt() + 1e-8)
    return {name: part.float() for name, part in model.items()}


@pytest.mark.parametrize("offload", [False, True])
@pytest.mark.parametrize("implementation", ["fused", "foreach", "for-loop"])
def test_every_implementation_of_adamw_is_that_of_the_paper(
    implementation: str, offload: bool
) -> None:
    model = matrices()
    settings = {**ADAMW, "implementation": implementation, "offload": offload}

    torch.testing.assert_close(stepped(of(settings, model), model), reference())


@pytest.mark.parametrize(
    ("method", "error"),
    [("adamw8bit", 0.02), ("torchao_adamw8bit", 0.02), ("torchao_adamw4bit", 0.3)],
)
def test_states_in_few_bits_stay_near_those_in_fp32(method: str, error: float) -> None:
    """Of the way that a large matrix went; small ones keep fp32 and go the same way."""
    model, start = matrices(), dict(matrices().named_parameters())
    found, expected = stepped(of({"method": method}, model), model), reference()
    way = (expected["large"] - start["large"]).norm()

    assert 0 < (found["large"] - expected["large"]).norm() / way < error
    torch.testing.assert_close(found["small"], expected["small"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found["vector"], expected["vector"], rtol=1e-4, atol=1e-5)


def test_lion_in_8_bits_steps_by_the_signs_of_the_paper() -> None:
    """Nine signs in ten are those of fp32: an entry near zero may round to the other side."""
    model = matrices()
    found = stepped(of({"method": "lion8bit"}, model), model)
    expected = {name: part.detach().clone() for name, part in matrices().named_parameters()}
    moment = {name: torch.zeros_like(part) for name, part in expected.items()}
    for made in gradients():
        for name, gradient in made.items():
            expected[name] -= RATE * (0.9 * moment[name] + 0.1 * gradient).sign()
            moment[name] = 0.99 * moment[name] + 0.01 * gradient

    torch.testing.assert_close(found["small"], expected["small"])
    assert ((found["large"] - expected["large"]).abs() < RATE / 2).float().mean() > 0.9


def test_adafactor_is_that_of_torch_where_both_can_be_the_same() -> None:
    """torch multiplies the rate by the size of the parameter: here that is told to be done too."""
    model, twin = matrices(), matrices()
    ours: Any = of({"method": "adafactor"}, model)
    for group in ours.inner.param_groups:
        group["scale_parameter"] = True
    theirs = Stepping(torch.optim.Adafactor(twin.parameters(), lr=RATE, eps=(None, 1e-3)))

    torch.testing.assert_close(stepped(ours, model), stepped(theirs, twin), rtol=1e-4, atol=1e-5)


def test_adafactor_takes_the_rate_as_it_is_given() -> None:
    """The first update of a matrix whose squared gradients are a product is its signs."""
    model = nn.ParameterDict({"matrix": torch.zeros(ROWS, COLUMNS)})
    optimizer = of({"method": "adafactor"}, model)
    optimizer.set_learning_rate(RATE)
    rows, columns = torch.rand(ROWS, 1) + 0.5, torch.rand(1, COLUMNS) + 0.5
    signs = torch.randn(ROWS, COLUMNS).sign()
    model["matrix"].grad = signs * rows * columns
    optimizer.step()

    torch.testing.assert_close(model["matrix"].data, -RATE * signs, rtol=1e-4, atol=1e-6)


# GaLore.


def galore(model: nn.Module, rank: int, **settings: Any) -> Stepping:
    defaults = {"lr": 0.0, "update_gap": 200, "scale": 1.0, **settings}
    groups = [{"params": list(model.parameters()), "rank": rank}]
    return Stepping(projected_adamw()(groups, defaults))


@pytest.mark.parametrize("shape", [(ROWS, COLUMNS), (COLUMNS, ROWS)], ids=["wide", "tall"])
def test_galore_of_full_rank_is_adamw_in_the_projected_space(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    model = nn.ParameterDict({"matrix": torch.randn(shape)})
    made = [torch.randn(shape) for _ in range(5)]
    vectors = leading_vectors(made[0], ROWS)
    wide = shape == (ROWS, COLUMNS)

    def turned(matrix: Tensor) -> Tensor:
        return vectors.T @ matrix if wide else matrix @ vectors

    rotated = nn.Parameter(turned(model["matrix"].data))
    expected = torch.optim.AdamW([rotated], lr=RATE, weight_decay=0.0)
    found = galore(model, ROWS)
    found.set_learning_rate(RATE)
    for gradient in made:
        model["matrix"].grad, rotated.grad = gradient.clone(), turned(gradient)
        found.step()
        expected.step()

    torch.testing.assert_close(turned(model["matrix"].data), rotated.data, rtol=1e-4, atol=1e-5)


def test_an_update_of_galore_has_its_rank_and_its_scale() -> None:
    first, quarter = (matrices(), matrices())
    for model, scale in ((first, 1.0), (quarter, 0.25)):
        optimizer = galore(nn.ParameterDict({"large": model["large"]}), 4, scale=scale)
        optimizer.set_learning_rate(RATE)
        model["large"].grad = next(gradients())["large"]
        optimizer.step()
    change = first["large"].data - matrices()["large"].data

    assert int(torch.linalg.matrix_rank(change, rtol=1e-3)) == 4
    torch.testing.assert_close(
        quarter["large"].data - matrices()["large"].data, change / 4, rtol=1e-3, atol=1e-6
    )


def test_a_projector_is_orthogonal_and_spans_the_leading_directions() -> None:
    left, right = torch.randn(ROWS, 3), torch.randn(3, COLUMNS)
    vectors = leading_vectors(left @ right, 3)

    torch.testing.assert_close(vectors.T @ vectors, torch.eye(3), rtol=0, atol=1e-5)
    torch.testing.assert_close(vectors @ (vectors.T @ left), left, rtol=1e-4, atol=1e-4)


def test_a_projector_keeps_no_decomposition_alive() -> None:
    vectors = leading_vectors(torch.randn(ROWS, COLUMNS), 4)

    assert vectors.untyped_storage().nbytes() == ROWS * 4 * 4


def test_a_projector_is_made_anew_after_its_steps() -> None:
    model = nn.ParameterDict({"large": matrices()["large"]})
    optimizer = galore(model, 4, update_gap=3)
    seen = []
    for made in list(gradients())[:7]:
        model["large"].grad = made["large"]
        optimizer.step()
        seen.append(optimizer.inner.state[model["large"]]["projector"])

    kept = [one is other for one, other in pairwise(seen)]

    assert kept == [True, True, False, True, True, False]


# Bytes of the states, in closed form.


def adam(shape: torch.Size, itemsize: int = 4) -> int:
    return 2 * itemsize * math.prod(shape) + 4


def blocks(shape: torch.Size, *, bits: int, block: int, moments: int = 2) -> int:
    """Quantized moments and their scales."""
    count = math.prod(shape)
    return moments * (count * bits // 8 + 4 * -(-count // block))


def state_bytes(method: str, shape: torch.Size) -> int:
    count = math.prod(shape)
    if method == "adamw":
        return adam(shape)
    if method == "adafactor":  # the size of the parameter is kept as well
        return 4 * (sum(shape) if len(shape) == 2 else count) + 4
    if count < 4096:
        moments = 1 if method == "lion8bit" else 2
        return 4 * moments * count + 4 * method.startswith("torchao")
    if method == "torchao_adamw8bit":
        return blocks(shape, bits=8, block=256) + 2 * 256 * 4 + 4
    if method == "torchao_adamw4bit":
        return blocks(shape, bits=4, block=128) + 2 * 16 * 4 + 4
    return blocks(shape, bits=8, block=256, moments=1 if method == "lion8bit" else 2)


# Tables that all parameters of bitsandbytes share.
TABLES = {"adamw8bit": 2 * 256 * 4, "lion8bit": 256 * 4}


@pytest.mark.parametrize(
    "method",
    ["adamw", "adamw8bit", "lion8bit", "adafactor", "torchao_adamw8bit", "torchao_adamw4bit"],
)
def test_states_take_what_their_formats_say(method: str, tiny_trial: Make, run_trial: Run) -> None:
    model, _, effects = run_trial(tiny_trial({"optimizer": {"method": method}}))
    shapes = [parameter.shape for parameter in model.parameters()]

    assert effects["optimizer"]["state_bytes"] == (
        sum(state_bytes(method, shape) for shape in shapes) + TABLES.get(method, 0)
    )


def test_states_of_galore_take_what_its_rank_says(tiny_trial: Make, run_trial: Run) -> None:
    settings = {"method": "galore", "rank": 8}
    model, _, effects = run_trial(tiny_trial({"optimizer": settings}))
    expected = 0
    for name, parameter in model.named_parameters():
        if name.startswith("model.layers") and parameter.dim() == 2:
            short, long = sorted(parameter.shape)
            expected += 4 * (short * 8 + 2 * 8 * long) + 4
        else:
            expected += adam(parameter.shape)

    assert effects["optimizer"]["state_bytes"] == expected
    assert effects["optimizer"]["projected"] == 28


def test_every_tensor_of_a_state_is_told_to_the_meter(
    tiny_trial: Make, compressed: Compress
) -> None:
    """Scales and tables too; an offloaded optimizer keeps copies of the parameters beside."""
    for settings, extra in (
        ({"method": "adamw8bit"}, 0),
        ({"method": "galore", "rank": 8}, 0),
        ({**ADAMW, "offload": True}, 4 * PARAMETERS),
    ):
        trial = tiny_trial({"optimizer": settings})
        model = compressed(trial)
        optimizer = make_optimizer(trial, model)
        train_step(trial, model, optimizer)
        storages = {
            tensor.untyped_storage().data_ptr(): tensor.nbytes
            for tensor in optimizer.state_tensors()
        }
        (technique,) = trial.techniques
        technique.stepped(model)

        assert sum(storages.values()) == technique.effect(model)["state_bytes"] + extra


# Inside the backward pass.


def batches_of(trial: Trial) -> list[dict[str, Tensor]]:
    materials = prepare(trial)
    made = collate(materials.examples[: trial.budget.batch], materials.padding, "cpu")
    return [dict(made)]


def train_step(trial: Trial, model: nn.Module, optimizer: Optimizer, rate: float = 1e-3) -> None:
    """What the loop does in a step."""
    optimizer.set_learning_rate(rate)
    (batch,) = batches_of(trial)
    optimizer.backward(summed_loss(model, batch) / batch["input_ids"].numel())
    optimizer.step()
    for part in trial.techniques:
        part.stepped(model)
    optimizer.zero_grad()


IN_BACKWARD = [
    ADAMW,
    {**ADAMW, "implementation": "foreach"},
    {**ADAMW, "offload": True},
    {"method": "adamw8bit"},
    {"method": "adafactor"},
    {"method": "galore", "rank": 4},
    {"method": "torchao_adamw8bit"},
]


@pytest.mark.parametrize(
    "settings", IN_BACKWARD, ids=lambda fields: " ".join(map(str, fields.values()))
)
@pytest.mark.parametrize(
    "others",
    [
        pytest.param({}, id="alone"),
        pytest.param(
            {"pruning": {"method": "magnitude"}, "checkpointing": {"method": "full"}},
            id="pruned",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_steps_inside_the_backward_pass_are_the_same_steps(
    settings: Settings, others: Settings, tiny_trial: Make, run_trial: Run
) -> None:
    plain, losses, _ = run_trial(tiny_trial({**others, "optimizer": settings}))
    inside, same, effects = run_trial(
        tiny_trial({**others, "optimizer": {**settings, "in_backward": True}})
    )

    assert same == losses
    assert all(map(torch.equal, plain.parameters(), inside.parameters()))
    assert effects["optimizer"]["steps"] == 3


def test_gradients_never_exist_all_at_once(tiny_trial: Make, compressed: Compress) -> None:
    def peak(settings: Settings) -> int:
        trial = tiny_trial({"optimizer": settings})
        model = compressed(trial)
        optimizer = make_optimizer(trial, model)
        train_step(trial, model, optimizer)
        (batch,) = batches_of(trial)
        loss = summed_loss(model, batch)
        tracker = Tracker("cpu")
        with tracker:
            optimizer.backward(loss)
            optimizer.step()
        return tracker.peak

    whole = 4 * PARAMETERS

    assert peak({**ADAMW, "in_backward": True}) < peak(ADAMW) - 0.7 * whole


def test_a_mask_is_applied_before_a_step_inside_the_backward_pass(
    tiny_trial: Make, compressed: Compress
) -> None:
    """Otherwise a pruned weight would gather moments, and only its value be held at zero."""
    trial = tiny_trial(
        {"pruning": {"method": "magnitude"}, "optimizer": {**ADAMW, "in_backward": True}}
    )
    model = compressed(trial)
    weight = model.get_parameter("model.layers.0.mlp.up_proj.weight")
    zeros = weight == 0
    optimizer: Any = make_optimizer(trial, model)
    train_step(trial, model, optimizer)
    moment = optimizer.inner.state[weight]["exp_avg"]

    assert int(zeros.sum()) == weight.numel() // 2
    assert not moment[zeros].any()
    assert moment[~zeros].all()


def test_no_weight_moves_while_the_longest_batches_are_foreseen(
    tiny_trial: Make, compressed: Compress
) -> None:
    trial = tiny_trial({"optimizer": {**ADAMW, "in_backward": True}})
    model = compressed(trial)
    optimizer = make_optimizer(trial, model)
    train_step(trial, model, optimizer)
    before = [parameter.clone() for parameter in model.parameters()]
    probe(model, optimizer, batches_of(trial), trial.techniques, Clock("cpu"))

    assert all(map(torch.equal, before, model.parameters()))


def test_states_die_with_their_optimizer_though_hooks_stay(
    tiny_trial: Make, compressed: Compress
) -> None:
    trial = tiny_trial({"optimizer": {**ADAMW, "in_backward": True}})
    model = compressed(trial)
    tracker = Tracker("cpu")
    with tracker:
        optimizer = make_optimizer(trial, model)
        train_step(trial, model, optimizer)
        held = tracker.total
        del optimizer
        gc.collect()

    assert held - tracker.total >= 2 * 4 * PARAMETERS


def test_a_step_that_waited_for_the_backward_pass_is_found_out(
    tiny_trial: Make, run_trial: Run
) -> None:
    model, _, _ = run_trial(tiny_trial({"optimizer": ADAMW}))
    inside = tiny_trial({"optimizer": {**ADAMW, "in_backward": True}}).techniques[0]

    with pytest.raises(ContradictionError, match="39 gradients were there at the end of a step"):
        inside.effect(model)


def test_further_micro_batches_refuse_a_step_inside_the_backward_pass(tiny_trial: Make) -> None:
    trial = tiny_trial({"optimizer": {**ADAMW, "in_backward": True}}, accumulation=2)

    assert [reason.split(";")[1] for reason in trial.conflicts()] == [" set accumulation: 1"]
    assert tiny_trial({"optimizer": ADAMW}, accumulation=2).conflicts() == ()


# In the place of the default, which others wrap.


def test_the_scaler_of_fp16_wraps_the_optimizer_that_replaces_the_default(
    tiny_trial: Make, compressed: Compress
) -> None:
    trial = tiny_trial({"precision": {"method": "fp16"}, "optimizer": ADAMW})
    optimizer: Any = make_optimizer(trial, compressed(trial))

    assert type(optimizer).__name__ == "ScaledOptimizer"
    assert isinstance(optimizer.optimizer, Stepping)
    assert optimizer.inner is optimizer.optimizer.inner


def test_the_default_said_explicitly_is_the_default(tiny_trial: Make, run_trial: Run) -> None:
    default, losses, _ = run_trial(tiny_trial({}))
    said, same, _ = run_trial(tiny_trial({"optimizer": ADAMW}))

    assert same == losses
    assert all(map(torch.equal, default.parameters(), said.parameters()))


@pytest.mark.parametrize(
    ("given", "asked", "sentence"),
    [
        ({**ADAMW, "implementation": "foreach"}, ADAMW, "torch was told fused=False"),
        ({**ADAMW, "offload": True}, ADAMW, "0 gradients were there at the end of a step"),
        ({"method": "adamw8bit"}, {"method": "lion8bit"}, "AdamW8bit stepped"),
        ({"method": "galore", "rank": 4}, {"method": "galore", "rank": 8}, "28 gradients"),
    ],
)
def test_another_optimizer_is_found_out(
    given: Settings, asked: Settings, sentence: str, tiny_trial: Make, run_trial: Run
) -> None:
    model, _, _ = run_trial(tiny_trial({"optimizer": given}))
    (wrong,) = tiny_trial({"optimizer": asked}).techniques

    with pytest.raises(ContradictionError, match=sentence):
        wrong.effect(model)


def test_a_rank_that_no_gradient_is_reduced_to_is_found_out(
    tiny_trial: Make, run_trial: Run
) -> None:
    with pytest.raises(ContradictionError, match="0 gradients were projected of 0"):
        run_trial(tiny_trial({"optimizer": {"method": "galore", "rank": 128}}))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(
    "method", [method for method, kind in catalogue()["optimizer"].items() if not kind.cuda_only]
)
def test_the_loss_falls(
    method: str, seed: int, tiny_trial: Make, tiny_data_path: str, run_trial: Run
) -> None:
    settings = {"method": method, **({"rank": 8} if method == "galore" else {})}
    trial = tiny_trial(
        {"optimizer": settings},
        data={"file": tiny_data_path},
        batch=12,
        steps=12,
        seed=seed,
        learning_rate=3e-3,
    )
    _, losses, _ = run_trial(trial)

    assert losses[-1] < 0.8 * losses[0]


# Memory: in the fake world, on a device that has a host beside it, and at depth.

UNSWITCHED = [
    {**ADAMW, "implementation": "foreach"},
    {**ADAMW, "implementation": "for-loop"},
    {**ADAMW, "implementation": "foreach", "in_backward": True, "offload": True},
]


@pytest.mark.parametrize(
    "settings", UNSWITCHED, ids=lambda fields: " ".join(map(str, fields.values()))
)
def test_implementations_take_the_same_bytes_in_both_worlds(
    settings: Settings, tiny_trial: Make
) -> None:
    trial = tiny_trial({"optimizer": settings})
    fake, real = MemoryMeter("cpu", fake=True), MemoryMeter("cpu")
    perform_fake(trial, reach(trial).materials, fake, Outcome())
    rehearse(trial, prepare(trial), Outcome(), lambda beat: None, real)

    assert fake.peaks["train"] == real.peaks["train"]
    assert fake.categories == real.categories
    assert fake.parts == real.parts


def test_implementations_differ_in_what_their_steps_hold(tiny_trial: Make) -> None:
    """`foreach` a list as large as all parameters, `for-loop` copies of the largest alone."""
    largest, whole = 4 * 256 * 128, 4 * PARAMETERS
    held = {}
    for name in ("fused", "foreach", "for-loop"):
        trial = tiny_trial({"optimizer": {**ADAMW, "implementation": name}})
        meter = MemoryMeter("cpu", fake=True)
        perform_fake(trial, reach(trial).materials, meter, Outcome())
        held[name] = meter.parts["optimizer"]

    assert whole <= held["foreach"] - held["fused"] <= 1.01 * whole
    assert largest <= held["for-loop"] - held["fused"] <= 3 * largest


def on_cuda(trial: Trial) -> Record:
    """The trial's record in the fake world of a GPU."""
    meter = RecordingMeter()
    perform_fake(trial, reach(trial).materials, meter, Outcome(), "cuda")
    return Record.of(meter.tracker)


def test_an_offloaded_optimizer_lies_on_the_host(tiny_trial: Make) -> None:
    """Copies, two moments and one gradient at a time; the device keeps step counters at most."""
    record = on_cuda(tiny_trial({"optimizer": {**ADAMW, "offload": True}}))
    largest = 4 * 256 * 128

    assert 12 * PARAMETERS <= record.host_bytes <= 12 * PARAMETERS + 3 * largest
    assert on_cuda(tiny_trial({})).host_bytes == 0


@pytest.mark.parametrize(("method", "bytes_each"), [("paged_adamw", 8), ("paged_adamw8bit", 2)])
def test_paged_states_lie_on_the_host_where_they_are_large(
    method: str, bytes_each: int, tiny_trial: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From 12,288 elements on here: the MLP's matrices, attention's larger two, both ends."""
    monkeypatch.setattr("tradebench.worlds.fake.host.PAGED_FROM", 12_288)
    record = on_cuda(tiny_trial({"optimizer": {"method": method}}))
    paged = 2 * 256 * 128 + 4 * (3 * 192 * 128 + 2 * 128 * 128)

    assert record.host_bytes == bytes_each * paged


def test_what_lies_on_the_host_is_that_of_the_full_depth(tiny_trial: Make) -> None:
    library = Library(device="cuda")
    trial = tiny_trial({"optimizer": {**ADAMW, "offload": True}})
    model = trial.model.model_copy(update={"layers": 6})
    deep = trial.model_copy(update={"model": model})
    record, _ = library.record(deep)

    assert record.host_bytes == on_cuda(deep).host_bytes > on_cuda(trial).host_bytes


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        *UNSWITCHED,
        {"method": "adafactor"},
        {"method": "galore", "rank": 4},
        {"method": "torchao_adamw4bit"},
        {"method": "adamw8bit", "in_backward": True},
    ],
    ids=lambda fields: " ".join(map(str, fields.values())),
)
def test_optimizers_are_continued_to_depth(
    settings: Settings,
    tiny_trial: Make,
    recorded: Callable[[Trial], Record],
    differences: Callable[[Record, Record], list[str]],
) -> None:
    trial = tiny_trial({"optimizer": settings})
    model = trial.model.model_copy(update={"layers": 9})
    deep, library = trial.model_copy(update={"model": model}), Library()
    record, _ = library.record(deep)

    assert library.composed == 1
    assert differences(record, recorded(deep)) == []


def test_tables_of_torchao_are_those_of_the_real_world_after_a_fake_one(tiny_trial: Make) -> None:
    """The library makes them once for good, and a fake world knows no value."""
    from torchao.optim import subclass_4bit, subclass_8bit

    tables = [
        make
        for module in (subclass_4bit, subclass_8bit)
        for make in (module.get_qmap_signed, module.get_qmap_unsigned)
    ]
    for make in tables:
        make.cache_clear()
    trial = tiny_trial({"optimizer": {"method": "torchao_adamw8bit"}})
    perform_fake(trial, reach(trial).materials, MemoryMeter("cpu", fake=True), Outcome())

    assert [len(set(make())) for make in tables] == [16, 16, 256, 256]


# What is for CUDA alone.

PAGED = {"optimizer": {"method": "paged_adamw8bit"}}
SENTENCE = (
    "paged optimizer states are managed memory of CUDA: "
    "on a CPU bitsandbytes silently keeps them like any others"
)


def test_a_run_refuses_what_cannot_run_on_a_cpu(
    tiny_trial: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = tiny_trial(PAGED)
    monkeypatch.setattr("tradebench.environment.gpu", lambda: None)
    alone = refusal.refuse(trial)
    monkeypatch.setattr(
        "tradebench.environment.gpu", lambda: Gpu("NVIDIA H200", (9, 0), 141 * 2**30)
    )

    assert alone == (f"{SENTENCE}; predict it with tradebench plan and a --gpu",)
    assert refusal.refuse(trial) == ()


def test_a_plan_refuses_it_without_a_device(tiny_trial: Make) -> None:
    trial = tiny_trial(PAGED)

    assert plan.refuse(trial, None, None) == (f"{SENTENCE}; choose a device with --gpu.",)
    assert plan.refuse(trial, devices.find("h100-80gb"), None) == ()


@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
def test_a_paged_optimizer_that_fell_back_is_found_out(tiny_trial: Make, run_trial: Run) -> None:
    with pytest.raises(ContradictionError, match="states are paged of 0 parameters"):
        run_trial(tiny_trial(PAGED))
