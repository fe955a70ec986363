"""A trial as a suite file: YAML that asks for exactly that point and no other."""

from __future__ import annotations

import io
import os
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap

from tradebench import configs
from tradebench.techniques import Technique
from tradebench.trial import Model, Trial

WIDTH = 100
REFERENCE = "reference"


def one_point(
    trial: Trial,
    base: Path,
    *,
    question: str,
    remarks: Sequence[str] = (),
    objectives: Sequence[str] = (),
    limits: Mapping[str, float | str] | None = None,
    repeats: int = 1,
) -> str:
    """Return the text of a suite file in the folder `base` that holds `trial` as its only point.

    What is left at its default is left out. `question` and `remarks` become the comment at its
    head, each a paragraph.
    """
    content: dict[str, Any] = {
        "model": _model(trial.model, base),
        "budget": _flow(_chosen(trial.budget, base=base)),
        "grid": _block({part.slot: _technique(part) for part in trial.techniques}),
    }
    if trial.evaluate.tasks:
        content["evaluate"] = _flow(_chosen(trial.evaluate))
    if objectives:
        content["objectives"] = list(objectives)
    if limits:
        content["limits"] = _flow(dict(limits))
    if repeats > 1:
        content["repeats"] = repeats
    paragraphs = [
        "\n".join(f"# {line}" for line in textwrap.wrap(text, WIDTH - 2))
        for text in (question, *remarks)
        if text
    ]
    return "\n#\n".join(paragraphs) + "\n" + _dump(content)


def _dump(content: Mapping[str, Any]) -> str:
    yaml = YAML()
    yaml.version = None
    yaml.width = 4096  # a mapping that is broken over lines is hard to read
    yaml.default_flow_style = None  # lists of plain values on one line
    stream = io.StringIO()
    yaml.dump(dict(content), stream)
    return stream.getvalue()


def _model(model: Model, base: Path) -> Any:
    """The model as a suite in `base` names it."""
    fields = {key: value for key, value in model.model_dump(mode="json").items() if value}
    if model.weights == "hub":
        fields.pop("weights", None)
    if fields == {"name": REFERENCE}:
        return REFERENCE
    if model.name != REFERENCE and Path(model.name).is_dir():
        fields["name"] = _from(base, model.name)
    if model.config is not None and model.config not in configs.names():
        fields["config"] = _from(base, model.config)
    return _flow(fields)


def _from(base: Path, path: str) -> str:
    """A path that opens from here as one in `base` writes it."""
    if Path(path).is_absolute():
        return path
    relative = Path(os.path.relpath(path, base)).as_posix()
    return relative if relative.startswith(".") else f"./{relative}"


def _technique(part: Technique) -> Any:
    """The settings of a technique; its name alone where all else is as it comes."""
    chosen = {"method": part.method, **_chosen(part), part.axis: getattr(part, part.axis)}
    return chosen["method"] if len(chosen) == 1 else _flow(chosen)


def _chosen(settings: BaseModel, base: Path | None = None) -> dict[str, Any]:
    """The fields that are not what they would be without a word."""
    said = settings.model_dump(mode="json")
    found = {}
    for name, field in type(settings).model_fields.items():
        default = field.get_default(call_default_factory=True)
        if name in said and (field.is_required() or getattr(settings, name) != default):
            found[name] = said[name]
    data = found.get("data")
    if base is not None and isinstance(data, dict):
        found["data"] = {
            key: _from(base, value) if key == "file" else value
            for key, value in data.items()
            if value is not None
        }
    return found


def _block(fields: Mapping[str, Any]) -> CommentedMap:
    """The same with a line for each field, or `{}`."""
    found = CommentedMap(fields)
    if fields:
        found.fa.set_block_style()
    return found


def _flow(fields: Mapping[str, Any]) -> CommentedMap:
    """The same on one line."""
    found = CommentedMap(
        {name: _flow(value) if isinstance(value, dict) else value for name, value in fields.items()}
    )
    found.fa.set_flow_style()
    return found
