"""Training again without harmful examples, with a training that only records what it was given."""

from __future__ import annotations

import numpy as np
import pytest
from tiny import tiny_data, tiny_trainer

from hf_fastif.analysis import representation_similarity
from hf_fastif.experiments import removal_check
from hf_fastif.influence import QuerySet


N, VALIDATION, EXPLAINED, COUNT = 24, tiny_data(8, seed=1), np.array([1, 4, 6]), 4
WRONG = np.arange(N) % 3 == 0


@pytest.fixture
def trainer(tmp_path):
    train = tiny_data(N).add_column("row", list(range(N)))
    return tiny_trainer(tmp_path, train=train, solver="identity", index_features="pooled")


@pytest.fixture
def trained():
    return []


@pytest.fixture
def train_on(trained):
    def run(subset, repeat):
        """Predict rightly as many of the validation examples as models were trained before."""
        trained.append(set(range(N)) - set(subset["row"]))
        return np.arange(len(VALIDATION)) < len(trained)

    return run


def run(trainer, train_on, **changes):
    settings = {"train_on": train_on, "depends_on": {}, "wrong_labels": WRONG} | changes
    return removal_check(trainer, VALIDATION, EXPLAINED, COUNT, **settings)


def test_the_most_harmful_to_the_mean_loss_are_removed_and_the_baselines(trainer, trained, train_on):
    scores = trainer.compute_influence(QuerySet(VALIDATION.select(EXPLAINED), reduce="mean"))[0]
    nearest = representation_similarity(trainer, VALIDATION.select(EXPLAINED)).min(axis=0)

    models = run(trainer, train_on, baselines=["nearest", "random"])

    assert [model.removed for model in models] == ["nothing", "most harmful", "nearest", "random"]
    assert [model.num_removed for model in models] == [0, COUNT, COUNT, COUNT]
    assert trained[:2] == [set(np.argsort(-scores)[:COUNT]), set(np.argsort(nearest)[:COUNT])]
    assert [set(model.rows) for model in models[1:]] == trained
    assert models[1].rows == np.argsort(-scores, kind="stable")[:COUNT].tolist()
    counted = [WRONG[sorted(rows)].sum() for rows in trained]
    assert [model.num_wrong_labels for model in models] == [0, *counted]
    assert {model.num_all_wrong_labels for model in models} == {WRONG.sum()}


def test_explained_and_other_examples_are_counted_apart(trainer, train_on):
    wrong = trainer.find_misclassified(VALIDATION)

    full, harmful, random = run(trainer, train_on)

    assert full.right == len(EXPLAINED) - np.isin(EXPLAINED, wrong).sum()
    assert full.accuracy == 1 - np.isin([0, 2, 3, 5, 7], wrong).mean()
    assert (harmful.right, harmful.accuracy, harmful.num_others) == (0, 1 / 5, 5)  # only row 0 is right
    assert (random.right, random.accuracy) == (1, 1 / 5)  # rows 0 and 1


def test_finished_models_are_not_trained_again(trainer, trained, train_on):
    first = run(trainer, train_on)
    assert run(trainer, train_on) == first
    assert len(trained) == 2


def test_bad_arguments_raise(trainer, train_on):
    with pytest.raises(ValueError, match="baselines: furthest is not known; give one or more of random, nearest"):
        run(trainer, train_on, baselines=["random", "furthest"])
    with pytest.raises(ValueError, match=r"count=24: there are 24 training examples; give"):
        removal_check(trainer, VALIDATION, EXPLAINED, N, train_on=train_on, depends_on={})
