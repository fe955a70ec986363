"""What modes of the fake world have in common: they see operations on plain tensors."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any

from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

from tradebench.worlds.shards import made_of_tensors


class Mode(TorchDispatchMode):
    """Sees every operation; what is made of other tensors comes apart into them first."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves it untyped

    def __torch_dispatch__(
        self,
        func: OpOverload[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Leave what is made of tensors to itself, and run everything else."""
        if made_of_tensors(types):
            return NotImplemented
        return self.run(func, args, kwargs or {})

    @abstractmethod
    def run(
        self, func: OpOverload[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        """Run the operation, and do beside it what the mode is for."""
