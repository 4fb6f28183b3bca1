"""The recipe as a user runs it: a subprocess, local files, a tiny model from a folder."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from recipe_modules import recipe_module

from hf_fastif import InfluenceConfig, InfluenceResult
from hf_fastif.training import DataArguments
from hf_fastif.training.cli import parse_arguments


ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "recipes" / "accelerate_configs" / "two_cpu_processes.yaml"


def run(files, output, *flags, launcher=(), check=True):
    command = [sys.executable, *launcher, str(ROOT / "recipes" / "find_influential.py")]
    return subprocess.run(
        [*command, *words(files, output), *flags],
        check=check,
        capture_output=True,
        text=True,
        env=os.environ,
        timeout=300,
    )


def words(files, output):
    settings = {
        "model_name_or_path": files / "model",
        "train_file": files / "train.jsonl",
        "validation_file": files / "validation.jsonl",
        "output_dir": output,
        "num_frozen_layers": 1,
        "num_queries": 3,
        "num_examples": 2,
        "sdca_visits": 40,
        "num_neighbors": 20,
        "save_strategy": "no",
    }
    return ["--use_cpu", *(word for name, value in settings.items() for word in (f"--{name}", str(value)))]


def test_train_explain_and_report(files, tmp_path):
    printed = run(files, tmp_path, "--do_train", "--max_steps", "2", "--diagnose", "true").stdout

    result = InfluenceResult.load_from_disk(tmp_path / "influence")
    report = (tmp_path / "influence" / "report.html").read_text()
    assert len(result.queries) == 3
    assert len(result.helpful(0)) <= 2
    assert result.summary.num_neighbors == 20
    assert set(result.summary.seconds) == {"train", "predict", "build_index", "compute_s_test", "find_influential"}
    rows = [json.loads(line) for line in (files / "validation.jsonl").read_text().split("\n")]
    for position, query in zip(result.summary.query_rows, result.queries, strict=True):
        assert rows[position]["text"] == query["text"]
        assert rows[position]["label"] != query["prediction"]  # only errors are explained
        assert query["text"] in report
    assert str(tmp_path / "influence" / "report.html") in printed
    assert (tmp_path / "model.safetensors").is_file()
    assert (tmp_path / "influence" / "diagnosis.txt").read_text("utf-8") in printed
    assert (tmp_path / "influence" / "diagnosis.png").is_file()
    assert 'id="tab-diagnosis"' in report and "If you choose LiSSA\n" in report


def test_loaded_model_chosen_queries_two_processes(files, tmp_path):
    named = ["--label_mapping", '{"bad": "0", "good": "1"}']  # a model without names for its labels
    run(files, tmp_path / "one", "--query_indices", "4", "0", *named)
    run(
        files,
        tmp_path / "two",
        "--query_indices",
        "4",
        "0",
        *named,
        launcher=("-m", "accelerate.commands.launch", "--config_file", str(CONFIG)),
    )

    one, two = (InfluenceResult.load_from_disk(tmp_path / name / "influence") for name in ("one", "two"))
    assert one.summary.query_rows == two.summary.query_rows == [4, 0]
    assert one.influences["train_index"] == two.influences["train_index"]
    np.testing.assert_allclose(one.influences["influence"], two.influences["influence"], rtol=1e-3)
    assert "train" not in one.summary.seconds


def test_an_error_is_one_clear_line_and_leaves_nothing(files, tmp_path):
    failed = run(files, tmp_path, "--text_columns", "sentence", check=False)
    assert failed.returncode != 0
    assert "column 'sentence' is not in the train examples, which have: text, label" in failed.stderr
    assert not (tmp_path / "influence").exists()

    failed = run(files, tmp_path, "--do_train", "--query_indices", "30", check=False)
    assert "query_indices=[30]: there are 30 rows; give 0 to 29" in failed.stderr
    assert "train_runtime" not in failed.stdout


def test_both_sides_of_the_graph_and_going_on(files, tmp_path, monkeypatch, capsys):
    visualization = recipe_module("visualization", monkeypatch)  # run here, since two runs show that it goes on
    flags = ["--max_steps", "2", "--name", "Plain", "--sliced_name", "Sliced"]
    for split in ("train", "validation"):
        rows = [json.loads(line) for line in (files / f"{split}.jsonl").read_text().split("\n")]
        sliced = [json.dumps(row | {"heuristic": "ab"[i % 2]}) for i, row in enumerate(rows)]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(sliced))
        flags += [f"--sliced_{split}_file", str(tmp_path / f"{split}.jsonl")]
    kinds = visualization.RecipeArguments, DataArguments, InfluenceConfig
    given = words(files, tmp_path) + flags
    visualization.main(*parse_arguments(*kinds, argv=given))
    first = capsys.readouterr().out

    for side, subsets in (("plain", ["all"]), ("sliced", ["a", "all", "b"])):
        folder = tmp_path / side / "influence"
        result = InfluenceResult.load_from_disk(folder)
        assert list(result.summary.slices) == ["Plain", "Sliced, a", "Sliced, b"]
        names = result.queries.features["label"].int2str(result.queries["label"])
        assert all(name != predicted for name, predicted in zip(names, result.queries["prediction"], strict=True))
        edges = pd.read_csv(folder / "edges.csv")
        assert sorted(set(edges["subset"])) == subsets
        counts = edges[edges["subset"] == "all"][["helpful_edges", "harmful_edges"]]
        assert counts.to_numpy().sum() == len(result.influences)
        assert len(pd.read_parquet(folder / "correlations.parquet")) == 9
        for name in ("graph.png", "graph.svg", "graph.pdf", "report.html"):
            assert str(folder / name) in first and (folder / name).stat().st_size > 1000

    shutil.rmtree(tmp_path / "sliced" / "slices" / "sliced-b")
    visualization.main(*parse_arguments(*kinds, argv=given))
    again = capsys.readouterr().out
    assert "train_runtime" in first and "train_runtime" not in again
    assert re.findall(r"(.*): \d+ of \d+ are wrong", again) == ["Sliced, b"]
