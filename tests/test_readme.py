"""The Python example of the README runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path

from tiny import tiny_data, tiny_model, tiny_tokenizer


README = Path(__file__).parent.parent / "README.md"


def test_the_python_example_runs(tmp_path, monkeypatch, capsys):
    example = re.search(r"```python\n(.*?)```", README.read_text("utf-8"), re.DOTALL)[1]
    tiny_model(frozen=None).save_pretrained(tmp_path / "my-classifier")
    tiny_tokenizer().save_pretrained(tmp_path / "my-classifier")
    monkeypatch.chdir(tmp_path)

    exec(compile(example, str(README), "exec"), {"train": tiny_data(40), "dev": tiny_data(12, seed=1)})

    assert "5 queries, 100 rows out of 40 candidates" in capsys.readouterr().out
    assert "<html" in (tmp_path / "report.html").read_text("utf-8")
