"""The linear datamodeling score, on a problem whose answer is known, and through a trainer."""

from __future__ import annotations

import numpy as np
import pytest
from figures import curves
from scipy.stats import spearmanr
from tiny import tiny_data, tiny_model, tiny_trainer

from hf_fastif.analysis import LdsOfMethods, LossRises, lds_of_methods, query_losses, retrain_on_subsets
from hf_fastif.analysis.session_tools import changed
from hf_fastif.metrics import SubsetLosses, lds


RANDOM = np.random.default_rng(0)
INFLUENCE = RANDOM.standard_normal((6, 30)).astype(np.float32)
MEMBERS = np.stack([RANDOM.permutation(30) < 15 for _ in range(40)])


def losses(noise: float) -> np.ndarray:
    return MEMBERS @ INFLUENCE.T + noise * RANDOM.standard_normal((40, 6))


def test_losses_that_are_sums_of_influences_score_one():
    found = lds(INFLUENCE, SubsetLosses(MEMBERS, np.exp(losses(0.0))), num_draws=20)
    assert (found.mean, found.low, found.high) == (1.0, 1.0, 1.0)
    assert lds(-INFLUENCE, SubsetLosses(MEMBERS, losses(0.0)), num_draws=0).mean == -1.0


def test_score_is_the_mean_of_scipys_spearman():
    truth = SubsetLosses(MEMBERS, losses(3.0))
    found = lds(INFLUENCE, truth, num_draws=200)
    expected = [spearmanr(MEMBERS @ INFLUENCE[q], truth.losses[:, q])[0] for q in range(6)]
    np.testing.assert_allclose(found.per_query, expected, rtol=1e-6)
    assert found.mean == pytest.approx(np.mean(expected))
    assert found.low < found.mean < found.high
    assert 0.1 < found.high - found.low < 0.6


def test_scores_that_do_not_vary_tell_nothing():
    assert lds(np.zeros((6, 30)), SubsetLosses(MEMBERS, losses(0.0)), num_draws=2).mean == 0.0


def test_shapes_must_fit():
    with pytest.raises(ValueError, match=r"shape \(30, 6\).* 30 examples .* 6 queries"):
        lds(INFLUENCE.T, SubsetLosses(MEMBERS, losses(0.0)))


def test_subsets_are_trained_once_and_kept(tmp_path):
    train, trained = tiny_data(20), []

    def train_on(subset, number):
        trained.append((number, subset["text"]))
        return np.stack([np.full(3, number), np.zeros(3)], axis=1)[:, 0]  # a view with strides

    few = retrain_on_subsets(train_on, train, tmp_path, num_subsets=2)
    more = retrain_on_subsets(train_on, train, tmp_path, num_subsets=4)
    assert [number for number, _ in trained] == [0, 1, 2, 3]
    assert few.members.sum(axis=1).tolist() == [10, 10] and (more.members[:2] == few.members).all()
    assert trained[3][1] == [train[int(row)]["text"] for row in np.flatnonzero(more.members[3])]
    assert more.losses.tolist() == [[n] * 3 for n in range(4)]
    again = SubsetLosses.load(tmp_path / "subsets.safetensors")
    assert (again.members == more.members).all() and (again.losses == more.losses).all()
    with pytest.raises(ValueError, match="belongs to another subset"):
        retrain_on_subsets(train_on, train, tmp_path, num_subsets=2, seed=1)
    with pytest.raises(ValueError, match="share=1.5"):
        retrain_on_subsets(train_on, train, tmp_path, share=1.5)


def test_moments_share_what_their_checkpoints_say(tmp_path, monkeypatch):
    both = [str(tmp_path / "one"), str(tmp_path / "other")]
    for shift, path in zip((0.3, -0.3), both, strict=True):
        member = tiny_model()
        member.classifier.weight.data += shift
        member.save_pretrained(path)
    trainer = tiny_trainer(tmp_path, tiny_model(), tiny_data(30), damping=0.5)
    queries, truth = tiny_data(6, seed=1), SubsetLosses(MEMBERS, losses(1.0))
    asked = []
    with changed(trainer, solver="identity", checkpoints=both):
        expected = lds(trainer.compute_influence(queries), truth)
    compute = trainer.compute_influence

    def counted(queries):
        asked.append(trainer.args.checkpoints)
        return compute(queries)

    monkeypatch.setattr(trainer, "compute_influence", counted)
    moments = {"one": both[:1], "both": both, "other": both[1:]}
    rows = {row["moment"]: row for row in lds_of_methods(trainer, queries, truth, ["gradient product"], moments).table}
    assert [rows["both"][name] for name in ("lds", "low", "high")] == pytest.approx(
        [expected.mean, expected.low, expected.high]
    )
    assert asked == [both[:1], both[1:]]
    assert rows["both"]["seconds"] == pytest.approx(rows["one"]["seconds"] + rows["other"]["seconds"])


def test_repeats_are_averaged_and_tell_the_ceiling(tmp_path):
    train, trained, random = tiny_data(30), [], np.random.default_rng(1)
    signal = 2.0 * INFLUENCE.sum(axis=0)  # of each example; noise of training below has as much variance

    def train_on(subset, number):
        trained.append(number)
        own = np.isin(train["text"], subset["text"])
        return own @ signal * np.ones(400) + random.standard_normal(400) * np.std(MEMBERS @ signal)

    assert len(set(train["text"])) == 30
    once = retrain_on_subsets(train_on, train, tmp_path, num_subsets=40)
    assert once.ceiling is None
    twice = retrain_on_subsets(train_on, train, tmp_path, num_subsets=40, repeats=2)
    assert trained == [*range(40), *range(100_000, 100_040)]
    second = SubsetLosses.load(tmp_path / "subset-00007-1.safetensors").losses[0]
    np.testing.assert_allclose(twice.losses[7], (once.losses[7] + second) / 2)
    # Half of the variance of a loss is signal, two thirds of that of a mean of two.
    assert twice.ceiling == pytest.approx((2 / 3) ** 0.5, abs=0.05)
    perfect = twice.members @ signal
    found = np.mean([spearmanr(perfect, losses)[0] for losses in twice.losses.T])
    assert twice.ceiling == pytest.approx(found, abs=0.05)
    assert SubsetLosses.load(tmp_path / "subsets.safetensors").ceiling == twice.ceiling
    with pytest.raises(ValueError, match="repeats=0"):
        retrain_on_subsets(train_on, train, tmp_path, repeats=0)


def test_losses_are_those_of_the_model(tmp_path):
    queries = tiny_data(5, seed=1)
    trainer = tiny_trainer(tmp_path)
    expected = [trainer.evaluate(queries.select([row]))["eval_loss"] for row in range(5)]
    np.testing.assert_allclose(query_losses(trainer, queries), expected, rtol=1e-4)


def test_methods_at_moments_are_scored_and_kept(tmp_path, monkeypatch):
    trainer, queries = tiny_trainer(tmp_path, train=tiny_data(30), damping=0.5), tiny_data(3, seed=1)
    with changed(trainer, solver="exact"):
        influence = trainer.compute_influence(queries)
    truth = SubsetLosses(MEMBERS, MEMBERS @ influence.T)
    asked = trainer, queries, truth, ["exact", "gradient product"], {"end": ["final"]}
    found = lds_of_methods(*asked)
    rows = {row["method"]: row for row in found.table}
    assert rows["exact"]["lds"] == pytest.approx(1) and 0.2 < rows["gradient product"]["lds"] < 0.99
    with changed(trainer, solver="identity"):
        expected = lds(trainer.compute_influence(queries), truth)
    assert [rows["gradient product"][name] for name in ("lds", "low", "high")] == [
        expected.mean,
        expected.low,
        expected.high,
    ]
    assert (found.num_subsets, found.num_queries, found.num_train) == (40, 3, 30)
    assert trainer.args.checkpoints == ["auto"]

    monkeypatch.setattr(trainer, "compute_influence", None)  # a larger truth costs no influence
    assert lds_of_methods(*asked[:2], SubsetLosses(MEMBERS[:20], truth.losses[:20]), *asked[3:]).num_subsets == 20
    with pytest.raises(ValueError, match="methods: guessing is not one of representation similarity, gradient"):
        lds_of_methods(*asked[:3], ["exact", "guessing"], {"end": ["final"]})

    assert LdsOfMethods.load(found.write(tmp_path, "lds")) == found
    drawn = curves(found.figure().axes[0])
    assert {name: points[:, 1].tolist() for name, points in drawn.items()} == {n: [rows[n]["lds"]] for n in rows}
    assert "gradient product" in str(found)


def test_models_with_the_seed_of_the_first_run_are_the_truth_and_the_others_tell_the_ceiling(tmp_path):
    train, seeds, random = tiny_data(30), [], np.random.default_rng(1)
    signal = INFLUENCE.sum(axis=0)

    def train_on(subset, seed):
        seeds.append(seed)
        mean = np.isin(train["text"], subset["text"]) @ signal
        return mean + (0 if seed is None else np.std(MEMBERS @ signal)) * random.standard_normal(400)

    alone = retrain_on_subsets(train_on, train, tmp_path, num_subsets=40, same_seed=True)
    assert seeds == [None] * 40 and alone.ceiling is None
    np.testing.assert_allclose(alone.losses, np.tile((alone.members @ signal)[:, None], 400), rtol=1e-5)
    both = retrain_on_subsets(train_on, train, tmp_path, num_subsets=40, same_seed=True, repeats=2)
    assert seeds[40:] == list(range(40))
    np.testing.assert_array_equal(both.losses, alone.losses)
    # Half of the variance of the other models' losses is noise: they correlate by the root of a half with the signal.
    assert both.ceiling == pytest.approx(0.5**0.25, abs=0.03)
    retrain_on_subsets(train_on, train, tmp_path, num_subsets=40)
    assert len(seeds) == 80  # the other models are those of a call without same_seed


def test_loss_rises_by_what_removed_examples_would_have_lowered(tmp_path):
    train, queries, trained = tiny_data(30), tiny_data(6, seed=1), []
    trainer = tiny_trainer(tmp_path, train=train)
    influence = INFLUENCE.copy()

    def train_on(subset, repeat):
        trained.append(len(subset))
        return np.isin(train["text"], subset["text"]) @ influence.T + repeat

    rises = LossRises(trainer, queries, train_on, {"epochs": "1"}, num_queries=4, share=0.1, num_repeats=2)
    measured = rises.of(influence)
    expected = -np.sort(influence[:4], axis=1)[:, :3].sum(axis=1).mean()
    assert measured["rise"] == pytest.approx(expected, rel=1e-5)
    assert measured["rise_low"] <= measured["rise"] <= measured["rise_high"]
    assert sorted(trained) == [27] * 8 + [30] * 2
    assert rises.of(-influence)["rise"] < 0 < measured["rise"]
    rises.of(influence)
    assert len(trained) == 18  # nothing is trained twice

    truth = SubsetLosses(MEMBERS, MEMBERS @ influence.T, ceiling=0.8)
    table = lds_of_methods(trainer, queries, truth, ["gradient product"], {"end": ["final"]}, rises)
    assert set(table.table[0]) >= {"rise", "rise_low", "rise_high"}
    assert "of the ceiling" in str(table) and "without its top 1 %" in str(table)
