"""The devices that a plan can be made for: what data sheets promise, and what was read off them."""

from __future__ import annotations

import difflib

from tradebench.devices.catalogue import DEVICES
from tradebench.devices.device import GIB, Device, Format
from tradebench.errors import UserError

__all__ = ["DEVICES", "GIB", "Device", "Format", "able", "find", "named", "names"]


def names() -> tuple[str, ...]:
    """The ids of all devices, sorted."""
    return tuple(sorted(DEVICES))


def find(name: str) -> Device:
    """The device with this id, in whatever case.

    Raises:
        UserError: there is none; the sentence says which may be meant, or which there are.
    """
    given = name.strip().lower()
    if given in DEVICES:
        return DEVICES[given]
    within = [each for each in names() if given and given in each]
    close = within or difflib.get_close_matches(given, names(), n=1, cutoff=0.5)
    hint = f"did you mean {' or '.join(close)}?" if close else f"choose one of {', '.join(names())}"
    raise UserError(f"unknown device {name!r}: {hint}")


def named(name: str) -> Device | None:
    """The device that a driver calls so; None where the catalogue does not have it."""
    return next((device for device in DEVICES.values() if device.name == name), None)


def able(capability: tuple[int, int], memory_bytes: int) -> Device:
    """The smallest device of this compute capability or later with at least so much memory.

    The largest, where none has it.
    """
    found = [each for each in DEVICES.values() if (each.capability or (0, 0)) >= capability]
    large = [each for each in found if each.memory_bytes >= memory_bytes]
    if large:
        return min(large, key=lambda each: (each.memory_bytes, each.id))
    return max(found, key=lambda each: each.memory_bytes)
