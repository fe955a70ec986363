"""A trial on two machines, as far as one machine can tell: two network namespaces and a cable."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tradebench import store
from tradebench.result import Result
from tradebench.runner.options import Options
from tradebench.runner.supervisor import run
from tradebench.trial import Trial

Make = Callable[..., Trial]

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).with_name("two_nodes.sh")
SHARDED = {"sharding": {"method": "fsdp2", "degree": 2}}


def on_two_nodes(folder: Path, trials: list[Trial], **options: Any) -> list[Result]:
    how = Options(threads=1, launcher=(str(SCRIPT), sys.executable), **options)
    directory = store.create_run(folder, "nodes", {})
    return list(run(trials, directory=directory, suite="nodes", options=how).results)


@pytest.fixture(autouse=True)
def allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Needs the right to make namespaces."""
    cable = ["ip", "link", "add", "name", "left", "type", "veth", "peer", "name", "right"]
    asked = ["unshare", "--net", *cable]
    try:
        subprocess.run(asked, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no network namespaces can be made here: {error}")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))


def test_a_trial_spans_two_nodes(tiny_trial: Make, tmp_path: Path) -> None:
    trial = tiny_trial(SHARDED)
    (apart,) = on_two_nodes(tmp_path / "apart", [trial])
    here = store.create_run(tmp_path / "here", "nodes", {})
    (together,) = run([trial], directory=here, suite="nodes", options=Options(threads=1)).results

    assert (apart.status, apart.reason) == ("ok", None)
    for name in ("train_loss", "peak_tensor_bytes"):
        one, other = apart.measurements[name], together.measurements[name]
        assert (one.value, one.samples, one.ranks) == (other.value, other.samples, other.ranks)


def test_a_rank_that_fails_on_another_node_is_named(tiny_trial: Make, tmp_path: Path) -> None:
    trial = tiny_trial(SHARDED)
    failing = trial.model_copy(
        update={"model": trial.model.model_copy(update={"revision": "fails"})}
    )
    (result,) = on_two_nodes(
        tmp_path, [failing], program="sharded.programs:misbehave", patience=20.0
    )

    assert (result.status, result.reason) == (
        "failed",
        "rank 1: while training: ValueError: no good",
    )
