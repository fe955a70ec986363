"""A library of records: what many points have in common is recorded once.

A point of an 80-layer model is recorded with the few layers that show everything its layers do,
and continued to the whole depth. Points that differ in one number only (an adapter's rank, the
length of a sequence) are blended from the two at the ends of its range. Where either turns out not
to hold, the point is recorded itself, as deep as it is.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from fractions import Fraction
from itertools import combinations
from typing import Literal

from tradebench.knobs import Knob, family, knobs, turned
from tradebench.predict.blend import blend
from tradebench.predict.depth import MARGINS, extend, shorten
from tradebench.predict.hidden import OUTLIERS_APART
from tradebench.predict.memory import Reached, perform_fake, reach
from tradebench.predict.record import Record, RecordingMeter
from tradebench.predict.structure import StructureError
from tradebench.program.model import depth
from tradebench.program.perform import arranged
from tradebench.result import Outcome, digest
from tradebench.trial import Trial
from tradebench.worlds.fake import Outliers

ENDS = 2  # so many values of a number are recorded themselves; further ones are blended

Ends = Mapping[Knob, tuple[int, int]]


class Library:
    """Records shared between the points that it is made for.

    `device` is what libraries are told that they run on: some of them take other ways on a GPU.
    `outliers` is how many columns LLM.int8() finds them in, which only values tell.
    `reached` may hold data and tasks that another library has read, and takes what this one reads.
    `composed` and `recorded` count the points that were put together from shallow records and
    those that had to be recorded at full depth.
    """

    def __init__(
        self,
        trials: Iterable[Trial] = (),
        reached: dict[str, Reached] | None = None,
        device: Literal["cpu", "cuda"] = "cpu",
        outliers: Outliers = "none",
    ) -> None:
        self._device = device
        self._outliers: Outliers = outliers
        self._most: Library | None = None
        self._trials = tuple(trials)
        self.composed = self.recorded = 0
        self._records: dict[str, Record] = {}
        self._reached = {} if reached is None else reached
        self._values: dict[str, set[int]] = {}
        # The values of a knob that are recorded themselves, by what else such trials share.
        self._anchors: dict[str, list[int]] = {}
        for trial in self._trials:
            for knob, value in knobs(trial).items():
                self._values.setdefault(family(trial, knob), set()).add(value)

    def record(self, trial: Trial) -> tuple[Record, list[str]]:
        """The trial's record at full depth, and what a reader of its numbers must know.

        Raises:
            UserError: the config, a file or a task cannot be found or read.
        """
        warnings = self._reach(trial).warnings
        try:
            record = self._compose(trial)
            self.composed += 1
        except StructureError:
            record = self._blended(trial, {})
            self.recorded += 1
        return record, warnings

    def most(self, trial: Trial, record: Record) -> Record | None:
        """The trial's record with outliers in all columns; None where `record` looks for none.

        Raises:
            UserError: the config, a file or a task cannot be found or read.
        """
        if not any(operation.name == OUTLIERS_APART for operation in record.operations):
            return None
        if self._most is None:
            self._most = Library(self._trials, self._reached, self._device, "all")
        return self._most.record(trial)[0]

    def tokens(self, trial: Trial) -> float:
        """The tokens that an optimizer step of the trial trains on, on average and on all ranks."""
        examples = arranged(trial, self._reach(trial).materials.examples)
        mean = sum(len(example.tokens) for example in examples) / len(examples)
        return mean * trial.budget.batch * trial.budget.accumulation * trial.ranks

    def _compose(self, trial: Trial) -> Record:
        ends = {}
        for knob in knobs(trial):
            values = self._values.get(family(trial, knob), set())
            if len(values) > ENDS:
                ends[knob] = (min(values), max(values))
        kinds = kinds_of(trial, depth(trial.model))
        found: StructureError | None = None
        for margin in MARGINS:
            short = shorten(kinds, margin)
            if len(short) == len(kinds):
                return self._blended(trial, ends)
            shallow = self._blended(shallower(trial, short), ends)
            if not shallow.placed:
                raise StructureError("layers whose weights lie on the host are not told apart")
            try:
                return extend(shallow, short, kinds, margin)
            except StructureError as error:
                found = error
        raise found or StructureError("no margin was tried")

    def _blended(self, trial: Trial, ends: Ends) -> Record:
        """A trial's record, between two others where a knob has many values."""
        for knob, range_ in ends.items():
            rest = {other: values for other, values in ends.items() if other != knob}
            value = knobs(trial)[knob]
            anchors = self._anchors.setdefault(family(trial, knob), list(range_))
            if value in anchors:
                continue
            for low, high in combinations(anchors, 2):
                try:
                    return blend(
                        self._blended(turned(trial, knob, low), rest),
                        self._blended(turned(trial, knob, high), rest),
                        Fraction(value - low, high - low),
                    )
                except StructureError:
                    continue  # a share of so few rows, say, is not affine in them
            anchors.append(value)
        return self._recorded(trial)

    def _recorded(self, trial: Trial) -> Record:
        """The trial's own record, kept for whoever asks again."""
        if trial.id not in self._records:
            meter = RecordingMeter()
            materials = self._reach(trial).materials
            perform_fake(trial, materials, meter, Outcome(), self._device, self._outliers)
            self._records[trial.id] = Record.of(meter.tracker)
        return self._records[trial.id]

    def _reach(self, trial: Trial) -> Reached:
        """The data and tasks of a trial, read once for all that share them."""
        model = trial.model.model_copy(update={"layers": None})
        key = digest(
            [part.model_dump(mode="json") for part in (model, trial.budget, trial.evaluate)]
        )
        if key not in self._reached:
            self._reached[key] = reach(trial)
        return self._reached[key]


def kinds_of(trial: Trial, layers: int) -> list[Hashable]:
    """How each of so many layers is treated by all techniques together."""
    each = [part.kinds(layers) for part in trial.techniques]
    return list(zip(*each, strict=True)) if each else [()] * layers


def shallower(trial: Trial, kinds: Sequence[Hashable]) -> Trial:
    """The trial on a model with these layers only, each treated as its kind says."""
    columns: Sequence[Sequence[Hashable]] = list(zip(*kinds, strict=True))
    techniques = tuple(
        part.arranged(column) for part, column in zip(trial.techniques, columns, strict=True)
    )
    model = trial.model.model_copy(update={"layers": len(kinds)})
    return trial.model_copy(update={"model": model, "techniques": techniques})
