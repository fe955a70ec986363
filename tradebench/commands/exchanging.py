"""`tradebench import`: files of other tools, as a run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from tradebench import exchange, store
from tradebench.commands import header
from tradebench.errors import UserError
from tradebench.result import Result
from tradebench.store import Run


def take_in(files: Sequence[Path], source: str, suite: str, out: Path) -> Run:
    """A new run of `suite` with everything that the files hold; equal points are repeats.

    Raises:
        UserError: a file is not what `source` writes; nothing is kept then.
    """
    read = exchange.reader(source)
    results: list[Result] = []
    for file in files:
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            results += read(content, suite)
        except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
            told = str(error).splitlines()[0] if str(error) else type(error).__name__
            missing = f"it has no {told}" if isinstance(error, KeyError) else told
            raise UserError(f"{file} is no file of {source}: {missing}") from None
    said = {
        "question": f"What did {source} measure?",
        "suite_text": "",
        "objectives": ["peak_reserved_bytes", "step_seconds"],
        "limits": {},
        **header.of_command(),
    }
    directory = store.create_run(out, suite, said)
    counts: dict[str, int] = {}
    with store.Appender(directory / "trials.import.jsonl") as appender:
        for result in results:
            repeat = counts.get(result.trial, 0)
            counts[result.trial] = repeat + 1
            appender.append(result.model_copy(update={"repeat": repeat}).to_json())
    return store.load(directory)
