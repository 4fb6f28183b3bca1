"""Freezing, vectors over parameters, and the fingerprint of a model."""

from __future__ import annotations

import pytest
import torch
from tiny import tiny_model
from torch import nn

from hf_fastif import freeze
from hf_fastif.model.parameters import ParameterSpace, model_fingerprint


LAYERS = {
    "bert": "bert.encoder.layer",
    "roberta": "roberta.encoder.layer",
    "electra": "electra.encoder.layer",
    "distilbert": "distilbert.transformer.layer",
    "modernbert": "model.layers",
    "gpt2": "transformer.h",
}


@pytest.mark.parametrize("architecture", LAYERS)
def test_freeze_leaves_the_last_layers_and_the_head(architecture):
    model = tiny_model(architecture, frozen=1)
    stack = LAYERS[architecture]

    trainable = {name for name, p in model.named_parameters() if p.requires_grad}

    assert trainable
    assert not any(name.startswith(f"{stack}.0.") or "embed" in name or ".wte" in name for name in trainable)
    assert {n for n, _ in model.named_parameters() if n.startswith(f"{stack}.1.")} <= trainable
    assert any(not name.startswith(stack) for name in trainable)  # the head


def test_freeze_nothing_but_embeddings():
    model = tiny_model(frozen=0)
    frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
    assert frozen and all(name.startswith("bert.embeddings") for name in frozen)


@pytest.mark.parametrize("num_layers", [-1, 3])
def test_freeze_more_layers_than_there_are(num_layers):
    with pytest.raises(ValueError, match=rf"num_layers={num_layers}: must be between 0 and 2"):
        freeze(tiny_model(), num_layers)


def test_freeze_without_a_layer_stack():
    with pytest.raises(ValueError, match="no torch.nn.ModuleList"):
        freeze(nn.Linear(2, 2), 1)


def test_split_and_join_are_inverse():
    space = ParameterSpace(tiny_model())
    vectors = torch.randn(3, space.size)

    partials = space.split(vectors)

    assert {name: piece.shape[1:] for name, piece in partials.items()} == {
        name: parameter.shape for name, parameter in space.parameters.items()
    }
    assert torch.equal(space.join(list(partials.values()), lead=(3,)), vectors)
    assert torch.equal(space.join(list(space.split(vectors[0]).values())), vectors[0])


def test_unused_parameters_join_as_zero():
    space = ParameterSpace(nn.Linear(2, 1))
    assert space.join([None, torch.ones(1)]).tolist() == [0, 0, 1]


def test_nothing_trainable():
    model = tiny_model()
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="no parameter has requires_grad"):
        ParameterSpace(model)


def test_fingerprint_follows_the_weights():
    model = tiny_model()
    before = model_fingerprint(model)
    assert model_fingerprint(tiny_model()) == before

    with torch.no_grad():
        model.bert.embeddings.word_embeddings.weight[3, 2] += 1e-3

    assert model_fingerprint(model) != before
    model.classifier.bias.data[0] = float("nan")
    with pytest.raises(ValueError, match="classifier.bias contains NaN"):
        model_fingerprint(model)
