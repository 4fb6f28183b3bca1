"""The validation recipes as a user runs them, with local files and a tiny model, and some of their numbers by hand."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from recipe_modules import recipe_arguments, recipe_module, run_here, words
from scipy.stats import spearmanr
from tiny import tiny_tokenizer
from transformers import AutoModelForSequenceClassification, Trainer, TrainingArguments

from hf_fastif import freeze
from hf_fastif.analysis import LdsOfMethods, Mislabels, RecallOfFeatures
from hf_fastif.experiments import (
    Corrections,
    Correlation,
    InverseHessian,
    Retraining,
    Runtime,
    Simulatability,
    balanced_queries,
)
from hf_fastif.metrics import SubsetLosses
from hf_fastif.training import make_trainer, trained


MAPPING = '{"bad": "0", "good": "1"}'  # the tiny model has no names for its labels
LABELS = ["bad", "good"]
LOADED = {"label_mapping": MAPPING, "num_queries": 4, "damping": 0.5, "ekfac_samples": 40}
TRAINED = {"do_train": True, "max_steps": 2, "solver": "ekfac", "damping": 0.5, "ekfac_samples": 40}
TWO_EPOCHS = {"max_steps": 4, "per_device_train_batch_size": 20}
KS = [3, 5, 8, 12, 20]
METHODS, MOMENTS = ["gradient cosine", "EK-FAC"], ["final", "epoch 1", "default", "epoch 1 of 2 seeds"]
SETTINGS = {
    "recall": LOADED | {"top": 3, "ks": KS, "solver": "ekfac"},
    "correlation": LOADED | {"ks": 10, "dampings": [1e6, 0.01], "sdca_visits": 20},
    "retraining": TRAINED | {"num_queries": 2, "num_removed": 2, "num_retrainings": 1},
    "lds": TRAINED | TWO_EPOCHS | {"num_queries": 3, "num_subsets": 4, "methods": METHODS, "moments": MOMENTS},
    "mislabels": TRAINED | {"num_anchors": 9, "num_retrainings": 1, "shares": 0.2},
    "correction": {
        "label_mapping": MAPPING,
        "damping": 0.5,
        "sdca_visits": 20,
        "num_validation": 6,
        "num_tested": 10,
        "num_guard": 10,
        "num_anchors": 4,
        "steps": 2,
        "num_examples": 3,
        "num_corrections": 2,
        "correction_rate": 0.01,
        "num_neighbors": 15,
        "ekfac_samples": 40,
    },
    "simulatability": TRAINED | {"num_queries": 2, "num_examples": 2, "num_learning_rates": 4},
    "inverse_hessian": LOADED | {"depths": [2, 4], "batch_sizes": 2, "repeats": 2, "sdca_visits": 8},
    "runtime": LOADED | {"ks": 10, "processes": 2, "timed": 4, "num_alone": 2},
}


@pytest.fixture
def run(files, tmp_path, capsys):
    """Run the recipe of a name, and return its result, read from the file that it says it wrote."""

    def run_and_read(name, kind, path=None):
        run_here(name, *words(files, tmp_path, **SETTINGS[name]))
        printed, path = capsys.readouterr().out, tmp_path / (path or name)
        assert f"Result: {path}.json" in printed
        assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
        assert "</svg>" in path.with_suffix(".svg").read_text("utf-8")
        result = kind.load(path.with_suffix(".json"))
        assert str(result) in printed
        return result

    return run_and_read


@pytest.fixture
def arguments(files, tmp_path, monkeypatch):
    """What the main function of a recipe was given."""
    return lambda name: recipe_arguments(name, monkeypatch, *words(files, tmp_path, **SETTINGS[name]))


def rows_of(files: Path, split: str) -> Dataset:
    """The examples of a file, tokenized without the library."""
    rows = [json.loads(line) for line in (files / f"{split}.jsonl").read_text().split("\n")]
    encoded = tiny_tokenizer()([row["text"] for row in rows])
    columns = {name: encoded[name] for name in ("input_ids", "attention_mask")}
    return Dataset.from_dict(columns | {"label": [LABELS.index(row["label"]) for row in rows]})


def trained_by_hand(files: Path, folder: Path, train: Dataset):
    """The model that training again gives, by a plain `Trainer`, of the first repeat of the seed 42."""
    model = AutoModelForSequenceClassification.from_pretrained(files / "model")
    freeze(model, 1)
    quiet = {"use_cpu": True, "report_to": "none", "save_strategy": "no", "disable_tqdm": True}
    args = TrainingArguments(str(folder), max_steps=2, seed=1042, **quiet)
    Trainer(model, args, train_dataset=train, processing_class=tiny_tokenizer()).train()
    return model.eval()


def outputs_of(model, rows: Dataset) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The logits and the loss of each example, without padding."""
    for row in rows:
        inputs = {name: torch.tensor([row[name]]) for name in ("input_ids", "attention_mask")}
        output = model(**inputs, labels=torch.tensor([row["label"]]))
        yield output.logits[0], output.loss


def losses_of(model, rows: Dataset) -> np.ndarray:
    return np.array([loss.item() for _, loss in outputs_of(model, rows)])


def directions_of(model, rows: Dataset) -> torch.Tensor:
    """The gradient of the loss of each example, of length 1."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    gradients = [torch.autograd.grad(loss, parameters) for _, loss in outputs_of(model, rows)]
    return torch.nn.functional.normalize(torch.stack([torch.cat([g.flatten() for g in row]) for row in gradients]))


def pooled_states(model, rows: Dataset) -> np.ndarray:
    states = [model.base_model(input_ids=torch.tensor([row["input_ids"]])).pooler_output[0] for row in rows]
    return torch.stack(states).detach().numpy()


def test_recall(run, arguments, files):
    result = run("recall", RecallOfFeatures)
    kinds = ["gradient_sketch", "pooled", "mean_pooled"]
    assert list(dict.fromkeys(row["features"] for row in result.table)) == kinds
    for group, count in (("all", 4), ("predicted wrong", 2), ("predicted right", 2)):
        rows = [row for row in result.table if (row["group"], row["k"]) == (group, 5)]
        assert len(rows) == 3 * len(kinds) and {row["num_queries"] for row in rows} == {count}

    recipe, data, config = arguments("recall")
    trainer, examples = make_trainer(recipe, data, config)
    chosen, right = balanced_queries(trainer, examples["validation"], 4, config.seed)
    scores = trainer.compute_influence(examples["validation"].select(chosen))
    states, queries = (pooled_states(trainer.model.eval(), rows_of(files, split)) for split in ("train", "validation"))
    near = np.square(states[None] - queries[chosen][:, None]).sum(axis=-1).argsort(axis=1)
    groups = {"all": right | True, "predicted wrong": ~right, "predicted right": right}
    for direction, worst_last in (("helpful", scores), ("harmful", -scores), ("absolute", -np.abs(scores))):
        best = worst_last.argsort(axis=1)[:, :3]
        for k in KS:
            shares = np.array([len(np.intersect1d(*pair)) / 3 for pair in zip(best, near[:, :k], strict=True)])
            for group, members in groups.items():
                rows = [r for r in result.table if (r["features"], r["group"]) == ("pooled", group)]
                (row,) = (r for r in rows if (r["direction"], r["k"]) == (direction, k))
                assert row["recall"] == pytest.approx(shares[members].mean())


def test_correlation(run):
    result = run("correlation", Correlation)
    assert [float(row["asked"]) for row in result.dampings] == [1e6, 0.01]
    assert [row["k"] for row in result.table] == [10, 40] * 4
    assert result.dampings[0]["cosine"] == pytest.approx(1, abs=1e-4)


def test_retraining(run, arguments, files, tmp_path):
    result = run("retraining", Retraining)
    assert result.right == [False, True]
    assert len(result.changes) == 2 * 2 + 2 * 2  # queries and directions, labels and queries

    recipe, data, config = arguments("retraining")
    trainer, examples = trained(recipe, data, config)
    chosen, _ = balanced_queries(trainer, examples["validation"], 2, config.seed)
    helpful = trainer.find_influential(examples["validation"].select(chosen), num_examples=2).helpful(0)
    train, queries = rows_of(files, "train"), rows_of(files, "validation").select(chosen)
    rest = train.select(sorted(set(range(40)) - set(helpful["train_index"])))
    assert len(rest) == 38
    before, after = (losses_of(trained_by_hand(files, tmp_path / "by_hand", rows), queries) for rows in (train, rest))
    np.testing.assert_allclose(result.losses, before, rtol=1e-4)
    row = next(row for row in result.changes if (row["direction"], row["query"]) == ("helpful", 0))
    assert row["m"] == 2 and row["change"] == pytest.approx(after[0] - before[0], rel=1e-3)


def test_lds(run, files, tmp_path, monkeypatch):
    result = run("lds", LdsOfMethods)
    assert [(row["moment"], row["method"]) for row in result.table] == [(a, b) for a in MOMENTS for b in METHODS]
    moments = recipe_module("lds", monkeypatch).moments_of([str(tmp_path / "seed-42")])
    steps = {name: [int(Path(path).stem.removeprefix("step-")) for path in moments[name]] for name in moments}
    assert (steps["epoch 0.5"], steps["epoch 1"], steps["final"]) == ([1], [2], [4])  # of four steps
    assert (steps["default"], steps["all epochs"]) == ([1, 3], [2, 4])

    truth = SubsetLosses.load(tmp_path / "subsets" / "subsets.safetensors")
    assert truth.members.sum(axis=1).tolist() == [20] * 4

    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "seed-42").eval()
    freeze(model, 1)
    queries = rows_of(files, "validation").select(np.random.default_rng(42).permutation(30)[:3])
    influence = -(directions_of(model, queries) @ directions_of(model, rows_of(files, "train")).T).numpy()
    expected = [spearmanr(truth.members @ influence[q], truth.losses[:, q]).statistic for q in range(3)]
    assert result.table[0]["lds"] == pytest.approx(np.mean(expected))
    assert all(row["low"] <= row["lds"] <= row["high"] for row in result.table)


def test_mislabels(run, files, tmp_path):
    result = run("mislabels", Mislabels, "flipped-0.1-seed-42/mislabels")
    assert (result.num_train, result.num_wrong) == (40, 4)
    assert {row["action"] for row in result.accuracies} == {"dropped", "fixed"}

    tested = rows_of(files, "validation").select(np.random.default_rng(42).permutation(30)[9:])
    fixed = trained_by_hand(files, tmp_path / "by_hand", rows_of(files, "train"))
    predicted = [int(logits.argmax()) for logits, _ in outputs_of(fixed, tested)]
    row = next(r for r in result.accuracies if (r["method"], r["action"]) == ("all wrong labels", "fixed"))
    assert row["accuracy"] == pytest.approx(np.mean(np.array(predicted) == tested["label"]))


def test_correction(run):
    result = run("correction", Corrections, "corrected/correction")
    assert result.systems == ["helpful", "balanced", "harmful", "random", "anchors"] and result.slices == ["HANS"]
    assert result.settings["candidates"] == 40
    for one in result.runs:
        assert [len(one["loss"][name]) for name in ("anchors", "test", "guard")] == [3, 3, 3]
        assert one["loss"]["test"][0] != one["loss"]["test"][2]


def test_simulatability(run, tmp_path):
    result = run("simulatability", Simulatability)
    assert (tmp_path / "simulatability-queries.png").read_bytes().startswith(b"\x89PNG")
    assert [row["right"] for row in result.queries] == [False, True]
    assert result.learning_rates == pytest.approx([10**-5, 10 ** -(5 - 2.5 / 3), 10 ** -(5 - 5 / 3), 10**-2.5])
    assert len(result.curves) == 2 * (2 + 2)
    noted = [json.loads((tmp_path / name / "accuracy.json").read_text()) for name in (".", "simulator")]
    assert [each["trained_with"]["seed"] for each in noted] == ["42", "43"]
    assert noted[0]["trained_with"]["train_dataset"] != noted[1]["trained_with"]["train_dataset"]


def test_inverse_hessian(run):
    result = run("inverse_hessian", InverseHessian)
    assert [(row["solver"], row["J"]) for row in result.table[:3]] == [
        ("LiSSA", 2),
        ("LiSSA", 4),
        ("gradient / lambda", 0),
    ]
    assert result.table[1]["error"] == pytest.approx(0, abs=1e-5)  # the costliest, against itself
    assert result.table[0]["error"] > 1e-3


@pytest.mark.slow
def test_runtime(run, files, tmp_path):
    result = run("runtime", Runtime)
    assert result == Runtime.load(tmp_path / "runtime-2.json")  # what the two processes wrote
    assert {cost.processes for cost in result.costs} == {2}
    assert [cost.k for cost in result.costs] == [40, 10] * 4
    assert [cost.extrapolated for cost in result.costs] == [True] * 2 + [False] * 6  # four of the authors' steps
    assert all(cost.seconds > cost.s_test >= 0 for cost in result.costs)
    authors, ours = result.costs[0], result.costs[2]
    assert authors.seconds > ours.seconds  # a thousand steps and a pass for each example
