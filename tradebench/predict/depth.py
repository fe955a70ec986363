"""Depth by structure: a record of few decoder layers, continued to as many as the model has.

Decoder layers are alike, so a record consists of a few *sweeps* over them (a forward pass, a
backward pass, an optimizer's walk over its parameters) with something before, between and after.
What a layer does in a sweep depends on how it is treated (recomputed or not, say) and on its two
neighbours, with whom it shares tensors; the first and the last layer are cases of their own. Each
case is a template, taken from the record and laid out again for every layer that meets it.

Nothing is fitted. Layers that should do the same are compared event by event, and where they differ
`StructureError` says so; the model's whole depth can then still be recorded itself.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from tradebench.predict.record import Integers, Record
from tradebench.predict.recorder import CALL, OUTSIDE, HostPeak, Mark
from tradebench.predict.structure import StructureError

# How many layers at either end are cases of their own: tried in turn, as few as will do.
MARGINS = (1, 2, 3)


@dataclass(frozen=True, kw_only=True)
class Template:
    """The events of one layer in one sweep, or of what lies between sweeps.

    Each event is an operation (`calls` holds it, 0 elsewhere), or it allocates the next block of
    this very piece, or it releases one of some piece: `owners` is that piece, `steps` how many
    layers away it is (or, where `fixed`, which end of the model), and `ordinals` the block's place
    among those of its piece. `within` says which events are the layer's own, not of what follows
    it; what is no part of a sweep is of the first layer, or (`end` is -1) of the last.
    """

    calls: Integers
    births: NDArray[np.bool_]
    within: NDArray[np.bool_]
    end: int
    owners: Integers
    steps: Integers
    fixed: NDArray[np.bool_]
    ordinals: Integers
    sizes: Integers
    categories: Integers
    paths: Integers

    def __eq__(self, other: object) -> bool:
        """Whether another piece does the same."""
        return isinstance(other, Template) and all(
            np.array_equal(mine, vars(other)[name]) for name, mine in vars(self).items()
        )

    __hash__ = None  # type: ignore[assignment]  # arrays have none


@dataclass(frozen=True)
class Piece:
    """Events [start, end) of a record: of one layer in a sweep, or of none."""

    start: int
    end: int
    layer: int


Item = Mark | tuple[Piece, ...]  # several pieces: a sweep, in the order of its events


def least(margin: int) -> int:
    """The layers that a record must have: those near the ends, and two between to compare."""
    return 2 * margin + 2


def extend(
    record: Record, kinds: Sequence[Hashable], deep: Sequence[Hashable], margin: int = 1
) -> Record:
    """The record of a model with one layer for each of `deep`, from one with a layer per `kinds`.

    Layers of equal kind are treated alike where their neighbours are, and where they lie `margin`
    layers or more from either end: every such case in `deep` must occur in `kinds`.

    Raises:
        StructureError: the record has no such structure, or lacks a case that is needed.
    """
    if len(kinds) < least(margin):
        raise StructureError(f"a record of {len(kinds)} layers cannot be extended")
    items = _items(record, len(kinds))
    cases = _cases(kinds, margin)
    templates = _templates(record, items, cases)
    laid = _lay_out(record, items, templates, cases, _cases(deep, margin))
    return replace(laid, host=_host(record, cases, _cases(deep, margin)))


def shorten(kinds: Sequence[Hashable], margin: int = 1) -> list[Hashable]:
    """The fewest layers that show every case among `kinds`: its beginning and its end."""
    needed = set(_cases(kinds, margin))
    for count in range(least(margin), len(kinds)):
        for end in range(2, count - 1):
            short = [*kinds[: count - end], *kinds[-end:]]
            if needed <= set(_cases(short, margin)):
                return short
    return list(kinds)


def _cases(kinds: Sequence[Hashable], margin: int) -> list[tuple[Hashable, ...]]:
    """For each layer: how near it is to either end, its kind, and those before and after it."""
    last = len(kinds) - 1
    return [
        (
            min(i, margin),
            min(last - i, margin),
            kinds[i - 1] if i else None,
            kind,
            kinds[i + 1] if i < last else None,
        )
        for i, kind in enumerate(kinds)
    ]


def _items(record: Record, layers: int) -> list[Item]:
    """Marks, single pieces and sweeps, in order."""
    items: list[Item] = []
    start = 0
    for mark in (*record.marks, None):
        end = len(record.events) if mark is None else mark.position
        items += _sweeps(_rejoined(_pieces(record, start, end), layers), layers)
        if mark is not None:
            items.append(mark)
        start = end
    return items


def _pieces(record: Record, start: int, end: int) -> list[Piece]:
    """Runs of events of the same layer."""
    if start == end:
        return []
    changes = np.flatnonzero(np.diff(record.layers[start:end])) + start + 1
    bounds = [start, *changes.tolist(), end]
    return [Piece(first, last, int(record.layers[first])) for first, last in pairwise(bounds)]


def _rejoined(pieces: Sequence[Piece], layers: int) -> Sequence[Piece]:
    """Where layers are left for a moment and entered again, what happens meanwhile is theirs.

    The first and the last layer may have something of their own beside a sweep, so it is the others
    that tell.
    """
    left = {
        before.layer
        for before, between, after in zip(pieces, pieces[1:], pieces[2:], strict=False)
        if before.layer == after.layer and between.layer == OUTSIDE
    }
    if left <= {0, layers - 1}:
        return pieces
    joined: list[Piece] = []
    for piece in pieces:
        if len(joined) > 1 and joined[-1].layer == OUTSIDE and joined[-2].layer == piece.layer:
            joined[-2:] = [replace(joined[-2], end=piece.end)]
        else:
            joined.append(piece)
    return joined


def _sweeps(pieces: Sequence[Piece], layers: int) -> list[Item]:
    """Join pieces of neighbouring layers, each with what follows it outside of any layer."""
    items: list[Item] = []
    index = 0
    while index < len(pieces):
        sweep, index = _sweep(pieces, index)
        if len(sweep) == 1:
            if sweep[0].layer not in (OUTSIDE, 0, layers - 1):
                raise StructureError(f"layer {sweep[0].layer} does something that no other does")
        elif not {piece.layer for piece in sweep} >= set(range(1, layers - 1)):
            raise StructureError("a walk over the layers leaves some of them out")
        items.append(tuple(sweep))
    return items


def _sweep(pieces: Sequence[Piece], index: int) -> tuple[list[Piece], int]:
    """The longest walk over neighbouring layers that begins here, and where it ends."""
    sweep = [pieces[index]]
    index += 1
    if sweep[0].layer == OUTSIDE:
        return sweep, index
    direction = 0
    while index < len(pieces):
        outside = pieces[index].layer == OUTSIDE
        after = index + outside
        if after == len(pieces):
            break
        step = pieces[after].layer - sweep[-1].layer
        if pieces[after].layer == OUTSIDE or step not in ((direction,) if direction else (1, -1)):
            break
        if outside:
            sweep[-1] = replace(sweep[-1], end=pieces[index].end)
        sweep.append(pieces[after])
        direction = step
        index = after + 1
    return sweep, index


Templates = dict[tuple[int, tuple[Hashable, ...] | None], Template]


def _templates(
    record: Record, items: Sequence[Item], cases: Sequence[tuple[Hashable, ...]]
) -> Templates:
    """The template of every item, by case where it is a sweep."""
    last = len(cases) - 1
    births = np.cumsum(_births(record.events))
    count = int(births[-1]) if len(births) else 0
    owner, layer_of, ordinal = (np.zeros(count, dtype=np.int64) for _ in range(3))
    for index, item in enumerate(items):
        for piece in () if isinstance(item, Mark) else item:
            first = int(births[piece.start - 1]) if piece.start else 0
            blocks = slice(first, int(births[piece.end - 1]))
            owner[blocks] = index
            layer_of[blocks] = piece.layer if len(item) > 1 else OUTSIDE
            ordinal[blocks] = np.arange(blocks.stop - blocks.start)
    found: Templates = {}
    for index, item in enumerate(items):
        for piece in () if isinstance(item, Mark) else item:
            sweep = len(item) > 1
            case = cases[piece.layer] if sweep else None
            own = piece.layer if sweep else OUTSIDE
            template = _template(record, piece, own, last, (owner, layer_of, ordinal))
            if found.setdefault((index, case), template) != template:
                raise StructureError(f"layer {piece.layer} differs from one that is treated alike")
    return found


def _template(
    record: Record,
    piece: Piece,
    own: int,
    last: int,
    addresses: tuple[Integers, Integers, Integers],
) -> Template:
    """One piece, with the blocks that it releases named by where they come from."""
    events = record.events[piece.start : piece.end]
    births, deaths = _births(events), events < 0
    blocks = np.where(births, events, np.where(deaths, ~events, 0))
    owners, layers, ordinals = (table[blocks] for table in addresses)
    steps = layers - own
    inside = layers != OUTSIDE
    fixed = deaths & inside & ((np.abs(steps) > 1) | (own == OUTSIDE))
    if not np.isin(layers[fixed], (0, last)).all():
        raise StructureError("a layer's memory is released far away from it")
    # The last layer is named by its distance from the end.
    steps = np.where(fixed, np.where(layers == 0, 0, -1), np.where(inside, steps, 0))
    born = events[births]
    return Template(
        calls=np.where(events >= CALL, events, 0),
        births=births,
        within=record.layers[piece.start : piece.end] != OUTSIDE,
        end=-1 if own == OUTSIDE and piece.layer == last else 0,
        owners=np.where(deaths, owners, -1),
        steps=np.where(deaths, steps, 0),
        fixed=fixed,
        ordinals=np.where(births | deaths, ordinals, 0),
        sizes=record.sizes[born],
        categories=record.categories[born],
        paths=record.paths[born],
    )


def _births(events: Integers) -> NDArray[np.bool_]:
    """Which events allocate."""
    return (events >= 0) & (events < CALL)


def _lay_out(
    record: Record,
    items: Sequence[Item],
    templates: Templates,
    cases: Sequence[tuple[Hashable, ...]],
    deep: Sequence[tuple[Hashable, ...]],
) -> Record:
    """Write the templates down again for every layer of the deep model."""
    depth = len(deep)
    laid = [_Laid.of(index, item, templates, cases, deep) for index, item in enumerate(items)]
    firsts = np.zeros((len(items), depth), dtype=np.int64)  # the first block of each piece
    starts = np.zeros((len(items), depth), dtype=np.int64)  # its first event
    blocks = events = 0
    marks: list[Mark] = []
    for index, (item, each) in enumerate(zip(items, laid, strict=True)):
        if isinstance(item, Mark):
            marks.append(item._replace(position=events))
        for layer, template in each.pieces:
            row = slice(None) if layer == OUTSIDE else layer
            firsts[index, row], starts[index, row] = blocks, events
            blocks += len(template.sizes)
            events += len(template.births)
    out = Record(
        events=np.empty(events, dtype=np.int64),
        layers=np.empty(events, dtype=np.int64),
        sizes=np.empty(blocks, dtype=np.int64),
        categories=np.empty(blocks, dtype=np.int64),
        paths=np.empty(blocks, dtype=np.int64),
        modules=record.modules,
        operations=record.operations,
        marks=tuple(marks),
    )
    for index, each in enumerate(laid):
        for template, where in each.alike():
            _write(out, index, template, where, firsts, starts)
    _check(out)
    return out


@dataclass(frozen=True)
class _Laid:
    """The pieces of one item at full depth, as (layer, template) in order."""

    pieces: tuple[tuple[int, Template], ...]

    @classmethod
    def of(
        cls,
        index: int,
        item: Item,
        templates: Templates,
        cases: Sequence[tuple[Hashable, ...]],
        deep: Sequence[tuple[Hashable, ...]],
    ) -> _Laid:
        if isinstance(item, Mark):
            return cls(())
        if len(item) == 1:
            return cls(((OUTSIDE, templates[index, None]),))
        shown = {cases[piece.layer] for piece in item}
        order = range(len(deep)) if item[0].layer < item[-1].layer else range(len(deep))[::-1]
        missing = set(deep) - set(cases)
        if missing:
            raise StructureError(f"the record shows no layer like {min(map(str, missing))}")
        return cls(
            tuple((layer, templates[index, deep[layer]]) for layer in order if deep[layer] in shown)
        )

    def alike(self) -> list[tuple[Template, Integers]]:
        """Every template once, with the layers that it stands for."""
        found: dict[int, tuple[Template, list[int]]] = {}
        for layer, template in self.pieces:
            found.setdefault(id(template), (template, []))[1].append(layer)
        return [(template, np.array(layers)) for template, layers in found.values()]


def _write(
    out: Record,
    index: int,
    template: Template,
    layers: Integers,
    firsts: Integers,
    starts: Integers,
) -> None:
    """Lay one template out for all its layers."""
    depth = firsts.shape[1]
    column = layers[:, None]
    own = np.where(column == OUTSIDE, 0, column)
    away = np.where(template.fixed, template.steps % depth, own + template.steps)
    owners = np.where(template.owners < 0, index, template.owners)
    blocks = firsts[owners, away] + template.ordinals
    rows = starts[index, own] + np.arange(len(template.births))
    out.events[rows] = np.where(
        template.calls > 0, template.calls, np.where(template.births, blocks, ~blocks)
    )
    layer = np.where(column == OUTSIDE, template.end % depth, column)
    out.layers[rows] = np.where(template.within, layer, OUTSIDE)
    born = firsts[index, own] + np.arange(len(template.sizes))
    out.sizes[born] = template.sizes
    out.categories[born] = template.categories
    out.paths[born] = template.paths


def _host(
    record: Record, cases: Sequence[tuple[Hashable, ...]], deep: Sequence[tuple[Hashable, ...]]
) -> HostPeak:
    """What lies on the host at full depth: of every layer what one of its case has there.

    It is most when the forward pass is over, at any depth.
    """
    if OUTSIDE in record.host.layers:  # an optimizer's states, say
        raise StructureError("what each layer keeps on the host is not written down")
    sizes: dict[tuple[Hashable, ...], int] = {}
    for layer, case in enumerate(cases):
        size = record.host.layers.get(layer, 0)
        if sizes.setdefault(case, size) != size:
            raise StructureError(f"layer {layer} has on the host what one treated alike has not")
    layers = {layer: sizes[case] for layer, case in enumerate(deep)}
    return HostPeak(record.host.position, layers)


def _check(record: Record) -> None:
    """Every block is released once at most, and never before it exists."""
    births = np.flatnonzero(_births(record.events))
    deaths = np.flatnonzero(record.events < 0)
    freed = ~record.events[deaths]
    if len(np.unique(freed)) < len(freed) or (births[freed] > deaths).any():
        raise StructureError("memory of one layer would be released by another")
