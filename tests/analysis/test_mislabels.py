"""Wrong labels: planting them, precision and recall by brute force, and training again, counted."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from datasets import ClassLabel
from figures import curves
from tiny import tiny_data, tiny_model, tiny_trainer

from hf_fastif.analysis import Mislabels, mislabels, query_losses
from hf_fastif.analysis.mislabels import precision_recall, suspicion
from hf_fastif.analysis.session_tools import changed
from hf_fastif.checkpoints.checkpoint import Checkpoint, save_checkpoint
from hf_fastif.training import plant_wrong_labels


CLEAN = tiny_data(40).cast_column("label", ClassLabel(names=["a", "b", "c"]))
ANCHORS = tiny_data(6, seed=1)
TRAIN, WRONG = plant_wrong_labels(CLEAN, 0.2, seed=3)
RIGHT = np.array(CLEAN["label"])


@pytest.fixture(scope="module")
def trainer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mislabels")
    return tiny_trainer(folder, train=TRAIN, solver="ekfac", damping=0.5, ekfac_samples=40)


@pytest.fixture(scope="module")
def trained():
    return []


@pytest.fixture(scope="module")
def train_on(trained):
    def run(dataset, repeat):
        """An accuracy that says how many labels were right, and how many examples there were."""
        labels = dict(zip(CLEAN["text"], CLEAN["label"], strict=True))
        right = sum(labels[row["text"]] == row["label"] for row in dataset)
        trained.append((len(dataset), right, repeat))
        return right / 1000 + len(dataset) + repeat / 100

    return run


def settings_of(train_on):
    return {"train_on": train_on, "depends_on": {"steps": "1"}, "shares": [0.25]}


@pytest.fixture(scope="module")
def found(trainer, train_on):
    return mislabels(trainer, ANCHORS, WRONG, labels=RIGHT, **settings_of(train_on), num_repeats=2)


def test_planted_labels_are_others_and_known():
    assert WRONG.sum() == 8
    assert ((np.array(TRAIN["label"]) != RIGHT) == WRONG).all()
    assert TRAIN.features["label"] == CLEAN.features["label"]
    again, same = plant_wrong_labels(CLEAN, 0.2, seed=3)
    assert again["label"] == TRAIN["label"] and (same == WRONG).all()
    assert plant_wrong_labels(CLEAN, 0.2, seed=4)[0]["label"] != TRAIN["label"]
    moved = (np.array(plant_wrong_labels(CLEAN, 0.9, seed=0)[0]["label"]) - RIGHT) % 3
    assert set(moved) == {0, 1, 2}
    for share in (0.001, 1.0):
        with pytest.raises(ValueError, match=f"share={share}"):
            plant_wrong_labels(CLEAN, share)


def test_planted_labels_may_depend_on_the_class():
    clean = tiny_data(600).cast_column("label", ClassLabel(names=["a", "b", "c"]))
    train, wrong = plant_wrong_labels(clean, 0.2, noise="class")
    given, right = np.array(train["label"]), np.array(clean["label"])
    assert wrong.sum() == 120 and ((given != right) == wrong).all()
    assert (given[wrong] == (right[wrong] + 1) % 3).all()
    by_class = [wrong[right == k].mean() for k in range(3)]
    assert by_class[0] == 0 < 1.5 * by_class[1] < by_class[2]
    with pytest.raises(ValueError, match="first class"):
        plant_wrong_labels(clean, 0.9, noise="class")
    with pytest.raises(ValueError, match="noise='pairs': give one of uniform, class"):
        plant_wrong_labels(clean, 0.2, noise="pairs")


def test_precision_and_recall_by_brute_force():
    random = np.random.default_rng(0)
    scores, wrong = random.integers(0, 8, 50).astype(float), random.random(50) < 0.3
    expected = []
    for threshold in sorted(set(scores), reverse=True):
        looked_at = [bool(w) for s, w in zip(scores, wrong, strict=True) if s >= threshold]
        expected.append((sum(looked_at) / len(looked_at), sum(looked_at) / wrong.sum()))
    curve = precision_recall(scores, wrong)
    np.testing.assert_allclose(np.stack([curve["precision"], curve["recall"]], axis=1), expected)
    steps = zip([0.0, *curve["recall"]], curve["recall"], curve["precision"], strict=False)
    assert curve["average_precision"] == pytest.approx(sum((b - a) * p for a, b, p in steps))
    assert precision_recall(wrong + random.random(50) / 2, wrong)["average_precision"] == 1.0


def test_scores_are_those_of_the_trainer(trainer, found):
    scores = suspicion(trainer, ANCHORS)
    suspects = trainer.suspects().to_pandas()
    np.testing.assert_allclose(scores["suspicion"][suspects["train_index"]], suspects["suspicion"])
    np.testing.assert_allclose(scores["self-influence"], trainer.self_influence(), rtol=1e-5)
    with changed(trainer, solver="identity"):
        np.testing.assert_allclose(scores["squared gradient"], trainer.self_influence(), rtol=1e-5)
    assert not np.allclose(scores["squared gradient"], scores["self-influence"], rtol=0.1)
    np.testing.assert_allclose(scores["harmful influence"], trainer.compute_influence(ANCHORS).mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(scores["loss"], query_losses(trainer, TRAIN), rtol=1e-5)
    for name, values in scores.items():
        curve = next(one for one in found.curves if one["method"] == name)
        assert curve["average_precision"] == pytest.approx(precision_recall(values, WRONG)["average_precision"])
        assert curve["recall"][-1] == 1 and curve["precision"][-1] == pytest.approx(0.2)
        share = next(row["found"] for row in found.detection if (row["method"], row["share"]) == (name, 0.2))
        assert share == WRONG[np.argsort(-values)[:8]].sum() / 8


def test_the_loss_is_that_of_the_checkpoint(trainer, tmp_path):
    theta = {name: p.detach() + 0.2 for name, p in trainer.model.named_parameters() if p.requires_grad}
    save_checkpoint(tmp_path, theta, Checkpoint(step=1))
    with changed(trainer, checkpoints=[str(tmp_path / "step-00000001.safetensors")]):
        found = suspicion(trainer, ANCHORS)["loss"]
    moved = tiny_model()
    moved.load_state_dict(theta, strict=False)
    expected = query_losses(tiny_trainer(tmp_path / "moved", model=moved, train=TRAIN), TRAIN)
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert not np.allclose(found, query_losses(trainer, TRAIN), rtol=1e-2)


def test_worst_examples_are_dropped_or_fixed(trainer, found):
    scores = suspicion(trainer, ANCHORS)
    for row in found.accuracies:
        rows = np.flatnonzero(WRONG)
        if row["method"] in scores:
            rows = np.argsort(-scores[row["method"]], kind="stable")[:10]
        rows = rows[:0] if row["method"] == "nothing" else rows
        size = 40 - (len(rows) if row["action"] == "dropped" else 0)
        right = 32 - (~WRONG[rows]).sum() if row["action"] == "dropped" else 32 + WRONG[rows].sum()
        assert row["accuracy"] == pytest.approx(right / 1000 + size + row["repeat"] / 100)
    assert len(found.accuracies) == 2 * (1 + 2 * 7)
    best = next(row for row in found.summary() if (row["method"], row["action"]) == ("all wrong labels", "fixed"))
    assert best["accuracy"] == pytest.approx(40.04 + 0.005)
    assert best["std_err"] == pytest.approx(0.005)


def test_finished_models_are_not_trained_again(trainer, found, train_on, trained):
    before = len(trained)
    assert mislabels(trainer, ANCHORS, WRONG, labels=RIGHT, **settings_of(train_on), num_repeats=2) == found
    assert len(trained) == before
    only_dropped = mislabels(trainer, ANCHORS, WRONG, **settings_of(train_on), num_repeats=3)
    assert {row["action"] for row in only_dropped.accuracies} == {"dropped"}
    assert {repeat for _, _, repeat in trained[before:]} == {2}


def test_saved_read_and_drawn(found, tmp_path):
    path = found.write(tmp_path, "mislabels")
    assert Mislabels.load(path) == found
    drawn = curves(found.figure().axes[0])
    for curve in found.curves:
        points = drawn[f"{curve['method']} ({curve['average_precision']:.2f})"]
        np.testing.assert_allclose(points, np.transpose([curve["recall"], curve["precision"]]))
    assert "8 of 40 labels are wrong (20.0%)" in str(found)
    assert "worst 25% by loss dropped" in str(found) and "all wrong labels fixed" in str(found)
    assert "± 0.0050" in str(found)
    once = replace(found, accuracies=[row for row in found.accuracies if row["repeat"] == 0])
    assert str(once).endswith("accuracy 40.0400")  # one model has no error


def test_what_is_wrong_must_fit(trainer):
    with pytest.raises(ValueError, match=r"wrong: it has the shape \(39,\)"):
        mislabels(trainer, ANCHORS, WRONG[1:])
    with pytest.raises(ValueError, match="0 wrong labels; give 40 booleans"):
        mislabels(trainer, ANCHORS, np.zeros(40, dtype=bool))
