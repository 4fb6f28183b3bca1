"""The Python examples of the README run as they stand."""

from __future__ import annotations

import re
from pathlib import Path

from synthetic import synthetic_result
from tiny import tiny_data, tiny_model, tiny_tokenizer, tiny_trainer


README = Path(__file__).parent.parent / "README.md"


def test_the_python_example_runs(tmp_path, monkeypatch, capsys):
    example = re.search(r"```python\n(.*?)```", README.read_text("utf-8"), re.DOTALL)[1]
    tiny_model(frozen=None).save_pretrained(tmp_path / "my-classifier")
    tiny_tokenizer().save_pretrained(tmp_path / "my-classifier")
    monkeypatch.chdir(tmp_path)

    exec(compile(example, str(README), "exec"), {"train": tiny_data(40), "dev": tiny_data(12, seed=1)})

    assert "5 queries, 100 rows out of 40 candidates" in capsys.readouterr().out
    assert "<html" in (tmp_path / "report.html").read_text("utf-8")


def test_the_example_of_the_graph_runs(tmp_path, monkeypatch):
    example = re.search(r"## Explore\n.*?```python\n(.*?)```", README.read_text("utf-8"), re.DOTALL)[1]
    monkeypatch.chdir(tmp_path)

    exec(compile(example, str(README), "exec"), {"result": synthetic_result({"one": 2}, num_trains=20, k=5)})

    assert sorted(path.name for path in tmp_path.iterdir()) == ["graph.pdf", "graph.png", "tables"]
    assert len(list((tmp_path / "tables").iterdir())) == 4


def test_the_example_of_wrong_labels_runs(tmp_path, monkeypatch, capsys):
    example = re.search(r"## Wrong labels\n\n```python\n(.*?)```", README.read_text("utf-8"), re.DOTALL)[1]
    trainer = tiny_trainer(tmp_path)
    monkeypatch.chdir(tmp_path)

    exec(compile(example, str(README), "exec"), {"trainer": trainer})

    assert len(capsys.readouterr().out.splitlines()) == 21  # a header and 20 rows
    assert (
        (tmp_path / "suspects.csv").read_text("utf-8").startswith(",train_index,suspicion,label,suggested,loss,text")
    )


def test_the_example_of_correcting_runs(tmp_path, capsys):
    example = re.search(r"## Correct\n.*?```python\n(.*?)```", README.read_text("utf-8"), re.DOTALL)[1]
    trainer = tiny_trainer(tmp_path, solver="identity")
    names = {name: tiny_data(10, seed=seed) for seed, name in enumerate(("anchors", "dev", "test"), 1)}

    exec(compile(example, str(README), "exec"), {"trainer": trainer, **names})

    printed = capsys.readouterr().out
    assert "Correction: " in printed and all(f"  {name} " in printed for name in ("anchors", "guard", "test"))


def test_the_example_of_publishing_runs(hub, tmp_path, capsys):
    example = re.search(r"## Publish and load\n\n```python\n(.*?)```", README.read_text("utf-8"), re.DOTALL)[1]
    trainer = tiny_trainer(tmp_path, solver="ekfac", damping=0.5, ekfac_samples=40)
    trainer.build_index()
    result = trainer.find_influential(tiny_data(2, seed=1), num_examples=2)

    exec(compile(example, str(README), "exec"), {"trainer": trainer, "result": result})

    assert repr(result) in capsys.readouterr().out
    kinds = {repo_id: repo_type for repo_type, repo_id in hub.repositories}
    assert kinds == {f"me/demo-{name}": "dataset" for name in ("influences", "index", "factors")} | {
        "me/demo-report": "space"
    }


def test_the_claims_of_the_heads_name_tests_that_there_are():
    claims = (README.parent / "docs" / "heads.md").read_text("utf-8").partition("## Tests behind each claim")[2]
    for line in claims.splitlines():
        path = None
        for name in re.findall(r"`([^`]+)`", line):
            if ".py" in name:
                path, _, test = name.partition("::")
            else:
                test = name if name.startswith("test_") else ""
            if path:
                assert f"def {test}" in (Path(__file__).parent / path).read_text("utf-8"), (name, path)
