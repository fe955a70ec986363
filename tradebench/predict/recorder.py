"""The recorder: every allocation, release and operation of a trial, in the order they happen.

It is the storage tracker with a pen. Beside each event it writes where in the model it belongs, so
that a record of few layers can be continued to many: inside a module's forward pass that is the
module, in the backward pass the module whose forward made the autograd node, and elsewhere the
layer whose tensors an operation reads. While a model is being loaded and changed nobody knows yet
which layer a tensor will belong to; once the model is called, the layers' own tensors tell.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, Literal, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, UntypedStorage, nn
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)

from tradebench.predict.operations import Layout, Operation, Spec, layout
from tradebench.techniques.targets import decoder_layers
from tradebench.worlds.memory import Storage, tensors_in
from tradebench.worlds.shards import ShardTracker, parts

CALL = 2**40  # events from here on are operations
OUTSIDE = -1  # the layer of what belongs to no decoder layer, or to several
UNNUMBERED = 2**63  # autograd nodes from here on were not made by a forward pass

MarkKind = Literal["phase", "part", "step"]


class Place(NamedTuple):
    """A module: the index of its decoder layer, and its path with that index left open."""

    layer: int
    path: str


class Mark(NamedTuple):
    """Something begins (`name`) or ends (an empty name) before event `position`."""

    position: int
    kind: MarkKind
    name: str


class HostPeak(NamedTuple):
    """The most bytes that lay on the host: before which event, and of which decoder layers."""

    position: int
    layers: Mapping[int, int]


ALL_ON_DEVICE = HostPeak(0, {})
NOWHERE = Place(OUTSIDE, "")


class Recorder(ShardTracker):
    """Writes down what the tracker counts, with the operations between.

    `events` holds block numbers, b where block b is allocated and ~b where it is released, and CALL
    plus the number of an operation ahead of what that allocates. `layers` has the decoder layer of
    each event, `sizes`, `storages` and `paths` one entry per block.
    """

    def __init__(self, device: str) -> None:
        super().__init__(device)
        self.events: list[int] = []
        self.layers: list[int] = []
        self.sizes: list[int] = []
        self.storages: list[Storage] = []
        self.paths: list[str] = []
        self.homes: list[int] = []  # the layer in which each block was allocated
        # Whether weights and states of layers all lie on the device, and so have a home.
        self.placed = True
        self.marks: list[Mark] = []
        self.operations: dict[Operation, int] = {}
        self.at_host_peak = ALL_ON_DEVICE
        self._host_bytes: Counter[int] = Counter()  # by layer, at this moment
        self._host_homes: dict[int, int] = {}
        self._here = NOWHERE
        self._modules: WeakKeyDictionary[nn.Module, Place] = WeakKeyDictionary()
        self._stack: list[Place] = []
        self._settled = 0  # events before this one have their final layer
        # What was read for the blocks made since: (first block made, blocks that were read).
        self._readings: list[tuple[int, tuple[int, ...]]] = []
        self._loose = -1  # where the present run of releases outside of any layer began
        self._new: set[int] = set()  # blocks that may not be of the layer they are taken for
        self._part = ""  # of a step, that is running
        self._from_nothing = False  # whether such a one is being made
        # Autograd nodes are numbered as they are made: which module made those from here on.
        self._numbers: list[int] = [0]
        self._makers: list[Place] = [NOWHERE]

    @contextmanager
    def following(self) -> Iterator[None]:
        """Follow every module's forward pass while this lasts."""
        entered = register_module_forward_pre_hook(self._enter)
        left = register_module_forward_hook(self._leave, always_call=True)
        try:
            yield
        finally:
            entered.remove()
            left.remove()

    @contextmanager
    def within(self, kind: MarkKind, name: str) -> Iterator[None]:
        """Mark where something begins and ends."""
        self._mark(kind, name)
        self._part = name if kind == "part" else ""
        try:
            yield
        finally:
            self._mark(kind, "")
            self._part = ""
            if kind != "phase":  # all of a step has its place: no layer is prepared in it
                self._settle_here()

    def _mark(self, kind: MarkKind, name: str) -> None:
        self._here, self._loose = NOWHERE, -1
        self.marks.append(Mark(len(self.events), kind, name))

    def follow(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> Any:
        """Run the operation and write down what it allocates, and itself where it does work."""
        tensors = list(tensors_in((*args, *kwargs.values())))
        before = self._here
        shared = self._locate(tensors)
        self._from_nothing = (
            not self._stack
            and self._part in ("", "optimizer")
            and all(self._block(tensor) is None for tensor in tensors)
        )
        position, block = len(self.events), len(self.sizes)
        result = super().follow(func, types, args, kwargs)
        if len(self.sizes) > block and not self._stack:
            read = (self._block(tensor) for tensor in tensors)
            self._readings.append((block, tuple(each for each in read if each is not None)))
        # Whatever neither allocates nor writes only looks at memory in another way, and tensors of
        # the meta device have none: libraries lay layers out on it whose weights they then replace.
        # torch hands over an OpOverload here and calls it any Callable
        writes = func._schema.is_mutable  # type: ignore[attr-defined]
        if len(self.sizes) > block or (writes and not all(tensor.is_meta for tensor in tensors)):
            made = self._tell_apart(position, args, result) if shared else {}
            outputs = list(tensors_in((result,)))
            calls = [
                (
                    layer,
                    Operation(
                        _name(func),
                        _specs(inputs),
                        _specs(made.get(layer, ()) if made else outputs),
                    ),
                )
                for layer, inputs in shared or ((self._here.layer, tensors),)
            ]
            self.events[position:position] = [
                CALL + self.operations.setdefault(each, len(self.operations)) for _, each in calls
            ]
            self.layers[position:position] = [layer for layer, _ in calls]
            self._loose = -1
        else:
            self._here = before
        return result

    def _tell_apart(self, position: int, args: Sequence[Any], results: Any) -> dict[int, list[Any]]:
        """By layer what an operation on a list has made, where it made one from each of the list.

        An optimizer that takes all parameters at once does. `position` is the first of its events.
        """
        sources = args[0] if args else None
        if not isinstance(sources, list) or not isinstance(results, list | tuple):
            return {}
        if len(sources) != len(results):
            return {}
        found: dict[int, list[Any]] = {}
        layers: dict[int | None, int] = {}
        for source, made in zip(sources, results, strict=True):
            block = self._block(source)
            layer = OUTSIDE if block is None else self.homes[block]
            layers[self._block(made)] = layer
            found.setdefault(layer, []).append(made)
        for index in range(position, len(self.events)):
            block = self.events[index]
            self.layers[index] = self.homes[block] = layers.get(block, OUTSIDE)
        return found

    def _locate(self, tensors: Sequence[Tensor]) -> list[tuple[int, list[Tensor]]]:
        """Find out where the next operation belongs; by layer, if it works on several at once."""
        node = torch._C._current_autograd_node()
        if node is not None:
            number = node._sequence_nr()
            if number < UNNUMBERED:
                self._here = self._makers[bisect_right(self._numbers, number) - 1]
        elif self._stack:
            self._here = self._stack[-1]
        elif tensors:
            blocks = list(map(self._block, tensors))
            if all(block is None for block in blocks):  # what enters the world is made here
                return []
            if self._among_new(blocks):
                return []
            homes: dict[int, list[Tensor]] = {}
            for tensor, block in zip(tensors, blocks, strict=True):
                layer = OUTSIDE if block is None else self.homes[block]
                homes.setdefault(layer, []).append(tensor)
            layers = homes.keys() - {OUTSIDE}
            if len(layers) > 1:
                self._here = NOWHERE
                # One tensor may stand in a list many times, once for each parameter.
                homes[OUTSIDE] = list(dict.fromkeys(homes.get(OUTSIDE, ())))
                return list(homes.items())
            self._here = Place(layers.pop(), "") if layers else NOWHERE
        return []

    def _among_new(self, blocks: Sequence[int | None]) -> bool:
        """Whether blocks are read that do not tell where an operation belongs.

        What is made from nothing, outside of any module, is taken for one of the layer before until
        it is read beside what is surely of one layer: a state of the optimizer, or the rotation
        that OFT merges. By itself it leaves an operation where the last one was.
        """
        known = {block for block in blocks if block is not None}
        new = known & self._new
        sure = {self.homes[block] for block in known - new} - {OUTSIDE}
        if len(sure) == 1:
            (layer,) = sure
            self._new -= new
            for block in new:
                self.homes[block] = layer
        return not sure and len({self.homes[block] for block in new}) == 1

    def _resize(self, storage: Storage, size: int) -> None:
        old, block = storage.size, storage.block
        if size:
            storage.block = len(self.sizes)
            self.events.append(storage.block)
            self.layers.append(self._here.layer)
            self.sizes.append(size)
            self.storages.append(storage)
            self.paths.append(self._here.path)
            self.homes.append(self._here.layer)
            if self._from_nothing and self._here.layer != OUTSIDE:
                self._new.add(storage.block)
            self._loose = -1
            if block >= 0:  # another size of what has been there
                self._readings.append((storage.block, (block,)))
        if old:
            self._release(block)
        super()._resize(storage, size)

    def _release(self, block: int) -> None:
        position, layer = len(self.events), self._here.layer
        if layer == OUTSIDE:
            # Their order may be that of a hash table: one after the other will do as well.
            layer = self.homes[block]
            if self._loose < 0:
                self._loose = position
            position = bisect_right(self.events, block, lo=self._loose, key=lambda event: ~event)
        self.events.insert(position, ~block)
        self.layers.insert(position, layer)

    def _see_on_host(self, storage: UntypedStorage) -> None:
        key, before = storage._cdata, self.host_peak
        if key not in self._on_host:
            if not self._stack and self._part != "forward":
                self.placed = False  # a state, or a gradient on its way to the optimizer
            self._host_homes[key] = self._here.layer
            self._host_bytes[self._here.layer] += storage.nbytes()
        super()._see_on_host(storage)
        if self.host_peak > before:
            self.at_host_peak = HostPeak(len(self.events), dict(+self._host_bytes))

    def _forget_on_host(self, key: int, size: int) -> None:
        super()._forget_on_host(key, size)
        self._host_bytes[self._host_homes.pop(key)] -= size

    def _enter(self, module: nn.Module, inputs: object) -> None:
        # Whoever is called first has all the others inside; some may have been put there since.
        if not self._stack and any(part not in self._modules for part in module.modules()):
            self._learn(module)
        self._stack.append(self._modules[module])
        self._number()

    def _leave(self, module: nn.Module, inputs: object, output: object) -> None:
        self._stack.pop()
        self._number()
        if not self._stack:
            self._settle_here()

    def _settle_here(self) -> None:
        """Leave what was written so far as it is."""
        self._settled = len(self.events)
        self._readings.clear()

    def _number(self) -> None:
        self._numbers.append(torch._C._autograd._get_sequence_nr())
        self._makers.append(self._stack[-1] if self._stack else NOWHERE)

    def _learn(self, root: nn.Module) -> None:
        """Place every module of a model that is called for the first time."""
        layers = {layer: index for index, layer in enumerate(decoder_layers(root))}
        inside: list[tuple[str, int]] = [
            (f"{name}.", layers[module])
            for name, module in root.named_modules()
            if module in layers
        ]
        places: dict[nn.Module, Place] = {}
        for name, module in root.named_modules(remove_duplicate=False):
            dotted = f"{name}."
            prefix, index = next(
                (found for found in inside if dotted.startswith(found[0])), ("", OUTSIDE)
            )
            open_path = _open(prefix) + dotted.removeprefix(prefix)
            place = places.setdefault(module, Place(index, open_path.rstrip(".")))
            if place.layer != index:  # layers share it, as VeRA's random pair
                places[module] = place._replace(layer=OUTSIDE)
        self._modules.update(places)
        self._settle(places)

    def _settle(self, places: Mapping[nn.Module, Place]) -> None:
        """Give what was made while a layer was prepared the layer that came of it.

        That is the layer of the tensor that was made from it, or from which it was made, or else
        of what was made just before it.
        """
        # Up to the first batch; what a step makes belongs to no layer unless it says so.
        steps = (mark.position for mark in self.marks if mark.kind == "step")
        end = min([at for at in steps if at >= self._settled] or [self.marks[-1].position])
        homes = {}
        for module, place in places.items():
            for tensor in (*module._parameters.values(), *module._buffers.values()):
                block = None if tensor is None else self._block(tensor)
                if block is not None:
                    homes[block], self.paths[block] = place
                elif tensor is not None and place.layer != OUTSIDE:
                    self.placed = False
        # What is of a layer since an earlier call tells too: the last one's Hessian, in pruning.
        new = (event for event in self.events[self._settled :] if 0 <= event < CALL)
        first = next(new, len(self.sizes))
        for _, read in self._readings:
            for block in read:
                if block < first and self.homes[block] != OUTSIDE:
                    homes.setdefault(block, self.homes[block])
        for made, read in reversed(self._readings):
            if made in homes:
                for block in read:
                    homes.setdefault(block, homes[made])
        for made, read in self._readings:
            found = {homes[block] for block in read if block in homes}
            if len(found) == 1:
                homes.setdefault(made, found.pop())
        self._new.clear()
        layer = OUTSIDE
        for index in range(self._settled, end):
            event = self.events[index]
            if 0 <= event < CALL:
                layer = self.homes[event] = homes.get(event, layer)
            elif event < 0 and layer == OUTSIDE:
                self.layers[index] = self.homes[~event]
                continue
            self.layers[index] = layer
        for index in reversed(range(self._settled, end - 1)):
            if self.events[index] >= CALL:
                self.layers[index] = self.layers[index + 1]
        for made, read in self._readings:
            for block in read:
                if OUTSIDE != self.homes[made] != self.homes[block]:
                    self.homes[block] = OUTSIDE  # a table, say, that all layers share
        self._readings.clear()
        self._settled = max(self._settled, end)

    def _block(self, tensor: Tensor) -> int | None:
        """The block in which a tensor lies, if it is one of ours."""
        share, *_ = parts(tensor)
        known = self._known.get(share.untyped_storage()._cdata)
        return None if known is None else known.block


def _open(prefix: str) -> str:
    """`model.layers.3.` as `model.layers.*.`."""
    return ".".join("*" if part.isdigit() else part for part in prefix.split("."))


@cache
def _name(func: Any) -> str:
    """`aten.mm.default`, without `torch.ops`."""
    return str(func)


def _specs(tensors: Iterable[Tensor]) -> tuple[Spec, ...]:
    return tuple(
        Spec(tuple(tensor.shape), _format(tensor.dtype), _layout(tensor)) for tensor in tensors
    )


def _layout(tensor: Tensor) -> Layout:
    return "rows" if tensor.is_contiguous() else layout(tensor.shape, tensor.stride())


@cache
def _format(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
