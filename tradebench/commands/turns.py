"""`tradebench compare --ab`: two commits run in turn on this machine, each in its own checkout."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

from tradebench import store
from tradebench.errors import UserError
from tradebench.regression import gate, policy
from tradebench.regression.baseline import Baseline
from tradebench.regression.gate import Check
from tradebench.regression.policy import Policy
from tradebench.regression.sample import of_runs
from tradebench.store import Run

SIDES = ("A", "B")
FAILED, INTERRUPTED = 5, 130  # exit codes of a run: a trial failed, and Ctrl-C

Note = Callable[[str], None]


def in_turn(
    commits: tuple[str, str],
    suite: Path,
    results: Path,
    *,
    pairs: int,
    policy_file: Path | None,
    note: Note,
) -> Check:
    """Run a suite at two commits, A B B A and so on, and test the differences of each pair.

    Raises:
        UserError: this is no git checkout, there is no such commit, or the suite does not run.
    """
    rules = Policy() if policy_file is None else policy.load(policy_file)
    root = Path(_git("rev-parse", "--show-toplevel"))
    hashes = [_git("rev-parse", "--verify", "--quiet", f"{each}^{{commit}}") for each in commits]
    out = results.resolve() / f"{suite.stem}.ab" / f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
    with _checkouts(root, hashes) as folders:
        for pair in range(pairs):
            # Turned round every time, so that neither side always comes second.
            for side in (0, 1) if pair % 2 == 0 else (1, 0):
                note(f"pair {pair + 1} of {pairs}: {commits[side]}")
                _run(folders[side], root, suite, out / SIDES[side])
    base, new = (_runs(out / side, suite.stem) for side in SIDES)
    sample, items = of_runs(base)
    held = Baseline(sample=sample, items=items, policy=rules)
    return gate.judge(held, *of_runs(new), in_turn=True)


def _runs(folder: Path, suite: str) -> list[Run]:
    return [store.load(path) for path in store.runs(folder, suite)]


@contextlib.contextmanager
def _checkouts(root: Path, hashes: list[str]) -> Iterator[list[Path]]:
    """A folder for each commit, gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="tradebench-") as folder:
        paths = [Path(folder) / side for side in SIDES]
        try:
            for path, commit in zip(paths, hashes, strict=True):
                _git("worktree", "add", "--detach", str(path), commit, folder=root)
            yield paths
        finally:
            for path in paths:
                if path.exists():
                    _git("worktree", "remove", "--force", str(path), folder=root)


def _run(checkout: Path, root: Path, suite: Path, out: Path) -> None:
    """One run of the suite as it is at that commit, by the code of that commit if it is there."""
    here = Path.cwd().resolve()
    folder = checkout / here.relative_to(root) if here.is_relative_to(root) else checkout
    known = [str(checkout), *filter(None, [os.environ.get("PYTHONPATH")])]
    command = [sys.executable, "-m", "tradebench", "run", str(suite), "--out", str(out)]
    done = subprocess.run(
        [*command, "--fresh", "--no-predict"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(known)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode == INTERRUPTED:
        raise KeyboardInterrupt
    # A trial that failed is a finding of the comparison.
    if done.returncode not in (0, FAILED):
        lines = done.stderr.strip().splitlines() or ["it said nothing"]
        raise UserError(f"{suite} does not run at that commit: {lines[-1]}")


def _git(*words: str, folder: Path | None = None) -> str:
    try:
        done = subprocess.run(
            ["git", *words], cwd=folder, capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        raise UserError("--ab needs git, which is not installed") from None
    if done.returncode != 0:
        said = done.stderr.strip().splitlines()
        reason = said[-1].removeprefix("fatal: ") if said else f"there is no commit {words[-1]}"
        raise UserError(f"--ab: {reason}")
    return done.stdout.strip()
