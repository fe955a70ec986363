"""A suite: one question, asked as a grid of trials."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

from pydantic import ConfigDict

from tradebench.suite import sections
from tradebench.suite.grid import (
    MOST_POINTS,
    Block,
    Design,
    Partial,
    Point,
    count,
    expand,
    read_grid,
)
from tradebench.suite.problems import Problem, check_keys, unknown
from tradebench.suite.sections import RepeatRule, Resources
from tradebench.suite.source import Source, parse, read
from tradebench.trial import SHAPE, Budget, Evaluate, Model, Settings, Trial

DESIGNS: tuple[Design, ...] = ("product", "each", "list", "ladder")
GIVEN_BY_FILE = ("name", "question", "text", "path")


class Suite(Settings):
    """A validated suite file.

    `name` is the file's stem, `question` the first paragraph of its header comment, `text` its
    source. The rows of a `ladder` are in the order of the grid's slots, row 0 being the baseline:
    each adds one technique, or changes one setting, and keeps all that is above it. A grid may give
    points another shape of the budget than `budget` has. `limits` are requirements for
    recommendations and never stop a trial; `resources.memory` is enforced. The first of
    `repeats_where` that matches a point replaces `repeats` for it.
    """

    model_config = ConfigDict(ignored_types=(cached_property,))

    name: str
    question: str = ""
    model: Model
    budget: Budget = Budget()
    design: Design = "product"
    grid: tuple[Block, ...]
    exclude: tuple[Partial, ...] = ()
    evaluate: Evaluate = Evaluate()
    objectives: tuple[str, ...] = ("peak_tensor_bytes", "step_seconds")
    limits: Mapping[str, float] = {}
    resources: Resources = Resources()
    repeats: int = 1
    repeats_where: tuple[RepeatRule, ...] = ()
    timeout: float | None = None
    text: str = ""
    path: Path | None = None

    @classmethod
    def load(cls, path: str | Path) -> Suite:
        """Read a suite file.

        Paths inside the file are relative to its folder.

        Raises:
            UserError: one line with file, line and what to mend.
        """
        return cls.parse(read(Path(path)), path)

    @classmethod
    def parse(cls, text: str, path: str | Path) -> Suite:
        """The suite that `text` holds, as if it lay at `path`.

        Raises:
            UserError: one line with file, line and what to mend.
        """
        source = parse(text, Path(path))
        try:
            return _suite(source)
        except Problem as problem:
            raise source.error(problem) from None

    def trials(self) -> tuple[Trial, ...]:
        """Every point, legal or not, in the order of the grid and each once."""
        return tuple(trial for trial in self._grid if not self._excluded(trial))

    def repeats_of(self, trial: Trial) -> int:
        """How often this point runs."""
        described = trial.described
        rules = (rule.repeats for rule in self.repeats_where if rule.match.covers(described))
        return next(rules, self.repeats)

    def _excluded(self, trial: Trial) -> bool:
        """Whether a point is left out."""
        described = trial.described
        return any(part.covers(described) for part in self.exclude)

    @cached_property
    def _grid(self) -> tuple[Trial, ...]:
        """The points before `exclude`."""
        trials = map(self._trial, expand(self.grid, self.design))
        return tuple({trial.id: trial for trial in trials}.values())

    def _trial(self, point: Point) -> Trial:
        budget = point.budget or self.budget
        return Trial(
            model=self.model,
            budget=budget,
            evaluate=self.evaluate,
            techniques=point.techniques,
            varied=tuple(
                name for name in SHAPE if getattr(budget, name) != getattr(self.budget, name)
            ),
        )


def keys() -> tuple[str, ...]:
    """The keys that a suite file may have."""
    return tuple(name for name in Suite.model_fields if name not in GIVEN_BY_FILE)


def _suite(source: Source) -> Suite:
    """The suite in a source that is YAML already."""
    data, base = source.data, source.path.parent
    check_keys(data, keys(), (), "key")
    design = _design(data.get("design", "product"))
    if "grid" not in data:
        raise Problem((), "grid is missing; name the slots to vary, or write grid: {}")
    budget = sections.read_budget(data, base)
    grid = read_grid(data["grid"], design, ("grid",), budget)
    if (points := count(grid, design)) > MOST_POINTS:
        raise Problem(("grid",), f"the grid has {points:,} points; {MOST_POINTS:,} is the most")
    model = sections.read_model(data, base)
    evaluate = sections.read_evaluate(data, model)
    suite = Suite(
        name=source.path.stem,
        question=source.question,
        model=model,
        budget=budget,
        design=design,
        grid=grid,
        exclude=sections.read_exclude(data),
        evaluate=evaluate,
        objectives=sections.read_objectives(data, evaluate.tasks),
        limits=sections.read_limits(data, evaluate.tasks),
        resources=sections.read_resources(data),
        repeats=sections.read_repeats(data),
        repeats_where=sections.read_rules(data),
        timeout=sections.read_timeout(data),
        text=source.text,
        path=source.path,
    )
    _check_partials(suite)
    return suite


def _design(value: object) -> Design:
    """How the grid becomes points."""
    for design in DESIGNS:
        if value == design:
            return design
    raise Problem(("design",), unknown("design", value, DESIGNS))


def _check_partials(suite: Suite) -> None:
    """Refuse what covers no point at all: it is a slip, and would do nothing in silence."""
    points = [trial.described for trial in suite._grid]
    for index, part in enumerate(suite.exclude):
        if not any(map(part.covers, points)):
            raise Problem(("exclude", index), "exclude: no point of the grid is covered by this")
    left = [trial.described for trial in suite.trials()]
    if not left:
        raise Problem(("exclude",), "exclude leaves no point of the grid")
    for index, rule in enumerate(suite.repeats_where):
        if not any(map(rule.match.covers, left)):
            at = ("repeats_where", index, "match")
            raise Problem(at, "repeats_where: no point of the suite is matched by this")
