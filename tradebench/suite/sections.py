"""The keys of a suite file, each read into its value."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, Field

from tradebench import configs
from tradebench.suite.grid import Partial, read_partial
from tradebench.suite.names import unmeasurable
from tradebench.suite.problems import (
    Loc,
    Problem,
    build,
    check_keys,
    choices,
    mapping,
    near,
    sequence,
    show,
    unknown,
)
from tradebench.suite.units import parse_seconds, parse_size
from tradebench.trial import Budget, Evaluate, FileData, HubData, Model, Settings

T = TypeVar("T")
Data = dict[str, Any]

REFERENCE = "reference"


class Resources(Settings):
    """What a trial may use; asking for more ends as `oom`."""

    memory: int | None = Field(None, ge=1, description="bytes, enforced for each trial")


class RepeatRule(Settings):
    """Points that run another number of times."""

    match: Partial
    repeats: int = Field(ge=1)


def read_model(data: Data, base: Path) -> Model:
    """Which model; a name alone is a mapping with that name."""
    if "model" not in data:
        raise Problem((), f"model is missing; write model: {REFERENCE}, or a mapping with a name")
    value = data["model"]
    fields = {"name": value} if isinstance(value, str) else mapping(value, ("model",), "model")
    if fields.get("weights") == "random" and "config" not in fields:
        raise Problem(
            ("model", "weights"),
            f"weights: random needs a config, whose shapes it fills: {choices(configs.names())}, "
            "or a folder",
        )
    if fields.get("layers") is not None and fields.get("weights") != "random":
        raise Problem(
            ("model", "layers"), "layers cuts a random model short; real weights need all of theirs"
        )
    if fields.get("weights") == "random" and "name" not in fields:
        fields = {"name": fields["config"], **fields}
    model = build(Model, fields, ("model",), "model")
    name = _model_name(model, base)
    return model.model_copy(update={"name": name, "config": _config(model, base)})


def read_budget(data: Data, base: Path) -> Budget:
    """How much training, and on what."""
    value = mapping(data.get("budget", {}), ("budget",), "budget")
    rows = _rows(value.get("data", REFERENCE), base)
    budget = build(Budget, {**value, "data": REFERENCE}, ("budget",), "budget")
    if budget.warmup >= budget.steps:
        place = ("budget", "warmup" if "warmup" in value else "steps")
        reason = f"budget: warmup {budget.warmup} leaves none of {budget.steps} steps to be timed"
        raise Problem(place, f"{reason}; warmup must be less than steps")
    return budget.model_copy(update={"data": rows})


def read_evaluate(data: Data, model: Model) -> Evaluate:
    """What is evaluated."""
    evaluate = build(Evaluate, data.get("evaluate", {}), ("evaluate",), "evaluate")
    if evaluate.tasks and model.weights == "random":
        raise Problem(
            ("evaluate", "tasks"),
            "accuracy of random weights means nothing; remove the tasks, or use weights: hub",
        )
    return evaluate


def read_objectives(data: Data, tasks: Sequence[str]) -> tuple[str, ...]:
    """What is traded off: memory, time and the first task's accuracy unless the suite says."""
    if "objectives" not in data:
        return ("peak_tensor_bytes", "step_seconds", *(f"accuracy.{task}" for task in tasks[:1]))
    names = sequence(data["objectives"], ("objectives",), "objectives")
    if not names:
        raise Problem(("objectives",), "objectives names no measurement")
    for index, name in enumerate(names):
        if reason := unmeasurable(name, tasks):
            raise Problem(("objectives", index), reason)
    return tuple(dict.fromkeys(names))


def read_limits(data: Data, tasks: Sequence[str]) -> dict[str, float]:
    """Measurement to bound, in bytes, seconds or the measurement's own unit."""
    limits: dict[str, float] = {}
    for name, bound in mapping(data.get("limits", {}), ("limits",), "limits").items():
        at = ("limits", name)
        if reason := unmeasurable(name, tasks):
            raise Problem(at, reason)
        quantity = name.partition(".")[0]
        if quantity.endswith("_bytes"):
            limits[name] = _with_unit(parse_size, bound, at)
        elif quantity.endswith("_seconds"):
            limits[name] = _with_unit(parse_seconds, bound, at)
        elif isinstance(bound, int | float) and not isinstance(bound, bool):
            limits[name] = bound
        else:
            raise Problem(at, f"{name} must be a number, not {show(bound)}")
    return limits


def read_resources(data: Data) -> Resources:
    """What a trial may use."""
    value = mapping(data.get("resources", {}), ("resources",), "resources")
    if "memory" in value:
        value = {
            **value,
            "memory": _with_unit(parse_size, value["memory"], ("resources", "memory")),
        }
    return build(Resources, value, ("resources",), "resources")


def read_repeats(data: Data) -> int:
    """How often each point runs."""
    return _times(data.get("repeats", 1), ("repeats",))


def read_rules(data: Data) -> tuple[RepeatRule, ...]:
    """Which points run another number of times."""
    rules = []
    values = sequence(data.get("repeats_where", []), ("repeats_where",), "repeats_where")
    for index, value in enumerate(values):
        at: Loc = ("repeats_where", index)
        rule = mapping(value, at, "repeats_where")
        check_keys(rule, ("match", "repeats"), at, "key of repeats_where")
        if missing := {"match", "repeats"} - set(rule):
            raise Problem(at, f"repeats_where needs {choices(sorted(missing))!r}")
        match = read_partial(rule["match"], (*at, "match"), "match")
        rules.append(RepeatRule(match=match, repeats=_times(rule["repeats"], (*at, "repeats"))))
    return tuple(rules)


def read_exclude(data: Data) -> tuple[Partial, ...]:
    """The points to leave out."""
    values = sequence(data.get("exclude", []), ("exclude",), "exclude")
    return tuple(
        read_partial(value, ("exclude", index), "exclude") for index, value in enumerate(values)
    )


def read_timeout(data: Data) -> float | None:
    """Seconds after which a trial is stopped; never where the suite does not say."""
    return _with_unit(parse_seconds, data["timeout"], ("timeout",)) if "timeout" in data else None


def _times(value: object, at: Loc) -> int:
    """A number of repeats."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise Problem(at, f"repeats must be a whole number of at least 1, not {show(value)}")
    return value


def _with_unit(parse: Callable[[object], T], value: object, at: Loc) -> T:
    """What `parse` makes of the value, or a problem at its place."""
    try:
        return parse(value)
    except ValueError as error:
        raise Problem(at, f"{at[-1]}: {error}") from None


def _model_name(model: Model, base: Path) -> str:
    """The name as it is, or a local folder's path that opens from the current directory."""
    if not _is_path(model.name):
        slip = "/" not in model.name and near(model.name, [REFERENCE]) is not None
        if slip and model.name != REFERENCE:
            raise Problem(("model",), unknown("model", model.name, [REFERENCE]))
        return model.name
    name = _from_here(model.name, base)
    if not Path(name).is_dir():
        raise Problem(("model", "name"), f"model: there is no folder {model.name!r}")
    return name


def _config(model: Model, base: Path) -> str | None:
    """A shipped shape's name, or a folder's path that opens from the current directory."""
    if model.config is None or model.config in configs.names():
        return model.config
    at = ("model", "config")
    if not _is_path(model.config):
        reason = unknown("config", model.config, configs.names())
        raise Problem(at, f"{reason} (a folder is written ./folder)")
    config = _from_here(model.config, base)
    if not (Path(config) / "config.json").is_file():
        raise Problem(at, f"model: there is no config.json in {model.config!r}")
    return config


def _rows(source: object, base: Path) -> str | FileData | HubData:
    """Training rows: built in, from a file, or from the Hub."""
    at = ("budget", "data")
    if source in (REFERENCE, "random"):
        return str(source)
    if not isinstance(source, dict):
        ways = f"{REFERENCE}, random, {{file: rows.jsonl}} or {{hub: name}}"
        close = near(source, (REFERENCE, "random")) if isinstance(source, str) else None
        hint = f"; did you mean {close!r}?" if close else ""
        raise Problem(at, f"budget: data must be {ways}, not {show(source)}{hint}")
    kinds: dict[str, type[BaseModel]] = {"file": FileData, "hub": HubData}
    kind = next((kind for key, kind in kinds.items() if key in source), None)
    if kind is None:
        check_keys(source, kinds, at, "source of data")
        raise Problem(at, "budget: data needs a file or a hub data set")
    if len(kinds.keys() & source.keys()) > 1:
        raise Problem(at, "budget: data is a file or a hub data set, not both")
    if kind is HubData:
        return build(HubData, source, at, "data")
    written = build(FileData, source, at, "data").file
    file = _from_here(written, base)
    if not Path(file).is_file():
        raise Problem((*at, "file"), f"data: there is no file {written!r} beside the suite")
    return FileData(file=file)


def _is_path(text: str) -> bool:
    """Whether a name is a path: `./here`, `../there`, `/anywhere`. All else is a Hub id."""
    return text.startswith((".", "/"))


def _from_here(path: str, base: Path) -> str:
    """A path of a suite in `base` as it opens from the current directory.

    Relative paths stay relative, so that a trial's id does not depend on where a project lies on
    a machine, only on which of its folders tradebench is started in.
    """
    return path if Path(path).is_absolute() else Path(os.path.relpath(base / path)).as_posix()
