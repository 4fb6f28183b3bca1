"""Scores, in forward mode and from rows, against a loop of autograd over single, unpadded examples."""

from __future__ import annotations

import numpy as np
import oracles
import pytest
import torch
from scipy.stats import spearmanr
from tiny import accelerator, batches, tiny_data, tiny_model
from torch import nn

from hf_fastif.curvature import captures
from hf_fastif.execution.sweeps import DatasetSweep
from hf_fastif.model import Objective
from hf_fastif.scoring import choose_scoring, influence_scores


DATA = tiny_data(13)


def scores(model, s_test, rows=None, batch_size=4, data=DATA, **settings):
    rows = np.arange(len(data)) if rows is None else rows
    return influence_scores(
        Objective(model), batches(data), s_test, rows, DatasetSweep(batch_size, accelerator()), **settings
    )


def directions(model, queries=2):
    parameters = oracles.trainable(model)
    return torch.randn(queries, sum(p.numel() for p in parameters), dtype=parameters[0].dtype)


@pytest.mark.parametrize("architecture", ["bert", "roberta", "distilbert", "electra", "modernbert", "gpt2", "llama"])
@pytest.mark.parametrize("frozen", [None, 1])
@pytest.mark.parametrize(
    ("way", "queries"), [("forward_mode", 1), ("forward_mode", 3), ("gradients", 1), ("gradients", 3)]
)
def test_scores_are_minus_s_test_times_gradient(architecture, frozen, way, queries):
    for double in (True, False):
        model = tiny_model(architecture, frozen, double=double)
        s_test = directions(model, queries)
        expected = -(s_test @ oracles.loss_gradients(model, batches(DATA)).T)

        found = torch.from_numpy(scores(model, s_test, scoring=way))

        # float32 comes back either way; ModernBERT takes its softmax in float32 too
        torch.testing.assert_close(found, expected.float(), rtol=2e-3, atol=2e-5 * float(expected.abs().max()))


def test_every_kind_of_trainable_parameter_counts():
    model = tiny_model(frozen=None)
    kinds = {"embeddings.word_embeddings.weight", "LayerNorm.bias", "query.bias", "pooler.dense.weight"}
    for kind in kinds:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.endswith(kind))
        s_test = directions(model, queries=1)
        expected = -(s_test @ oracles.loss_gradients(model, batches(DATA)).T)
        assert expected.abs().max() > 1e-3
        np.testing.assert_allclose(scores(model, s_test), expected, rtol=2e-3, atol=2e-5 * float(expected.abs().max()))


def test_one_query_goes_forward_and_several_share_gradients():
    model = tiny_model(frozen=None)
    objective, examples = Objective(model), batches(DATA)
    assert choose_scoring("auto", objective, examples, 1).layers is None
    assert choose_scoring("auto", objective, examples, 2).layers is not None
    assert "shared by 2 queries" in choose_scoring("auto", objective, examples, 2).why
    model.bert.encoder.layer[1].output.dense.weight = model.bert.encoder.layer[0].output.dense.weight
    assert choose_scoring("auto", Objective(model), examples, 2).layers is not None  # from both of its places
    objective = Objective(model, weight_decay=0.1)
    assert choose_scoring("auto", objective, examples, 2).layers is None
    with pytest.raises(ValueError, match="scoring='gradients'.*forward_mode"):
        choose_scoring("gradients", objective, examples, 2)


def test_gradients_in_strips_give_the_same_scores(monkeypatch):
    for architecture in ("bert", "gpt2"):
        model = tiny_model(architecture, double=True)
        s_test = directions(model)
        expected = scores(model, s_test)
        monkeypatch.setattr(captures, "STRIP_MEMORY", 500)
        np.testing.assert_allclose(scores(model, s_test), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("queries", [1, 3])
def test_bfloat16_keeps_the_order(queries):
    data = tiny_data(60)
    model = tiny_model(hidden_size=32, intermediate_size=64, initializer_range=0.1)
    s_test = directions(model, queries)
    rows, sweep = np.arange(60), DatasetSweep(8, accelerator())
    rough = influence_scores(Objective(model, bf16=True), batches(data), s_test, rows, sweep)
    for one, other in zip(rough, scores(model, s_test, data=data), strict=True):
        assert not np.array_equal(one, other)
        assert spearmanr(one, other).statistic > 0.995


def test_tied_weights_count_once():
    model = tiny_model(frozen=None)
    first, second = model.bert.encoder.layer
    second.intermediate.dense.weight = first.intermediate.dense.weight
    s_test = directions(model)

    np.testing.assert_allclose(
        scores(model, s_test), -(s_test @ oracles.loss_gradients(model, batches(DATA)).T), rtol=2e-3, atol=1e-4
    )


@pytest.mark.parametrize("batch_size", [1, 5, 13, 64])
def test_batch_size_and_its_padding_do_not_matter(batch_size):
    model = tiny_model()
    s_test = directions(model)
    np.testing.assert_allclose(
        scores(model, s_test, batch_size=batch_size), scores(model, s_test, batch_size=3), rtol=1e-3, atol=1e-4
    )


def test_order_and_choice_of_rows_are_kept():
    model = tiny_model()
    s_test = directions(model)
    rows = np.array([9, 0, 4])

    np.testing.assert_allclose(scores(model, s_test, rows), scores(model, s_test)[:, rows], rtol=1e-3, atol=1e-4)


def test_queries_do_not_disturb_each_other():
    model = tiny_model()
    s_test = directions(model, queries=3)
    alone = np.concatenate([scores(model, vector[None]) for vector in s_test])
    np.testing.assert_allclose(scores(model, s_test), alone, rtol=1e-4, atol=1e-5)


def test_nan_names_the_candidate():
    model = tiny_model()
    token = DATA[7]["input_ids"][0]
    used_by = [row for row in range(len(DATA)) if token in DATA[row]["input_ids"]]
    with torch.no_grad():
        model.get_input_embeddings().weight[token] = float("nan")
    assert isinstance(model.classifier, nn.Linear)

    with pytest.raises(ValueError, match=rf"candidates: row {used_by[0]} has a NaN"):
        scores(model, directions(model))
