"""Where the trials of a sweep run: what options and a cluster say of engine and refusals."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tradebench.runner.engines import Engine
from tradebench.runner.engines.ray import Cluster, RayEngine
from tradebench.runner.options import Options
from tradebench.runner.refusal import refuse
from tradebench.trial import Trial


@dataclass(frozen=True, kw_only=True)
class Placement:
    """On a `cluster`, or on this machine where there is none."""

    options: Options
    cluster: Cluster | None = None

    @property
    def engine(self) -> Callable[[], Engine] | None:
        """What makes the engine of the cluster."""
        cluster, options = self.cluster, self.options
        if cluster is None:
            return None
        return lambda: RayEngine(cluster, variables=options.variables, jobs=options.jobs or 1)

    def refuse(self, trial: Trial) -> tuple[str, ...]:
        """Every reason not to run a trial there."""
        gpus = None if self.cluster is None else self.cluster.has_gpus
        return refuse(trial, launched=bool(self.options.launcher), cluster=gpus)
