"""Retraining on a problem whose training is a sum, so that every change is known."""

from __future__ import annotations

import numpy as np
import pytest
from figures import curves
from tiny import tiny_data, tiny_trainer

from hf_fastif.experiments import Retraining, retraining
from hf_fastif.experiments.sampling import mean_and_interval


N, QUERIES, RIGHT = 24, tiny_data(3, seed=1), [False, False, True]
SIZES = (1, 3)


@pytest.fixture(scope="module")
def trainer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("retraining")
    settings = {"solver": "identity", "index_features": "pooled"}
    train = tiny_data(N).add_column("row", list(range(N)))
    return tiny_trainer(folder, train=train, **settings)


@pytest.fixture(scope="module")
def influence(trainer):
    return trainer.compute_influence(QUERIES)


@pytest.fixture(scope="module")
def trained():
    return []


@pytest.fixture(scope="module")
def train_on(influence, trained):
    def run(subset, repeat):
        """Losses that grow by the influence of each example that the model is trained on, plus what chance adds."""
        trained.append((tuple(subset["row"]), repeat))
        return influence[:, subset["row"]].sum(axis=1) + 100.0 * repeat

    return run


def run(trainer, train_on, **changes):
    settings = {"depends_on": {"steps": "1"}, "num_removed": SIZES, "num_repeats": 2} | changes
    return retraining(trainer, QUERIES, RIGHT, train_on=train_on, **settings)


@pytest.fixture(scope="module")
def found(trainer, train_on):
    return run(trainer, train_on)


def test_changes_are_those_of_the_removed_examples(found, influence):
    for row in found.changes:
        if row["system"] == "full":
            order = np.argsort(influence[row["query"]] * (1 if row["direction"] == "helpful" else -1))
            expected = -influence[row["query"], order[: row["m"]]].sum()
            assert row["change"] == pytest.approx(expected, rel=1e-4)
            assert (row["change"] > 0) == (row["direction"] == "helpful")
    counts = {
        "full": 2 * len(SIZES) * 2 * 3,
        "random": 3 * len(SIZES) * 2 * 3,
    }  # directions or labels, repeats, queries
    for system, count in counts.items():
        assert sum(row["system"] == system for row in found.changes) == count
    np.testing.assert_allclose(found.losses, influence.sum(axis=1) + 50, rtol=1e-5)


def test_random_examples_have_the_label_and_serve_all_queries(found, trained, trainer):
    labels, everything = np.array(trainer.train_dataset["label"]), set(range(N))
    removed = [(sorted(everything - set(rows)), repeat) for rows, repeat in trained]
    assert len(removed) == len({str(one) for one in removed})  # no model twice
    of_one_label = [rows for rows, _ in removed if len(rows) == 3 and len({*labels[rows]}) == 1]
    assert len(of_one_label) >= 2 * 3
    assert removed.count(([], 0)) == removed.count(([], 1)) == 1
    assert len(removed) <= 2 * (1 + 3 * 2 * len(SIZES) + 3 * len(SIZES))


def test_finished_models_are_not_trained_again(trainer, found, train_on, trained):
    before = len(trained)
    assert run(trainer, train_on) == found
    assert len(trained) == before
    more = run(trainer, train_on, systems={"full": None, "fast": 20})
    both = [[r["change"] for r in more.changes if r["system"] == name] for name in ("full", "fast")]
    assert len(both[0]) == len(both[1])
    # Where both find the same examples, and for all random ones, the models are there.
    assert len(trained) - before < 2 * 3 * 2 * len(SIZES)
    run(trainer, train_on, num_removed=[1], depends_on={"steps": "2"})
    assert len(trained) > before + 10


def test_means_and_intervals(found):
    row = next(r for r in found.summary() if (r["group"], r["direction"], r["m"]) == ("all", "helpful", 3))
    values = [r["change"] for r in found.changes if (r["direction"], r["m"]) == ("helpful", 3)]
    assert row["change"] == pytest.approx(np.mean(values))
    assert row["low"] < row["change"] < row["high"]
    alone = next(
        r for r in found.summary() if (r["group"], r["direction"], r["m"]) == ("predicted right", "helpful", 3)
    )
    assert alone["change"] == pytest.approx(
        np.mean([r["change"] for r in found.changes if r["query"] == 2 and (r["direction"], r["m"]) == ("helpful", 3)])
    )
    assert np.isnan(mean_and_interval(np.ones((1, 1)), seed=0)[1:]).all()
    values = np.random.default_rng(0).standard_normal((40, 30))
    mean, low, high = mean_and_interval(values, seed=0)
    assert mean == pytest.approx(values.mean())
    assert 2 * 1.2 < (high - low) / (values.std() / np.sqrt(values.size)) < 2 * 1.96 * np.sqrt(3) * 1.2


def test_saved_read_and_drawn(found, tmp_path):
    path = found.write(tmp_path, "retraining")
    assert Retraining.load(path) == found
    for panel in found.figure().axes:
        rows = [row for row in found.summary() if row["group"] == panel.get_title()]
        for label, points in curves(panel).items():
            expected = [row["change"] for row in rows if f"{row['system']}, {row['direction']}" == label]
            assert points[:, 1] == pytest.approx(expected) and expected
    assert "predicted wrong" in str(found) and "m = 3" in str(found)


def test_measured_changes_are_compared_with_the_predicted_ones(tmp_path):
    """Losses move by 0.6 of what is predicted, by chance from repeat to repeat, and by which examples are missing."""
    train = tiny_data(N).add_column("row", list(range(N)))
    trainer = tiny_trainer(tmp_path, train=train, solver="cg", damping=0.5)
    influence = trainer.compute_influence(QUERIES)

    def losses(noise):
        def run(subset, repeat):
            random = np.random.default_rng([repeat, *subset["row"]])
            moved = 0.6 * influence[:, subset["row"]].sum(axis=1) / N
            return moved + 5.0 * repeat + noise * random.standard_normal(3)

        return run

    exact, noisy = (run(trainer, losses(noise), depends_on={"noise": str(noise)}) for noise in (0.0, 0.3))
    for row in exact.changes:
        if row["system"] == "full":
            order = np.argsort(influence[row["query"]] * (1 if row["direction"] == "helpful" else -1))
            expected = -influence[row["query"], order[: row["m"]]].sum() / N
            assert row["predicted"] == pytest.approx(expected, rel=1e-3)
    every, full, random = exact.calibration()
    assert [row["groups"] for row in (every, full, random)] == [12 + 18, 12, 18]  # 3 queries, 2 sizes, 2 and 3 kinds
    for row in (every, full, random):
        assert row["slope"] == pytest.approx(0.6, rel=1e-3) and row["pearson"] == pytest.approx(1, abs=1e-4)
    assert "  all              measured = 0.60 x predicted, Pearson correlation 1.00, 30 groups" in str(exact)
    assert 0.3 < noisy.calibration()[0]["pearson"] < 0.98
    figure = noisy.figures("retraining")["retraining-calibration"]
    assert sum(len(points) for label, points in curves(figure.axes[0]).items() if "=" not in label) == 30


def test_slope_and_correlation_by_hand():
    group = {"system": "full", "direction": "helpful", "m": 1}
    numbers = [(0, 1.0, 0.5), (0, 1.0, 1.5), (1, 2.0, 3.0), (2, -1.0, 0.0)]  # query, predicted, change: two repeats
    changes = [group | {"query": q, "repeat": i, "predicted": p, "change": c} for i, (q, p, c) in enumerate(numbers)]
    every, full = Retraining(changes, [0.0] * 3, RIGHT, N).calibration()
    assert every == full | {"system": "all"} and full["groups"] == 3
    assert full["slope"] == pytest.approx((1 * 1 + 2 * 3 + -1 * 0) / (1 + 4 + 1))
    assert full["pearson"] == pytest.approx(np.corrcoef([1, 2, -1], [1, 3, 0])[0, 1])


def test_without_curvature_nothing_is_predicted(found):
    assert {row["predicted"] for row in found.changes} == {None} and found.calibration() == []
    assert "predicted changes" not in str(found) and set(found.figures("retraining")) == {"retraining"}


def test_too_few_to_remove(trainer, train_on):
    with pytest.raises(ValueError, match="training examples have the label"):
        run(trainer, train_on, num_removed=[20])
    with pytest.raises(ValueError, match=r"num_removed=5: too few helpful examples \(query .* give a smaller number"):
        run(trainer, train_on, num_removed=[5], systems={"fast": 4})
