"""What to run on which machine: the points of a group, held against what people own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from tradebench.devices import DEVICES, GIB, Device
from tradebench.errors import NothingToCompareError
from tradebench.recommend.answer import ACCURACY
from tradebench.recommend.candidates import Candidate, Figure, Job, candidates, known
from tradebench.recommend.choice import CAPACITY, Choice, Goal, Judged, choose
from tradebench.recommend.gentle import gentlest, keeps_weights, near
from tradebench.recommend.requirements import Requirement, amount
from tradebench.report.findings import baseline
from tradebench.report.fronts import Group

# The cards that most people own or rent, in GB, and how many of them stand in a machine.
SIZES = (24, 48, 80, 141)
COUNTS = (1, 2, 4, 8)
# These are asked about whatever a run has points for.
ASKED = ((1, 80), (2, 24), (8, 80))
# Where a model is far smaller than any card: shares of the memory that it takes untouched.
SHARES = {"as much memory as {}": 1.0, "half as much as {}": 0.5, "a quarter of {}": 0.25}
TOKENS = 1_000_000  # that costs are told for
POINTS = 0.005  # of accuracy, that no one waits longer for


@dataclass(frozen=True, kw_only=True)
class Machine:
    """So many GPUs of a nominal size, in GB, or a limit on memory where there is no size.

    `bounds` are the bytes that its cards report, from what all of them have to what only some do.
    """

    gpus: int
    sizes: tuple[int, ...] = ()
    limit: str = ""
    bounds: tuple[float, ...]

    @property
    def least(self) -> float:
        """What is there on every card of this size."""
        return self.bounds[0]

    @property
    def name(self) -> str:
        """`2 x 24 GB`."""
        if self.limit:
            return self.limit
        *others, last = map(str, self.sizes)
        sizes = f"{', '.join(others)} or {last}" if others else last
        return f"{self.gpus} x {sizes} GB"


@dataclass(frozen=True, kw_only=True)
class Found:
    """What was chosen for a machine.

    Attributes:
        machine: Whose answer it is.
        choice: What was chosen from, without what takes weights away unless nothing else fits; None
            where nothing does.
        run: The answer.
        sure: Whether it fits on every card of this size, wherever in its interval it lies and, if
            it was sharded, with as much room as such predictions were off by elsewhere.
        bolder: What fits without that room, where it would do it for less than the answer.
        taken: The best that takes weights away, where it would be better than the answer.
        near: The point that needs least, where nothing fits; None where none runs on so few GPUs.
    """

    machine: Machine
    choice: Choice | None = None
    run: Judged | None = None
    sure: bool = False
    bolder: Judged | None = None
    taken: Judged | None = None
    near: Candidate | None = None

    @property
    def key(self) -> tuple[str | None, ...]:
        """What two machines with the same answer share; that nothing fits is an answer, too."""
        if self.run is not None:
            bolder = None if self.bolder is None else self.bolder.candidate.trial
            return self.run.candidate.trial, "fits" if self.sure else "tight", bolder
        return None if self.near is None else self.near.trial, "nothing fits"


@dataclass(frozen=True, kw_only=True)
class Question:
    """The points of a group, and what decides between them."""

    group: Group
    every: tuple[Candidate, ...]
    goal: Goal
    memory: str
    price: float | None

    @cached_property
    def device(self) -> Device | None:
        """The device that a plan was made for."""
        fits = (each.planned.fit for each in self.every if each.planned is not None)
        return next((DEVICES.get(fit.device) for fit in fits if fit is not None), None)

    @property
    def judges(self) -> bool:
        """Whether the goal says which point gives the better model."""
        return self.goal.name.startswith(ACCURACY)

    @cached_property
    def of_gpus(self) -> bool:
        """Whether sizes of cards say something: a plan, or points that fill a fair part of one."""
        if self.memory != CAPACITY:
            return False
        largest = max(self.need(each).high for each in self.every)
        return self.device is not None or largest >= SIZES[0] * GIB / 2

    def need(self, each: Candidate) -> Figure:
        """The most memory that one GPU needs."""
        found = each.figure(self.memory)
        assert found is not None, "points without it are left out"
        return found

    def doubted(self, each: Candidate) -> bool:
        """Whether predictions of its kind were further off elsewhere than its interval says."""
        return each.planned is not None and each.planned.room > 0

    def trusted(self, each: Candidate, machine: Machine) -> bool:
        """Whether it fits on every card, and leaves what predictions of its kind were off by."""
        room = 0.0 if each.planned is None else each.planned.room
        return self.need(each).high <= (1 - room) * machine.least


def ask(group: Group, price: float | None) -> Question | None:
    """The question that the points of a group can answer; None where they answer none.

    `price` is that of a GPU for an hour.
    """
    if len({p.fit.device for p in group.points if p.fit is not None}) > 1:
        return None
    try:
        every = candidates([group], Job(tokens=TOKENS, price=price))
    except NothingToCompareError:
        return None
    good = [each for each in every if each.ok]
    if not good:
        return None
    names = known(good)
    memory = next((name for name in (CAPACITY, group.memory) if name in names and name), None)
    if memory == CAPACITY and not _on_gpus(good):
        memory = group.memory  # a process that has no GPU shares its memory with the machine
    goal = _goal(group, names)
    if memory is None or goal is None:
        return None
    return Question(
        group=group,
        every=tuple(each for each in good if each.figure(memory) and each.figure(goal.name)),
        goal=goal,
        memory=memory,
        price=price,
    )


def _goal(group: Group, names: Sequence[str]) -> Goal | None:
    """The first accuracy where any was measured; else what a machine gets done in its time."""
    wanted = [each.name for each in group.objectives] + [f"{ACCURACY}{t}" for t in group.tasks]
    accuracy = next((n for n in wanted if n.startswith(ACCURACY) and n in names), None)
    if accuracy is not None:
        return Goal(name=accuracy, wish="maximize")
    if "tokens_per_second" in names:
        return Goal(name="tokens_per_second", wish="maximize")
    return None


def _on_gpus(found: Sequence[Candidate]) -> bool:
    """Whether all of them ran on GPUs, or were predicted for one."""
    return all(
        each.planned is not None or each.evidence[0][1].results[0].environment.hardware.get("gpus")
        for each in found
    )


def _limits(asked: Question) -> list[Machine]:
    """Shares of what the point without techniques takes, or else the one that takes most."""
    start = baseline(asked.group.ok)
    plain = next((e for e in asked.every if start is not None and e.trial == start.trial), None)
    plain = plain or max(asked.every, key=lambda each: asked.need(each).high)
    most = max(each.ranks for each in asked.every)
    figure = asked.need(plain)
    found = []
    for words, share in SHARES.items():
        # The whole holds every repeat that was measured.
        bound = share * figure.high
        size = amount(figure.name, bound, figure.unit)
        limit = f"{words.format(plain.name)} ({size})"
        found.append(Machine(gpus=most, limit=limit, bounds=(bound,)))
    return found


def machines(asked: Question) -> list[Machine]:
    """Whatever the points are held against, smallest first; limits on memory, largest first."""
    return _machines(asked) if asked.of_gpus else _limits(asked)


def _machines(asked: Question) -> list[Machine]:
    ranks = {each.ranks for each in asked.every}
    counts = [number for number in COUNTS if number in ranks]
    own = () if asked.device is None else (asked.device.memory_bytes // GIB,)
    wanted = {(number, size) for number in counts for size in (*SIZES, *own)} | set(ASKED)
    larger = [number for number in ranks if number > max(COUNTS)]
    wanted |= {(number, size) for number in larger for size in own}
    return [_machine(number, size) for number, size in sorted(wanted)]


def _machine(gpus: int, size: int) -> Machine:
    every = cards(size)
    sure = sorted({card.reported_bytes[0] for card in every})
    most = max(card.reported_bytes[1] for card in every)
    return Machine(gpus=gpus, sizes=(size,), bounds=(*sure, most))


def cards(size: int) -> list[Device]:
    """The devices of a nominal size, in GB."""
    return [card for card in DEVICES.values() if card.memory_bytes == size * GIB]


def choose_for(asked: Question, machine: Machine) -> Found:
    """What surely fits on every card of this size, else what fits on some, or may."""
    able = [each for each in asked.every if each.ranks <= machine.gpus]
    trusted = [each for each in able if asked.trusted(each, machine)]
    doubtful = [each for each in able if not asked.trusted(each, machine)]
    for rivals, bound in ((trusted, machine.least), *((able, bound) for bound in machine.bounds)):
        need = Requirement(name=asked.memory, sign="<=", bound=bound)
        choice, taken = _choose(asked, rivals, need)
        # Whatever may fit somewhere counts where nothing surely does on any card.
        if choice.best is None or (choice.best.verdict != "yes" and bound != machine.bounds[-1]):
            continue
        run = _settle(asked, choice)
        sure = rivals is trusted
        return Found(
            machine=machine,
            choice=choice,
            run=run,
            sure=sure,
            bolder=_bolder(asked, doubtful, need, run) if sure else None,
            taken=taken,
        )
    nearest = min(able, key=lambda each: asked.need(each).high, default=None)
    return Found(machine=machine, near=nearest)


def _choose(
    asked: Question, able: Sequence[Candidate], need: Requirement
) -> tuple[Choice, Judged | None]:
    """The choice among what keeps all weights, and the best of what does not, if it is better."""
    choice = choose(able, asked.goal, [need])
    whole = [each.candidate for each in choice.pool if keeps_weights(each)]
    if asked.judges or not whole:
        return choice, None
    taken = choice.best if choice.best and not keeps_weights(choice.best) else None
    return choose(whole, asked.goal, [need]), taken


def _bolder(
    asked: Question, doubtful: Sequence[Candidate], need: Requirement, run: Judged | None
) -> Judged | None:
    """The best that fits by its interval alone, where that is worth more than a hair."""
    best = _choose(asked, doubtful, need)[0].best
    if best is None or run is None or best.verdict != "yes" or near(best, run, asked.goal):
        return None
    return best


def _settle(asked: Question, choice: Choice) -> Judged | None:
    """Not the best by a hair.

    Of predictions that cost the same, the one that takes least from the model; of accuracies that
    are the same, as far as their noise tells, the quickest.
    """
    best = choice.best
    if best is None or not asked.judges:
        return best and gentlest(best, choice.pool, asked.goal)
    same = (
        each for each in (best, *choice.alike) if abs(each.goal.value - best.goal.value) <= POINTS
    )
    return min(same, key=seconds)


def merged(every: Sequence[Found]) -> list[Found]:
    """One row for sizes of one count with one answer, and none for GPUs that would stand idle.

    What is asked about stays: it says how many of its GPUs are used.
    """
    found: list[Found] = []
    for each in every:
        machine = each.machine
        wanted = any((machine.gpus, size) in ASKED for size in machine.sizes)
        beyond = machine.gpus > max(COUNTS) and (
            each.run is None or any(_enough(other, machine) for other in found)
        )
        if machine.sizes and not wanted and (idle(each) or beyond):
            continue
        before = found[-1] if found else None
        same = before is not None and (before.machine.gpus, before.key) == (machine.gpus, each.key)
        if before is None or not same or not machine.sizes:
            found.append(each)
            continue
        # The smallest card says what is left over, the largest what is missing.
        kept = each if each.run is None else before
        sizes = (*before.machine.sizes, *machine.sizes)
        found[-1] = replace(kept, machine=replace(kept.machine, sizes=sizes))
    return found


def _enough(other: Found, machine: Machine) -> bool:
    """Whether something fits on fewer GPUs of this size."""
    return other.run is not None and set(machine.sizes) <= set(other.machine.sizes)


def seconds(each: Judged) -> float:
    """Its step; without end where none is known."""
    found = each.candidate.figure("step_seconds")
    return float("inf") if found is None else found.value


def idle(each: Found) -> bool:
    """Whether some of the machine's GPUs have nothing to do."""
    return bool(each.machine.sizes and each.run and each.run.candidate.ranks < each.machine.gpus)
