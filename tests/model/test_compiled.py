"""Compiled models: influence is that of the plain model, and training finds the model as it was given."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from tiny import batches, tiny_data, tiny_model, tiny_trainer
from tiny_architectures import row_gradients

from hf_fastif.model import differentiable


TRAIN, QUERIES = tiny_data(10), tiny_data(2, seed=1)


@pytest.fixture(scope="module")
def expected() -> np.ndarray:
    rows, queries = ([batches(data).take([row]) for row in range(len(data))] for data in (TRAIN, QUERIES))
    return -(row_gradients(tiny_model(), queries) @ row_gradients(tiny_model(), rows).T).numpy()


def in_place(model):
    model.compile(backend="eager")
    model.bert.encoder.layer[1].compile(backend="eager")
    return model


@pytest.mark.parametrize(
    ("compiled", "settings"),
    [
        (lambda model: torch.compile(model, backend="eager"), {}),
        (in_place, {}),
        (lambda model: model, {"torch_compile": True, "torch_compile_backend": "eager"}),
    ],
    ids=["torch.compile(model)", "model.compile()", "torch_compile=True"],
)
def test_scores_are_those_of_the_plain_model(compiled, settings, expected, tmp_path):
    model = compiled(copy.deepcopy(tiny_model()))
    trainer = tiny_trainer(tmp_path, model, TRAIN, solver="identity", **settings)
    tolerance = {"rtol": 1e-4, "atol": 1e-5 * np.abs(expected).max()}
    np.testing.assert_allclose(trainer.compute_influence(QUERIES), expected, **tolerance)
    assert trainer.model is model
    with trainer.session() as session:
        assert list(session.objective.theta) == [n for n, p in tiny_model().named_parameters() if p.requires_grad]
    trainer.build_index()
    for row in trainer.find_influential(QUERIES, None, len(TRAIN)).influences:
        assert row["influence"] == pytest.approx(expected[row["query_index"], row["train_index"]], rel=1e-3, abs=1e-4)


def test_compiled_calls_come_back():
    model = in_place(tiny_model())
    calls = [module._compiled_call_impl for module in model.modules()]
    with differentiable(model):
        assert not any(module._compiled_call_impl for module in model.modules())
    assert [module._compiled_call_impl for module in model.modules()] == calls
    assert sum(call is not None for call in calls) == 2
