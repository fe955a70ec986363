from __future__ import annotations

import random
from pathlib import Path

import pytest

from tradebench.errors import UserError
from tradebench.suite import WHOLE, Shard, Suite
from tradebench.trial import Trial

SUITE = """\
model: reference
design: product
grid:
  quantization: [off, nf4]
  adapters: [off, {method: lora, rank: [1, 2, 4]}]
  checkpointing: [off, {ratio: [0.5, 1]}]
"""


@pytest.fixture
def trials(tmp_path: Path) -> tuple[Trial, ...]:
    file = tmp_path / "grid.yaml"
    file.write_text(SUITE)
    return Suite.load(file).trials()


@pytest.mark.parametrize("count", [1, 2, 3, 5, 40])
def test_shards_are_disjoint_and_even_and_together_the_suite(
    trials: tuple[Trial, ...], count: int
) -> None:
    shards = [Shard(index, count).of(trials) for index in range(1, count + 1)]
    legal = [sum(not trial.conflicts() for trial in shard) for shard in shards]

    assert sorted(trial.id for shard in shards for trial in shard) == sorted(
        trial.id for trial in trials
    )
    assert max(legal) - min(legal) <= 1


def test_every_machine_deals_alike_and_keeps_its_own_order(trials: tuple[Trial, ...]) -> None:
    shuffled = random.Random(0).sample(trials, len(trials))
    mine, theirs = Shard(2, 3).of(trials), Shard(2, 3).of(shuffled)

    assert {trial.id for trial in mine} == {trial.id for trial in theirs}
    assert list(mine) == [trial for trial in trials if trial in mine]
    assert WHOLE.of(trials) == tuple(trials)


def test_a_shard_is_read_from_the_command_line() -> None:
    assert Shard.parse("2/8") == Shard(2, 8)
    assert Shard.parse("2/8").name == "2of8"
    for wrong in ("0/4", "5/4", "2", "a/b", "-1/4"):
        with pytest.raises(UserError, match="give one share of all"):
            Shard.parse(wrong)
