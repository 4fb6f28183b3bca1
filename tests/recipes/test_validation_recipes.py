"""The validation recipes as a user runs them, with local files and a tiny model; and the configs of all recipes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from recipe_modules import recipe_module

from hf_fastif import InfluenceConfig
from hf_fastif.analysis import LdsOfMethods, Mislabels, RecallOfFeatures
from hf_fastif.experiments import Corrections, Correlation, InverseHessian, Retraining, Runtime, Simulatability
from hf_fastif.metrics import SubsetLosses
from hf_fastif.training import DataArguments
from hf_fastif.training.cli import parse_arguments


ROOT = Path(__file__).parents[2]
RECIPES = sorted(path.stem for path in (ROOT / "recipes").glob("*.py"))
CONFIGS = sorted(path.name for path in (ROOT / "recipes" / "configs").glob("*.yaml"))
MAPPING = '{"bad": "0", "good": "1"}'  # the tiny model has no names for its labels
LOADED = ["--label_mapping", MAPPING, "--num_queries", "4", "--damping", "0.5", "--ekfac_samples", "40"]
TRAINED = ["--do_train", "--max_steps", "2", "--solver", "ekfac", "--damping", "0.5", "--ekfac_samples", "40"]
EPOCHS = ["--max_steps", "4", "--per_device_train_batch_size", "20"]  # two
METHODS, MOMENTS = ["gradient cosine", "EK-FAC"], ["final", "epoch 1", "epoch 1 of 2 seeds"]
FLAGS = {
    "recall": [*LOADED, "--top", "3", "--ks", "5", "40", "--solver", "ekfac"],
    "correlation": [*LOADED, "--ks", "10", "--dampings", "1e6", "0.01", "--sdca_visits", "20"],
    "retraining": [*TRAINED, "--num_queries", "2", "--num_removed", "2", "--num_retrainings", "1"],
    "lds": [
        *TRAINED,
        *EPOCHS,
        "--num_queries",
        "3",
        "--num_subsets",
        "3",
        "--methods",
        *METHODS,
        "--moments",
        *MOMENTS,
    ],
    "mislabels": [*TRAINED, "--num_anchors", "10", "--num_retrainings", "1", "--shares", "0.2"],
    "correction": [
        *("--label_mapping", MAPPING, "--damping", "0.5", "--sdca_visits", "20", "--num_validation", "6"),
        *("--num_tested", "10", "--num_guard", "10", "--num_anchors", "4", "--steps", "2", "--num_examples", "3"),
        *("--num_corrections", "2", "--correction_rate", "0.01", "--num_neighbors", "15", "--ekfac_samples", "40"),
    ],
    "simulatability": [*TRAINED, "--num_queries", "2", "--num_examples", "2", "--num_learning_rates", "4"],
    "inverse_hessian": [*LOADED, "--depths", "2", "4", "--batch_sizes", "2", "--repeats", "2", "--sdca_visits", "8"],
    "runtime": [*LOADED, "--ks", "10", "--processes", "2", "--timed", "4", "--sdca_visits", "8"],
}


@pytest.fixture(scope="module")
def outputs(files, tmp_path_factory):
    folder, calls = tmp_path_factory.mktemp("validation"), []
    for name, flags in FLAGS.items():
        settings = {
            "model_name_or_path": files / "model",
            "train_file": files / "train.jsonl",
            "validation_file": files / "validation.jsonl",
            "output_dir": folder / name,
            "num_frozen_layers": 1,
            "save_strategy": "no",
        }
        words = [word for key, value in settings.items() for word in (f"--{key}", str(value))]
        calls.append((str(ROOT / "recipes" / f"{name}.py"), ["--use_cpu", *words, *flags]))
    command = [sys.executable, str(ROOT / "tests" / "scripts" / "run_recipes.py"), json.dumps(calls)]
    ran = subprocess.run(command, capture_output=True, text=True, env=os.environ, timeout=600)
    assert ran.returncode == 0, ran.stderr[-4000:]
    return folder, ran.stdout


def data_of(name: str) -> str:
    """What the configs of a recipe are about."""
    return "hans" if name == "correction" else "mnli"


def result(outputs, made, path: str):
    folder, printed = outputs
    for suffix in ("json", "png", "svg"):
        assert (folder / f"{path}.{suffix}").stat().st_size > 500
    assert f"Result: {folder / path}.json" in printed
    found = made.load(folder / f"{path}.json")
    assert str(found) in printed
    return found


def test_recall(outputs):
    found = result(outputs, RecallOfFeatures, "recall/recall")
    assert {row["recall"] for row in found.table if row["k"] == 40} == {1.0}
    kinds = ["pooled", "mean_pooled", "last_layer_gradient", "gradient_sketch"]
    assert list(dict.fromkeys(row["features"] for row in found.table)) == kinds
    for group, count in (("all", 4), ("predicted wrong", 2), ("predicted right", 2)):
        rows = [row for row in found.table if (row["group"], row["k"]) == (group, 5)]
        assert len(rows) == 3 * len(kinds) and {row["num_queries"] for row in rows} == {count}


def test_correlation(outputs):
    found = result(outputs, Correlation, "correlation/correlation")
    assert [row["asked"] for row in found.dampings] == ["1e6", "0.01"]
    assert [row["k"] for row in found.table] == [10, 40] * 4
    assert found.dampings[0]["cosine"] == pytest.approx(1, abs=1e-4)


def test_retraining(outputs):
    found = result(outputs, Retraining, "retraining/retraining")
    assert found.right == [False, True]
    assert len(found.changes) == 2 * 2 + 2 * 2  # queries and directions, labels and queries
    assert any(row["change"] != 0 for row in found.changes)
    models = list((outputs[0] / "retraining" / "retrained").glob("*/without-*.safetensors"))
    assert len(models) <= 1 + 4 + 2


def test_lds(outputs):
    found = result(outputs, LdsOfMethods, "lds/lds")
    assert [(row["moment"], row["method"]) for row in found.table] == [(a, b) for a in MOMENTS for b in METHODS]
    assert all(-1 <= row["low"] <= row["lds"] <= row["high"] <= 1 for row in found.table)
    truth = SubsetLosses.load(outputs[0] / "lds" / "subsets" / "subsets.safetensors")
    assert truth.members.sum(axis=1).tolist() == [20] * 3 and np.ptp(truth.losses, axis=0).min() > 0


def test_mislabels(outputs):
    found = result(outputs, Mislabels, "mislabels/flipped-0.1-seed-42/mislabels")
    assert (found.num_train, found.num_wrong) == (40, 4)
    assert {row["action"] for row in found.accuracies} == {"dropped", "fixed"}
    assert all(0 <= row["accuracy"] <= 1 for row in found.accuracies)


def test_correction(outputs):
    found = result(outputs, Corrections, "correction/corrected/correction")
    assert found.systems == ["helpful", "balanced", "harmful", "random", "anchors"] and found.slices == ["HANS"]
    assert found.settings["candidates"] == 40
    for run in found.runs:
        assert [len(run["loss"][name]) for name in ("anchors", "test", "guard")] == [3, 3, 3]
        assert run["loss"]["test"][0] != run["loss"]["test"][2]


def test_simulatability(outputs):
    found = result(outputs, Simulatability, "simulatability/simulatability")
    assert (outputs[0] / "simulatability" / "simulatability-queries.png").stat().st_size > 10_000
    assert [row["right"] for row in found.queries] == [False, True]
    assert found.learning_rates == pytest.approx([10**-5, 10 ** -(5 - 2.5 / 3), 10 ** -(5 - 5 / 3), 10**-2.5])
    assert len(found.curves) == 2 * (2 + 2)
    noted = [
        json.loads((outputs[0] / "simulatability" / name / "accuracy.json").read_text()) for name in (".", "simulator")
    ]
    assert [run["trained_with"]["seed"] for run in noted] == ["42", "43"]
    assert noted[0]["trained_with"]["train_dataset"] != noted[1]["trained_with"]["train_dataset"]


def test_inverse_hessian(outputs):
    found = result(outputs, InverseHessian, "inverse_hessian/inverse_hessian")
    assert [(row["solver"], row["J"]) for row in found.table[:3]] == [
        ("LiSSA", 2),
        ("LiSSA", 4),
        ("gradient / lambda", 0),
    ]
    assert found.table[1]["error"] == pytest.approx(0, abs=1e-5)  # the costliest, against itself
    assert found.table[0]["error"] > 1e-3


def test_runtime(outputs):
    found = result(outputs, Runtime, "runtime/runtime")
    assert {cost.processes for cost in found.costs} == {2}
    assert [cost.k for cost in found.costs] == [40, 10] * 3


@pytest.mark.parametrize("name", RECIPES)
def test_configs_and_help_of_every_recipe(name, monkeypatch, capsys):
    arguments = recipe_module(name, monkeypatch).RecipeArguments
    types = (arguments, DataArguments, InfluenceConfig)
    for config in (config for config in CONFIGS if config.startswith(f"{name}-")):
        path = str(ROOT / "recipes" / "configs" / config)
        _, data, _ = parse_arguments(*types, argv=["--config", path, "--use_cpu", "--train_file", "a.jsonl"])
        assert data.train_file == "a.jsonl"
    with pytest.raises(SystemExit):
        parse_arguments(*types, argv=["--help"])
    assert "--output_dir" in capsys.readouterr().out


def test_small_configs_train_alike():
    """So that recipes that are given the same output_dir train one model between them."""
    alike = ("per_device_train_batch_size", "learning_rate", "num_train_epochs", "train_sampling_strategy")
    names = [f"{name}-{data_of(name)}-small.yaml" for name in FLAGS]
    small = [yaml.safe_load((ROOT / "recipes" / "configs" / name).read_text()) for name in names]
    assert [[config[name] for name in alike] for config in small] == [[32, "3e-4", 3, "group_by_length"]] * len(small)
    assert len({(config["num_frozen_layers"], config["label_mapping"]) for config in small}) == 1


@pytest.mark.parametrize("name", [name for name in CONFIGS if name.endswith("-small.yaml")])
def test_small_configs_train_in_float32(name):
    """Processors without hardware for bfloat16 emulate it, dozens of times slower than float32."""
    config = yaml.safe_load((ROOT / "recipes" / "configs" / name).read_text())
    assert not config.get("bf16", False) and not config.get("fp16", False)


def test_every_recipe_has_the_setting_of_the_paper_and_a_small_one():
    for name in FLAGS:
        data = data_of(name)
        assert {f"{name}-{data}.yaml", f"{name}-{data}-small.yaml"} <= set(CONFIGS)
