"""The two sides never import each other, and imports point down only."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import tradebench
from tradebench.techniques import Technique, techniques

ROOT = Path(tradebench.__file__).parent
HEAVY = {"torch", "transformers", "peft", "bitsandbytes", "lm_eval", "datasets", "accelerate"}
DRAWING = {"matplotlib", "pandas", "scipy"}
TORCH_SIDE = (
    "layers",
    "predict",
    "program",
    "worlds",
    "reference.build",
    "reference.score",
    "reference.tasks.loader",
    "reference.tokenizer",
    "reference.train",
)
# Who may be imported by whom: a module imports only from lower numbers, or from its own room.
LEVELS = {
    "errors": 0,
    "interval": 0,
    "owner": 0,
    "result": 0,
    "pareto": 0,
    "rank": 0,
    "configs": 1,
    "devices": 1,
    "reference": 1,
    "target": 1,
    "techniques": 2,
    "trial": 3,
    "published": 4,
    "environment": 4,
    "knobs": 4,
    "pairs": 4,
    "store": 4,
    "suite": 4,
    "worlds": 4,
    "layers": 5,
    "program": 5,
    "report": 5,
    "runner": 5,
    "doctor": 6,
    "exchange": 7,
    "recommend": 7,
    "predict": 6,
    "regression": 6,
    "plan": 6,
    "commands": 8,
    "cli": 9,
    "pytest_plugin": 9,
}
# The two commands that compute run torch inside their own functions, as hooks of techniques do.
LICENSED = {
    ("cli", "tradebench.reference.build"),
    ("cli", "tradebench.predict.calibrate"),
    ("techniques", "tradebench.layers.gptq"),
    ("techniques", "tradebench.layers.packed"),
    ("techniques", "tradebench.layers.semi_structured"),
}


@cache
def modules() -> dict[str, Path]:
    """Dotted name below tradebench to file."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(part for part in parts if part != "__init__")
        found[name] = path
    return found


def imports(path: Path, *, nested: bool) -> Iterator[str]:
    """Dotted names that a module imports; those inside functions only where `nested` says so."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree) if nested else _module_level(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner.removeprefix("tradebench.") in modules() else node.module


def _module_level(tree: ast.AST) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        yield node
        yield from _module_level(node)


def is_torch_side(name: str) -> bool:
    return any(name == side or name.startswith(f"{side}.") for side in TORCH_SIDE)


LIGHT = sorted(name for name in modules() if not is_torch_side(name) and name != "")


@pytest.mark.parametrize("name", LIGHT)
def test_light_modules_load_no_heavy_package(name: str) -> None:
    loaded = {module.split(".")[0] for module in imports(modules()[name], nested=False)}

    assert not loaded & HEAVY


@pytest.mark.parametrize("name", [name for name in LIGHT if not name.startswith("report.")])
def test_only_the_report_loads_what_draws(name: str) -> None:
    loaded = {module.split(".")[0] for module in imports(modules()[name], nested=False)}

    assert not loaded & DRAWING


@pytest.mark.parametrize("name", LIGHT)
def test_the_light_side_never_imports_the_torch_side(name: str) -> None:
    wrong = {
        module
        for module in imports(modules()[name], nested=True)
        if is_torch_side(module.removeprefix("tradebench."))
        and not any(name.startswith(who) and module == what for who, what in LICENSED)
    }

    assert not wrong


@pytest.mark.parametrize("name", sorted(name for name in modules() if is_torch_side(name)))
def test_the_torch_side_never_imports_the_light_side(name: str) -> None:
    forbidden = (
        *("cli", "commands", "suite", "store", "runner", "report", "plan", "published"),
        *("doctor", "environment", "pareto"),
    )
    wrong = {
        module
        for module in imports(modules()[name], nested=True)
        if module.startswith("tradebench.") and module.split(".")[1] in forbidden
    }

    assert not wrong


@pytest.mark.parametrize("name", [name for name in modules() if name])
def test_imports_point_down(name: str) -> None:
    room = name.split(".")[0]
    upward = {
        module
        for module in imports(modules()[name], nested=False)
        if module.startswith("tradebench.")
        and module.split(".")[1] != room
        and LEVELS.get(module.split(".")[1], 0) >= LEVELS.get(room, 99)
    }

    assert not upward


@pytest.mark.parametrize("technique", techniques(), ids=lambda technique: technique.__name__)
def test_the_version_of_a_technique_covers_the_layers_that_it_builds_with(
    technique: type[Technique],
) -> None:
    layers = {
        f"tradebench.{name}": path for name, path in modules().items() if name[:7] == "layers."
    }
    sources = [Path(file) for file in technique.sources()]
    built = {
        layers[module]
        for file in sources
        for name in imports(file, nested=True)
        if (module := ".".join(name.split(".")[:3])) in layers
    }

    assert built <= set(sources)
    assert set(technique.builds_with) <= layers.keys()


def test_every_room_has_a_level() -> None:
    rooms = {name.split(".")[0] for name in modules() if name} - {"__main__"}

    assert rooms == set(LEVELS)


def test_no_module_imports_itself_in_a_circle() -> None:
    graph = {
        f"tradebench.{name}": set(imports(path, nested=False)) for name, path in modules().items()
    }
    while graph:
        leaves = {name for name, needs in graph.items() if not needs & (graph.keys() - {name})}
        assert leaves, f"these import each other in a circle: {sorted(graph)}"
        graph = {name: needs for name, needs in graph.items() if name not in leaves}


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["techniques"],
        ["techniques", "--pairs"],
        ["suite", "check", "suites/smoke.yaml"],
        ["reference", "info"],
        ["baseline", "show", "results/baselines/smoke.json"],
    ],
)
def test_light_commands_answer_without_torch(arguments: list[str]) -> None:
    program = (
        "import sys; from tradebench.cli import main\n"
        f"sys.argv = ['tradebench', *{arguments!r}]\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print(sorted(set(sys.modules) & {'torch', 'transformers', 'pandas', 'matplotlib'}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        cwd=ROOT.parent,
        check=True,
    )

    assert done.stdout.splitlines()[-1] == "[]"
