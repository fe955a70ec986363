"""What to run on which machine, in words: the rows that a report opens with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from tradebench.devices import GIB
from tradebench.published.held import sharded_error
from tradebench.recommend.answer import PUBLISHED_TITLE
from tradebench.recommend.candidates import Candidate, Figure
from tradebench.recommend.choice import Choice, Judged
from tradebench.recommend.gentle import MARGIN, gentlest, reason
from tradebench.recommend.machine_notes import notes, published
from tradebench.recommend.machines import (
    POINTS,
    TOKENS,
    Found,
    Machine,
    Question,
    ask,
    cards,
    choose_for,
    machines,
    merged,
    seconds,
)
from tradebench.recommend.record import in_percent, steps_record
from tradebench.recommend.requirements import amount, spoken
from tradebench.recommend.words import interval, percent
from tradebench.report.answers import Answer, Answers
from tradebench.report.fronts import Group
from tradebench.report.units import count, listed, scale, significant, title

TITLE = "What to run on which GPUs"
TITLE_OF_SHARES = "What to run with how much memory"
NOTHING = "Nothing fits"
ONLY = "Nothing else fits."
ONLY_TIGHT = "Nothing else is as likely to fit."
ROOM = 0.05  # of a card, that is little: fragments alone may take it
SEEN = 0.0005  # of a cost, that is shown at all
MILLION = f"{TOKENS // 10**6}M tokens"


def answers(group: Group, price: float | None = None) -> Answers | None:
    """What to run on which machine; None where the group has nothing to say of that.

    A plan, and what was measured on GPUs that it fills, is held against sizes of cards; what is far
    smaller against shares of the memory that the model takes without techniques. `price` is that
    of a GPU for an hour.
    """
    asked = ask(group, price)
    if asked is None:
        return None
    owned = machines(asked)
    every = [choose_for(asked, machine) for machine in owned]
    found = merged(every)
    if not asked.of_gpus and not _tells(owned, found):
        return None
    made = tuple(_answer(asked, each, every) for each in found)
    return Answers(
        title=TITLE if asked.of_gpus else TITLE_OF_SHARES,
        rule=_rule(asked),
        columns=_columns(asked, made),
        answers=made,
        notes=tuple(notes(asked, found)),
        published_title=PUBLISHED_TITLE,
        published=tuple(published(asked, found)),
    )


def _tells(machines: Sequence[Machine], found: Sequence[Found]) -> bool:
    """Whether there is an answer to what to run in less memory than all of it."""
    return any(each.run is not None and each.machine != machines[0] for each in found)


def _answer(asked: Question, found: Found, every: Sequence[Found]) -> Answer:
    choice, run, machine = found.choice, found.run, found.machine
    if choice is None or run is None:
        return _nothing(asked, found, every)
    each, need = run.candidate, asked.need(run.candidate)
    step = each.figure("step_seconds")
    cost, money = (each.figure(name) if machine.sizes else None for name in ("gpu_hours", "money"))
    return Answer(
        machine=machine.name,
        gpus=machine.gpus if machine.sizes else 0,
        verdict="fits" if found.sure else "tight",
        number=asked.group.numbers[each.trial],
        name=each.name,
        uses=_uses(machine, each, asked),
        goal=_told(run.goal) if asked.judges else "",
        usable=_usable(machine),
        memory=_needed(need),
        room=_room(machine, need),
        host=_host(each, several=each.ranks > 1),
        step="" if step is None else _told(step),
        clock=_clock(asked, machine),
        cost="" if cost is None else _told(replace(cost, unit="")),  # the column names it
        money="" if money is None else _told(money),
        sure=tuple(_sure(asked, choice, found, run)),
        other=_other(asked, choice, found, run),
    )


def _told(figure: Figure) -> str:
    """A value and both ends of its interval."""
    ends = interval(figure)
    value = amount(figure.name, figure.value, figure.unit)
    return f"{value} ({ends})" if ends else value


def _needed(need: Figure) -> str:
    """Both ends of what a device must give, which is what decides; one number where it is exact."""
    return interval(need) or _told(need)


def _usable(machine: Machine) -> str:
    """What cards of this size report, which is less than they are called by."""
    if not machine.sizes:
        return ""
    every = [card for size in machine.sizes for card in cards(size)]
    least = min(card.reported_bytes[0] for card in every)
    most = max(card.reported_bytes[1] for card in every)
    unit = scale("needed_bytes", (most,), "B")
    low, high = (significant(each / unit.factor) for each in (least, most))
    return f"{low if low == high else f'{low} to {high}'} {unit.unit} usable"


def _uses(machine: Machine, each: Candidate, asked: Question) -> str:
    if machine.sizes:
        return f"uses {each.ranks} of {machine.gpus}" if each.ranks < machine.gpus else ""
    several = any(one.ranks > 1 for one in asked.every)
    return f"in {count(each.ranks, 'process')}" if several else ""


def _room(machine: Machine, need: Figure) -> str:
    left = machine.least - need.high
    if left < 0:
        return f"up to {amount(need.name, -left, need.unit)} short"
    return f"at least {amount(need.name, left, need.unit)} left" if left else ""


def _host(each: Candidate, *, several: bool) -> str:
    """What waits in the host's memory, which the machine must have as well."""
    found = each.figure("peak_host_bytes")
    if found is None or not found.value:
        return ""
    size = amount(found.name, found.value, found.unit)
    return f"and {size} of the host's{' for each GPU' if several else ''}"


def _clock(asked: Question, machine: Machine) -> str:
    """Whose step it is, on cards that are not of the size of the one that it was predicted for."""
    device = asked.device
    if device is None or {device.memory_bytes} == {size * GIB for size in machine.sizes}:
        return ""
    return f"as on {device.name}"


def _sure(asked: Question, choice: Choice, found: Found, run: Judged) -> Iterator[str]:
    need = asked.need(run.candidate)
    left = (found.machine.least - need.high) / found.machine.least
    if asked.doubted(run.candidate):
        off = f"{in_percent(sharded_error())} by which sharded memory was off elsewhere"
        if found.sure:
            yield f"Fits, and leaves more than the {off}."
        elif left >= 0:
            yield (
                f"Tight: all of its interval fits, but it leaves {in_percent(left)}, less than the "
                f"{off}."
            )
        else:
            yield f"{_tight(found.machine, need)} It leaves nothing for the {off}."
    elif not found.sure:
        yield _tight(found.machine, need)
    elif asked.device is not None:
        yield "Fits: the upper end of its interval does" + (", barely." if left < ROOM else ".")
    if choice.kind == "measured":
        yield _measured(choice, run)


def _tight(machine: Machine, need: Figure) -> str:
    every = [card for size in machine.sizes for card in cards(size)]
    sure = [card.name for card in every if need.high <= card.reported_bytes[0]]
    if sure:
        return f"Tight: all of the interval fits only on cards that report more, such as {sure[0]}."
    return "Tight: it may fit, and the upper end of its interval does not."


def _measured(choice: Choice, run: Judged) -> str:
    results = max((len(p.results) for _, p in run.candidate.evidence), default=0)
    text = f"Measured in {count(results, 'run')}"
    chance = choice.chances.get(run.candidate.trial)
    if chance is not None and len(choice.pool) > 1:
        text += f"; best of the {len(choice.pool)} that fit with a probability of {percent(chance)}"
    return f"{text}."


def _ratio(asked: Question, one: Judged, other: Judged) -> float:
    """The other's cost for the same tokens over the first one's."""
    ours, theirs = one.goal.value, other.goal.value
    return ours / theirs if asked.goal.wish == "maximize" else theirs / ours


def _cost(asked: Question, one: Judged, other: Judged) -> str:
    """What the other costs beside the first: `4.0 % more`."""
    gap = _ratio(asked, one, other) - 1
    if abs(gap) < SEEN:
        return "at the same cost"
    return f"at {in_percent(abs(gap))} {'less' if gap < 0 else 'more'}"


def _other(asked: Question, choice: Choice, found: Found, run: Judged) -> str:
    """The runner-up, whether it can be told apart, and why a cheaper one is not the answer."""
    told = [
        _others_measured(asked, choice, run)
        if choice.kind == "measured"
        else _others_predicted(asked, choice, run)
    ]
    roomy = _roomy(asked, choice, found.machine, run)
    if roomy is not None:
        need = asked.need(roomy.candidate)
        left = amount(need.name, found.machine.least - need.high, need.unit)
        named = _called(asked, roomy)
        if named in told[0]:
            told[0] += f" It leaves {left}."
        else:
            told.append(f"With {left} left: {named}, {_cost(asked, run, roomy)}.")
    if found.bolder is not None:
        need = asked.need(found.bolder.candidate)
        left = amount(need.name, found.machine.least - need.high, need.unit)
        told.append(
            f"{_called(asked, found.bolder)} would do {_cost(asked, run, found.bolder)} and leave "
            f"{left}, if its prediction holds."
        )
    if found.taken is not None:
        told.append(
            f"{_called(asked, found.taken)} would do {_cost(asked, run, found.taken)}, but takes "
            "weights away, and no number here says what that does to the model."
        )
    if told[0] == ONLY and len(told) > 1:
        told = told[1:]
    elif told[0] == ONLY and not found.sure:
        told = [ONLY_TIGHT]
    return " ".join(told)


def _others_predicted(asked: Question, choice: Choice, run: Judged) -> str:
    """The cheapest where that is not the answer, or else the next."""
    rest = [each for each in choice.pool if each is not run]
    if not rest:
        return ONLY
    other = rest[0]
    told = f"{_called(asked, other)}, {_cost(asked, run, other)}"
    if other is not choice.best:
        return f"Next: {told}."
    word = "Cheapest" if _ratio(asked, run, other) < 1 else "Next"
    why = reason(other.candidate, run.candidate)
    return f"{word}: {told}; this row's has {why}."


def _roomy(asked: Question, choice: Choice, machine: Machine, run: Judged) -> Judged | None:
    """Where a predicted answer leaves little of its GPU, the best of those that leave some."""
    bound = (1 - ROOM) * machine.least
    if choice.kind != "predicted" or asked.need(run.candidate).high <= bound:
        return None
    fit = [each for each in choice.pool if asked.need(each.candidate).high <= bound]
    return gentlest(fit[0], fit, asked.goal) if fit else None


def _called(asked: Question, each: Judged) -> str:
    return f"No. {asked.group.numbers[each.candidate.trial]}, {each.candidate.name}"


def _others_measured(asked: Question, choice: Choice, run: Judged) -> str:
    """Those that the noise cannot tell from the answer, and the next best where it can."""
    best = choice.best or run
    alike = [each for each in (best, *choice.alike) if each is not run]
    if not alike:
        rest = choice.runners[:1]
        return "".join(f"Next: {_called(asked, e)}, {_told(e.goal)}." for e in rest) or ONLY
    first = best if best is not run else min(alike, key=seconds)
    step, need = first.candidate.figure("step_seconds"), asked.need(first.candidate)
    facts = [_told(first.goal), amount(need.name, need.value, need.unit)]
    facts += [] if step is None else [f"{amount(step.name, step.value, step.unit)} a step"]
    text = f"Noise does not tell it from {_called(asked, first)} ({', '.join(facts)})"
    more = len(alike) - 1
    return f"{text}{f', nor from {more} more' if more else ''}."


def _nothing(asked: Question, found: Found, every: Sequence[Found]) -> Answer:
    """A machine on which nothing fits: what is nearest, and what would help."""
    machine, near = found.machine, found.near
    answer = Answer(
        machine=machine.name,
        gpus=machine.gpus if machine.sizes else 0,
        verdict="nothing fits",
        usable=_usable(machine),
        number=None,
        name=NOTHING,
        sure=tuple(_helps(asked, machine, every)),
    )
    if near is None:
        return answer
    need = asked.need(near)
    of = f" on {max(machine.sizes)} GB" if len(machine.sizes) > 1 else ""
    return replace(
        answer,
        nearest=asked.group.numbers[near.trial],
        name=f"{NOTHING}; nearest is No. {asked.group.numbers[near.trial]}, {near.name}",
        uses=_uses(machine, near, asked),
        memory=_needed(need),
        room=_missing(machine, need) + of,
    )


def _missing(machine: Machine, need: Figure) -> str:
    """What the best of its cards is short of, whatever the prediction is off by, or may be."""
    least, most = need.low - machine.bounds[-1], need.high - machine.least
    if least == most:
        return f"{amount(need.name, least, need.unit)} short"
    if least > 0:
        return f"at least {amount(need.name, least, need.unit)} short"
    return f"up to {amount(need.name, most, need.unit)} short"


def _helps(asked: Question, machine: Machine, every: Sequence[Found]) -> Iterator[str]:
    """More of these cards, or larger ones, on which something fits for certain."""
    ranks = sorted({each.ranks for each in asked.every})
    if machine.sizes and machine.gpus < ranks[0]:
        yield f"Every point here takes at least {count(ranks[0], 'GPU')}."
    elif machine.sizes and machine.gpus not in ranks:
        yield f"No point here takes {machine.gpus} GPUs, only {listed(map(str, ranks))}."
    others = [each for each in every if each.sure]
    more = [e for e in others if e.machine.gpus > machine.gpus and e.machine.least == machine.least]
    larger = [
        e for e in others if e.machine.gpus <= machine.gpus and e.machine.least > machine.least
    ]
    ways = (
        min(more, key=lambda each: each.machine.gpus, default=None),
        min(larger, key=lambda each: (each.machine.least, each.machine.gpus), default=None),
    )
    told = [
        f"{each.machine.name}, with No. {asked.group.numbers[each.run.candidate.trial]}"
        for each in ways
        if each is not None and each.run is not None
    ]
    if told:
        yield f"What is enough: {'; or '.join(told)}."


def _rule(asked: Question) -> str:
    """How points were chosen."""
    where = "on the machine" if asked.of_gpus else "in the memory"
    if asked.judges:
        return (
            f"The best {spoken(asked.goal.name)} that fits {where}; of those that are within "
            f"{100 * POINTS:g} points of it and that noise does not tell apart, the quickest."
        )
    text = f"Of what fits, the point that trains the most tokens per second {where}"
    text += ": the cheapest as well, as a machine is paid for whole" if asked.of_gpus else ""
    if asked.group.kind == "predicted":
        text += (
            f". Where another costs at most {100 * MARGIN:g} % more and keeps more bits of a "
            "weight or trains a larger rank, that one"
        )
    text += ". Points that take weights away (pruning, low rank) only where nothing else fits"
    if any(asked.doubted(each) for each in asked.every):
        text += (
            f", and sharded ones that leave less than {in_percent(sharded_error())} of a card only "
            "where no other has that room"
        )
    return f"{text}. {steps_record() if asked.device is not None else ''}".rstrip()


def _columns(asked: Question, made: Sequence[Answer]) -> tuple[tuple[str, tuple[str, ...]], ...]:
    goal = asked.goal.name
    memory = "Memory of a GPU" if asked.of_gpus else f"{title(asked.memory)}, in any phase"
    columns: list[tuple[str, tuple[str, ...]]] = [
        ("Machine" if asked.of_gpus else "With", ("machine", "usable")),
        ("Run", ("run", "uses")),
        *([(spoken(goal).capitalize(), ("goal",))] if any(each.goal for each in made) else []),
        (memory, ("memory", "room", "host")),
        ("Step", ("step", "clock")),
        # It follows from the step, and is another device's as well.
        (f"Cost of {MILLION} (GPU-hours)", ("cost", "clock")),
        (f"Price of {MILLION}", ("money", "clock")),
        ("How sure", ("sure", "other")),
    ]
    return tuple(
        (head, fields)
        for head, fields in columns
        # Whose clock it is says nothing alone.
        if any(getattr(each, name) for each in made for name in fields if name != "clock")
    )
