"""The answer that a report opens with: what to run on which machine, ready to be laid out.

What is chosen, and why, is worked out elsewhere; here are the values and how Markdown and a
terminal show them. The page shows the same through answers.html.j2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from rich.console import RenderableType
from rich.text import Text

if TYPE_CHECKING:
    from tradebench.report.fronts import Group

Verdict = Literal["fits", "tight", "nothing fits"]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What to run on one machine; every text is empty where there is nothing to say.

    Attributes:
        machine: `1 x 80 GB`, or the limit on memory.
        gpus: How many GPUs the machine has; 0 where it is none of GPUs.
        verdict: Whether the point fits whatever the prediction is off by, may fit, or none does.
        number: The point's number in the tables of the report; None where nothing fits.
        nearest: That of the point that is nearest where nothing fits.
        name: The point to run; what is nearest where nothing fits.
        usable: What a GPU of the machine reports.
        uses: How many of the machine's GPUs it takes, where that is not all.
        goal: The figure that it was chosen by, where no other column shows it.
        memory: The most memory that one GPU needs, with its interval.
        room: What is left of the GPU, or what is missing.
        host: What waits in the host's memory meanwhile.
        step: Time of a step, with its interval.
        clock: Whose clock that is, where it is not this machine's.
        cost: GPU-hours for `Answers.tokens`, with their interval.
        money: The price of them.
        sure: How sure it is, a sentence each.
        other: The runner-up.
    """

    machine: str
    gpus: int
    verdict: Verdict
    number: int | None
    name: str
    nearest: int | None = None
    usable: str = ""
    uses: str = ""
    goal: str = ""
    memory: str = ""
    room: str = ""
    host: str = ""
    step: str = ""
    clock: str = ""
    cost: str = ""
    money: str = ""
    sure: tuple[str, ...] = ()
    other: str = ""

    @property
    def run(self) -> str:
        """The point with its number, or that there is none."""
        return self.name if self.number is None else f"No. {self.number}: {self.name}"


@dataclass(frozen=True, kw_only=True)
class Answers:
    """The answers for one group of points, smallest machine first, and what holds for them all.

    Attributes:
        title: The heading.
        rule: How the points were chosen, in a sentence or two.
        columns: Heads, each with the fields of an answer that stand below it: the first is the
            cell, the others are smaller print within it.
        answers: A row each.
        notes: What to read before acting, a sentence or more each.
        published_title: What the lines of `published` are.
        published: Accuracies of other models with these techniques.
    """

    title: str
    rule: str
    columns: tuple[tuple[str, tuple[str, ...]], ...]
    answers: tuple[Answer, ...]
    notes: tuple[str, ...]
    published_title: str = ""
    published: tuple[str, ...] = ()

    def cells(self, answer: Answer) -> tuple[tuple[str, ...], ...]:
        """The texts of each column, none of them empty: the cell and its smaller print."""
        return tuple(
            tuple(text for name in names for text in _texts(answer, name) if text)
            for _, names in self.columns
        )


# What to run on which machine, for the points of a group; None where that says nothing.
Adviser = Callable[["Group"], Answers | None]


def _texts(answer: Answer, name: str) -> tuple[str, ...]:
    found = getattr(answer, name)
    return found if isinstance(found, tuple) else (found,)


def draw(found: Answers) -> list[RenderableType]:
    """The answers for a terminal, two lines each; the report has the rest."""
    lines: list[RenderableType] = [Text(found.title, style="bold")]
    for each in found.answers:
        lines.append(Text.assemble((f"{each.machine}: ", "bold"), each.run))
        word = "" if each.number is None or each.verdict == "fits" else each.verdict
        cost = f"{each.cost} GPU-hours for a million tokens" if each.cost else ""
        price = f"price {each.money}" if each.money else ""
        parts = (
            (word, each.memory, each.room, each.host, each.uses),
            (each.goal,),
            (each.step, each.clock),
            (cost,),
            (price,),
        )
        told = [", ".join(filter(None, part)) for part in parts]
        told += each.sure if each.number is None else ()
        lines.append(Text(f"  {' · '.join(filter(None, told))}", style="dim"))
    return [*lines, *(Text(note, style="dim") for note in found.notes[:1])]
