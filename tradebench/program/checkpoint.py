"""A checkpoint in safetensors files, read by rows: a rank of several takes its own and no others.

Rows are read into memory of their own. A file that is mapped would show every rank whole tensors,
of which nobody could tell what is in memory.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file

from tradebench.errors import UserError

# As safetensors names them.
_FORMATS = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I8": torch.int8,
    "U8": torch.uint8,
}


@dataclass(frozen=True)
class _Entry:
    """Where a tensor lies: `start` counts the bytes of the file."""

    file: Path
    format: str
    shape: tuple[int, ...]
    start: int


class Checkpoint:
    """The tensors of a model of the Hub or in a folder, by name.

    Raises:
        UserError: it cannot be found, or has no safetensors files.
    """

    def __init__(self, source: str, revision: str) -> None:
        self._source = source
        index = _find(source, revision, SAFE_WEIGHTS_INDEX_NAME)
        names: Iterable[str] = [SAFE_WEIGHTS_NAME]
        if index is not None:
            names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        files = [_find(source, revision, name) for name in names]
        if None in files:
            raise UserError(f"cannot load model {source}: it has no safetensors files")
        self._entries = {
            name: entry for file in files if file is not None for name, entry in _entries(file)
        }

    def rows(self, name: str, shape: torch.Size, first: int, count: int, room: int) -> Tensor:
        """`count` rows of a tensor on the host, in memory for `room` of them; the rest is zero.

        Raises:
            UserError: there is no such tensor, of this shape.
        """
        entry = self._entries.get(name)
        if entry is None or entry.format not in _FORMATS or entry.shape != tuple(shape):
            raise UserError(
                f"cannot load model {self._source}: its files have no {name} of shape {[*shape]}"
            )
        found = torch.empty((room, *entry.shape[1:]), dtype=_FORMATS[entry.format])
        found[count:].zero_()
        width = math.prod(entry.shape[1:]) * found.itemsize
        with entry.file.open("rb", buffering=0) as file:
            file.seek(entry.start + first * width)
            left = memoryview(found[:count].flatten().view(torch.uint8).numpy().data)
            while left:
                left = left[file.readinto(left) :]
        return found


def _find(source: str, revision: str, name: str) -> Path | None:
    """A file of a model, fetched where it must be."""
    found = cached_file(
        source,
        name,
        revision=revision,
        _raise_exceptions_for_gated_repo=True,
        _raise_exceptions_for_missing_entries=False,
    )
    return None if found is None else Path(found)


def _entries(file: Path) -> Iterable[tuple[str, _Entry]]:
    """The header of a safetensors file: its length in 8 bytes, then JSON."""
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        header = json.loads(opened.read(length))
    for name, each in header.items():
        if name != "__metadata__":
            start = 8 + length + each["data_offsets"][0]
            yield name, _Entry(file, each["dtype"], tuple(each["shape"]), start)
