"""The tutorial runs as it stands, with fewer examples and a tiny encoder."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

from matplotlib.image import imread
from tiny import tiny_model, tiny_tokenizer

from hf_fastif import training


TUTORIAL = Path(__file__).parent.parent / "docs" / "tutorial.md"


def test_the_tutorial_runs(hub, tmp_path, monkeypatch, capsys):
    text = TUTORIAL.read_text("utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    encoder = tmp_path / "encoder"
    tiny_model(num_labels=2, frozen=None, num_hidden_layers=5).save_pretrained(encoder)
    tiny_tokenizer().save_pretrained(encoder)
    small = partial(training.generate_nli, num_train=60, num_validation=20, num_challenge=80)
    monkeypatch.setattr(training, "generate_nli", small)
    monkeypatch.setattr(training, "default_encoder", lambda: str(encoder))
    monkeypatch.chdir(tmp_path)

    names = {}
    for number, block in enumerate(blocks, 1):
        exec(compile(block, f"{TUTORIAL}, block {number}", "exec"), names)

    correction = names["correction"]
    assert set(correction.log[0]["loss"]) == {"anchors", "guard", "test"}
    for name in re.findall(r"\]\(tutorial-(.*?\.png)\)", text):
        assert imread(tmp_path / name).std() > 0.05  # not blank
        assert (TUTORIAL.parent / f"tutorial-{name}").is_file()
    assert {repo for _, repo in hub.repositories} == {"me/nli-corrected", "me/nli-influences"}
    assert "challenge, non-entailment" in capsys.readouterr().out
