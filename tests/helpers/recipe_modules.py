"""Recipes as modules whose functions a test can call, and as programs that run in the process of the test."""

from __future__ import annotations

import importlib.util
import runpy
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from hf_fastif import InfluenceConfig
from hf_fastif.training import DataArguments
from hf_fastif.training.cli import parse_arguments


RECIPES = Path(__file__).parents[2] / "recipes"
CONFIGS = RECIPES / "configs"


def recipe_module(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Return the recipe of that name."""
    spec = importlib.util.spec_from_file_location(name, RECIPES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)  # for its dataclasses
    spec.loader.exec_module(module)
    return module


def recipe_arguments(name: str, monkeypatch: pytest.MonkeyPatch, *words: str) -> tuple[Any, ...]:
    """Return what the main function of a recipe takes: its arguments, those of the data, and the config."""
    kinds = recipe_module(name, monkeypatch).RecipeArguments, DataArguments, InfluenceConfig
    return parse_arguments(*kinds, argv=words)


def run_here(name: str, *words: str) -> None:
    """Do what `python recipes/NAME.py WORDS` does, in this process, which has imported torch already."""
    with pytest.MonkeyPatch.context() as patch:
        path = str(RECIPES / f"{name}.py")
        patch.setattr(sys, "argv", [path, *words])
        runpy.run_path(path, run_name="__main__")


def words(files: Path, output: Path, **settings: Any) -> list[str]:
    """Return the flags of a recipe that reads the folder of the fixture `files`, with more settings."""
    given = {
        "model_name_or_path": files / "model",
        "train_file": files / "train.jsonl",
        "validation_file": files / "validation.jsonl",
        "output_dir": output,
        "num_frozen_layers": 1,
        "save_strategy": "no",
    }
    return ["--use_cpu", *flags(given | settings)]


def flags(settings: Mapping[str, Any]) -> list[str]:
    """Write settings as the words of a command line; a list becomes several words."""
    line = []
    for name, value in settings.items():
        line += [f"--{name}", *map(str, value if isinstance(value, list | tuple) else [value])]
    return line
