"""The grid of a suite: slots and their alternatives, expanded into points."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args, get_origin

from tradebench.suite.problems import (
    Loc,
    Problem,
    build,
    check_keys,
    choices,
    mapping,
    sequence,
    show,
    unknown,
)
from tradebench.techniques import Technique, catalogue
from tradebench.trial import BUDGET, SHAPE, Budget, Settings, changed, reshaped

Design = Literal["product", "each", "list", "ladder"]
Setting = Technique | Budget | None
"""What fills a slot at one point, None being off; or the point's budget."""
Block = Mapping[str, tuple[Setting, ...]]
"""The alternatives of each slot, and of the budget, in the order they were written."""

OFF = "off"
MOST_POINTS = 100_000  # more than any machine will run; a slip in a grid is refused at once


class Point(NamedTuple):
    """What a point consists of; without a budget it has the suite's."""

    techniques: tuple[Technique, ...]
    budget: Budget | None


class Partial(Settings):
    """Part of a point: what some of its slots, or its budget, must hold.

    `slots` maps a slot to its alternatives, one of which must hold; an alternative maps a field to
    the values it may have, and None stands for a slot that is off.
    """

    slots: Mapping[str, tuple[Mapping[str, tuple[Any, ...]] | None, ...]]

    def covers(self, settings: Mapping[str, Mapping[str, Any]]) -> bool:
        """Whether a point with these fields of slots and budget is one of those described."""
        return all(
            any(_holds(wanted, settings.get(slot)) for wanted in alternatives)
            for slot, alternatives in self.slots.items()
        )


def _holds(wanted: Mapping[str, tuple[Any, ...]] | None, fields: Mapping[str, Any] | None) -> bool:
    """Whether a slot's fields are among what is wanted; None is a slot that is off."""
    if wanted is None or fields is None:
        return wanted is None and fields is None
    return all(
        name in fields and any(_same(value, fields[name]) for value in values)
        for name, values in wanted.items()
    )


def _same(value: object, other: object) -> bool:
    """Equal, with true and 1 told apart."""
    return value == other and isinstance(value, bool) == isinstance(other, bool)


def read_grid(value: object, design: Design, at: Loc, budget: Budget) -> tuple[Block, ...]:
    """The blocks of a grid: one, or one per listed point where the design is `list`.

    With `each`, a list holds several baselines, each with changes of its own. `budget` is the
    suite's, of which a grid may vary the shape.
    """
    if design == "list" or (design == "each" and isinstance(value, list)):
        points = sequence(value, at, "design is list, so grid")
        return tuple(read_block(point, (*at, index), budget) for index, point in enumerate(points))
    if isinstance(value, list):
        reason = f"design: {design} takes one mapping of slots, not a list of points"
        raise Problem(at, f"{reason}; write design: list")
    if design == "ladder":
        return (_read_ladder(value, at, budget),)
    return (read_block(value, at, budget),)


def read_block(value: object, at: Loc, budget: Budget) -> Block:
    """Slot to alternatives."""
    slots = mapping(value, at, "a point" if at and isinstance(at[-1], int) else "grid")
    _check_slots(slots, at)
    return {
        slot: tuple(setting for _, setting in _alternatives(slot, inner, (*at, slot), budget))
        for slot, inner in slots.items()
    }


def _check_slots(slots: Mapping[str, object], at: Loc) -> None:
    """Refuse what is neither a slot nor the budget."""
    for key in slots:
        if key in SHAPE:
            raise Problem((*at, key), f"{key} belongs to the budget; write budget: {{{key}: ...}}")
    check_keys(slots, [*catalogue(), BUDGET], at, "slot")


def _alternatives(slot: str, value: object, at: Loc, budget: Budget) -> list[tuple[Loc, Setting]]:
    """The alternatives of a slot, or of the budget, each with the place of its entry."""
    if slot == BUDGET:
        return [
            (place, found)
            for place, entry in _spread(value, at)
            for found in _budgets(entry, place, budget)
        ]
    if value == []:
        raise Problem(at, f"{slot} has no alternative; write off")
    return [
        (place, found)
        for place, entry in _spread(value, at)
        for found in _of_entry(entry, place, slot, _techniques)
    ]


def _budgets(entry: object, at: Loc, budget: Budget) -> list[Budget]:
    """Every budget that one mapping of fields describes; what it does not name is the suite's."""
    fields = mapping(entry, at, "budget in a grid")
    for name in fields:
        if name in Budget.model_fields and name not in SHAPE:
            reason = f"a grid varies {choices(SHAPE)} of the budget, and {name} is the suite's own"
            raise Problem((*at, name), f"{reason}, so that its points compare")
    check_keys(fields, SHAPE, at, "setting of budget:")
    spread = [_spread(value, (*at, name)) for name, value in fields.items()]
    if math.prod(map(len, spread)) > MOST_POINTS:
        raise Problem(at, f"budget has more than {MOST_POINTS:,} alternatives")
    found = []
    for combination in itertools.product(*spread):
        update = {}
        for name, (place, value) in zip(fields, combination, strict=True):
            try:
                update[name] = getattr(build(Budget, {name: value}, at, BUDGET), name)
            except Problem as problem:
                raise Problem(place, problem.sentence) from None
        found.append(budget.model_copy(update=update))
    return found


def _read_ladder(value: object, at: Loc, budget: Budget) -> Block:
    """Slot to alternatives that are rungs: each adds a technique, or changes one setting.

    The first alternative of every slot is the baseline; a slot with one alternative is in every
    row. A rung that did more would hide which of its changes did what.
    """
    block = read_block(value, at, budget)
    if all(len(alternatives) == 1 for alternatives in block.values()):
        reason = "design: ladder has no rung, because no slot has a second alternative"
        raise Problem(at, f"{reason}; write [off, ...] for what is added")
    for slot, inner in mapping(value, at, "grid").items():
        rungs = _alternatives(slot, inner, (*at, slot), budget)
        for (_, before), (place, after) in itertools.pairwise(rungs):
            if reason := _no_rung(slot, before, after):
                raise Problem(place, reason)
    return block


def _no_rung(slot: str, before: Setting, after: Setting) -> str:
    """Why the step from one alternative to the next is no rung; empty where it is one."""
    if after is None:
        return f"a rung only adds, and this one takes {slot} away; write off first, or once"
    if before is None:
        return ""
    names: Sequence[str]
    if isinstance(before, Budget) and isinstance(after, Budget):
        names = [
            " with ".join(fields) for fields in reshaped(before.model_dump(), after.model_dump())
        ]
    elif isinstance(before, Technique) and isinstance(after, Technique):
        names = changed(before, after)
    if len(names) == 1:
        return ""
    step = f"from {_named(before)} to {_named(after)}"
    if not names:
        return f"{slot}: this rung repeats the one before ({_named(after)}); remove it"
    words = f"{', '.join(names[:-1])} and {names[-1]}"
    return (
        f"{slot}: a rung changes one setting, and {step} changes {words}; "
        "keep one of them, or write design: each"
    )


def _named(setting: Technique | Budget) -> str:
    """A technique's label, or the shape of a budget."""
    if isinstance(setting, Technique):
        return setting.label
    return " and ".join(f"{name} {getattr(setting, name)}" for name in SHAPE)


def read_partial(value: object, at: Loc, noun: str) -> Partial:
    """Part of a point, as `exclude` and `repeats_where` name it."""
    slots = mapping(value, at, noun)
    if not slots:
        raise Problem(at, f"{noun} names no slot, so it would cover every point")
    _check_slots(slots, at)
    return Partial(
        slots={
            slot: tuple(
                wanted
                for place, entry in _spread(inner, (*at, slot))
                for wanted in _partials(slot, entry, place)
            )
            for slot, inner in slots.items()
        }
    )


def _partials(slot: str, entry: object, at: Loc) -> Sequence[Mapping[str, tuple[Any, ...]] | None]:
    """What one entry of a slot, or of the budget, asks for."""
    if slot != BUDGET:
        return _of_entry(entry, at, slot, _wanted)
    fields = mapping(entry, at, BUDGET)
    check_keys(fields, SHAPE, at, "setting of budget:")
    return [
        {
            name: tuple(inner for _, inner in _spread(value, (*at, name)))
            for name, value in fields.items()
        }
    ]


def expand(blocks: Sequence[Block], design: Design) -> Iterator[Point]:
    """Every point, in the order of the grid; one may come twice."""
    for block in blocks:
        for settings in WAYS.get(design, _every_combination)(block):
            yield Point(
                techniques=tuple(each for each in settings if isinstance(each, Technique)),
                budget=next((each for each in settings if isinstance(each, Budget)), None),
            )


def count(blocks: Sequence[Block], design: Design) -> int:
    """How many points `expand` yields."""
    sizes = [[len(alternatives) for alternatives in block.values()] for block in blocks]
    if design in WAYS:
        return sum(1 + sum(size - 1 for size in block) for block in sizes)
    return sum(math.prod(block) for block in sizes)


def _every_combination(block: Block) -> Iterator[tuple[Setting, ...]]:
    """Every alternative of a slot with every alternative of the others."""
    return itertools.product(*block.values())


def _one_at_a_time(block: Block) -> Iterator[tuple[Setting, ...]]:
    """The first alternative of every slot, then every other one with the rest left alone."""
    slots = list(block.values())
    baseline = tuple(alternatives[0] for alternatives in slots)
    yield baseline
    for index, alternatives in enumerate(slots):
        for setting in alternatives[1:]:
            yield (*baseline[:index], setting, *baseline[index + 1 :])


def _one_after_another(block: Block) -> Iterator[tuple[Setting, ...]]:
    """The first alternative of every slot, then each further one kept while the next are added."""
    row = [alternatives[0] for alternatives in block.values()]
    yield tuple(row)
    for index, alternatives in enumerate(block.values()):
        for row[index] in alternatives[1:]:
            yield tuple(row)


# The designs that start at a baseline, whose further points each make one change.
WAYS: Mapping[Design, Callable[[Block], Iterator[tuple[Setting, ...]]]] = {
    "each": _one_at_a_time,
    "ladder": _one_after_another,
}


def _of_entry(
    entry: object, at: Loc, slot: str, read: Callable[[str, dict[str, Any], Loc], Sequence[Any]]
) -> Sequence[Any]:
    """What `read` makes of an entry of a slot, one or several alternatives; `off` becomes None.

    A word alone is a method with its default settings.
    """
    if entry == OFF:
        return [None]
    if isinstance(entry, str):
        return read(slot, {"method": entry}, at)
    if isinstance(entry, dict):
        return read(slot, entry, at)
    wish = "off, a method, or a mapping of settings"
    raise Problem(at, f"{slot} must be {wish}, not {show(entry)}")


def _techniques(slot: str, entry: dict[str, Any], at: Loc) -> list[Technique]:
    """Every technique that one mapping of settings describes, its lists spread out."""
    if "method" not in entry:
        entry = {"method": _default_method(slot, at), **entry}
    found: list[Technique] = []
    for place, method in _spread(entry["method"], (*at, "method")):
        kind = _kind(slot, method, place)
        noun = f"{slot} {method}"
        check_keys(entry, kind.model_fields, at, f"setting of {noun}:")
        fields = {**entry, "method": kind.aliases.get(method, method)}
        spread = [
            _spread(value, (*at, name), nested=_takes_list(kind, name))
            for name, value in fields.items()
        ]
        if math.prod(map(len, spread)) > MOST_POINTS:
            raise Problem(at, f"{noun} has more than {MOST_POINTS:,} alternatives")
        for combination in itertools.product(*spread):
            settings = dict(zip(fields, (value for _, value in combination), strict=True))
            places = dict(zip(fields, (place for place, _ in combination), strict=True))
            found.append(_technique(kind, settings, at, places, noun))
    return found


def _technique(
    kind: type[Technique], fields: dict[str, Any], at: Loc, places: Mapping[str, Loc], noun: str
) -> Technique:
    """One technique; a problem in a field lies where that field's value was written."""
    try:
        return build(kind, fields, at, noun)
    except Problem as problem:
        field = problem.at[len(at)] if len(problem.at) > len(at) else None
        place = places[str(field)] + problem.at[len(at) + 1 :] if field else at
        raise Problem(place, problem.sentence) from None


def _wanted(slot: str, entry: dict[str, Any], at: Loc) -> list[Mapping[str, tuple[Any, ...]]]:
    """The values that each named field may have; a list means any of them."""
    kinds = list(dict.fromkeys(catalogue()[slot].values()))
    fields = dict.fromkeys(name for kind in kinds for name in kind.model_fields)
    check_keys(entry, fields, at, f"setting of {slot}:")
    wanted: dict[str, tuple[Any, ...]] = {}
    for name, value in entry.items():
        nested = any(_takes_list(kind, name) for kind in kinds if name in kind.model_fields)
        values = _spread(value, (*at, name), nested=nested)
        if name == "method":
            wanted[name] = tuple(
                _kind(slot, method, place).aliases.get(method, method) for place, method in values
            )
        else:
            wanted[name] = tuple(inner for _, inner in values)
    return [wanted]


def _kind(slot: str, method: object, at: Loc) -> type[Technique]:
    """The class that implements a method of a slot."""
    methods = catalogue()[slot]
    if not isinstance(method, str) or method not in methods:
        raise Problem(at, unknown(f"{slot} method", method, methods))
    return methods[method]


def _default_method(slot: str, at: Loc) -> str:
    """The method of a slot that needs no naming."""
    kinds = dict.fromkeys(catalogue()[slot].values())
    defaults = [
        str(kind.model_fields["method"].default)
        for kind in kinds
        if not kind.model_fields["method"].is_required()
    ]
    if len(defaults) != 1:
        raise Problem(at, f"{slot} needs a method: {choices(catalogue()[slot])}")
    return defaults[0]


def _spread(value: object, at: Loc, *, nested: bool = False) -> list[tuple[Loc, Any]]:
    """The alternatives of a field with their places.

    A list is alternatives; for a field that takes a list itself (`nested`), only a list that holds
    a list is.
    """
    if not isinstance(value, list) or (
        nested and not any(isinstance(inner, list) for inner in value)
    ):
        return [(at, value)]
    if not value:
        raise Problem(at, f"{at[-1]} has no alternative")
    return [((*at, index), inner) for index, inner in enumerate(value)]


def _takes_list(kind: type[Technique], field: str) -> bool:
    """Whether a field's value may itself be a list."""

    def holds_list(annotation: object) -> bool:
        origin = get_origin(annotation) or annotation
        if origin is Literal:
            return False
        if isinstance(origin, type) and issubclass(origin, Sequence) and origin is not str:
            return True
        return any(holds_list(part) for part in get_args(annotation))

    return holds_list(kind.model_fields[field].annotation)
