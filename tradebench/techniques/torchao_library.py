"""torchao, which is not on every machine: how it is asked for, and what it has quantized."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

from tradebench.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor


def need_torchao(method: str) -> None:
    """Say what to install where torchao is missing.

    Raises:
        UserError: it is missing.
    """
    if importlib.util.find_spec("torchao") is None:
        raise UserError(f"{method} needs torchao; install tradebench[torchao]")


def is_torchao(weight: Tensor) -> bool:
    """Whether torchao has quantized a weight, which says all the same that it is dense.

    Answers without importing torchao.
    """
    return type(weight).__module__.startswith("torchao.")
