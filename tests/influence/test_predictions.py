"""Gradients of queries, at once and one by one."""

from __future__ import annotations

import oracles
import pytest
import torch
from tiny import batches, tiny_data, tiny_model
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from hf_fastif.influence.predictions import loss_gradients
from hf_fastif.model import Objective


DATA = tiny_data(7)


@pytest.fixture
def all_of_llama_in_double(monkeypatch):
    """Its norms and softmax are float32 in a double model too, whose rounding differs between processors."""

    def norm(self, states):
        scale = torch.rsqrt(states.square().mean(-1, keepdim=True) + self.variance_epsilon)
        return self.weight * states * scale

    monkeypatch.setattr(LlamaRMSNorm, "forward", norm)
    monkeypatch.setattr(torch.nn.functional, "softmax", lambda weights, dim, dtype=None: weights.softmax(dim))


@pytest.mark.parametrize("architecture", ["bert", "gpt2", "llama"])
@pytest.mark.parametrize("frozen", [None, 1])
def test_gradients_are_those_of_single_unpadded_examples(architecture, frozen, all_of_llama_in_double):
    model = tiny_model(architecture, frozen, double=True)
    for rows in ([4], [0, 6, 3], range(7)):
        found = loss_gradients(Objective(model), batches(DATA), rows)
        torch.testing.assert_close(found, oracles.loss_gradients(model, batches(DATA), rows), rtol=1e-5, atol=1e-9)


def test_weight_decay_is_part_of_them_where_it_is_part_of_the_loss():
    model = tiny_model(double=True)
    objective = Objective(model, weight_decay=0.1, decayed=["classifier.weight"])
    extra = loss_gradients(objective, batches(DATA), range(3)) - oracles.loss_gradients(model, batches(DATA), range(3))
    partials = objective.space.split(extra)
    expected = 0.2 * model.classifier.weight.detach()
    torch.testing.assert_close(partials["classifier.weight"], expected.expand(3, -1, -1))
    assert partials["classifier.bias"].abs().max() < 1e-9
