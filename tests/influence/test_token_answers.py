"""Heads with one label per token: the index answers for them too, and tokens add up to rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_heads import CASES, SMALL, HeadCase, lm_rows, logits, next_token_loss, pick
from transformers import AutoModelForCausalLM, DataCollatorForTokenClassification

from hf_fastif import LogProbability


SETTINGS = {"checkpoints": "final", "damping": 0.5, "query_batch_size": 2}


def matrix_of(result, count):
    matrix = np.full((result.summary.num_queries, count), np.nan, np.float32)
    table = result.influences
    matrix[table["query_index"], table["train_index"]] = table["influence"]
    return matrix


def close(actual, expected, share=2e-3):
    np.testing.assert_allclose(actual, expected, rtol=share, atol=share * np.abs(expected).max())


@pytest.mark.parametrize("name", ["causal-gpt2", "causal-llama", "masked-bert", "token", "seq2seq-t5", "seq2seq-bart"])
def test_the_index_answers_and_tokens_add_up(name, tmp_path):
    case = CASES[name]
    train, queries = case.data(14, seed=0), case.data(3, seed=1)
    trainer = case.trainer(tmp_path, train, **SETTINGS)
    result = trainer.find_influential(queries, num_examples=14)
    assert "exact inverse along" in result.summary.solver
    assert result.summary.scoring == "products with the vectors of the index"
    scores = matrix_of(result, 14)
    close(scores, trainer.compute_influence(queries, s_test=trainer.compute_s_test(queries)))
    assert np.abs(scores).max() > 10 * np.abs(scores).min() > 0
    sums = np.array([np.sum(values) for values in result.influences["token_influence"]])
    close(sums, np.array(result.influences["influence"]))
    rows = trainer.token_influence(queries, rows=[3, 8])
    close(np.array([[values.sum() for values in query] for query in rows]), scores[:, [3, 8]])


def test_random_directions_estimate_the_curvature(tmp_path):
    """Over many seeds, the scores of a language model scatter around those of the exact inverse."""
    case = CASES["causal-gpt2"]
    train, queries = case.data(14, seed=0), case.data(2, seed=1)
    exact = case.trainer(tmp_path / "exact", train, solver="exact", damping=5.0, checkpoints="final")
    expected = exact.compute_influence(queries)
    estimates = [
        case.trainer(tmp_path / str(seed), train, seed=seed, damping=5.0, checkpoints="final").compute_influence(
            queries
        )
        for seed in range(6)
    ]
    correlations = [np.corrcoef(scores.ravel(), expected.ravel())[0, 1] for scores in estimates]
    mean = np.corrcoef(np.mean(estimates, axis=0).ravel(), expected.ravel())[0, 1]
    assert min(correlations) > 0.5 and mean > max(correlations)


def test_a_measure_of_tokens_is_answered_too(tmp_path):
    case = CASES["causal-gpt2"]
    train, queries = case.data(14, seed=0), case.data(2, seed=1)
    trainer = case.trainer(tmp_path, train, **SETTINGS)
    by_loss = trainer.compute_influence(queries)
    close(trainer.compute_influence(queries, measure=LogProbability()), by_loss)


def test_a_custom_loss_over_tokens_is_left_to_an_iterative_solver(tmp_path):
    case = CASES["causal-gpt2"]
    train, queries = case.data(8, seed=0), case.data(2, seed=1)
    plain = case.trainer(tmp_path / "plain", train, solver="lissa", lissa_depth=4, lissa_scale=500.0, **SETTINGS)
    trainer = case.trainer(tmp_path / "custom", train, lissa_depth=4, lissa_scale=500.0, **SETTINGS)

    def token_loss(outputs, labels, num_items_in_batch=None):
        logits, targets = outputs.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
        total = torch.nn.functional.cross_entropy(logits, targets, reduction="sum")
        return total / (num_items_in_batch if num_items_in_batch is not None else (targets != -100).sum())

    trainer.compute_loss_func = token_loss
    result = trainer.find_influential(queries, num_examples=None)
    assert "LiSSA" in result.summary.solver and not (tmp_path / "custom" / "influence" / "indexes").exists()
    close(matrix_of(result, 8), plain.compute_influence(queries), share=1e-2)


def test_tied_embeddings_that_hold_nearly_all_parameters_are_in_the_index(tmp_path):
    sizes = {"n_embd": 4, "n_layer": 1, "n_positions": 10, "n_inner": 4, "n_head": 1, "vocab_size": 2000}
    make = pick(AutoModelForCausalLM, "gpt2", **SMALL | sizes)
    case = HeadCase(make, lm_rows, DataCollatorForTokenClassification, logits, next_token_loss)
    shares = {name: p.numel() for name, p in case.model.named_parameters()}
    assert shares["transformer.wte.weight"] > 0.9 * sum(shares.values())
    trainer = case.trainer(tmp_path, case.data(8, seed=0), **SETTINGS)
    result = trainer.find_influential(case.data(2, seed=1), num_examples=2)
    assert "exact inverse along" in result.summary.solver
