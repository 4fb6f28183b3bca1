"""An installed package has the templates of the cards."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import hf_fastif
from hf_fastif.artifacts.cards import TEMPLATES


pytest.importorskip("setuptools", "77", reason="needs setuptools to build a wheel")
ROOT = Path(__file__).parents[1]


def test_the_wheel_carries_the_templates(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for name in ("hf_fastif", "model_cards"):
        skip = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=skip)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    build = "from setuptools import build_meta; build_meta.build_wheel('built')"
    subprocess.run([sys.executable, "-c", build], cwd=source, check=True, capture_output=True, timeout=200)
    with zipfile.ZipFile(next((source / "built").glob("*.whl"))) as wheel:
        installed = {name: wheel.read(name) for name in wheel.namelist()}
    package = Path(hf_fastif.__file__).parent
    assert TEMPLATES.relative_to(package) == Path("artifacts/templates")
    templates = {path.name: path.read_bytes() for path in (ROOT / "model_cards").iterdir()}
    assert set(templates) == {
        "_citation.md",
        "_limits.md",
        "analysis.md",
        "factors.md",
        "index.md",
        "model.md",
        "result.md",
        "space.md",
    }
    for name, content in templates.items():
        assert installed[f"hf_fastif/artifacts/templates/{name}"] == content
