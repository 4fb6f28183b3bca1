"""Losses of the user's: taken example by example where they are means over examples, and refused where not."""

from __future__ import annotations

from functools import partial

import numpy as np
import oracles
import pytest
import torch
from tiny import tiny_data, tiny_model, tiny_trainer
from tiny_heads import CASES
from torch.func import functional_call, hessian
from torch.nn import functional as F
from transformers import Trainer

from hf_fastif import InfluenceConfig, InfluenceTrainer
from hf_fastif.curvature import kronecker_fit


TRAIN, QUERIES = tiny_data(8), tiny_data(2, seed=1)
WEIGHTS = torch.tensor([0.2, 1.0, 3.0], dtype=torch.float64)


def weighted(outputs, labels, num_items_in_batch):
    return F.cross_entropy(outputs.logits, labels, weight=WEIGHTS, reduction="sum") / num_items_in_batch


def weighted_mean(outputs, labels, num_items_in_batch=None):
    return F.cross_entropy(outputs.logits, labels, weight=WEIGHTS)


def trainer_of(folder, compute_loss_func=None, **settings):
    trainer = tiny_trainer(folder, tiny_model(frozen=2, double=True), TRAIN, damping=1.0, **settings)
    trainer.compute_loss_func = compute_loss_func
    return trainer


def one(row):
    return {name: torch.tensor([row[name]]) for name in ("input_ids", "attention_mask")}, torch.tensor([row["label"]])


def oracle(curvature_of, damping=1.0):
    """s_test . gradients for class weights, from the loss of one example at a time; C by `curvature_of`."""
    model = tiny_model(frozen=2, double=True)
    theta = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    flat = torch.cat([p.flatten() for p in theta.values()])

    def outputs(vector, inputs):
        partials = vector.split([p.numel() for p in theta.values()])
        given = {name: piece.view_as(p) for (name, p), piece in zip(theta.items(), partials, strict=True)}
        return functional_call(model, given, (), inputs).logits

    def loss(vector, inputs, label):
        return F.cross_entropy(outputs(vector, inputs), label, weight=WEIGHTS, reduction="sum")

    def gradient(row):
        return torch.func.grad(loss)(flat, *one(row))

    matrix = sum(curvature_of(partial(outputs, inputs=one(row)[0]), one(row)[1], flat) for row in TRAIN) / len(TRAIN)
    system = matrix + damping * torch.eye(len(flat)).to(matrix)
    wanted, found = (torch.stack([gradient(row) for row in data]) for data in (QUERIES, TRAIN))
    return -(torch.linalg.solve(system, wanted.T).T @ found.T)


def weighted_gauss_newton(outputs, label, flat):
    jacobian = torch.func.jacrev(outputs)(flat)[0]
    p = outputs(flat)[0].softmax(dim=-1)
    return WEIGHTS[label[0]] * jacobian.T @ (p.diag() - p.outer(p)) @ jacobian


def weighted_hessian(outputs, label, flat):
    return hessian(lambda v: F.cross_entropy(outputs(v), label, weight=WEIGHTS, reduction="sum"))(flat)


@pytest.mark.parametrize("solver", [{"solver": "exact"}, {"solver": "sdca", "sdca_visits": 800}])
def test_class_weights_through_compute_loss_func(solver, tmp_path):
    scores = trainer_of(tmp_path, weighted, influence_batch_size=8, **solver).compute_influence(QUERIES)
    np.testing.assert_allclose(scores, oracle(weighted_gauss_newton), rtol=1e-2, atol=1e-3)


@torch.no_grad()
def layers_of(model, row):
    """The logits of an example, and of pooler and classifier what they receive and their Jacobian of the logits."""
    state = model.bert(**one(row)[0]).last_hidden_state[0, 0]
    pooled = model.bert.pooler.dense(state).tanh()
    classifier, bias = model.classifier, torch.ones(1, dtype=torch.float64)
    jacobian = (1 - pooled**2)[:, None] * classifier.weight.T
    inputs = [(torch.cat([state, bias]), jacobian), (torch.cat([pooled, bias]), torch.eye(3, dtype=torch.float64))]
    return classifier(pooled), inputs


def ekfac_by_hand(damping=1.0):
    """s_test . gradients, where C is EK-FAC of the two layers with class weights, each of which sees one token."""
    model, scores = tiny_model(frozen=2, double=True), 0.0
    for layer in (0, 1):
        inputs, roots, gradients = [], [], []
        for row in [*TRAIN, *QUERIES]:
            logits, layers = layers_of(model, row)
            x, jacobian = layers[layer]
            values, vectors = torch.linalg.eigh(oracles.softmax_hessian(logits))
            residual = logits.softmax(-1) - F.one_hot(torch.tensor(row["label"]), 3)
            inputs.append(x)
            roots.append(jacobian @ (vectors * (WEIGHTS[row["label"]] * values.clamp_min(0)).sqrt()))
            gradients.append(WEIGHTS[row["label"]] * (jacobian @ residual).outer(x))
        x, g = torch.stack(inputs[: len(TRAIN)]), torch.stack(roots[: len(TRAIN)])
        left, right = (torch.linalg.eigh(gram)[1] for gram in (torch.einsum("nar,nbr->ab", g, g), x.T @ x))
        eigenvalues = (left.T @ g).square().sum(dim=2).T @ (x @ right).square() / len(TRAIN)
        rotated = left.T @ torch.stack(gradients) @ right
        train, queries = rotated[: len(TRAIN)], rotated[len(TRAIN) :] / (eigenvalues + damping)
        scores = scores - torch.einsum("qab,nab->qn", queries, train)
    return scores


def test_class_weights_reach_ekfac(tmp_path, monkeypatch):
    monkeypatch.setattr(kronecker_fit, "NUM_RANDOM", 3)  # outputs whose directions are all taken, not drawn
    scores = trainer_of(tmp_path, weighted, solver="ekfac").compute_influence(QUERIES)
    np.testing.assert_allclose(scores, ekfac_by_hand(), rtol=1e-4, atol=1e-6)


def test_a_mean_that_single_examples_do_not_have_is_refused(tmp_path):
    with pytest.raises(ValueError, match="compute_loss_func: the loss of a batch of 8.*num_items_in_batch"):
        trainer_of(tmp_path, weighted_mean).compute_s_test(QUERIES)


class Weighted(InfluenceTrainer):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels = inputs.pop("labels")
        return (WEIGHTS[labels] * F.cross_entropy(model(**inputs).logits, labels, reduction="none")).mean()


class Same(InfluenceTrainer):
    def compute_loss(self, *args, **kwargs):
        return Trainer.compute_loss(self, *args, **kwargs)


def overridden(kind, folder, **settings):
    args = InfluenceConfig(str(folder), use_cpu=True, report_to="none", disable_tqdm=True, **settings)
    model = tiny_model(frozen=2, double=True)
    return kind(model, args, train_dataset=TRAIN, processing_class=tiny_trainer(folder).processing_class)


def test_an_overridden_loss_is_looped_over_examples_with_its_hessian(tmp_path):
    trainer = overridden(Weighted, tmp_path, curvature="hessian", solver="exact", damping=5.0)
    expected = oracle(weighted_hessian, damping=5.0)
    np.testing.assert_allclose(trainer.compute_influence(QUERIES), expected, rtol=1e-3, atol=1e-4)
    result = trainer.find_influential(QUERIES, num_examples=1)
    assert result.helpful(0)["train_index"][0] == int(expected[0].argmin())


def test_an_overridden_loss_has_no_gauss_newton_matrix(tmp_path):
    with pytest.raises(ValueError, match="Weighted.compute_loss is overridden.*compute_loss_func.*'hessian'"):
        overridden(Weighted, tmp_path).compute_s_test(QUERIES)


def test_an_override_that_changes_nothing_is_the_head(tmp_path):
    expected = trainer_of(tmp_path / "plain", solver="exact").compute_influence(QUERIES)
    found = overridden(Same, tmp_path / "same", solver="exact", damping=1.0).compute_influence(QUERIES)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def next_tokens(outputs, labels, num_items_in_batch, power=1.0):
    losses = F.cross_entropy(outputs.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="none")
    return (losses**power).sum() / num_items_in_batch


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_token_losses_of_the_user(reduction, tmp_path):
    case = CASES["causal-llama"]
    train, queries = case.data(5), case.data(2, seed=1)
    settings = {"solver": "exact" if reduction == "sum" else "identity", "damping": 0.3, "loss_reduction": reduction}
    plain = case.trainer(tmp_path / "plain", train, **settings)
    own = case.trainer(tmp_path / "own", train, **settings)
    own.compute_loss_func = partial(next_tokens, power=1.0 + 1e-9)  # the same, but the user's
    expected = plain.compute_influence(queries)
    np.testing.assert_allclose(own.compute_influence(queries), expected, rtol=1e-4, atol=1e-5)
    own.compute_loss_func = partial(next_tokens, power=2.0)
    assert not np.allclose(own.compute_influence(queries), expected, rtol=0.1)
    own.args.solver = "ekfac"
    with pytest.raises(ValueError, match="compute_loss_func: EK-FAC.*solver='lissa'"):
        own.compute_s_test(queries)


def test_a_model_whose_loss_is_not_that_of_its_head_is_refused(tmp_path):
    class Twice(type(tiny_model())):
        def forward(self, input_ids=None, attention_mask=None, labels=None):
            output = super().forward(input_ids, attention_mask, labels=labels)
            output.loss = None if output.loss is None else 2 * output.loss
            return output

    trainer = tiny_trainer(tmp_path, Twice(tiny_model().config), TRAIN)
    with pytest.raises(ValueError, match="model: for single examples Twice gives the losses"):
        trainer.compute_s_test(QUERIES)
