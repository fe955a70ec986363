"""The README's example repository, copied: what a team is told when its own code gets worse."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from ruamel.yaml import YAML

README = (Path(__file__).parents[1] / "README.md").read_text()
# A technique of the team's, in its own package. Every step begins so long after the one before, as
# on a device that has no neighbours: computing is the smaller part, and may be slow where tests run
# side by side.
OWN = '''"""A loss of the team's own."""

import time
from pathlib import Path
from typing import Literal

from tradebench.techniques import Stage, Technique


class Own(Technique):
    """Computes the loss as ever."""

    slot, stage, axis, cite = "loss", Stage.FEED, "method", "the team"

    method: Literal["own"]

    def loss(self, function):
        seconds = float((Path(__file__).parent / "seconds").read_text())
        last, kept = [time.perf_counter()], []

        def own(model, batch):
            time.sleep(max(0.0, last[-1] + seconds - time.perf_counter()))
            last.append(time.perf_counter())
            return function(model, batch)

        return own
'''
SECONDS = 0.3  # from step to step; to compute one takes a hundredth of a second


@dataclass(frozen=True)
class Done:
    code: int
    text: str


@dataclass(frozen=True)
class Team:
    """A checkout of the README's example, and the commands of its workflow."""

    folder: Path
    run: str
    check: str

    def shell(self, command: str) -> Done:
        program = f"exec {sys.executable} -m tradebench"
        path = [str(self.folder / "own"), *filter(None, [os.environ.get("PYTHONPATH")])]
        done = subprocess.run(
            ["bash", "-ec", re.sub(r"^tradebench", program, command.strip())],
            cwd=self.folder,
            env={
                **os.environ,
                "GITHUB_STEP_SUMMARY": str(self.folder / "summary.md"),
                "PYTHONDONTWRITEBYTECODE": "1",  # the technique changes within a second
                "PYTHONPATH": os.pathsep.join(path),
            },
            capture_output=True,
            text=True,
            check=False,
        )
        assert "Traceback" not in done.stderr
        return Done(done.returncode, done.stdout)

    def measure(self, *, seconds: float = SECONDS, more: str = "") -> None:
        """One run of the suite, on a device that takes so long for a step."""
        (self.folder / "own" / "seconds").write_text(str(seconds))
        assert self.shell(f"{self.run.strip()} {more}").code == 0

    def plant(self, old: str, new: str) -> None:
        """Change the technique as a commit would."""
        assert old in OWN
        (self.folder / "own" / "own.py").write_text(OWN.replace(old, new))


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Team:
    """The layout with a baseline, made as the README says; its suite has the team's technique."""
    folder = tmp_path_factory.mktemp("team")
    named = folder / "own" / "own-1.dist-info"
    for each in (folder / "suites", folder / "baselines", named):
        each.mkdir(parents=True)
    (named / "METADATA").write_text("Metadata-Version: 2.1\nName: own\nVersion: 1\n")
    (named / "entry_points.txt").write_text("[tradebench.techniques]\nown = own:Own\n")
    (folder / "own" / "seconds").write_text(str(SECONDS))

    suite = next(text for text in blocks("yaml") if text.startswith("# suites/ci.yaml"))
    (folder / "suites" / "ci.yaml").write_text(suite.replace("grid: {", "grid: {loss: own, "))
    (workflow,) = blocks("yml")
    steps = YAML(typ="safe").load(workflow)["jobs"]["tradebench"]["steps"]
    run, check = (step["run"] for step in steps if "run" in step)
    made = Team(folder, run, check)
    made.plant("", "")

    assert made.shell(check).code == 3  # neither a run nor a baseline yet is no regression
    (setup,) = blocks("sh")
    noise, keep = (line for line in setup.splitlines() if line.startswith("tradebench"))
    assert "5 runs" in made.shell(noise).text
    # Whoever tests a change of tradebench has files that differ from their commit.
    assert made.shell(f"{keep} --allow-flagged").code == 0
    return made


def blocks(kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", README, re.DOTALL)


@pytest.mark.slow
def test_no_change_is_green(team: Team) -> None:
    team.plant("", "")
    team.measure()
    done = team.shell(team.check)

    assert done.code == 0, done.text
    assert "no regression" in done.text.splitlines()[-1]
    assert "no regression" in (team.folder / "summary.md").read_text()
    assert (team.folder / "junit.xml").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        pytest.param(
            "last[-1] + seconds",
            "last[-1] + 1.5 * seconds",
            r"Step time: \d+\.\d ms -> 4\d\d\.\d ms \(\+\d\d\.\d %\) margin 5\.00 %; "
            r"found from [\d.]+ % on; 5 baseline runs, their own spread",
            id="slow-down",
        ),
        pytest.param(
            "return function(",
            "kept.append(model.get_input_embeddings().weight.detach().clone())\n"
            "            return function(",
            r"Peak tensor memory: .* MiB \(\+[\d.]+ %\) margin 0\.100 %; .* 5 baseline runs "
            r"activations \+[\d.]+ MiB",
            id="memory-growth",
        ),
        pytest.param(
            "return function(",
            "for each in filter(lambda each: each.requires_grad, model.parameters()):\n"
            "                each.data.mul_(2)\n"
            "            return function(",
            r"Accuracy on facts: [\d.]+ % -> .* \(-\d\d\.\d pt\) margin 1\.00 pt; .* "
            r"paired over 200 items, \d+ lost and \d+ won",
            id="accuracy-loss",
        ),
    ],
)
def test_a_planted_fault_is_red_with_its_reason_on_one_screen(
    team: Team, fits_a_screen: Callable[[str], bool], old: str, new: str, said: str
) -> None:
    team.plant(old, new)
    team.measure(more="--no-predict")
    done = team.shell(team.check)
    text = " ".join(done.text.split())

    assert done.code == 1, done.text
    assert fits_a_screen(done.text), done.text
    assert "5 baseline runs; run again 1 time to confirm regressed: lora r16 + own" in text
    assert re.search(said, text), done.text
    # Nothing else is blamed: each fault is seen in what it costs.
    assert ("Step time" in _regressed(done.text)) == said.startswith("Step time")
    assert ("Peak tensor memory" in _regressed(done.text)) == said.startswith("Peak")
    assert ("Accuracy" in _regressed(done.text)) == said.startswith("Accuracy")
    assert re.search(r"also changed: code\.loss\.own: \w+ -> \w+", text), done.text
    assert "next: mend it or, if it is meant: baseline set" in text


def _regressed(text: str) -> str:
    """What a check calls so."""
    return text.partition("regressed:\n")[2].partition("\n\n")[0]


@pytest.mark.slow
def test_a_noisy_machine_is_inconclusive(team: Team) -> None:
    """Its device takes another time in every run, and no change of the code is to blame."""
    team.plant("", "")
    before = {path.name for path in (team.folder / "results" / "ci").iterdir()}
    for seconds in (0.2, 0.6, 0.4):
        team.measure(seconds=seconds, more="--no-predict")
    noisy = {path.name for path in (team.folder / "results" / "ci").iterdir()} - before
    runs = " ".join(f"results/ci/{name}" for name in noisy)
    assert team.shell(f"tradebench baseline set {runs} -o noisy.json --allow-flagged").code == 0
    team.measure(seconds=0.5, more="--no-predict")
    check = team.check.strip().replace("baselines/ci.json", "noisy.json")
    done = team.shell(check)
    text = " ".join(done.text.split())

    assert done.code == 0, done.text
    assert re.search(
        r"inconclusive: Step time: 1 point, \+[\d.]+ %; found from \d+ % on; 3 baseline runs, "
        r"their spread and a declared noise of 2 %",
        text,
    ), done.text
    assert "no regression: 1 inconclusive" in text
    assert "next: to tell smaller changes, add runs" in text
    assert team.shell(f"{check} --strict").code == 4
