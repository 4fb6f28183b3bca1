"""The recipe `find_influential` as a user runs it: local files, a tiny model from a folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from recipe_modules import RECIPES, run_here, words

from hf_fastif import InfluenceResult
from hf_fastif.results import check_text


TWO_PROCESSES = RECIPES / "accelerate_configs" / "two_cpu_processes.yaml"
QUICK = {"num_queries": 3, "num_examples": 2, "sdca_visits": 40, "num_neighbors": 20}
# A model without names for its labels, and rows of the validation examples.
CHOSEN = QUICK | {"label_mapping": '{"bad": "0", "good": "1"}', "query_indices": [4, 0]}


@pytest.fixture(scope="module")
def one_process(files, tmp_path_factory):
    """The result of one process for the chosen queries of a loaded model."""
    folder = tmp_path_factory.mktemp("one")
    run_here("find_influential", *words(files, folder, **CHOSEN))
    return InfluenceResult.load_from_disk(folder / "influence")


@pytest.mark.parametrize(("solver", "stages"), [("auto", set()), ("sdca", {"compute_s_test"})])
def test_train_explain_and_report(solver, stages, files, tmp_path, capsys):
    settings = QUICK | {"solver": solver, "do_train": True, "max_steps": 2, "diagnose": True}
    run_here("find_influential", *words(files, tmp_path, **settings))

    printed = capsys.readouterr().out
    result = InfluenceResult.load_from_disk(tmp_path / "influence")
    report = (tmp_path / "influence" / "report.html").read_text()
    assert len(result.queries) == 3
    assert len(result.helpful(0)) <= 2
    assert result.summary.num_neighbors == 20
    assert set(result.summary.seconds) == stages | {"train", "predict", "build_index", "find_influential"}
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


def test_chosen_queries_of_a_loaded_model(one_process):
    assert one_process.summary.query_rows == [4, 0]
    assert "train" not in one_process.summary.seconds


@pytest.mark.slow
def test_two_processes_find_what_one_finds(files, one_process, tmp_path):
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(TWO_PROCESSES)]
    command = [*launcher, str(RECIPES / "find_influential.py"), *words(files, tmp_path, **CHOSEN)]
    subprocess.run(command, check=True, capture_output=True, env=os.environ, timeout=300)

    two = InfluenceResult.load_from_disk(tmp_path / "influence")
    assert two.summary.query_rows == [4, 0]
    assert one_process.influences["train_index"] == two.influences["train_index"]
    np.testing.assert_allclose(one_process.influences["influence"], two.influences["influence"], rtol=1e-3)


def test_an_error_is_one_clear_line_and_leaves_nothing(files, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        run_here("find_influential", *words(files, tmp_path, **QUICK, text_columns="sentence"))
    line = "error: column 'sentence' is not in the train examples, which have: text, label; "
    assert [said.startswith(line) for said in capsys.readouterr().err.splitlines()] == [True]
    assert not (tmp_path / "influence").exists()

    with pytest.raises(SystemExit, match="2"):
        run_here("find_influential", *words(files, tmp_path, **QUICK, do_train=True, query_indices=30))
    printed = capsys.readouterr()
    assert "query_indices=[30]: there are 30 rows; give 0 to 29" in printed.err
    assert "train_runtime" not in printed.out


def test_explained_predictions_are_checked_by_training_again(files, tmp_path, capsys):
    rows = [json.loads(line) for line in (files / "train.jsonl").read_text("utf-8").split("\n")]
    marked = [row | {"noise": "wrong" if i % 4 == 0 else "none"} for i, row in enumerate(rows)]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, marked)))
    settings = {"train_file": tmp_path / "train.jsonl", "do_train": True, "max_steps": 2, "query_indices": [4, 0]}
    settings |= {"check_by_retraining": 5, "check_against": ["random", "nearest"]}
    settings |= {"wrong_column": "noise", "wrong_value": "wrong"}
    run_here("find_influential", *words(files, tmp_path / "out", **settings))

    models = InfluenceResult.load_from_disk(tmp_path / "out" / "influence").summary.models_without
    assert [model.removed for model in models] == ["nothing", "most harmful", "random", "nearest"]
    assert {(model.num_explained, model.num_others, model.num_all_wrong_labels) for model in models} == {(2, 28, 10)}
    text = check_text(models)
    assert text in capsys.readouterr().out
    assert text.splitlines()[0] in (tmp_path / "out" / "influence" / "report.html").read_text("utf-8")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "do_train=False: "),
        ({"do_train": True, "wrong_column": "noise"}, "wrong_column: 'noise' is not among the"),
    ],
)
def test_what_cannot_be_checked_is_said_before_training(settings, message, files, tmp_path, capsys):
    known = {"label_mapping": '{"bad": "0", "good": "1"}', "check_by_retraining": 5}
    with pytest.raises(SystemExit, match="2"):
        run_here("find_influential", *words(files, tmp_path, **known, **settings))
    printed = capsys.readouterr()
    assert f"error: {message}" in printed.err and "train_runtime" not in printed.out
