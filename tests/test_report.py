"""The whole report of a run that has everything in it: every status, ties, gaps, hostile names."""

from __future__ import annotations

import csv
import io
import math
import os
import random
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from rich.console import Console

from tradebench import report
from tradebench.errors import NothingToCompareError
from tradebench.report import (
    bars,
    content,
    cover,
    findings,
    fronts,
    markdown,
    page,
    plot,
    scatter,
    style,
    tables,
)
from tradebench.result import (
    CATEGORIES,
    SCHEMA,
    Environment,
    Kind,
    Measurement,
    Result,
    Status,
    digest,
)
from tradebench.store import Run

ROOT = Path(__file__).parents[1]
HOSTILE = (
    "</script><script>alert(1)</script> $x_2$ | `a` **b** \u202eevil\u202c 😀\n" + "long " * 60
)
MODEL = {"name": "reference", "revision": None, "config": None, "weights": "hub"}
BUDGET = {"steps": 40, "warmup": 5, "batch": 8, "sequence": 128, "seed": 0}
TASKS = ("arithmetic", "recall")
ENVIRONMENT = Environment(
    software={"python": "3.11.7", "torch": "2.13.0", "transformers": "5.23.0"},
    hardware={"device": "cpu", "cores": 8, "memory_bytes": 34359738368},
    code={"tradebench": "0.1.0", "commit": "0123abc", "dirty": "no"},
    missing={"gpu": "no CUDA device"},
)
SUITE = """# Which saving of memory costs how much accuracy on the reference model?
#
# Little, as far
# as three seeds tell.
model: reference
grid:
  quantization: [off, int8, nf4]
"""

Settings = dict[str, dict[str, Any]]


def settings_of(
    *,
    precision: str = "fp32",
    quantization: str | None = None,
    rank: int | None = None,
    sparsity: float | None = None,
    ratio: float | None = None,
) -> Settings:
    found: Settings = {"precision": {"method": precision}}
    if sparsity is not None:
        found["pruning"] = {"method": "magnitude", "sparsity": sparsity}
    if quantization is not None:
        found["quantization"] = {"method": quantization}
    if rank is not None:
        found["adapters"] = {"method": "lora", "rank": rank, "alpha": None, "merge": False}
    if ratio is not None:
        found["checkpointing"] = {"method": "full", "ratio": ratio}
    return found


def label_of(settings: Settings) -> str:
    words: dict[str, Callable[[dict[str, Any]], str]] = {
        "precision": lambda f: f["method"],
        "pruning": lambda f: f"magnitude {f['sparsity']:.0%}",
        "quantization": lambda f: f["method"],
        "adapters": lambda f: f"lora r{f['rank']}",
        "checkpointing": lambda f: f"checkpointing {f['ratio']:g}",
    }
    return " + ".join(words[slot](fields) for slot, fields in settings.items())


def measured(settings: Settings, repeat: int, predicted: bool = False) -> dict[str, Measurement]:
    """Numbers that behave as the techniques do: roughly right, and noisy between repeats."""
    noise = random.Random(digest([settings, repeat]))
    get = settings
    bits = {"fp32": 32, "bf16": 16}[get["precision"]["method"]]
    stored = {"int8": 8.5, "nf4": 4.6, "fp4": 4.6}.get(
        get.get("quantization", {}).get("method", ""), bits
    )
    rank = get.get("adapters", {}).get("rank")
    ratio = get.get("checkpointing", {}).get("ratio", 0.0)
    sparsity = get.get("pruning", {}).get("sparsity", 0.0)
    size = 9_400_000
    trained = size if rank is None else 26_000 * rank
    parts = {
        "weights": int(size * stored / 8 + (0 if rank is None else trained * 4)),
        "gradients": trained * bits // 8,
        "optimizer": trained * 2 * bits // 8,
        "activations": int(61e6 * bits / 32 * (1 - 0.78 * ratio)),
        "communication": 0,
        "temporaries": int(7e6 * bits / 32),
        "other": 120_000,
    }
    total = sum(parts.values())
    found = {f"peak_{name}_bytes": Measurement(value=parts[name], unit="B") for name in CATEGORIES}
    found["peak_tensor_bytes"] = Measurement(value=total, unit="B")
    found["peak_tensor_bytes.load"] = Measurement(value=size * 4, unit="B")
    found["trainable_parameters"] = Measurement(value=trained, unit="1")
    if predicted:
        return found
    step = 0.21 * (1 + 0.31 * ratio) * (1.6 if stored < bits else 1) * noise.gauss(1, 0.015)
    steps = tuple(step * noise.gauss(1, 0.03) for _ in range(20))
    found["step_seconds"] = Measurement(
        value=step, unit="s", samples=steps, interval=(step * 0.985, step * 1.015)
    )
    found["tokens_per_second"] = Measurement(value=1024 / step, unit="1/s", better="more")
    for at, task in enumerate(TASKS):
        full = 0.86 - 0.14 * at
        before = full - 0.25 - 0.45 * sparsity**3 - (0.06 if stored < 5 else 0.01)
        gain = 0.25 if rank is None else 0.06 + 0.03 * math.log2(rank)
        after = before + gain + noise.gauss(0, 0.008)
        for when, value in (("accuracy_before", before), ("accuracy", after)):
            low, high = max(0.0, value - 0.028), min(1.0, value + 0.028)
            found[f"{when}.{task}"] = Measurement(
                value=value, unit="1", better="more", interval=(low, high)
            )
    return found


def result(
    settings: Settings,
    *,
    repeat: int = 0,
    status: Status = "ok",
    reason: str | None = None,
    label: str | None = None,
    without: tuple[str, ...] = (),
    kind: Kind = "measured",
    warnings: tuple[str, ...] = (),
) -> Result:
    numbers = measured(settings, repeat, kind == "predicted") if status == "ok" else {}
    return Result(
        schema=SCHEMA,
        kind=kind,
        suite="quickstart",
        trial=digest([settings, label]),
        repeat=repeat,
        label=label_of(settings) if label is None else label,
        model=MODEL,
        budget=BUDGET,
        evaluate={"tasks": list(TASKS), "limit": 400},
        settings=settings,
        status=status,
        reason=reason,
        phase="train" if status != "skipped" else None,
        measurements={name: each for name, each in numbers.items() if name not in without},
        warnings=warnings,
        environment=ENVIRONMENT,
        started="2026-01-02T03:04:05.000+00:00",
        seconds=12.5,
    )


def everything() -> tuple[Result, ...]:
    good = [
        settings_of(),
        settings_of(precision="bf16"),
        *(settings_of(rank=rank) for rank in (4, 8, 16, 32, 64)),
        *(settings_of(precision="bf16", rank=16, quantization=q) for q in (None, "int8", "nf4")),
        settings_of(rank=16, quantization="nf4"),
        settings_of(rank=16, quantization="fp4"),
        settings_of(rank=16, quantization="int8"),
        *(settings_of(sparsity=share) for share in (0.25, 0.5, 0.75, 0.9)),
        *(settings_of(ratio=ratio) for ratio in (0.25, 0.5, 1.0)),
        *(settings_of(precision="bf16", rank=16, quantization="nf4", ratio=r) for r in (0.5, 1.0)),
    ]
    found = [result(each, repeat=repeat) for repeat in range(3) for each in good]
    rare = settings_of(rank=128)
    caution = "pruned weights are stored densely: sparsity costs accuracy here and saves 0 bytes"
    found += [
        result(settings_of(rank=2), label=HOSTILE, warnings=(caution,)),
        result(settings_of(rank=1), label=HOSTILE, warnings=(caution, "a warning of </b> its own")),
        result(settings_of(rank=24), without=("accuracy.arithmetic",)),
        result(rare),
        result(rare, repeat=1, status="oom", reason="asked for 512 MiB with 96 MiB free in train"),
        result(settings_of(rank=256), status="oom", reason="asked for 1.2 GiB with 0.9 GiB free"),
        result(settings_of(ratio=0.75), status="failed", reason="RuntimeError: shape mismatch"),
        result(settings_of(ratio=0.6), status="timeout", reason="no result after 600 s"),
        result(settings_of(ratio=0.7), status="killed", reason="interrupted by the user"),
        result(settings_of(sparsity=0.99), status="diverged", reason="the loss became NaN"),
        *(
            result(
                settings_of(quantization=method),
                status="skipped",
                reason="packed weights take no gradient; add lora",
            )
            for method in ("int8", "nf4", "fp4")
        ),
    ]
    return tuple(found)


def run_of(results: tuple[Result, ...], **header: Any) -> Run:
    full = {
        "schema": "tradebench.run/1",
        "suite": "quickstart",
        "question": "Which saving of memory costs how much accuracy on the reference model?",
        "suite_text": SUITE,
        "objectives": ["peak_tensor_bytes", "step_seconds", "accuracy.arithmetic"],
        "limits": {"peak_tensor_bytes": 120 * 2**20, "accuracy.arithmetic": 0.7},
        "argv": ["tradebench", "run", "suites/quickstart.yaml"],
        "started": "2026-01-02T03:04:05.000+00:00",
        "ended": "2026-01-02T03:24:05.000+00:00",
        "environment": ENVIRONMENT.model_dump(mode="json"),
        **header,
    }
    return Run(
        directory=Path("results/quickstart/20260102T030405Z-abc123"),
        header=full,
        results=results,
        attempts=results,
        problems=("trials.a.jsonl:7: left out, not a Result (Field required)",),
    )


class Page(HTMLParser):
    """What a browser would see: tags, ids, addresses and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.ids: Counter[str] = Counter()
        self.addresses: list[str] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        for name, value in attrs:
            if name == "id":
                self.ids[value or ""] += 1
            if name in {"href", "src", "xlink:href", "action"}:
                self.addresses.append(value or "")

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def run() -> Run:
    return run_of(everything())


@pytest.fixture(scope="module")
def out(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    report.write(run, folder)
    return folder


@pytest.fixture(scope="module")
def html(out: Path) -> str:
    return (out / "index.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def seen(html: str) -> Page:
    return Page(html)


def small(**header: Any) -> Run:
    """A run of four points, quick to draw."""
    settings = (settings_of(), settings_of(precision="bf16"), settings_of(rank=8))
    found = tuple(result(each, repeat=repeat) for each in settings for repeat in range(2))
    return run_of((*found, result(settings_of(rank=4), status="oom", reason="too big")), **header)


def test_every_file_is_written(out: Path) -> None:
    names = {path.name for path in out.iterdir()}

    assert {"index.html", "report.md", "trials.csv", "pareto.svg", "pareto.png"} <= names
    assert {"memory.png", "accuracy.png", "time.png", "series-adapters-rank.svg"} <= names


def test_the_page_needs_nothing_from_outside(seen: Page, html: str) -> None:
    outside = [each for each in seen.addresses if not each.startswith("#")]

    assert outside == ["trials.csv"]
    assert "@import" not in html
    assert "default-src 'none'" in html
    assert not seen.tags["img"] + seen.tags["link"] + seen.tags["iframe"]


def test_what_the_suite_says_about_its_question_stands_below_it(seen: Page, out: Path) -> None:
    lines = (out / "report.md").read_text(encoding="utf-8").splitlines()

    assert lines[2].endswith("on the reference model?")
    assert lines[4] == "Little, as far as three seeds tell."
    assert "Little, as far as three seeds tell." in seen.text


def test_hostile_names_stay_text(seen: Page, html: str) -> None:
    # Vega's and the page's own, and the points of each group as data.
    assert seen.tags["script"] == 2 + len(fronts.groups(run_of(everything())))
    assert seen.tags["b"] == 0
    assert "</script><script>alert(1)</script> $x_2$" in seen.text
    assert "\u202e" not in html


def test_no_id_is_used_twice(seen: Page) -> None:
    assert [each for each, times in seen.ids.items() if times > 1] == []


def test_every_point_is_in_the_table(run: Run, html: str) -> None:
    names = [point.name for group in fronts.groups(run) for point in group.points]

    assert len(names) == len(set(names)) == 34
    assert html.count('<th scope="row">') == 34


def test_every_status_and_reason_is_told(run: Run, seen: Page) -> None:
    for each in run.results:
        assert tables.STATUS_WORDS[each.status] in seen.text
        assert (each.reason or "") in seen.text


def test_every_figure_with_accuracies_says_whose_they_are(out: Path, seen: Page) -> None:
    sentence = "it is not the accuracy of a larger model"
    drawn = {path.stem: path.read_text(encoding="utf-8") for path in out.glob("*.svg")}
    shown = {name: svg for name, svg in drawn.items() if "Accuracy on" in svg}

    assert {"pareto", "accuracy", "series-adapters-rank"} <= set(shown)
    assert all(sentence in svg for svg in shown.values())
    # In each such drawing but the front, which the page draws itself, and in its caption; beside
    # the findings and what fits; beneath the page's own drawing, the table and the maps.
    assert seen.text.count(sentence) == 2 * (len(shown) - 1) + 5


def test_the_page_tells_how_to_run_it_again(seen: Page) -> None:
    assert "tradebench run suites/quickstart.yaml" in seen.text
    assert "quantization: [off, int8, nf4]" in seen.text


def test_environment_warnings_and_unreadable_lines_are_shown(seen: Page) -> None:
    assert "hardware" in seen.text.lower()
    assert "32.0 GiB" in seen.text
    assert "no CUDA device" in seen.text
    assert "pruned weights are stored densely" in seen.text
    assert "(2 points)" in seen.text
    assert "trials.a.jsonl:7: left out" in seen.text


def test_bars_name_the_whole_peak(run: Run, out: Path) -> None:
    svg = (out / "memory.svg").read_text(encoding="utf-8")
    point = next(each for each in fronts.groups(run)[0].points if each.name == "fp32")

    assert f"{(point.value('peak_tensor_bytes') or 0) / 2**20:.0f} MiB" in svg


def test_a_report_is_the_same_bytes_every_time(tmp_path: Path) -> None:
    run = small(objectives=["peak_tensor_bytes", "step_seconds"])
    first, second = (report.write(run, tmp_path / name) for name in ("a", "b"))

    assert [path.name for path in first] == [path.name for path in second]
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes() == other.read_bytes(), one.name


def test_the_csv_is_tidy_and_leaves_no_result_out(run: Run, out: Path) -> None:
    rows = list(csv.DictReader(io.StringIO((out / "trials.csv").read_text(encoding="utf-8"))))
    peaks = [row for row in rows if row["measurement"] == "peak_tensor_bytes"]

    assert {(row["trial"], row["repeat"]) for row in rows} == {
        (each.trial, str(each.repeat)) for each in run.results
    }
    assert {row["unit"] for row in peaks} == {"B"}
    assert all(row["value"].isdigit() for row in peaks)


def test_markdown_shows_hostile_names_as_they_are(out: Path) -> None:
    text = (out / "report.md").read_text(encoding="utf-8")

    assert len(text) < markdown.MAX_CHARACTERS
    assert "<script>" not in text
    assert "&lt;/script&gt;" in text
    assert "\\`a\\` \\*\\*b\\*\\*" in text
    assert "![" in text
    assert "(pareto.png)" in text


def assert_renders(text: str) -> None:
    """Every row of a table has as many cells as its head, and a line of dashes is below that."""
    tables = re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE)
    assert tables
    for table in tables:
        rows = table.splitlines()
        assert re.fullmatch(r"\|(?: -{3}:? \|)+", rows[1])
        assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows}) == 1


def test_markdown_renders_and_links_to_what_was_written(out: Path) -> None:
    text = (out / "report.md").read_text(encoding="utf-8")

    assert_renders(text)
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert links
    assert all(link.startswith("https://") or (out / link).is_file() for link in links)


@pytest.mark.slow
@pytest.mark.parametrize("number", [300, 1100])
def test_markdown_of_many_points_is_short_enough_and_renders(number: int) -> None:
    """With names, reasons and verdicts as long as they come."""
    every = run_of(
        tuple(
            result(
                settings_of(rank=rank),
                label=f"{HOSTILE} {rank}",
                status="ok" if rank % 3 else "oom",
                reason=None if rank % 3 else f"asked for {rank} MiB " + "and more " * 60,
            )
            for rank in range(1, number + 1)
        )
    )
    text = markdown.text(every, [_undrawn(every)])

    assert len(text) < markdown.MAX_CHARACTERS
    assert_renders(text)
    assert "## How to run it again" in text


def test_long_lists_of_reasons_lose_their_ends() -> None:
    many = tuple(
        result(settings_of(rank=rank), status="oom", reason=f"asked for {rank} MiB")
        for rank in range(1, 1200)
    )
    text = markdown.text(run_of(many), [_undrawn(run_of(many))])

    assert len(text) < markdown.MAX_CHARACTERS
    assert re.search(r"And \d+ reasons more, in index\.html and trials\.csv\.", text)
    assert "## Environment" in text


@pytest.mark.slow
def test_markdown_that_is_still_too_long_is_cut_with_a_sentence() -> None:
    warnings = tuple(f"warning {number}: {'long ' * 60}" for number in range(300))
    every = run_of((result(settings_of(), warnings=warnings),))
    text = markdown.text(every, [_undrawn(every)])

    assert len(text) < markdown.MAX_CHARACTERS
    assert text.endswith("index.html and trials.csv hold everything.\n")


@pytest.mark.slow
def test_the_table_of_a_thousand_points_is_cut_and_nothing_else() -> None:
    every = run_of(tuple(result(settings_of(rank=rank)) for rank in range(1, 1001)))
    section = replace(_undrawn(every), endings=())
    text = markdown.text(every, [section])
    rows = [line for line in text.splitlines() if line.startswith("| ") and "lora r" in line]

    assert len(text) < markdown.MAX_CHARACTERS
    assert 100 <= len(rows) < 1000
    assert f"And {1000 - len(rows)} points more, in index.html and trials.csv." in text
    assert "## Environment" in text
    assert "## How to run it again" in text


def test_the_latex_table_prints_hostile_names_as_they_are(out: Path) -> None:
    text = (out / "table.tex").read_text(encoding="utf-8")

    assert r"\toprule" in text
    assert r"\textless{}/script\textgreater{}" in text
    assert r"\$x\_2\$" in text
    assert "\u202e" not in text
    assert "it is not the accuracy of a larger model" in text


@pytest.mark.slow
def test_two_processes_write_the_same_bytes(tmp_path: Path) -> None:
    folders = [tmp_path / "one", tmp_path / "other"]
    for seed, folder in enumerate(folders):
        command = [sys.executable, "-m", "tradebench", "report", "--pdf", "--parquet", "-o"]
        subprocess.run(
            [*command, folder, ROOT / "results/quickstart-full/example"],
            env={**os.environ, "PYTHONHASHSEED": str(seed)},
            check=True,
            capture_output=True,
        )
    names = sorted(path.name for path in folders[0].iterdir())

    assert names == sorted(path.name for path in folders[1].iterdir())
    assert {"pareto.pdf", "pareto.svg", "pareto.png", "trials.parquet", "table.tex"} <= set(names)
    for name in names:
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes(), name


def test_bits_that_no_file_has_of_a_place_change_no_byte(tmp_path: Path) -> None:
    """The layout's solver leaves others in the last places from run to run."""
    found = []
    for jitter in (0.0, 1e-13):
        with style.drawing("one"):
            figure = Figure(figsize=(3, 2))
            figure.add_axes((0.1 + jitter, 0.1, 0.8, 0.8)).plot([1, 2], [1, 2])
            picture = style.save(figure, "one", style.Folder(tmp_path), "one", "", "")
        found.append(picture.paths[0].read_text(encoding="utf-8"))

    assert "clip-path" in found[0]
    assert found[0] == found[1]


def test_parquet_holds_what_the_csv_holds(run: Run, tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    tables.write_parquet(tables.frame(run.results), tmp_path / "trials.parquet")
    read = pandas.read_parquet(tmp_path / "trials.parquet")

    assert tuple(read.columns) == tables.COLUMNS
    assert len(read) == len(tables.frame(run.results))
    assert str(read["value"].dtype) == "float64"


@pytest.mark.slow
def test_every_figure_has_one_message_for_a_title(run: Run, tmp_path: Path) -> None:
    (group, *_) = fronts.groups(run)
    pictures = [
        bars.time_figure(group, "time", style.Folder(tmp_path)),
        bars.memory_figure(group, "memory", style.Folder(tmp_path)),
    ]
    titles = [picture.title for picture in pictures if picture is not None]

    assert titles[0].startswith("Shortest step: ")
    assert titles[1].startswith("Least memory: ")
    assert "% less than fp32" in titles[1]


@pytest.mark.parametrize("width", [80, 160])
def test_the_front_is_drawn_as_wide_as_the_terminal(run: Run, width: int) -> None:
    (group, *_) = fronts.groups(run)
    drawn = plot.plot(group, width)

    assert drawn is not None
    lines = drawn.plain.splitlines()
    assert max(map(len, lines)) <= width
    assert lines[0] == "Accuracy on arithmetic (%), more is better"
    assert any("Peak tensor memory (MiB), less is better" in line for line in lines)
    numbers = {int(each) for line in lines[1:16] for each in re.findall(r"\d+", line[8:])}
    assert numbers <= {group.numbers[each.trial] for each in group.labelled("front")}
    assert len(numbers) >= len(group.labelled("front")) // 2


@pytest.mark.parametrize("width", [80, 160])
def test_the_terminal_report_stays_within_its_columns(run: Run, width: int) -> None:
    console = Console(width=width, no_color=True)
    with console.capture() as captured:
        console.print(report.table(run, width))

    assert max(len(line.rstrip()) for line in captured.get().splitlines()) <= width


def _undrawn(run: Run) -> page.Section:
    (group,) = fronts.groups(run)
    shown = content.columns(group)
    return page.Section(
        group=group,
        findings=tuple(findings.findings(group)),
        pictures=(),
        columns=shown,
        rows=content.rows(group, shown),
        endings=content.endings(group),
        directory=run.directory,
    )


def test_kinds_of_evidence_are_kept_apart(tmp_path: Path) -> None:
    predicted = tuple(
        result(each, kind="predicted")
        for each in (settings_of(), settings_of(rank=8), settings_of(rank=64))
    )
    run = run_of((*small().results, *predicted))
    paths = report.write(run, tmp_path)
    seen = Page((tmp_path / "index.html").read_text(encoding="utf-8"))

    assert [group.kind for group in fronts.groups(run)] == ["measured", "predicted"]
    assert tmp_path / "memory-predicted-1.svg" in paths
    assert "measured and predicted numbers" in seen.text
    assert "Predicted and measured" in seen.text
    assert "Peak tensor memory of 2 points: median error 0.00%, largest 0.00%" in seen.text


def test_what_was_rehearsed_beside_its_measurement_is_a_table_of_errors(tmp_path: Path) -> None:
    predicted = (result(settings_of(), kind="predicted"),)
    run = run_of((*small().results, *predicted))
    paths = report.write(run, tmp_path)
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    seen = Page((tmp_path / "index.html").read_text(encoding="utf-8"))

    assert not [path for path in paths if "predicted" in path.name]
    for shown in (text, seen.text):
        assert "Predicted and measured" in shown
        assert "Peak tensor memory of 1 point: median error 0.00%" in shown
    assert "predicted for" not in seen.text
    assert "predicted" in (tmp_path / "trials.csv").read_text(encoding="utf-8")


def test_a_run_without_any_good_point_still_has_a_report(tmp_path: Path) -> None:
    run = run_of((result(settings_of(), status="failed", reason="it broke"),))
    paths = report.write(run, tmp_path)

    assert [path.name for path in paths] == ["index.html", "report.md", "trials.csv"]
    assert "it broke" in paths[0].read_text(encoding="utf-8")


def test_a_run_without_results_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NothingToCompareError, match="holds no result yet"):
        report.write(run_of(()), tmp_path)


def test_one_objective_needs_no_scatter_plot(tmp_path: Path) -> None:
    (group,) = fronts.groups(small(objectives=["step_seconds"], limits={}))

    assert scatter.pareto_figure(group, "pareto", style.Folder(tmp_path)) is None
    assert list(tmp_path.iterdir()) == []


def test_four_objectives_are_drawn_in_six_panels(tmp_path: Path) -> None:
    wanted = ["peak_tensor_bytes", "step_seconds", "accuracy.arithmetic", "tokens_per_second"]
    (group,) = fronts.groups(small(objectives=wanted))
    picture = scatter.pareto_figure(group, "pareto", style.Folder(tmp_path))

    assert picture is not None
    assert picture.svg.count("↑ Throughput (tokens/s)") == 3


def test_what_no_objective_tells_apart_is_said(run: Run) -> None:
    one, other = settings_of(rank=8), settings_of(rank=9)
    twins = [
        result(one, repeat=repeat).model_copy(update={"trial": trial, "settings": settings})
        for trial, settings in (("one", one), ("other", other))
        for repeat in range(2)
    ]
    (group,) = fronts.groups(run_of((*twins, *(result(settings_of(), repeat=r) for r in (0, 1)))))
    standings = {row.number: row.standing for row in content.rows(group, content.columns(group))}

    assert group.alike == {"one": ("other",), "other": ("one",)}
    assert sum(", like " in each for each in standings.values()) == 2
    assert "No objective tells these points of the front apart" in " ".join(
        findings.findings(group)
    )


def test_the_front_as_a_whole_is_a_share_of_a_box() -> None:
    """One point at half of both limits covers a quarter of the box; noise gives it an interval."""
    step = {"step_seconds": Measurement(value=1.0, unit="s")}
    memory = {"peak_tensor_bytes": Measurement(value=2**30, unit="B")}
    points = [
        result(settings_of(rank=rank)).model_copy(
            update={
                "measurements": step | memory
                if rank == 1
                else {
                    n: m.model_copy(update={"value": 1.5 * m.value})
                    for n, m in (step | memory).items()
                }
            }
        )
        for rank in (1, 2)
    ]
    objectives = ["peak_tensor_bytes", "step_seconds"]
    limits = {"peak_tensor_bytes": 2 * 2**30, "step_seconds": 2.0}
    (group,) = fronts.groups(run_of(tuple(points), objectives=objectives, limits=limits))
    (free,) = fronts.groups(run_of(tuple(points), objectives=objectives, limits={}))
    found, alone = cover.cover(group), cover.cover(free)

    assert found is not None
    assert alone is not None
    assert (found.share, found.low, found.high, found.fixed) == (0.25, 0.25, 0.25, True)
    assert alone.share == pytest.approx((1 - 1 / 1.65) ** 2)
    assert alone.reference == pytest.approx(
        {"peak_tensor_bytes": 1.65 * 2**30, "step_seconds": 1.65}
    )
    assert not alone.fixed
    assert "a tenth beyond the worst of this run" in alone.text


def test_the_cover_has_an_interval_where_points_have_noise(run: Run) -> None:
    (measured_group, *_) = fronts.groups(run)
    found = cover.cover(measured_group)

    assert found is not None
    assert 0 < found.low < found.share < found.high < 1


def test_the_terminal_table_names_points_and_front(run: Run) -> None:
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(report.table(run))
    text = console.export_text()

    assert "bf16 + int8 + lora r16" in text
    assert "out of memory 1 of 2, ok 1 of 2" in text
    assert "Front over peak tensor memory, step time and accuracy on arithmetic: 6 points" in text


def test_a_narrow_terminal_cuts_no_number(run: Run) -> None:
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(report.table(run))
    lines = console.export_text().splitlines()

    assert max(map(len, lines)) <= 80
    assert any(line.rstrip().endswith("59.0 ± 2.9") for line in lines)


def test_long_terminal_tables_are_cut_with_a_sentence() -> None:
    run = run_of(tuple(result(settings_of(rank=rank)) for rank in range(1, 60)))
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(report.table(run))

    assert "and 19 more, all of them in the report" in console.export_text()


def test_an_empty_run_has_a_table_too() -> None:
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(report.table(run_of(())))

    assert console.export_text() == "No point has a result yet.\n"


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("tradebench.report", ("matplotlib", "pandas", "jinja2", "numpy", "torch")),
        ("tradebench.report.terminal", ("matplotlib", "pandas", "jinja2", "torch")),
        ("tradebench.report.page", ("torch", "transformers")),
    ],
)
def test_reports_load_only_what_they_need(module: str, heavy: tuple[str, ...]) -> None:
    code = f"import sys, {module}; print([name for name in {heavy} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert found.stdout.strip() == "[]"


@pytest.mark.slow
def test_of_too_many_points_a_figure_shows_the_front_and_every_method(tmp_path: Path) -> None:
    """No rank beats another; the one pruned point is worse than all of them."""
    crowd = tuple(result(settings_of(rank=rank)) for rank in range(1, 43))
    (group,) = fronts.groups(run_of(crowd))
    (mixed,) = fronts.groups(run_of((*crowd, result(settings_of(rank=20, sparsity=0.9)))))
    pictures = [bars.time_figure(each, "time", style.Folder(tmp_path)) for each in (group, mixed)]
    captions = [picture.caption for picture in pictures if picture is not None]
    front = group.labelled("front")
    fastest = min(group.ok, key=lambda point: point.estimates["step_seconds"].value)

    assert len(front) < bars.FEW
    # What the title names is drawn, on the front or not.
    assert fastest not in front
    assert (
        f"Drawn are {len(front) + 1} of 42 points: the front and the one that the title names; "
        "the table has all." in captions[0]
    )
    assert "the best with each method that it lacks" in captions[1]
    assert pictures[1] is not None
    assert "magnitude 90%" in pictures[1].svg


def test_many_tasks_are_spread_over_figures(tmp_path: Path) -> None:
    extra = {f"accuracy.{task}": Measurement(value=0.5, unit="1", better="more") for task in "abc"}
    found = result(settings_of())
    found = found.model_copy(update={"measurements": {**found.measurements, **extra}})
    (group,) = fronts.groups(run_of((found,)))
    pictures = bars.accuracy_figures(group, "accuracy", style.Folder(tmp_path))

    assert [picture.name for picture in pictures] == ["accuracy", "accuracy-2"]


def test_far_apart_values_are_drawn_on_a_log_axis(tmp_path: Path) -> None:
    (group,) = fronts.groups(run_of((*small().results, result(settings_of(rank=20_000)))))
    picture = scatter.pareto_figure(group, "pareto", style.Folder(tmp_path))

    assert picture is not None
    assert "Peak tensor memory (GiB), log" in picture.svg
