"""A shard: the share of a suite's points that one of several machines makes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from tradebench.errors import UserError
from tradebench.trial import Trial

_SPELLING = re.compile(r"(\d+)/(\d+)")


@dataclass(frozen=True)
class Shard:
    """The share `index`, counted from 1, of `count`."""

    index: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """The shard that `2/8` means.

        Raises:
            UserError: it means none.
        """
        found = _SPELLING.fullmatch(text)
        shard = cls(int(found[1]), int(found[2])) if found else None
        if shard is None or not 1 <= shard.index <= shard.count:
            raise UserError(f"--shard {text}: give one share of all, from 1/8 to 8/8 for instance")
        return shard

    @property
    def name(self) -> str:
        """The name to write under, where nobody gives another."""
        return f"{self.index}of{self.count}"

    def of(self, trials: Sequence[Trial]) -> tuple[Trial, ...]:
        """This share of a suite's points, in their order there.

        Points are dealt in the order of their ids, legal ones first: every machine deals alike
        however the suite's file is sorted, and no setting gathers on one machine as it would where
        a grid repeats with the number of shares. All repeats of a point stay together.
        """
        dealt = sorted(trials, key=lambda trial: (bool(trial.conflicts()), trial.id))
        mine = {trial.id for trial in dealt[self.index - 1 :: self.count]}
        return tuple(trial for trial in trials if trial.id in mine)


WHOLE = Shard(1, 1)
