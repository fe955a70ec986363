"""What torchao has quantized, told without importing it: it is not on every machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def is_torchao(weight: Tensor) -> bool:
    """Whether torchao has quantized a weight, which says all the same that it is dense.

    Answers without importing torchao.
    """
    return type(weight).__module__.startswith("torchao.")
