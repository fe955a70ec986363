"""The built wheel, installed elsewhere, runs a suite by path."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tradebench.report import script

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (file,) = folder.glob("*.whl")
    return file


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()

    assert {name.split("/")[0].split("-")[0] for name in names} == {"tradebench"}
    assert "tradebench/py.typed" in names
    assert "tradebench/reference/checkpoint/model.safetensors" in names
    assert {f"tradebench/report/script/{name}.js" for name in script.MODULES} <= set(names)


@pytest.mark.slow
def test_the_wheel_runs_a_suite_by_path(wheel: Path, tmp_path: Path) -> None:
    """The wheel goes into an environment of its own, with this one's libraries lent to it."""
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    (packages,) = venv.glob("lib/python*/site-packages")
    libraries = next(path for path in sys.path if path.endswith("site-packages"))
    subprocess.run(
        [venv / "bin/python", "-m", "pip", "install", "--no-deps", "--quiet", str(wheel)],
        check=True,
        capture_output=True,
    )
    (packages / "lent.pth").write_text(f"{libraries}\n")
    suite = tmp_path / "smoke.yaml"
    suite.write_text((ROOT / "suites/smoke.yaml").read_text())

    done = subprocess.run(
        [venv / "bin/tradebench", "run", str(suite)], cwd=tmp_path, capture_output=True, text=True
    )
    imported = subprocess.run(
        [venv / "bin/python", "-c", "import tradebench; print(tradebench.__file__)"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )

    assert done.returncode == 0, done.stderr
    assert str(venv) in imported.stdout
    assert list(tmp_path.glob("results/smoke/*/report/index.html"))
