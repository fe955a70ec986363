"""The kit: which files of a wheel go in, and what its builder refuses."""

from __future__ import annotations

import json
import subprocess
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from gpu import kit
from tradebench.techniques import techniques

Wheel = Callable[..., Path]


@pytest.fixture
def wheel(tmp_path: Path) -> Wheel:
    """Makes a wheel of files with their contents."""

    def make(name: str, files: Mapping[str, bytes]) -> Path:
        path = tmp_path / "wheels" / name
        path.parent.mkdir(exist_ok=True)
        with zipfile.ZipFile(path, "w") as archive:
            for file, content in files.items():
                archive.writestr(file, content)
        return path

    return make


def files_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_of_bitsandbytes_one_cuda_library_goes_in_and_its_metadata(
    wheel: Wheel, tmp_path: Path
) -> None:
    libraries = ("cpu", "cuda118", "cuda128", "cuda130", "cuda132", "rocm72", "xpu2026")
    made = wheel(
        "bitsandbytes-0.50.2-py3-none-any.whl",
        {
            "bitsandbytes/__init__.py": b"",
            "bitsandbytes-0.50.2.dist-info/METADATA": b"Version: 0.50.2",
            **{f"bitsandbytes/libbitsandbytes_{name}.so": b"x" * 100 for name in libraries},
        },
    )
    folder = tmp_path / "kit"
    size = kit.build([made], folder)

    assert files_in(folder) == {
        "manifest.json",
        "bitsandbytes/__init__.py",
        "bitsandbytes/libbitsandbytes_cpu.so",
        "bitsandbytes/libbitsandbytes_cuda130.so",
        "bitsandbytes-0.50.2.dist-info/METADATA",
    }
    assert size == 200 + len(b"Version: 0.50.2")


def test_files_that_a_wheel_keeps_apart_come_where_an_installation_has_them(
    wheel: Wheel, tmp_path: Path
) -> None:
    made = wheel(
        "some-1-py3-none-any.whl",
        {
            "some-1.data/platlib/some/fast.so": b"1",
            "some-1.data/scripts/some": b"2",
            "some/__init__.py": b"3",
        },
    )
    kit.build([made], tmp_path / "kit")

    assert files_in(tmp_path / "kit") == {"manifest.json", "some/fast.so", "some/__init__.py"}


def test_tests_that_would_hide_those_of_python_stay_out(wheel: Wheel, tmp_path: Path) -> None:
    made = wheel("ao-1-py3-none-any.whl", {"test/test_ao.py": b"1", "ao/testing/help.py": b"2"})
    kit.build([made], tmp_path / "kit")

    assert files_in(tmp_path / "kit") == {"manifest.json", "ao/testing/help.py"}


def test_a_kit_that_is_too_large_is_refused_and_leaves_nothing(
    wheel: Wheel, tmp_path: Path
) -> None:
    small = wheel("small-1-py3-none-any.whl", {"small.py": b"x" * 10})
    large = wheel("large-2-py3-none-any.whl", {"large.py": b"x" * 100})

    assert kit.build([small, large], tmp_path / "kit", limit=110) == 110
    with pytest.raises(kit.KitError, match=r"more than 0; the largest part is large-2-py3-none"):
        kit.build([small, large], tmp_path / "kit", limit=109)
    assert not (tmp_path / "kit").exists()


def test_the_manifest_says_what_a_kit_is_for(wheel: Wheel, tmp_path: Path) -> None:
    made = wheel("some-1-py3-none-any.whl", {"some.py": b"1234"})
    folder = tmp_path / "kit"

    assert not kit.usable(folder, "3.12")
    kit.build([made], folder)
    assert kit.usable(folder, "3.12")
    assert not kit.usable(folder, "3.11")
    assert json.loads((folder / kit.MANIFEST).read_text())["wheels"] == {made.name: 4}


def test_everything_that_is_carried_is_pinned() -> None:
    versions = kit.pinned((kit.ROOT / "constraints.txt").read_text(), kit.carried())

    assert len(versions) == len(set(kit.carried()))
    assert all(version[0].isdigit() for version in versions.values())


def test_what_techniques_import_is_carried() -> None:
    names = {name.replace("-", "_") for name in kit.carried()}
    wanted = {package for kind in techniques() for package in kind.packages}

    # gptqmodel asks for another numpy, and is used only where it is installed.
    assert wanted - names == {"gptqmodel", "optimum"}


def test_what_no_version_is_known_of_is_named() -> None:
    with pytest.raises(kit.KitError, match=r"constraints.txt pins no version of other-one\."):
        kit.pinned("# comment\nSome.Name==1.0\n", ["some-name", "other-one"])


def test_wheels_are_found_by_name_and_version_however_they_are_spelled(
    wheel: Wheel,
) -> None:
    made = wheel("ruamel_yaml-0.19.1-py3-none-any.whl", {"a.py": b""})
    folder = made.parent

    assert kit.wheels_of({"ruamel.yaml": "0.19.1"}, folder) == [made]
    with pytest.raises(kit.KitError, match=r"no wheel of ruamel\.yaml 0\.19\.2"):
        kit.wheels_of({"ruamel.yaml": "0.19.2"}, folder)


def test_wheels_that_are_there_are_not_fetched_again(
    wheel: Wheel, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = wheel("some-1.0-py3-none-any.whl", {"a.py": b""}).parent
    monkeypatch.setattr(subprocess, "run", None)

    kit.download({"some": "1.0"}, folder)


def test_a_builder_that_fails_says_why_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(kit, "download", lambda versions, folder: None)

    assert kit.main(["--out", str(tmp_path / "kit"), "--wheels", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "has no wheel of peft" in said
