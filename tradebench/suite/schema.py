"""The JSON Schema of a suite file, from which editors complete and check it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel

from tradebench import configs
from tradebench.suite.grid import OFF
from tradebench.suite.names import MEASUREMENTS, SCORES
from tradebench.suite.suite import DESIGNS
from tradebench.techniques import Technique, catalogue
from tradebench.trial import BUDGET, SHAPE, Budget, Evaluate, Model

Schema = dict[str, Any]

SCORE = rf"^({'|'.join(SCORES)})\..+$"
COUNT: Schema = {"type": "integer", "minimum": 1}
QUANTITY: Schema = {"anyOf": [{"type": "number", "exclusiveMinimum": 0}, {"type": "string"}]}
DESCRIPTIONS = {
    "design": (
        "product: every combination; each: one change at a time; list: the listed points; "
        "ladder: one change more with every row"
    ),
    "exclude": "points to leave out, by some of their slots and settings",
    "objectives": "the measurements that are traded off",
    "limits": "what a recommendation must keep to; stops no trial",
    "resources": "what a trial may use; more ends as oom",
    "repeats": "how often each point runs, each time with the next seed",
    "repeats_where": "points that run another number of times; the first match counts",
    "timeout": "45m, 12h or seconds, after which a trial is stopped",
}


def suite_schema() -> Schema:
    """JSON Schema (2020-12) of a suite file; every slot offers the methods that are installed."""
    definitions: Schema = {}
    slots = {slot: _slot(slot, definitions) for slot in catalogue()}
    for slot, alternatives in slots.items():
        definitions[f"slot.{slot}"] = alternatives
    point = _closed({slot: {"$ref": f"#/$defs/slot.{slot}"} for slot in slots} | _shape())
    properties: Schema = {
        "model": {"anyOf": [{"type": "string"}, _model(definitions)]},
        "budget": _section(Budget, definitions),
        "design": {"enum": list(DESIGNS), "default": "product"},
        "grid": {"anyOf": [point, {"type": "array", "items": point}]},
        "exclude": {"type": "array", "items": _partial()},
        "evaluate": _section(Evaluate, definitions),
        "objectives": {"type": "array", "minItems": 1, "items": _measurement()},
        "limits": {
            "type": "object",
            "properties": dict.fromkeys(MEASUREMENTS, QUANTITY),
            "patternProperties": {SCORE: {"type": "number"}},
            "additionalProperties": False,
        },
        "resources": _closed({"memory": QUANTITY}),
        "repeats": {**COUNT, "default": 1},
        "repeats_where": {
            "type": "array",
            "items": {
                **_closed({"match": _partial(), "repeats": COUNT}),
                "required": ["match", "repeats"],
            },
        },
        "timeout": QUANTITY,
    }
    for key, description in DESCRIPTIONS.items():
        properties[key] = {**properties[key], "description": description}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "tradebench suite",
        **_closed(properties),
        "required": ["model", "grid"],
        "$defs": definitions,
    }


def _closed(properties: Schema) -> Schema:
    """A mapping that has no other keys."""
    return {"type": "object", "properties": properties, "additionalProperties": False}


def _section(kind: type[BaseModel], definitions: Schema) -> Schema:
    """The schema of a settings class; what it refers to goes among the definitions."""
    schema = kind.model_json_schema()
    definitions.update(schema.pop("$defs", {}))
    return schema


def _model(definitions: Schema) -> Schema:
    """The model as a mapping; a config with random weights needs no name."""
    schema = _section(Model, definitions)
    del schema["required"]
    shape = schema["properties"]["config"]
    shape["anyOf"] = [{"enum": list(configs.names())}, *shape["anyOf"]]
    return {**schema, "anyOf": [{"required": ["name"]}, {"required": ["config", "weights"]}]}


def _slot(slot: str, definitions: Schema) -> Schema:
    """Off, a method's name, settings, or a list of these."""
    methods = catalogue()[slot]
    kinds = list(dict.fromkeys(methods.values()))
    settings = [{"$ref": f"#/$defs/{slot}.{kind.__name__}"} for kind in kinds]
    for kind in kinds:
        definitions[f"{slot}.{kind.__name__}"] = _technique(kind, definitions)
    if len(kinds) > 1:
        settings.append(_several([definitions[f"{slot}.{kind.__name__}"] for kind in kinds]))
    one = {"anyOf": [{"enum": [OFF, *methods]}, *settings]}
    return {"anyOf": [*one["anyOf"], {"type": "array", "minItems": 1, "items": one}]}


def _several(kinds: Sequence[Schema]) -> Schema:
    """One mapping for a list of methods of any class: its settings belong to each of them."""
    known = [kind["properties"]["method"]["anyOf"][0]["enum"] for kind in kinds]
    listed = {
        "type": "array",
        "minItems": 2,
        "items": {"enum": [each for k in known for each in k]},
    }
    return {
        "type": "object",
        "properties": {"method": listed},
        "required": ["method"],
        "allOf": [
            {
                "if": {"properties": {"method": {"contains": {"enum": methods}}}},
                "then": {**kind, "properties": {**kind["properties"], "method": {}}},
            }
            for kind, methods in zip(kinds, known, strict=True)
        ],
    }


def _shape() -> Schema:
    """The fields of a budget that a grid may vary, or a list of such mappings."""
    fields = Budget.model_json_schema()["properties"]
    without = {name: {**fields[name]} for name in SHAPE}
    for field in without.values():
        del field["default"]  # in a grid, that is what the suite's budget has
    one = _closed(_spread_out(without))
    return {BUDGET: {"anyOf": [one, {"type": "array", "minItems": 1, "items": one}]}}


def _spread_out(fields: Schema) -> Schema:
    """The same fields, each of which may be a list of alternatives."""
    return {
        name: {
            "anyOf": [field, {"type": "array", "minItems": 1, "items": field}],
            **{key: field[key] for key in ("description", "default") if key in field},
        }
        for name, field in fields.items()
    }


def _technique(kind: type[Technique], definitions: Schema) -> Schema:
    """The settings of a technique, each of which may be a list of alternatives."""
    schema = _section(kind, definitions)
    schema["properties"]["method"] = {
        "enum": [*kind.methods(), *kind.aliases],
        **({"default": default} if (default := _default_method(kind)) else {}),
    }
    schema["properties"] = _spread_out(schema["properties"])
    return {**schema, "description": (kind.__doc__ or "").splitlines()[0]}


def _default_method(kind: type[Technique]) -> str | None:
    """The method that a class falls back on, where it has one."""
    field = kind.model_fields["method"]
    return None if field.is_required() else str(field.default)


def _partial() -> Schema:
    """Part of a point: slots with a method, off, or some of their fields."""
    values: Schema = {}
    for slot, methods in catalogue().items():
        fields: Schema = {name: {} for kind in methods.values() for name in kind.model_fields}
        one = [{"enum": [OFF, *methods]}, _closed(fields)]
        values[slot] = {"anyOf": [*one, {"type": "array", "minItems": 1, "items": {"anyOf": one}}]}
    values |= _shape()
    return {**_closed(values), "minProperties": 1}


def _measurement() -> Schema:
    """The name of a measurement."""
    return {"anyOf": [{"enum": list(MEASUREMENTS)}, {"type": "string", "pattern": SCORE}]}
