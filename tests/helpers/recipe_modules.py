"""Recipes as modules, whose functions a test can call."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest


RECIPES = Path(__file__).parents[2] / "recipes"


def recipe_module(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The recipe of that name."""
    spec = importlib.util.spec_from_file_location(name, RECIPES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)  # for its dataclasses
    spec.loader.exec_module(module)
    return module
