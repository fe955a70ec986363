"""The errors that answers name are those of the committed validation.

`python tests/test_held.py` reads tradebench/published/held.csv off reports/validation again.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from pathlib import Path

from tradebench.published.comparison import errors
from tradebench.published.expression import expressed
from tradebench.published.held import FILE, held

REPORT = Path(__file__).parents[1] / "reports" / "validation" / "report.md"
ROW = re.compile(
    r"\| (?P<row>[A-Z]\d+)(?:\\\*)? \| .* \| (?P<published>[\d.]+) (?:GiB|s) \| .* \| "
    r"(?:(?P<low>[\d.]+) (?:GiB|s) to (?P<high>[\d.]+) (?:GiB|s)|–) \| (?P<ratio>[\d.]+) \|"  # noqa: RUF001
)


def lines(report: str) -> Iterator[tuple[str, ...]]:
    for line in report.splitlines():
        match = ROW.fullmatch(line)
        if match is None:
            continue
        published = float(match["published"])
        ends = (match["low"], match["high"])
        shares = (f"{float(each) / published:.3f}" if each else "" for each in ends)
        yield (match["row"], match["ratio"], *shares)


def text(report: str) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerows([("row", "ratio", "low", "high"), *lines(report)])
    return out.getvalue()


def test_the_data_of_the_package_is_what_the_committed_report_says() -> None:
    assert FILE.read_text(encoding="utf-8") == text(REPORT.read_text(encoding="utf-8"))


def test_every_published_row_has_its_prediction() -> None:
    assert [one.published.row.id for one in held()] == [one.row.id for one in expressed()]
    assert all(one.prediction is not None for one in held())


def test_the_promised_medians_are_those_of_the_report() -> None:
    report = REPORT.read_text(encoding="utf-8")
    for counter, name in (("allocated", "Allocated"), ("reserved", "Reserved")):
        found = errors(
            one for one in held() if one.promised and one.published.reading.counter == counter
        )

        assert f"| {found.count} | 0 | {found.median:.1%} | {found.largest:.1%} | – |" in (  # noqa: RUF001
            next(line for line in report.splitlines() if line.startswith(f"| {name} memory | "))
        )


if __name__ == "__main__":
    FILE.write_text(text(REPORT.read_text(encoding="utf-8")), encoding="utf-8")
