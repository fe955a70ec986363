"""The recorder: what small programs do, written down event by event as said beforehand by hand."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from tradebench.predict.operations import Operation, Spec
from tradebench.predict.recorder import CALL, OUTSIDE, Mark, Recorder

WIDTH, TOKENS = 4, 3
SQUARE = Spec((WIDTH, WIDTH), "float32")
ROW = Spec((WIDTH,), "float32")


@contextmanager
def recorder() -> Iterator[Recorder]:
    """Records a phase."""
    found = Recorder("cpu")
    with found.following(), found.within("phase", "train"), found:
        yield found


def story(found: Recorder) -> list[tuple[int, str]]:
    """Layer and meaning of every event: an operation, +bytes or -bytes."""
    operations = list(found.operations)
    return [
        (layer, operations[event - CALL].name.removesuffix(".default"))
        if event >= CALL
        else (layer, f"+{found.sizes[event]}" if event >= 0 else f"-{found.sizes[~event]}")
        for event, layer in zip(found.events, found.layers, strict=True)
    ]


def operations(found: Recorder, name: str) -> list[tuple[int, Operation]]:
    """Layer and operation wherever one of this name runs, in order."""
    known = list(found.operations)
    return [
        (layer, known[event - CALL])
        for event, layer in zip(found.events, found.layers, strict=True)
        if event >= CALL and known[event - CALL].name == name
    ]


# Single tensors.


def test_a_tensor_is_written_from_its_operation_to_its_release() -> None:
    with recorder() as found:
        block = torch.empty(10)
        assert found.events == [CALL, 0]
        del block

    assert found.events == [CALL, 0, ~0]
    assert (found.sizes, found.layers) == ([40], [OUTSIDE] * 3)
    assert list(found.operations) == [
        Operation("aten.empty.memory_format", (), (Spec((10,), "float32"),))
    ]


def test_what_only_looks_at_memory_is_not_written() -> None:
    with recorder() as found:
        block = torch.empty(WIDTH, WIDTH)
        views = [block.t(), block.view(-1), block[0], block.expand(3, WIDTH, WIDTH), block.detach()]

    assert len(views) == 5
    assert story(found) == [(OUTSIDE, "aten.empty.memory_format"), (OUTSIDE, "+64")]


def test_what_writes_into_a_tensor_is_written_though_it_allocates_nothing() -> None:
    with recorder() as found:
        block = torch.empty(WIDTH, WIDTH)
        block.t().add_(1)

    turned = SQUARE._replace(layout="turned")
    assert operations(found, "aten.add_.Tensor") == [
        (OUTSIDE, Operation("aten.add_.Tensor", (turned,), (turned,)))
    ]
    assert len(found.sizes) == 1


def test_a_storage_of_another_size_is_another_block() -> None:
    with recorder() as found:
        block = torch.empty(10)
        block.resize_(1000)

    assert story(found)[2:] == [(OUTSIDE, "aten.resize_"), (OUTSIDE, "+4000"), (OUTSIDE, "-40")]


def test_a_storage_that_is_emptied_is_released_once() -> None:
    with recorder() as found:
        block = torch.empty(10)
        block.untyped_storage().resize_(0)
        block.detach()  # the first operation to show the storage again
        del block

    assert found.events == [CALL, 0, ~0]


def test_the_same_operation_has_one_number() -> None:
    with recorder() as found:
        blocks = [torch.zeros(8), torch.zeros(8), torch.zeros(9)]

    assert len(blocks) == 3
    assert [event - CALL for event in found.events if event >= CALL] == [0, 0, 1]


def test_releases_outside_of_any_layer_are_in_the_order_of_the_blocks() -> None:
    stories = []
    for order in ((0, 1, 2), (2, 0, 1), (1, 2, 0)):
        with recorder() as found:
            blocks: list[Any] = [torch.empty(size) for size in (1, 2, 3)]
            for index in order:
                blocks[index] = None
        stories.append(story(found))

    assert [event for _, event in stories[0][-3:]] == ["-4", "-8", "-12"]
    assert stories[0] == stories[1] == stories[2]


def test_a_mark_or_an_operation_between_releases_keeps_their_order() -> None:
    with recorder() as found:
        blocks: list[Any] = [torch.empty(size) for size in (1, 2, 3, 4)]
        blocks[3] = None
        with found.within("part", "forward"):
            blocks[2] = None
        blocks[1] = None
        blocks.append(torch.empty(5))
        blocks[0] = None

    assert [event for event in found.events if event < 0] == [~3, ~2, ~1, ~0]
    assert found.marks[1:3] == [Mark(9, "part", "forward"), Mark(10, "part", "")]


def test_a_part_ends_where_it_fails() -> None:
    with recorder() as found, pytest.raises(ValueError, match="at once"), found.within("part", "x"):
        raise ValueError("at once")

    assert found.marks == [
        Mark(0, "phase", "train"),
        Mark(0, "part", "x"),
        Mark(0, "part", ""),
        Mark(0, "phase", ""),
    ]


def test_nothing_is_followed_afterwards() -> None:
    with recorder() as found:
        nn.Identity()(torch.empty(1))
    written = list(found.events)
    nn.Identity()(torch.empty(1))

    assert found.events == written


# Models: where events belong.


class Layer(GradientCheckpointingLayer):  # type: ignore[misc]  # transformers is untyped
    """A decoder layer of one matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        moved: Tensor = hidden + self.proj(hidden).relu()
        return moved


class Model(nn.Module):
    def __init__(self, depth: int = 3) -> None:
        super().__init__()
        self.embed = nn.Linear(WIDTH, WIDTH, bias=False)
        self.layers = nn.ModuleList(Layer() for _ in range(depth))
        self.head = nn.Linear(WIDTH, 1, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        hidden = self.embed(hidden)
        for layer in self.layers:
            hidden = layer(hidden)
        summed: Tensor = self.head(hidden).sum()
        return summed


def layers(model: Model) -> list[Any]:
    return list(model.layers)


@pytest.fixture
def model() -> Model:
    """Made before anything is recorded."""
    return Model()


def test_a_forward_pass_belongs_to_the_modules_that_run(model: Model) -> None:
    with recorder() as found:
        model(torch.empty(TOKENS, WIDTH))

    products = operations(found, "aten.mm.default")
    assert [layer for layer, _ in products] == [OUTSIDE, 0, 1, 2, OUTSIDE]
    assert [layer for layer, _ in operations(found, "aten.add.Tensor")] == [0, 1, 2]
    assert dict(zip(found.paths, found.homes, strict=True)).keys() == {
        "",
        "embed",
        "layers.*",
        "layers.*.proj",
        "head",
    }


def test_a_backward_pass_belongs_to_the_module_whose_forward_it_undoes(model: Model) -> None:
    with recorder() as found:
        loss = model(torch.empty(TOKENS, WIDTH))
        before = len(found.events)
        loss.backward()

    walk = [layer for layer, event in story(found)[before:] if event == "aten.mm"]
    # Gradients of the weight and of the input; nobody asks for that of the model's own input.
    assert walk == [OUTSIDE, OUTSIDE, 2, 2, 1, 1, 0, 0, OUTSIDE]


def test_a_recomputed_layer_is_recomputed_in_its_own_place(model: Model) -> None:
    for layer in layers(model):
        layer.gradient_checkpointing = True
        layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)
    with recorder() as found:
        loss = model(torch.empty(TOKENS, WIDTH, requires_grad=True))
        before = len(found.events)
        loss.backward()

    walk = [layer for layer, event in story(found)[before:] if event == "aten.mm"]
    assert walk == [OUTSIDE, OUTSIDE, 2, 2, 2, 1, 1, 1, 0, 0, 0, OUTSIDE, OUTSIDE]


def test_a_walk_over_parameters_belongs_to_their_layers() -> None:
    with recorder() as found:
        model = Model()
        with found.within("phase", "train"):
            model(torch.empty(TOKENS, WIDTH))
        before = len(found.events)
        for parameter in model.parameters():
            parameter.detach().mul_(2)

    assert [layer for layer, _ in story(found)[before:]] == [OUTSIDE, 0, 1, 2, OUTSIDE]


def test_an_operation_on_several_layers_is_one_for_each(model: Model) -> None:
    with recorder() as found:
        made = Model()
        optimizer = torch.optim.AdamW(made.parameters(), fused=True)
        with found.within("phase", "train"):
            made(torch.empty(TOKENS, WIDTH)).backward()
            optimizer.step()

    fused = operations(found, "aten._fused_adamw_.tensor_lr")
    fused += operations(found, "aten._fused_adamw_.default")
    step = Spec((), "float32")
    # Parameter, gradient, two moments, step counter.
    assert sorted(fused)[1:] == [
        (layer, Operation(fused[0][1].name, (SQUARE,) * 4 + (step,), ())) for layer in range(3)
    ]
    layer, rest = sorted(fused)[0]
    assert (layer, sorted(set(rest.inputs))) == (
        OUTSIDE,
        sorted({SQUARE, Spec((1, WIDTH), "float32"), step}),
    )


# What is prepared before anybody knows the layers.


def test_what_is_loaded_belongs_to_the_layer_that_came_of_it() -> None:
    with recorder() as found:
        with found.within("phase", "load"):
            model = Model()
        model(torch.empty(TOKENS, WIDTH))

    weights = [
        (found.homes[block], found.paths[block])
        for block, size in enumerate(found.sizes)
        if size == SQUARE.bytes
    ]
    assert weights[:4] == [
        (OUTSIDE, "embed"),
        (0, "layers.*.proj"),
        (1, "layers.*.proj"),
        (2, "layers.*.proj"),
    ]


def test_what_a_weight_is_made_from_belongs_with_it() -> None:
    with recorder() as found:
        model = Model()
        with found.within("phase", "load"):
            for layer in layers(model):
                stored = torch.empty(WIDTH, WIDTH, dtype=torch.float16)
                layer.proj.weight = nn.Parameter(stored.float())
        model(torch.empty(TOKENS, WIDTH))

    halves = [
        found.homes[block] for block, size in enumerate(found.sizes) if size == SQUARE.bytes // 2
    ]
    assert halves == [0, 1, 2]
    casts = operations(found, "aten._to_copy.default")
    assert [layer for layer, _ in casts] == [0, 1, 2]


def test_a_table_that_layers_share_belongs_to_none() -> None:
    with recorder() as found:
        model = Model()
        with found.within("phase", "compress"):
            table = torch.ones(7)
            for layer in layers(model):
                scale = (layer.proj.weight.detach() * table[0]).sum()
                layer.register_buffer("scale", scale)
        with found.within("phase", "train"):
            model(torch.empty(TOKENS, WIDTH))
            before = len(found.events)
            kept = [layer.scale * table for layer in layers(model)]

    assert len(kept) == 3
    assert [layer for layer, event in story(found)[before:] if event == "aten.mul.Tensor"] == [
        0,
        1,
        2,
    ]


def test_a_module_that_layers_share_belongs_to_none() -> None:
    """As VeRA's random pair, which every layer has a name for."""
    with recorder() as found:
        with found.within("phase", "load"):
            model = Model()
            shared = nn.Linear(WIDTH, WIDTH, bias=False)
            for layer in layers(model):
                layer.shared = shared
        model(torch.empty(TOKENS, WIDTH))
        before = len(found.events)
        kept = [(layer.proj.weight * shared.weight).detach() for layer in layers(model)]

    assert len(kept) == 3
    assert [layer for layer, event in story(found)[before:] if event == "aten.mul.Tensor"] == [
        0,
        1,
        2,
    ]


def test_what_a_layer_has_from_an_earlier_call_tells_of_what_is_made_of_it() -> None:
    """As the last layer's Hessian when all is pruned; then another model is called."""
    with recorder() as found:
        model = Model()
        with found.within("phase", "compress"):
            model(torch.empty(TOKENS, WIDTH))
            sums = [layer.proj.weight.new_zeros(WIDTH) for layer in layers(model)]
            layers(model)[-1](torch.empty(TOKENS, WIDTH))
            kept = [each.exp() for each in sums]
        with found.within("phase", "train"):
            nn.Sequential(model)(torch.empty(TOKENS, WIDTH))

    assert len(kept) == 3
    assert [layer for layer, _ in operations(found, "aten.exp.default")] == [0, 1, 2]


def test_what_is_made_from_nothing_is_of_the_layer_that_it_meets() -> None:
    """As the rotations that OFT merges; the first is made where no layer is at hand."""
    with recorder() as found:
        with found.within("phase", "load"):
            model = Model()
        model(torch.empty(TOKENS, WIDTH))
        with found.within("phase", "evaluate_after"), torch.no_grad():
            for layer in layers(model):
                made = torch.zeros(WIDTH, WIDTH)
                made.add_(layer.proj.weight)
                layer.proj.weight.add_(made.exp())

    assert [layer for layer, _ in operations(found, "aten.exp.default")] == [OUTSIDE, 1, 2]


def test_modules_put_into_a_known_model_are_learned_too() -> None:
    """As adapters are: who is called knows all, though it was called before."""
    with recorder() as found:
        model = Model()
        model(torch.empty(TOKENS, WIDTH))
        for layer in layers(model):
            layer.proj = nn.Sequential(layer.proj, nn.Linear(WIDTH, WIDTH, bias=False))
        before = len(found.events)
        model(torch.empty(TOKENS, WIDTH))

    walk = [layer for layer, event in story(found)[before:] if event == "aten.mm"]
    assert walk == [OUTSIDE, 0, 0, 1, 1, 2, 2, OUTSIDE]
    assert "layers.*.proj.1" in found.paths


def test_a_step_is_not_laid_out_again_by_a_model_that_comes_later() -> None:
    with recorder() as found:
        model = Model()
        with found.within("part", "forward"):
            loss = model(torch.empty(TOKENS, WIDTH))
        with found.within("part", "backward"):
            loss.backward()
        written = list(found.layers)
        with found.within("phase", "evaluate_after"):
            nn.Sequential(model)(torch.empty(TOKENS, WIDTH))

    assert found.layers[: len(written)] == written
