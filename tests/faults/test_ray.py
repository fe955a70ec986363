"""What only a cluster can do: lose a node, or have none that is large enough."""

from __future__ import annotations

import os
import time
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from tradebench import store
from tradebench.errors import UserError
from tradebench.runner.engines.ray import Cluster, RayEngine
from tradebench.runner.options import Options
from tradebench.runner.supervisor import run
from tradebench.techniques import catalogue
from tradebench.trial import Model, Trial

if TYPE_CHECKING:
    from faults.conftest import Nodes, Sweep

pytestmark = pytest.mark.slow


def test_a_node_that_dies_in_mid_sweep_costs_an_attempt_and_no_point(
    ray_sweep: Sweep, nodes: Nodes
) -> None:
    names = [f"nap:{3 + number / 100}" for number in range(6)]
    supervisor = ray_sweep.start(*names)
    nodes.lose_one(ray_sweep)

    assert os.waitstatus_to_exitcode(os.waitpid(supervisor, 0)[1]) == 0
    found = store.load(ray_sweep.directory)
    assert Counter(result.status for result in found.results) == {"ok": len(names)}
    good = Counter(result.trial for result in found.attempts if result.status == "ok")
    assert set(good.values()) == {1}
    # Ray takes another node for dead as well where a busy machine keeps it from answering in time.
    lost = [result for result in found.attempts if result.status != "ok"]
    times = Counter(result.trial for result in lost)
    assert lost
    for each in lost:
        assert each.status == "killed"
        assert "its node or its Ray worker is gone" in str(each.reason)
    assert {each.attempt for each in lost} == set(range(max(times.values())))
    assert all(each.attempt == times[each.trial] for each in found.results)


def test_what_no_node_can_hold_is_skipped_with_a_sentence(ray_sweep: Sweep) -> None:
    kind = catalogue()["sharding"]["fsdp2"]
    wide = Trial(
        model=Model.model_validate({"name": "ok"}),
        techniques=(kind.model_validate({"method": "fsdp2", "degree": 64}),),
    )
    began = time.monotonic()
    summary = run(
        [wide, Trial(model=Model.model_validate({"name": "ok"}))],
        directory=ray_sweep.directory,
        suite="stubs",
        refuse=lambda _: (),
        engine=ray_sweep.on_ray,
        options=Options(program="programs:play", preload=(), threads=1, anywhere=True),
    )

    statuses = {result.status: result.reason for result in summary.results}
    assert statuses == {
        "ok": None,
        "skipped": "unplaced: it asks for 64 CPUs on one node, and the largest has 2 CPUs; the "
        "cluster did not grow within 1 s",
    }
    assert time.monotonic() - began < 60


def test_a_node_that_cannot_run_trials_says_why(ray_sweep: Sweep) -> None:
    def engine() -> RayEngine:
        made = ray_sweep.on_ray()
        made._attempt = made._ray.remote(max_calls=1)(lambda *_: 1 / 0)
        return made

    (result,) = run(
        [Trial(model=Model.model_validate({"name": "ok"}))],
        directory=ray_sweep.directory,
        suite="stubs",
        engine=engine,
        options=Options(anywhere=True),
    ).results

    assert (result.status, result.attempt) == ("failed", 0)
    assert result.reason == (
        "before loading: its node could not run it: ZeroDivisionError('division by zero')"
    )


def test_where_no_cluster_answers_a_line_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray")
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")

    with pytest.raises(UserError, match="no Ray cluster answers"):
        Cluster()
