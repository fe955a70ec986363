"""A rank: which one of the processes that train one model together a process is."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

# What torchrun sets, so that a trial's processes can also be started by it.
RANK, RANKS, LOCAL_RANK = "RANK", "WORLD_SIZE", "LOCAL_RANK"
# What only the runner sets.
RENDEZVOUS, PATIENCE = "TRADEBENCH_RENDEZVOUS", "TRADEBENCH_PATIENCE"

PATIENCE_SECONDS = 180.0


@dataclass(frozen=True, kw_only=True)
class Rank:
    """Process `number` of `of`, the `local` one of its machine.

    They meet at `rendezvous`, a URL as torch takes it, and give each other `patience` seconds to
    arrive at a collective operation.
    """

    number: int = 0
    of: int = 1
    local: int = 0
    rendezvous: str = "env://"
    patience: float = PATIENCE_SECONDS

    @classmethod
    def read(cls, variables: Mapping[str, str] = os.environ) -> Rank:
        """What this process's environment says; one process alone where it says nothing."""
        if RANK not in variables:
            return cls()
        return cls(
            number=int(variables[RANK]),
            of=int(variables[RANKS]),
            local=int(variables[LOCAL_RANK]),
            rendezvous=variables.get(RENDEZVOUS, cls.rendezvous),
            patience=float(variables.get(PATIENCE, cls.patience)),
        )

    def variables(self) -> dict[str, str]:
        """The environment variables that say so."""
        return {
            RANK: str(self.number),
            RANKS: str(self.of),
            LOCAL_RANK: str(self.local),
            RENDEZVOUS: self.rendezvous,
            PATIENCE: str(self.patience),
        }
