"""Weights in half precision: everything runs, in float32 vectors, and agrees with the same weights in float32."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from tiny import accelerator, batches, tiny_data, tiny_model, tiny_trainer
from tiny_heads import CASES

from hf_fastif.curvature import Hessian, jacobian_gram
from hf_fastif.curvature.products import GaussNewton
from hf_fastif.model import Objective
from hf_fastif.model.parameters import ParameterSpace


HALF = {"bfloat16": torch.bfloat16, "float16": torch.float16}
ROUNDING = {"bfloat16": 5e-2, "float16": 1e-2}  # of the largest score
TRAIN, QUERIES = tiny_data(12), tiny_data(3, seed=1)
SOLVERS = {
    "sdca": {"sdca_visits": 240},
    "lissa": {"lissa_depth": 60, "lissa_batch_size": 12},
    "cg": {"cg_samples": 12, "cg_steps": 30},
    "ekfac": {},
    "identity": {},
    "exact": {},
}


@pytest.fixture(params=HALF)
def precision(request) -> str:
    return request.param


def pair(folder, precision, make, **settings):
    """Trainers of one model in half precision and with the same weights in float32."""
    model = make().to(HALF[precision])
    return [make_trainer(folder / str(i), m, **settings) for i, m in enumerate((model, copy.deepcopy(model).float()))]


def make_trainer(folder, model, **settings):
    return tiny_trainer(folder, model, TRAIN, **{"damping": 1.0} | settings)


def same(found, expected, precision, name=""):
    assert np.asarray(found).dtype == np.float32
    np.testing.assert_allclose(
        found, expected, rtol=0, atol=ROUNDING[precision] * np.abs(expected).max(), err_msg=name
    )


def influences(result) -> np.ndarray:
    """All scores, in the order of the queries and the training set."""
    rows = sorted(result.influences, key=lambda row: (row["query_index"], row["train_index"]))
    assert len(rows) == len(QUERIES) * len(TRAIN)
    return np.array([row["influence"] for row in rows], dtype=np.float32)


def classifier():
    return tiny_model(initializer_range=0.2)


@pytest.mark.parametrize("solver", SOLVERS)
def test_solvers_agree(solver, precision, tmp_path):
    half, full = pair(tmp_path, precision, classifier, solver=solver, **SOLVERS[solver])
    s_test = half.compute_s_test(QUERIES)
    assert s_test.vectors.dtype == torch.float32
    same(half.compute_influence(QUERIES, s_test=s_test), full.compute_influence(QUERIES), precision)


@pytest.mark.parametrize(
    "settings",
    [
        {"scoring": "forward_mode"},
        {"scoring": "gradients"},
        {"curvature": "hessian", "solver": "cg", "cg_steps": 30, "damping": 3.0},
        {"damping": "auto", "solver": "sdca"},
        {"loss_weight_decay": 0.1},
    ],
    ids=str,
)
def test_scorings_curvatures_and_dampings_agree(settings, precision, tmp_path):
    half, full = pair(tmp_path, precision, classifier, **{"solver": "identity"} | settings)
    same(half.compute_influence(QUERIES), full.compute_influence(QUERIES), precision)


@pytest.mark.parametrize("solver", ["identity", "ekfac", "cg"])
def test_self_influence_agrees(solver, precision, tmp_path):
    half, full = pair(tmp_path, precision, classifier, solver=solver)
    found, expected = (trainer.self_influence() for trainer in (half, full))
    np.testing.assert_allclose(found, expected, rtol=0, atol=2 * ROUNDING[precision] * np.abs(expected).max())


@pytest.mark.parametrize("features", ["pooled", "mean_pooled", "gradient_sketch"])
def test_features_agree(features, precision, tmp_path):
    trainers = pair(tmp_path, precision, classifier, index_features=features, solver="identity", index_size=1000)
    vectors = [trainer.build_index().faiss_index.reconstruct_n(0, len(TRAIN)) for trainer in trainers]
    if features != "gradient_sketch":  # which is in bases of its own
        same(*vectors, precision)
    scores = [influences(trainer.find_influential(QUERIES, None, len(TRAIN))) for trainer in trainers]
    same(*scores, precision)


def test_the_default_agrees(precision, tmp_path):
    half, full = pair(tmp_path, precision, classifier, damping="auto")
    same(*(influences(trainer.find_influential(QUERIES, None)) for trainer in (half, full)), precision)


@pytest.mark.parametrize("name", ["causal-llama", "question-answering", "seq2seq-t5"])
def test_heads_of_several_places_agree(name, precision, tmp_path):
    case = CASES[name]
    train, queries, model = case.data(6), case.data(2, seed=1), copy.deepcopy(case.model)
    for parameter in model.parameters():  # so that outputs are about 1
        parameter.data *= 0.6
    model.to(HALF[precision])
    found, tokens = [], []
    for i, own in enumerate((model, copy.deepcopy(model).float())):
        trainer = case.trainer(tmp_path / str(i), train, solver="cg", damping=30.0, cg_steps=20)
        trainer.model = own
        found.append(trainer.compute_influence(queries))
        if name == "causal-llama":
            tokens.append(trainer.token_influence(queries.select([0]), [0, 1])[0])
    same(*found, precision)
    if tokens:
        same(*(np.concatenate(parts) for parts in tokens), precision)


def test_vectors_much_larger_than_half_precision_holds(tmp_path):
    """The largest float16 is 65,504, and a damping that is small makes s_test larger."""
    half, full = pair(tmp_path, "float16", classifier, solver="identity")
    with half.session() as one, full.session() as other:
        sessions = (one, other)
        vectors = 1e6 * torch.randn(2, one.objective.space.size)
        batch = one.examples("examples", TRAIN).take(range(12))
        for make in (GaussNewton, Hessian):
            found, expected = (make(session.objective).product(batch, vectors) for session in sessions)
            assert (found - expected).norm() < 0.02 * expected.norm()
        weights = torch.ones(1, 12)
        curvatures = [GaussNewton(session.objective) for session in sessions]
        found, expected = (curvature.product_by_tangents(batch, vectors, weights) for curvature in curvatures)
        assert (found - expected).norm() < 0.02 * expected.norm()


def test_norms_and_layers_without_captures_in_half_precision(precision):
    """The Gram matrix takes both in float32."""
    model = tiny_model("electra", frozen=0, initializer_range=0.2).to(HALF[precision])
    grams = []
    for own in (model, copy.deepcopy(model).float()):
        curvature = GaussNewton(Objective(own))
        grams.append(jacobian_gram(curvature, batches(TRAIN), [np.arange(6), np.arange(6, 12)], accelerator()))
    assert grams[0].dtype == torch.float32
    assert (grams[0] - grams[1]).norm() < ROUNDING[precision] * grams[1].norm()


@pytest.mark.parametrize(
    ("dtypes", "expected"),
    [
        ((torch.float32,), torch.float32),
        ((torch.float64,), torch.float64),
        ((torch.bfloat16, torch.float16), torch.float32),
        ((torch.bfloat16, torch.float32), torch.float32),
        ((torch.float16, torch.float64), torch.float64),
    ],
)
def test_vectors_have_no_less_than_float32(dtypes, expected):
    space = ParameterSpace(torch.nn.ParameterList(torch.ones(2, dtype=dtype) for dtype in dtypes))
    assert space.dtype == space.zeros(3).dtype == space.empty(1)[0].dtype == expected
    assert space.half == (set(dtypes) != {expected})
    partials = space.tangents(space.zeros(2, space.size))
    assert [piece.dtype for piece in partials.values()] == list(dtypes)
    assert space.join(list(partials.values()), lead=(2,)).dtype == expected
