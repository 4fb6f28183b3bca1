"""A YAML file gives defaults that flags override."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from hf_fastif.cli import check_processes, parse_arguments
from hf_fastif.data import DataArguments


@dataclass
class Steps:
    rate: float = 0.1
    count: int | None = None


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "settings.yaml"
    path.write_text("rate: 1e-3\ncount: 4\ntext_columns: [premise, hypothesis]\nlabel_mapping: {neutral: other}\n")
    return str(path)


def test_file_and_flags(file):
    steps, data = parse_arguments(Steps, DataArguments, argv=["--config", file, "--count", "5"])
    assert (steps.rate, steps.count) == (1e-3, 5)  # YAML leaves 1e-3 a string
    assert data.text_columns == ["premise", "hypothesis"]
    assert data.label_mapping == '{"neutral": "other"}'


def test_equals_sign_and_no_file(file):
    assert parse_arguments(Steps, DataArguments, argv=[f"--config={file}"])[0].count == 4
    assert parse_arguments(Steps, argv=[])[0] == Steps()


def test_unknown_setting(file):
    with pytest.raises(ValueError, match="label_mapping, text_columns"):
        parse_arguments(Steps, argv=["--config", file])


def test_one_of_two_that_runs_alone_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    check_processes(2)
    with pytest.raises(RuntimeError, match="one of 2, but runs alone"):
        check_processes(1)
