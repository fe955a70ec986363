"""What the README says is what the program does."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

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
    """A folder with the suites and baselines in it, where commands may write."""
    folder = tmp_path_factory.mktemp("readme")
    for name in ("suites", "baselines"):
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


def test_the_example_suite_is_a_suite(checkout: Path) -> None:
    (text,) = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    (checkout / "mine.jsonl").write_text('{"text": "a row"}\n')
    (checkout / "example.yaml").write_text(text)

    assert tradebench(["suite", "check", "example.yaml"], checkout).returncode == 0


if __name__ == "__main__":
    regenerate()
