"""What to read before acting on an answer: how sure predictions are, and what others published."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tradebench.published.accuracies import Span, named, spans
from tradebench.recommend.machines import Found, Question, idle
from tradebench.recommend.record import record
from tradebench.recommend.words import span_lines
from tradebench.report.tables import TRAINING


def notes(asked: Question, found: Sequence[Found]) -> Iterator[str]:
    """What holds for all answers, a sentence or more each."""
    group = asked.group
    chosen = [each.run.candidate for each in found if each.run is not None]
    if group.kind == "predicted":
        yield (
            "Everything here is predicted, nothing was measured. Accuracy is never predicted: "
            "which of these points gives the better model, no number here says."
        )
        if asked.device is not None:
            yield (
                f"Step times, and the costs that follow from them, are those of {asked.device.name}"
                " with its links; memory holds for any card. Where a size has several cards, it "
                "fits if it does on the one that reports least. Errors of a prediction move "
                "all points alike: two costs compare better than either of them is known."
            )
        yield from record(several=any(each.ranks > 1 for each in chosen))
    elif asked.judges:
        yield from group.accuracy_notes
    if group.training_note and not asked.judges:
        yield f"{group.training_note} {TRAINING}"
    if any(map(idle, found)):
        yield "GPU-hours count the GPUs that a point uses; the others of its machine are idle."


def published(asked: Question, found: Sequence[Found]) -> Iterator[str]:
    """What others have published with the techniques that are named, by those techniques."""
    if asked.judges:
        return
    every: dict[str, tuple[Span, ...]] = {}
    for each in found:
        if each.run is not None:
            settings = dict(each.run.candidate.settings)
            dense = {slot: fields for slot, fields in settings.items() if slot != "quantization"}
            for techniques in (settings, dense):
                every.setdefault(named(techniques), spans(techniques))
    yield from span_lines((name, told) for name, told in every.items() if told)
