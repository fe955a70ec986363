"""The page's own script is joined from modules that stand in the order of their imports."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from urllib.parse import quote

import pytest

from tradebench.report import script
from tradebench.report.units import significant

FOLDER = Path(script.__file__).parent
NODE = shutil.which("node")


def test_every_module_is_joined_once() -> None:
    assert sorted(script.MODULES) == sorted(path.stem for path in FOLDER.glob("*.js"))


@pytest.mark.parametrize("at", range(len(script.MODULES)), ids=script.MODULES)
def test_a_module_comes_after_all_that_it_imports_and_uses_it(at: int) -> None:
    text = (FOLDER / f"{script.MODULES[at]}.js").read_text(encoding="utf-8")
    imports = re.findall(r'^import \{([^}]*)\} from "\./(\w+)\.js";$', text, re.MULTILINE)

    assert len(imports) == len(re.findall(r"^import\b", text, re.MULTILINE))
    for names, module in imports:
        assert module in script.MODULES[:at]
        given = (FOLDER / f"{module}.js").read_text(encoding="utf-8")
        for name in names.split(", "):
            assert re.search(rf"^export (async )?(const|function|class) {name}\b", given, re.M)
            assert len(re.findall(rf"\b{name}\b", text)) > 1, f"{name} is imported for nothing"


def test_lines_are_as_short_as_those_of_python() -> None:
    assert [line for line in script.javascript().splitlines() if len(line) > 100] == []


def test_what_is_joined_imports_nothing_and_names_nothing_twice() -> None:
    text = script.javascript()
    names = re.findall(r"^(?:async )?(?:const|let|function|class) (\w+)", text, re.MULTILINE)

    assert not re.search(r"^(import|export)\b", text, re.MULTILINE)
    assert sorted(names) == sorted(set(names))


@pytest.mark.skipif(NODE is None, reason="node is not installed")
def test_what_is_joined_is_one_module(tmp_path: Path) -> None:
    file = tmp_path / "page.mjs"
    file.write_text(script.javascript(), encoding="utf-8")

    done = subprocess.run([str(NODE), "--check", str(file)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(NODE is None, reason="node is not installed")
def test_numbers_are_written_as_python_writes_them() -> None:
    values = [0, 0.25, 0.0004567, 0.9996, 1, 7, 9.996, 44.5, 99.96, 100, 999.6, 1565, 6310.4, -2.5]
    module = f"data:text/javascript,{quote((FOLDER / 'numbers.js').read_text(encoding='utf-8'))}"
    program = (
        f"import {{digits}} from {json.dumps(module)};"
        f"console.log(JSON.stringify({json.dumps(values)}.map(digits)));"
    )
    done = subprocess.run(
        [str(NODE), "--input-type=module", "--eval", program],
        check=True,
        capture_output=True,
        text=True,
    )

    # Only the page has blanks or commas between thousands.
    told = [each.replace(",", "") for each in json.loads(done.stdout)]
    assert told == [significant(each) for each in values]
