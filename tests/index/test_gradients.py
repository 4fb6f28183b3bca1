"""Gradient features: their inner product with those of s_test is minus the score, as far as they reach."""

from __future__ import annotations

import numpy as np
import oracles
import pytest
import torch
from tiny import accelerator, batches, tiny_data, tiny_model

from hf_fastif.curvature import GaussNewton, captured_layers, fit_kronecker_factors
from hf_fastif.index import GradientFeatures, last_layer_parts, leading_parts
from hf_fastif.model import Objective


DATA = tiny_data(13)


def linear_names(model):
    kinds = (torch.nn.Linear,)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    modules = [name for name, module in model.named_modules() if isinstance(module, kinds)]
    return [full for full in trained if full.rpartition(".")[0] in modules]


def sketch(model, size):
    objective, examples = Objective(model), batches(DATA)
    cuts = np.array_split(np.arange(13), 3)
    factors = fit_kronecker_factors(GaussNewton(objective), examples, cuts, 0, accelerator())
    return GradientFeatures(objective, leading_parts(factors, size)), factors


def test_all_entries_together_give_the_score_of_all_layers():
    model = tiny_model(double=True)
    features, _ = sketch(model, size=1 << 40)
    s_test = torch.randn(3, features.objective.space.size, dtype=torch.float64)
    found = features.of_vectors(s_test) @ features.of_batch(batches(DATA).take(range(13))).T
    torch.testing.assert_close(found, s_test @ oracles.loss_gradients(model, batches(DATA)).T, rtol=1e-7, atol=1e-8)


def test_the_entries_kept_are_those_of_largest_curvature():
    model = tiny_model(double=True)
    features, factors = sketch(model, size=50)
    whole, _ = sketch(model, size=1 << 40)
    eigenvalues = torch.cat([block.eigenvalues.flatten() for block in factors.blocks])
    kept = torch.cat([part.scales for part in features.parts]).square()
    assert features.size == 50
    torch.testing.assert_close(kept.sort().values, eigenvalues.topk(50).values.sort().values)
    # Entries are independent coordinates: fewer of them are a part of all of them.
    batch = batches(DATA).take(range(13))
    few, many = features.of_batch(batch), whole.of_batch(batch)
    for column in few.T:
        assert (many.T - column).abs().amax(dim=1).min() < 1e-9


def test_entries_that_no_example_has_are_left_out():
    model = tiny_model()
    with torch.no_grad():  # half of the output layer's input is always zero
        model.bert.pooler.dense.weight[:4] = 0
        model.bert.pooler.dense.bias[:4] = 0
    features, factors = sketch(model, size=1 << 40)
    assert torch.isfinite(features.of_batch(batches(DATA).take(range(13)))).all()
    assert features.size < sum(block.eigenvalues.numel() for block in factors.blocks)


@pytest.mark.parametrize("architecture", ["bert", "roberta", "distilbert", "gpt2"])
def test_the_last_layer_is_softmax_minus_one_hot_times_its_input(architecture):
    model = tiny_model(architecture, double=True)
    objective, examples = Objective(model), batches(DATA)
    head = next(name for name, module in model.named_modules() if getattr(module, "out_features", 0) == 3)
    parts = last_layer_parts(objective, captured_layers(objective, examples.take([0])), head)
    features = GradientFeatures(objective, parts).of_batch(examples.take(range(13)))
    names = [name for name in objective.theta if name.startswith(f"{head}.")]
    gradients = objective.space.split(oracles.loss_gradients(model, examples))
    expected = [gradients[name] if gradients[name].ndim == 3 else gradients[name][..., None] for name in names]
    torch.testing.assert_close(features, torch.cat(expected, dim=2).flatten(1), rtol=1e-7, atol=1e-9)


def test_a_frozen_output_layer_has_no_gradient():
    model = tiny_model()
    model.classifier.requires_grad_(False)
    objective = Objective(model)
    layers = captured_layers(objective, batches(DATA).take([0]))
    with pytest.raises(ValueError, match="'classifier' is not trained.*gradient_sketch"):
        last_layer_parts(objective, layers, "classifier")
