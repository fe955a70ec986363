"""A question about points, answered: goal, requirements, choice, and what a reader must hear."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from tradebench.errors import NothingToCompareError, UserError
from tradebench.published.accuracies import LABEL, Span, named, spans
from tradebench.recommend.candidates import Candidate, Job, candidates, known
from tradebench.recommend.choice import CAPACITY, Choice, Goal, Judged, choose
from tradebench.recommend.gentle import MARGIN, gentlest, reason
from tradebench.recommend.record import doubt
from tradebench.recommend.requirements import Requirement, check, parse, spoken
from tradebench.report.content import heading
from tradebench.report.findings import baseline
from tradebench.report.fronts import Group, groups
from tradebench.report.tables import MEMORY, TRAINING, memory_name
from tradebench.report.units import count, listed
from tradebench.result import Kind
from tradebench.store import Run
from tradebench.suite.names import unmeasurable
from tradebench.suite.written import one_point

ACCURACY = "accuracy."


@dataclass(frozen=True, kw_only=True)
class Question:
    """What somebody asks.

    Attributes:
        under: Conditions, as they are written on the command line.
        maximize: A quantity; at most one of this and `minimize`.
        minimize: A quantity.
        gpus: How many GPUs there are.
        job: What is to be trained, and at what price.
        limits: Whether what the suite asks for holds as well.
    """

    under: Sequence[str] = ()
    maximize: str | None = None
    minimize: str | None = None
    gpus: int | None = None
    job: Job = field(default_factory=Job)
    limits: bool = True


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A choice with what belongs beside it.

    Attributes:
        choice: What is recommended.
        group: The points that most is known of, for their model and their notes.
        asked: The goal that was asked for, where nothing has a value for it.
        shown: The figures that are worth a column, the goal first.
        notes: Sentences, each to be read before acting.
        published: What others have published, by the techniques of the points that are named.
    """

    choice: Choice
    group: Group
    asked: str | None
    shown: tuple[str, ...]
    notes: tuple[str, ...]
    published: tuple[tuple[str, tuple[Span, ...]], ...]

    @property
    def named(self) -> tuple[tuple[str, Judged], ...]:
        """Every point that the answer names, with the part it plays."""
        choice = self.choice
        first = choice.best or choice.nearest
        parts = [("best" if choice.best else "nearest", first)] if first else []
        parts += [("same", each) for each in choice.alike[:3]]
        parts += [("maybe", each) for each in choice.maybe]
        parts += [("next", each) for each in choice.runners]
        return tuple(parts)

    @property
    def met(self) -> str:
        """`yes`, `possibly` or `no`."""
        return "no" if self.choice.best is None else self.choice.best.verdict


def answer(run: Run, question: Question) -> Answer:
    """Answer a question about the points of a run.

    Raises:
        NothingToCompareError: no point has what is asked for.
        UserError: the question cannot be understood, or mixes models.
    """
    if question.maximize is not None and question.minimize is not None:
        raise UserError("give one of --maximize and --minimize")
    found = groups(run)
    every = candidates(found, question.job)
    good = [each for each in every if each.ok]
    if not good:
        raise NothingToCompareError("no point ended well, so there is none to recommend")
    group = next(each for each in found if any(each is one for one, _ in good[0].evidence))
    names = known(good)
    goal, asked = _goal(question, good, names, run)
    needs, notes = _requirements(question, run, found, good, names)
    choice = choose(every, goal, needs)
    if choice.best is None and choice.nearest is None:
        left_out = listed(f"{number} {why}" for why, number in choice.out.items())
        raise NothingToCompareError(f"no point has everything that is asked for: {left_out}")
    made = Answer(
        choice=choice,
        group=group,
        asked=asked,
        shown=_shown(goal, needs, good),
        notes=tuple(notes),
        published=(),
    )
    return replace(made, notes=(*notes, *_notes(made)), published=_published(made))


def suite_text(made: Answer, run: Run, base: Path) -> str:
    """A suite file in the folder `base` that runs exactly the recommended point.

    Raises:
        UserError: the point is none that this program could run.
    """
    best = made.choice.best
    assert best is not None, "asked only where there is an answer"
    trial = best.candidate.asked
    if trial is None:
        raise UserError(f"{best.candidate.name} is no point of a suite, so no suite can run it")
    tasks = trial.evaluate.tasks
    objectives = [
        name for name in run.header.get("objectives") or () if unmeasurable(name, tasks) is None
    ]
    limits = {
        need.name: _written(need)
        for need in made.choice.requirements
        if need.asked != "device" and unmeasurable(need.name, tasks) is None
    }
    measured = [point for group, point in best.candidate.evidence if group.kind == "measured"]
    return one_point(
        trial,
        base,
        question=f"What does {best.candidate.name} cost?",
        remarks=(f"The point that tradebench recommend chose from {heading(run)}.",),
        objectives=objectives,
        limits=limits,
        repeats=max((len(point.results) for point in measured), default=1),
    )


def _written(need: Requirement) -> float | str:
    """A bound as a suite writes it: sizes with the largest unit that leaves them whole."""
    if not need.name.partition(".")[0].endswith("_bytes"):
        return need.bound
    size = int(need.bound)
    for power, unit in ((3, "GiB"), (2, "MiB")):
        if size and size % 1024**power == 0:
            return f"{size // 1024**power}{unit}"
    return size


def _goal(
    question: Question, good: Sequence[Candidate], names: Sequence[str], run: Run
) -> tuple[Goal, str | None]:
    """What to optimise; the second is what was asked for, where no point has it."""
    if question.maximize is None and question.minimize is None:
        return _usual_goal(good, names, run), None
    name = question.maximize or question.minimize or ""
    option = "--maximize" if question.maximize else "--minimize"
    if name not in names and _could_be_measured(name, good):
        # Predictions hold no accuracy: what fits can be said all the same, and what it costs.
        return _usual_goal(good, names, run), name
    check(name, names, option)
    return Goal(name=name, wish="maximize" if question.maximize else "minimize"), None


def _could_be_measured(name: str, good: Sequence[Candidate]) -> bool:
    """Whether it is an accuracy that these points would have if they were run."""
    if not name.startswith(ACCURACY) or any(
        each.startswith(ACCURACY) for one in good for each in one.names()
    ):
        return False
    tasks = good[0].evidence[0][1].results[0].evaluate.get("tasks") or ()
    return unmeasurable(name, tuple(str(task) for task in tasks)) is None


def _usual_goal(good: Sequence[Candidate], names: Sequence[str], run: Run) -> Goal:
    """The suite's first accuracy; else money or GPU-hours; else speed; else memory."""
    objectives = [str(name) for name in run.header.get("objectives") or ()]
    accuracy = next(
        (name for name in (*objectives, *names) if name.startswith(ACCURACY) and name in names),
        None,
    )
    if accuracy is not None:
        return Goal(name=accuracy, wish="maximize")
    for name in ("money", "gpu_hours"):
        if name in names:
            return Goal(name=name, wish="minimize")
    lengths = {
        tuple(sorted((key, str(value)) for key, value in _shape(each).items())) for each in good
    }
    if len(lengths) > 1 and "tokens_per_second" in names:
        return Goal(name="tokens_per_second", wish="maximize")
    if "step_seconds" in names:
        return Goal(name="step_seconds", wish="minimize")
    memory = next((name for name in MEMORY if name in names), None)
    if memory is None:
        raise NothingToCompareError("no point has an accuracy, a step time or a memory")
    return Goal(name=memory, wish="minimize")


def _shape(each: Candidate) -> dict[str, object]:
    budget = each.evidence[0][1].results[0].budget
    return {name: budget.get(name) for name in ("sequence", "batch", "accumulation")}


def _requirements(
    question: Question,
    run: Run,
    found: Sequence[Group],
    good: Sequence[Candidate],
    names: Sequence[str],
) -> tuple[list[Requirement], list[str]]:
    """What is required, the user's conditions before the suite's, and what could not be held."""

    def base(name: str) -> float | None:
        points = [baseline(group.ok) for group in found]
        trials = {point.trial for point in points if point is not None}
        figures = [each.figure(name) for each in good if each.trial in trials]
        return next((figure.value for figure in figures if figure is not None), None)

    needs = [need for text in question.under for need in parse(text, names, base)]
    if question.gpus is not None:
        needs.append(Requirement(name="gpus", sign="<=", bound=float(question.gpus)))
    asked = {need.name for need in needs}
    notes = []
    limits = dict(run.header.get("limits") or {}) if question.limits else {}
    capacities = {
        float(each.planned.fit.capacity[0]) for each in good if each.planned and each.planned.fit
    }
    for name, bound in limits.items():
        if name in asked:
            continue
        figure = next((f for each in good if (f := each.figure(name)) is not None), None)
        if figure is None:
            notes.append(
                f"The suite asks for a limit on {spoken(name)}, and no point has a value for it."
            )
            continue
        device = name == CAPACITY and float(bound) in capacities
        needs.append(
            Requirement(
                name=name,
                sign=">=" if figure.better == "more" else "<=",
                bound=float(bound),
                asked="device" if device else "suite",
            )
        )
    return needs, notes


def _shown(goal: Goal, needs: Sequence[Requirement], good: Sequence[Candidate]) -> tuple[str, ...]:
    """The figures worth a column: the goal, what is required, memory, time and price."""
    points = [point for each in good for _, point in each.evidence]
    memory = memory_name(points, [goal.name, *(need.name for need in needs)])
    names = [goal.name, *(need.name for need in needs if need.name != "gpus")]
    names += [memory] if memory else []
    names += ["step_seconds", "hours", "gpu_hours", "money"]
    if any(each.ranks > 1 for each in good):
        names.append("gpus")
    return tuple(
        name for name in dict.fromkeys(names) if any(each.figure(name) is not None for each in good)
    )


def _notes(made: Answer) -> list[str]:
    """What must be said beside the answer."""
    choice, group = made.choice, made.group
    found: list[str] = []
    if made.asked is not None:
        found.append(
            f"No point has {made.asked}: it was not measured, and accuracy is never predicted. "
            "The points are ranked by what is known of them instead."
        )
    if any(name.startswith(("accuracy", "answer_nll")) for name in made.shown):
        found += group.accuracy_notes
    elif group.training_note:
        found.append(f"{group.training_note} {TRAINING}")
    if choice.kind == "measured" and not choice.chances and len(choice.pool) > 1:
        found.append(
            "Nothing is known of the noise of these measurements: how sure this order is, no one "
            "can say. Repeat the points."
        )
    if choice.goal.name == "step_seconds" and len({e.candidate.ranks for e in choice.pool}) > 1:
        found.append(
            "Each GPU trains on sequences of its own, so a step on more of them trains on more: "
            "--tokens compares hours, GPU-hours and, with --price, money."
        )
    if choice.unmeasured:
        found.append(
            f"{count(choice.unmeasured, 'more point')} were only predicted and did not compete: "
            "measured and predicted figures are not compared."
        )
    if choice.best is not None:
        other = gentlest(choice.best, choice.pool, choice.goal)
        if other is not choice.best:
            found.append(
                f"{other.candidate.name} comes within {100 * MARGIN:g} % of it by "
                f"{spoken(choice.goal.name)}, and has "
                f"{reason(choice.best.candidate, other.candidate)}."
            )
    found += filter(None, [doubt(choice)])
    if choice.out:
        left_out = listed(f"{number} {why}" for why, number in choice.out.items())
        found.append(f"Not considered: {left_out}.")
    return found


def _published(made: Answer) -> tuple[tuple[str, tuple[Span, ...]], ...]:
    """What others have published for the techniques of the points that are named.

    Beside a quantized base stands the same without quantization, since that is what it is weighed
    against. Nothing stands beside an accuracy that was measured.
    """
    measured = (n.startswith(ACCURACY) for _, each in made.named for n in each.candidate.names())
    if made.choice.best is None or any(measured):
        return ()
    found: dict[str, tuple[Span, ...]] = {}
    for _, each in made.named:
        settings = dict(each.candidate.settings)
        dense = {slot: fields for slot, fields in settings.items() if slot != "quantization"}
        for techniques in (settings, dense):
            found.setdefault(named(techniques), spans(techniques))
    return tuple((name, each) for name, each in found.items() if each)


PUBLISHED_TITLE = f"Accuracy of other models with these techniques, {LABEL}"


def evidence(kinds: Sequence[Kind | None]) -> tuple[Kind, ...]:
    """The kinds that are named, each once."""
    return tuple(dict.fromkeys(kind for kind in kinds if kind is not None))
