"""Files of what was read off a device: what is wrong with one is a single line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from tradebench.devices.device import Device
from tradebench.errors import UserError
from tradebench.result import Record

R = TypeVar("R", bound=Record)


def read(path: str | Path, kind: type[R], schema: str) -> R:
    """Read a JSON file that holds one record of this schema, such as `tradebench.calibration/1`.

    Raises:
        UserError: the file cannot be read or holds something else.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from None
    said = _schema(content)
    if said not in (None, schema):
        raise UserError(f"{path} is {said!r}, not {schema!r}")
    try:
        return kind.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        noun = schema.partition(".")[2].partition("/")[0]
        raise UserError(f"{path} holds no {noun}: {place}: {first['msg']}") from None


def require_device(path: str | Path, name: str, device: Device) -> None:
    """Refuse what was read off another device than a plan is made for.

    Raises:
        UserError: the driver calls `device` by another name.
    """
    if name != device.name:
        raise UserError(
            f"{path} was measured on {name}, and the plan is for {device.id}: name that device "
            "with --gpu, or leave the file out"
        )


def _schema(content: bytes) -> object:
    """The schema that a file says it has; None where it says nothing, or is no JSON object."""
    try:
        said = json.loads(content)
    except ValueError:
        return None
    return said.get("schema") if isinstance(said, dict) else None
