"""What a run says about where it came from."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from tradebench import environment
from tradebench.runner.options import Options
from tradebench.suite import Suite

# With `anywhere` the trials ran on a cluster.
KEPT = (
    *("isolation", "timeout", "memory_cap", "threads", "variables"),
    *("jobs", "launcher", "patience", "anywhere"),
)


def of_suite(suite: Suite) -> dict[str, Any]:
    """The header of a suite's run: its question, its text, and how it was asked for."""
    return {
        "question": suite.question,
        "suite_text": suite.text,
        "design": suite.design,
        # The report compares the rows of a ladder in their own order.
        **({"ladder": [trial.id for trial in suite.trials()]} if suite.design == "ladder" else {}),
        "objectives": list(suite.objectives),
        "limits": dict(suite.limits),
        **of_command(),
    }


def of_command() -> dict[str, Any]:
    """The command line and the machine."""
    return {
        "argv": [environment.scrub(word) for word in ("tradebench", *sys.argv[1:])],
        "environment": environment.capture().model_dump(mode="json"),
    }


def of_options(options: Options) -> dict[str, Any]:
    """How the trials were run, for whoever runs some of them again."""
    said = {name: getattr(options, name) for name in KEPT}
    return {**said, "launcher": [environment.scrub(word) for word in options.launcher]}


def options_of(said: Mapping[str, Any]) -> Options:
    """What `of_options` wrote into a header; a run from before that has the defaults."""
    options = dict(said.get("options") or {})
    if "launcher" in options:
        options["launcher"] = tuple(map(environment.unscrub, options["launcher"]))
    return Options(**{name: options[name] for name in KEPT if name in options})
