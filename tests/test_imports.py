"""The house: imports run one way, from the top of a list of folders to the bottom, and never in a circle."""

from __future__ import annotations

import ast
import re
from graphlib import TopologicalSorter
from pathlib import Path

import pytest


PACKAGE = Path(__file__).parents[1] / "hf_fastif"
FLOORS = [  # a folder imports from itself and from those behind it
    *("experiments", "training", "analysis", "metrics", "trainer", "results", "influence", "diagnosis", "index"),
    *("scoring", "config", "solvers", "curvature", "checkpoints", "execution", "model", "artifacts", "data"),
    *("settings", "errors", "version"),
]
MODULES = {".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in PACKAGE.rglob("*.py")}
PRIVATE = re.compile(r"trainer\._[a-z]\w*")
FACES = {name.rpartition(".")[0]: name for name in MODULES if name.endswith("__init__")}


def imported(name: str) -> set[str]:
    """The modules of the package that a module imports, at any depth of its code and for annotations too."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[name].read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{name}: a relative import"
            targets = [(node.module, alias.name) for alias in node.names]
        elif isinstance(node, ast.Import):
            targets = [(alias.name, "") for alias in node.names]
        else:
            continue
        for module, attribute in targets:
            if module == "hf_fastif" or module.startswith("hf_fastif."):
                place = module.removeprefix("hf_fastif").removeprefix(".")
                inside = f"{place}.{attribute}".removeprefix(".")
                found.add(next(one for one in (inside, place, FACES.get(inside), FACES.get(place)) if one in MODULES))
    return found


IMPORTS = {name: imported(name) for name in MODULES if name != "__init__"}


def test_only_settings_and_version_lie_at_the_top():
    assert {path.name for path in PACKAGE.iterdir() if path.is_file()} == {
        *("__init__.py", "config.py", "version.py", "py.typed")
    }
    assert {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"} == {*FLOORS} - {
        "config",
        "version",
    }


@pytest.mark.parametrize("folder", FLOORS)
def test_imports_run_down(folder):
    above = FLOORS[: FLOORS.index(folder)]
    up = [
        f"{name} -> {other}"
        for name, others in IMPORTS.items()
        if name.split(".")[0] == folder
        for other in others
        if other.split(".")[0] in above
    ]
    assert up == []


def test_no_module_imports_the_whole_package():
    assert [name for name, others in IMPORTS.items() if "__init__" in others] == []


def test_no_circle():
    TopologicalSorter(IMPORTS).prepare()


@pytest.mark.parametrize("face", sorted(name for name in FACES.values() if name != "__init__"))
def test_faces_only_hand_names_on(face):
    body = ast.parse(MODULES[face].read_text("utf-8")).body
    assert all(isinstance(node, ast.Expr | ast.ImportFrom | ast.Assign) for node in body)


def test_only_its_own_folder_knows_the_private_side_of_the_trainer():
    outside = {name: path for name, path in MODULES.items() if name.split(".")[0] != "trainer"}
    uses = {name: PRIVATE.findall(path.read_text("utf-8")) for name, path in outside.items()}
    assert {name: names for name, names in uses.items() if names} == {}
