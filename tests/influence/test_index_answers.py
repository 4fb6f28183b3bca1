"""The default: an index of gradient sketches is built once, and its products with queries are their scores."""

from __future__ import annotations

from contextlib import contextmanager

import numpy as np
import pytest
import torch
from tiny import tiny_data, tiny_model, tiny_trainer
from transformers import BertForSequenceClassification

from hf_fastif import InfluenceIndex, Logit, QuerySet
from hf_fastif.checkpoints.checkpoint import Checkpoint, save_checkpoint


QUERIES, POOL = tiny_data(5, seed=1), tiny_data(9, seed=3)
ROUNDED = {"rtol": 2e-3, "atol": 2e-2}  # by half precision, relative to scores of up to 60


@pytest.fixture
def trainer(tmp_path):
    return tiny_trainer(tmp_path, checkpoints="final", query_batch_size=2)


@contextmanager
def counted(monkeypatch):
    """Counts forward passes by example and calls of autograd."""
    counts, forward, grad = {"examples": 0, "backward": 0}, BertForSequenceClassification.forward, torch.autograd.grad

    def run(self, input_ids=None, **named):
        counts["examples"] += len(input_ids)
        return forward(self, input_ids=input_ids, **named)

    def differentiate(*args, **named):
        counts["backward"] += 1
        return grad(*args, **named)

    with monkeypatch.context() as patch:
        patch.setattr(BertForSequenceClassification, "forward", run)
        patch.setattr(torch.autograd, "grad", differentiate)
        yield counts


def matrix_of(result, count=40):
    matrix = np.full((result.summary.num_queries, count), np.nan, np.float32)
    table = result.influences
    matrix[table["query_index"], table["train_index"]] = table["influence"]
    return matrix


def moved_checkpoint(trainer, folder, step, factor):
    moved = {name: factor * p.detach() for name, p in trainer.model.named_parameters() if p.requires_grad}
    save_checkpoint(folder, moved, Checkpoint(step=step))
    return str(folder / f"step-{step:08d}.safetensors")


# ------------------------------------------------------------------------------------------------ built once


def test_the_index_is_built_once_and_asking_again_takes_no_backward_pass(trainer, monkeypatch):
    with counted(monkeypatch) as first:
        result = trainer.find_influential(QUERIES, num_examples=None)
    with counted(monkeypatch) as second:
        again = trainer.find_influential(QUERIES, num_examples=None)
    with counted(monkeypatch) as other:
        trainer.find_influential(POOL)
    assert first["examples"] > 80 and first["backward"] > 10
    assert second["backward"] == 0 and second["examples"] < 40  # predictions of five queries, and probes of a few rows
    assert 0 < other["backward"] < first["backward"] and other["examples"] < 40
    np.testing.assert_array_equal(matrix_of(result), matrix_of(again))
    assert result.summary.scoring == "products with the vectors of the index"
    assert "exact inverse along" in result.summary.solver
    assert result.summary.damping == pytest.approx(0.003 * result.summary.largest_eigenvalue)


def test_the_index_is_not_attached(trainer):
    trainer.find_influential(QUERIES, num_neighbors=3)
    assert trainer.train_dataset.list_indexes() == []
    assert len(trainer.train_dataset.select(range(3))) == 3


def test_another_trainer_reads_it_from_disk(trainer, tmp_path, monkeypatch):
    expected = trainer.compute_influence(QUERIES)
    other = tiny_trainer(tmp_path, checkpoints="final", query_batch_size=2)
    monkeypatch.setattr("hf_fastif.influence.indexes.write_index", lambda *_args: 1 / 0)
    other.model.config._name_or_path = "saved/and-loaded"  # its name does not matter
    np.testing.assert_allclose(other.compute_influence(QUERIES), expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(ZeroDivisionError):
        tiny_trainer(tmp_path, checkpoints="final", index_size=8).compute_influence(QUERIES)


def test_overwrite_builds_it_anew_but_once(trainer, tmp_path, monkeypatch):
    trainer.compute_influence(QUERIES)
    other, written = tiny_trainer(tmp_path, checkpoints="final", overwrite=True), []
    write = InfluenceIndex.write
    monkeypatch.setattr(InfluenceIndex, "write", lambda *args: written.append(args[1]) or write(*args))
    other.find_influential(QUERIES)
    other.find_influential(POOL)
    assert written == ["gradient_sketch"]


def test_after_more_training_it_is_built_anew(trainer, tmp_path):
    before = trainer.compute_influence(QUERIES)
    trainer.find_influential(QUERIES)
    trainer.model.classifier.weight.data *= 1.5
    after = trainer.compute_influence(QUERIES)
    assert np.abs(after - before).max() > 0.1 * np.abs(before).max()
    fresh = tiny_trainer(tmp_path / "fresh", trainer.model, checkpoints="final", query_batch_size=2)
    np.testing.assert_allclose(after, fresh.compute_influence(QUERIES), **ROUNDED)


def test_a_changed_dataset_has_an_index_of_its_own(trainer):
    trainer.build_index()
    expected = trainer.compute_influence(QUERIES)
    order = np.random.default_rng(0).permutation(40)
    trainer.train_dataset = tiny_data(40).select(order)
    permuted = trainer.compute_influence(QUERIES)
    np.testing.assert_allclose(permuted, expected[:, order], rtol=2e-2, atol=0.2)  # another basis is rounded otherwise


def test_a_loaded_index_answers_and_none_is_built(trainer, tmp_path, monkeypatch):
    trainer.args.index_size = 30
    folder, expected = trainer.build_index().folder, trainer.find_influential(QUERIES, num_examples=None)
    other = tiny_trainer(tmp_path / "other", checkpoints="final")
    index = other.load_index(folder)
    monkeypatch.setattr("hf_fastif.influence.indexes.SketchFit", lambda *_args: 1 / 0)
    result = other.find_influential(QUERIES, num_examples=None)
    np.testing.assert_allclose(matrix_of(result), matrix_of(expected), rtol=1e-4, atol=1e-4)
    assert "along 30 directions" in result.summary.solver
    others = other.compute_influence(QUERIES, candidates=POOL)  # sketched like the training set
    assert index.sketches[0].size == 30
    s_test = trainer.compute_s_test(QUERIES)
    np.testing.assert_allclose(others, other.compute_influence(QUERIES, POOL, s_test), **ROUNDED)


def test_s_test_does_without_an_attached_index_that_no_longer_fits(trainer):
    trainer.build_index()
    trainer.model.classifier.bias.data += 1
    with pytest.raises(ValueError, match="the model was changed after its index was built"):
        trainer.compute_influence(QUERIES)
    s_test = trainer.compute_s_test(QUERIES)
    trainer.build_index()
    np.testing.assert_allclose(
        trainer.compute_influence(QUERIES), trainer.compute_influence(QUERIES, s_test=s_test), **ROUNDED
    )


# ------------------------------------------------------------------------------------------------ what it answers


def test_answers_are_products_of_s_test_with_exact_gradients(trainer):
    s_test = trainer.compute_s_test(QUERIES)
    exact = trainer.compute_influence(QUERIES, s_test=s_test)
    answers = matrix_of(trainer.find_influential(QUERIES, num_examples=None))
    np.testing.assert_allclose(answers, exact, **ROUNDED)
    assert np.abs(exact).max() > 5 and (answers != exact).any()
    np.testing.assert_array_equal(trainer.compute_influence(QUERIES), answers)


def test_answers_are_those_of_the_exact_inverse_if_the_sketch_spans_the_training_set(trainer):
    """The sketch has as many directions as the 40 examples have Jacobian rows, at the same damping."""
    result = trainer.find_influential(QUERIES, num_examples=None)
    trainer.args.solver, trainer.args.damping = "exact", result.summary.damping
    exact = trainer.compute_influence(QUERIES)
    np.testing.assert_allclose(matrix_of(result), exact, rtol=2e-2, atol=2e-2 * np.abs(exact).max())


def test_neighbors_are_the_strongest_of_each_direction(trainer):
    everything = trainer.compute_influence(QUERIES)
    found = matrix_of(trainer.find_influential(QUERIES, num_examples=None, num_neighbors=6))
    for scores, row in zip(everything, found, strict=True):
        strongest = np.concatenate([scores.argsort()[:3], scores.argsort()[-3:]])
        assert set(np.flatnonzero(~np.isnan(row))) == set(strongest)
        np.testing.assert_allclose(row[strongest], scores[strongest], rtol=1e-4)


def test_neighbors_of_an_attached_index_of_features_are_scored_exactly(trainer):
    trainer.args.index_features = "pooled"
    trainer.build_index()
    rows = trainer.find_candidates(QUERIES, 6)
    result = trainer.find_influential(QUERIES, num_examples=None, num_neighbors=6)
    exact = trainer.compute_influence(QUERIES, s_test=trainer.compute_s_test(QUERIES))
    for query, expected in enumerate(rows):
        assert set(np.flatnonzero(~np.isnan(matrix_of(result)[query]))) == set(expected)
    known = ~np.isnan(matrix_of(result))
    np.testing.assert_allclose(matrix_of(result)[known], exact[known], rtol=1e-3, atol=1e-4)
    assert "gradients of single examples" in result.summary.scoring or "forward mode" in result.summary.scoring


@pytest.mark.parametrize("k", [None, 4])
def test_other_candidates_are_sketched_like_the_training_set(trainer, k):
    exact = trainer.compute_influence(QUERIES, POOL, trainer.compute_s_test(QUERIES))
    result = matrix_of(trainer.find_influential(QUERIES, None, num_neighbors=k, candidates=POOL), len(POOL))
    known = ~np.isnan(result)
    assert (known.sum(axis=1) == (k or 9)).all()
    np.testing.assert_allclose(result[known], exact[known], **ROUNDED)


def test_anchors_alternatives_and_measures_are_linear(trainer):
    single, others = trainer.compute_influence(QUERIES), trainer.compute_influence(POOL.select(range(5)))
    anchors = trainer.compute_influence(QuerySet(QUERIES, reduce="mean"))
    np.testing.assert_allclose(anchors, single.mean(axis=0, keepdims=True), rtol=1e-3, atol=1e-3)
    difference = trainer.compute_influence(QuerySet(QUERIES, rather_than=POOL.select(range(5))))
    np.testing.assert_allclose(difference, single - others, rtol=1e-3, atol=1e-3)
    for measure in (Logit(1), Logit(2)):
        s_test = trainer.compute_s_test(QUERIES, measure)
        exact = trainer.compute_influence(QUERIES, s_test=s_test, measure=measure)
        np.testing.assert_allclose(trainer.compute_influence(QUERIES, measure=measure), exact, **ROUNDED)
        assert np.abs(exact - single).max() > 1


def test_checkpoints_add_up_by_weight(trainer, tmp_path):
    """Weights are relative: 1 and 3 are a quarter and three quarters."""
    paths = [moved_checkpoint(trainer, tmp_path / "run", step, factor) for step, factor in ((1, 0.8), (2, 1.2))]
    parts = {"scores": [], "self": []}
    for path in paths:
        trainer.args.checkpoints = [path]
        parts["scores"].append(trainer.compute_influence(QUERIES))
        parts["self"].append(trainer.self_influence())
    trainer.args.checkpoints, trainer.args.checkpoint_weights = paths, [1.0, 3.0]
    scale = np.abs(parts["scores"]).max()
    expected = 0.25 * parts["scores"][0] + 0.75 * parts["scores"][1]
    result = trainer.find_influential(QUERIES, num_examples=None)
    np.testing.assert_allclose(matrix_of(result), expected, rtol=2e-3, atol=1e-3 * scale)
    expected = 0.25 * parts["self"][0] + 0.75 * parts["self"][1]
    np.testing.assert_allclose(trainer.self_influence(), expected, rtol=2e-3)
    assert len(trainer.build_index().sketches) == 2
    exact = trainer.compute_influence(QUERIES, s_test=trainer.compute_s_test(QUERIES))
    np.testing.assert_allclose(matrix_of(result), exact, rtol=2e-3, atol=1e-3 * scale)


def test_self_influence_is_minus_the_influence_on_oneself(trainer):
    diagonal = -trainer.compute_influence(trainer.train_dataset).diagonal()
    np.testing.assert_allclose(trainer.self_influence(), diagonal, rtol=5e-3, atol=1e-2)
    np.testing.assert_allclose(
        trainer.self_influence(POOL), -trainer.compute_influence(POOL, POOL).diagonal(), rtol=5e-3, atol=1e-2
    )
    assert diagonal.min() >= 0 and diagonal.max() > 1


# ------------------------------------------------------------------------------------------------ scored again


@pytest.mark.parametrize("by_setting", [False, True])
def test_the_strongest_are_scored_again_by_an_iterative_solver(trainer, by_setting):
    ranked = trainer.compute_influence(QUERIES)
    if by_setting:
        trainer.args.rescore = 3
    result = trainer.find_influential(QUERIES, None, **({} if by_setting else {"rescore": 3}))
    trainer.args.solver, trainer.args.rescore = "sdca", None
    solved = trainer.compute_influence(QUERIES)
    for found, scores, expected in zip(matrix_of(result), ranked, solved, strict=True):
        strongest = np.concatenate([scores.argsort()[:3], scores.argsort()[-3:]])
        assert set(np.flatnonzero(~np.isnan(found))) == set(strongest)
        np.testing.assert_allclose(found[strongest], expected[strongest], rtol=1e-2, atol=0.1)
    assert result.summary.solver.startswith("SDCA")
    assert result.summary.scoring.startswith("the index's 3 strongest in each direction, by ")


def test_the_chosen_solver_scores_again(trainer):
    trainer.args.solver = "identity"
    result = trainer.find_influential(QUERIES, None, rescore=2)
    exact = trainer.compute_influence(QUERIES)
    known = ~np.isnan(matrix_of(result))
    assert (known.sum(axis=1) == 4).all()
    np.testing.assert_allclose(matrix_of(result)[known], exact[known], rtol=1e-3, atol=1e-3)


def test_more_than_half_are_all_scored_again(trainer):
    assert not np.isnan(matrix_of(trainer.find_influential(QUERIES, None, rescore=25))).any()


def test_rescore_stands_alone(trainer):
    s_test = trainer.compute_s_test(QUERIES)
    for other in ({"num_neighbors": 5}, {"s_test": s_test}):
        with pytest.raises(ValueError, match="rescore=3: .* give it without num_neighbors and s_test"):
            trainer.find_influential(QUERIES, rescore=3, **other)
    with pytest.raises(ValueError, match="rescore=41: there are 40 candidates; give 1 to 40"):
        trainer.find_influential(QUERIES, rescore=41)
    with pytest.raises(ValueError, match="rescore=0: "):
        tiny_trainer(trainer.args.output_dir, rescore=0)


# ------------------------------------------------------------------------------------------------ where it cannot


def test_the_hessian_is_left_to_an_iterative_solver(tmp_path):
    trainer = tiny_trainer(tmp_path, checkpoints="final", curvature="hessian", damping=20.0, lissa_depth=5)
    result = trainer.find_influential(QUERIES, num_examples=2)
    assert "LiSSA" in result.summary.solver and not (tmp_path / "influence" / "indexes").exists()


def test_trained_embeddings_are_sketched(tmp_path):
    trainer = tiny_trainer(tmp_path, tiny_model(frozen=None), checkpoints="final")
    result = trainer.find_influential(QUERIES, num_examples=None)
    assert "exact inverse along" in result.summary.solver
    exact = trainer.compute_influence(QUERIES, s_test=trainer.compute_s_test(QUERIES))
    np.testing.assert_allclose(matrix_of(result), exact, rtol=2e-3, atol=2e-3 * np.abs(exact).max())
