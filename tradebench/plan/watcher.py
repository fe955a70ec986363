"""A watcher is told how predicting gets on."""

from __future__ import annotations


class Watcher:
    """Is told how predicting gets on; each method does nothing unless overridden."""

    def expect(self, more: int) -> None:
        """So many further predictions were found to be needed."""

    def predicted(self, label: str) -> None:
        """One more prediction is there."""
