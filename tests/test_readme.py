"""What the README says is what the program does."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
GENERATED = re.compile(
    r"<!-- tradebench (?P<command>.+?) -->\n(?P<table>.*?)<!-- end -->", re.DOTALL
)
COMMANDS = [
    line
    for block in re.findall(r"```console\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
]


def tradebench(words: list[str], folder: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "tradebench", *words], cwd=folder, capture_output=True, text=True
    )


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the suites, baselines and examples in it, where commands may write."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "results").mkdir()
    examples = [file.parents[1].name for file in ROOT.glob("results/*/example/run.json")]
    kept = ("suites", "results/baselines", "results/h200")
    for name in (*kept, *(f"results/{name}" for name in examples)):
        (folder / name).symlink_to(ROOT / name)
    return folder


@pytest.mark.slow
def test_every_command_works_in_the_order_it_is_shown(checkout: Path) -> None:
    assert COMMANDS
    for line in COMMANDS:
        program, *words = shlex.split(line)
        assert program == "tradebench"
        done = tradebench(words, checkout)

        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"


@pytest.mark.parametrize(
    "match", list(GENERATED.finditer(README)), ids=lambda match: match["command"]
)
def test_tables_are_what_their_command_prints(match: "re.Match[str]") -> None:
    printed = tradebench(shlex.split(match["command"]), ROOT).stdout

    assert match["table"].strip() == printed.strip()


def regenerate() -> None:
    """Put what each command prints today between its marks."""

    def fill(match: "re.Match[str]") -> str:
        printed = tradebench(shlex.split(match["command"]), ROOT)
        printed.check_returncode()
        return f"<!-- tradebench {match['command']} -->\n{printed.stdout.strip()}\n<!-- end -->"

    (ROOT / "README.md").write_text(GENERATED.sub(fill, README))


def test_every_link_leads_to_a_file() -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", README)

    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


@pytest.mark.parametrize("text", re.findall(r"```yaml\n(.*?)```", README, re.DOTALL))
def test_an_example_suite_is_a_suite(checkout: Path, text: str) -> None:
    (checkout / "mine.jsonl").write_text('{"text": "a row"}\n')
    (checkout / "example.yaml").write_text(text)

    assert tradebench(["suite", "check", "example.yaml"], checkout).returncode == 0


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        ({}, "check latest --results r --md s --baseline b --confirm 1 --junit j"),
        ({"POLICY": "p", "STRICT": "true"}, " --policy p --strict"),
    ],
)
def test_the_action_says_what_its_inputs_ask_for(
    tmp_path: Path, inputs: dict[str, str], expected: str
) -> None:
    action = YAML(typ="safe").load((ROOT / ".github/actions/check/action.yml").read_text())
    step = next(step for step in action["runs"]["steps"] if step["name"] == "check")
    given = dict.fromkeys(step["env"], "") | {"BASELINE": "b", "CONFIRM": "1", "RESULTS": "r"}
    stub = tmp_path / "tradebench"
    stub.write_text('#!/bin/sh\necho "$@"\n')
    stub.chmod(0o755)
    done = subprocess.run(
        ["bash", "-e", "-c", step["run"]],
        env={
            **given,
            "JUNIT": "j",
            **inputs,
            "GITHUB_STEP_SUMMARY": "s",
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
        },
        capture_output=True,
        text=True,
        check=True,
    )

    assert expected in done.stdout


if __name__ == "__main__":
    regenerate()
