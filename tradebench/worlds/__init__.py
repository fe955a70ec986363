"""Where a trial runs: what counts its memory and its time."""
