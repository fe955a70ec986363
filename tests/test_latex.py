"""The tables for papers: sound LaTeX whatever the names, as wide as the text, at most a page."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tradebench import store
from tradebench.report import fronts, latex
from tradebench.report.predictions import apart
from tradebench.result import Environment, Measurement, Result

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted(ROOT.glob("results/*/example"))
COMMITTED = sorted(ROOT.glob("reports/*/table.tex"))
EVERYTHING = "".join(map(chr, (*range(0x20, 0x7F), *range(0xA0, 0x100))))
HOSTILE = (
    r"\input{/etc/passwd} \end{tabular} \\ [4pt]",
    "</script> & 50 % of $x_2$ {~^#} \\",
    "--fresh, --- and ?` !` ,, << >> `a' ''b''",
    "\u202eright to left\u202c שלום 😀 日本語 ≤ ≥ \u00d7 µ …",
    "word" * 40,
    *(EVERYTHING[start : start + 40] for start in range(0, len(EVERYTHING), 40)),
)
DOCUMENT = r"""\documentclass{article}
\usepackage{booktabs}
\begin{document}
%s
\end{document}
"""


def of_names(names: Sequence[str], **more: Any) -> str:
    """The tables of a run with a point of each name."""
    results = [
        Result(
            suite="s",
            trial=f"{number:012x}",
            label=name,
            model={"name": "_m&del {#1}"},
            budget={},
            evaluate={},
            settings={"adapters": {"method": "lora", "rank": number + 1}},
            status="ok",
            measurements={
                "peak_tensor_bytes": Measurement(value=2**30 * (number + 1), unit="B"),
                "step_seconds": Measurement(value=9.0 - 0.01 * number, unit="s"),
            },
            environment=Environment(),
            **more,
        )
        for number, name in enumerate(names)
    ]
    run = store.Run(
        directory=Path("r"), header={}, results=tuple(results), attempts=(), problems=()
    )
    return of_run(run)


def of_run(run: store.Run) -> str:
    found = apart(fronts.groups(run))
    return latex.text([SimpleNamespace(group=group) for group in found])  # type: ignore[misc]


def depth(text: str) -> int:
    """How many braces are open at the end, none of which was closed before it was opened."""
    level = 0
    for sign in re.sub(r"\\[{}]", "", text):
        level += (sign == "{") - (sign == "}")
        assert level >= 0
    return level


def cells(row: str) -> int:
    return len(re.findall(r"(?<!\\)&", row)) + 1


def assert_sound(text: str) -> None:
    """Balanced, with as many cells in each row as there are columns, and nothing left to escape."""
    for table in text.split(r"\begin{table}")[1:]:
        assert depth(table) == 0
        (columns,) = re.findall(r"\\begin{tabular}{@{}(.+)@{}}\n", table)
        number = len(re.sub(r"p{[^}]+}", "p", columns))
        body = table.partition(r"\toprule")[2].partition(r"\bottomrule")[0]
        rows = [line for line in body.splitlines() if line and line != r"\midrule"]
        assert len(rows) > 1
        assert {cells(row) for row in rows} == {number}
        assert all(row.endswith(r" \\") for row in rows)
    bare = re.sub(r"\\(?:[a-z]+|[^a-z])", "", text)
    assert set(re.findall(r"[^\x20-\x7e\n\xc0-\xff]", bare)) == set()
    assert not set("#%_~^") & set(re.sub(r"\$[^$\n]*\$", "", bare))
    assert bare.count("$") % 2 == 0


def test_a_table_is_sound_whatever_the_names() -> None:
    text = of_names(HOSTILE)

    assert_sound(text)
    assert r"-{}-fresh" in text
    assert r"\input" not in text
    assert "\u202e" not in text
    assert "[U+1F600]" in text


def test_what_latex_cannot_print_is_named_by_its_code_point() -> None:
    assert latex.escape("50% of a_b {x} é 😀") == r"50\% of a\_b \{x\} é [U+1F600]"


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.parent.name)
@pytest.mark.slow
def test_the_tables_of_the_examples_are_sound(example: Path) -> None:
    assert_sound(of_run(store.load(example)))


def test_a_long_table_loses_its_last_points_and_says_so() -> None:
    text = of_names([f"point {number}" for number in range(200)])
    kept = text.count(r"\raggedright point")

    assert 20 < kept <= latex.MAX_LINES
    assert f"its ends. {200 - kept} more points left out.}}" in text


def test_a_plan_says_which_points_fit_and_in_which_phase_they_do_not() -> None:
    unfit = {
        "device": "h100-80gb",
        "verdict": "does not fit",
        "needed": (90, 95),
        "capacity": (80, 80),
    }
    text = of_names(["a"], kind="predicted", fit={**unfit, "phase": "compress"})

    assert "Point & Verdict &" in text
    assert r"\raggedright does not fit while compressing &" in text
    assert "fit while" not in of_names(["a"], kind="predicted", fit={**unfit, "phase": "train"})
    assert "Verdict" not in of_names(["a"])


@pytest.mark.slow
@pytest.mark.parametrize("what", ["examples", "committed", "hostile"])
def test_the_tables_compile(what: str, tmp_path: Path) -> None:
    if shutil.which("pdflatex") is None:
        pytest.skip("pdflatex is not on the PATH: install texlive-latex-base")
    tables = {
        "examples": lambda: [of_run(store.load(example)) for example in EXAMPLES],
        "committed": lambda: [file.read_text(encoding="utf-8") for file in COMMITTED],
        "hostile": lambda: [of_names(HOSTILE)],
    }[what]()
    (tmp_path / "t.tex").write_text(DOCUMENT % "\n\\clearpage\n".join(tables), encoding="utf-8")
    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "t.tex"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        errors="replace",
    )

    assert done.returncode == 0, done.stdout[-2000:]
    if what == "examples":
        # As wide as the text, and no higher than a page.
        assert "Overfull" not in done.stdout
        assert "too large" not in done.stdout
