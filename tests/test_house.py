"""The house rules that can be measured: small files, short functions, one name for one file."""

from __future__ import annotations

import ast
from collections import defaultdict
from graphlib import TopologicalSorter
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[1]
PACKAGE = sorted((ROOT / "uniedit_hf").rglob("*.py"))
OTHER_CODE = [
    path
    for folder in ("benchmarks", "dataset_builder", "metrics", "spaces/uniedit_demo")
    for path in sorted((ROOT / folder).rglob("*.py"))
]
FIXED_NAMES = ("__init__.py", "__main__.py")  # Python's own


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def functions(path: Path) -> dict[str, int]:
    """The lines of every function and method, docstrings and signatures included."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = (node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)))
    return {f"{name_of(path)}:{node.lineno} {node.name}": node.end_lineno - node.lineno + 1 for node in found}


@pytest.mark.parametrize("path", PACKAGE + OTHER_CODE, ids=name_of)
def test_files_and_functions_fit_a_screen(path):
    assert path.read_text(encoding="utf-8").count("\n") <= 500
    assert {name: lines for name, lines in functions(path).items() if lines > 80} == {}


def test_nine_functions_of_ten_are_short():
    lines = sorted(lines for path in PACKAGE for lines in functions(path).values())
    assert len(lines) > 1000 and lines[len(lines) * 9 // 10] <= 25


def test_no_two_files_have_one_name():
    paths = defaultdict(list)
    for path in PACKAGE:
        paths[path.name].append(name_of(path))
    assert {name: each for name, each in paths.items() if len(each) > 1 and name not in FIXED_NAMES} == {}


def imported(path: Path) -> set[str]:
    """The modules of the package that a file imports when it is imported itself."""
    module = name_of(path).removesuffix(".py").replace("/", ".").removesuffix(".__init__")
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    found, statements = set(), list(ast.parse(path.read_text(encoding="utf-8")).body)
    while statements:
        match statements.pop():
            case ast.If(test=ast.Name("TYPE_CHECKING")):
                pass
            case ast.If(body=body, orelse=other) | ast.Try(body=body, orelse=other):
                statements += [*body, *other]
            case ast.Import(names=names):
                found |= {alias.name for alias in names}
            case ast.ImportFrom(module=source, names=names, level=level):
                parents = package.split(".")[: len(package.split(".")) - level + 1] if level else []
                base = ".".join([*parents, *([source] if source else [])])
                found |= {base, *(f"{base}.{alias.name}" for alias in names)}
    return found - {module}


def test_no_circle_of_imports():
    names = {name_of(path).removesuffix(".py").replace("/", ".").removesuffix(".__init__"): path for path in PACKAGE}
    graph = {name: imported(path) & names.keys() for name, path in names.items()}
    order = list(TopologicalSorter(graph).static_order())  # raises CycleError with the circle
    assert len(order) == len(names)


def test_synthesis_is_what_serves_any_data():
    assert 30 < len([path for path in PACKAGE if "synthesis" in path.parts]) <= 48
