"""`InfluenceConfig.fastif` against the authors' algorithm, written out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny import batches, tiny_data, tiny_model, tiny_tokenizer

from hf_fastif import InfluenceConfig, InfluenceTrainer


TRAIN, QUERIES = tiny_data(30), tiny_data(2, seed=1)


def loss_with_decay(model, batch, weight_decay):
    """Cross entropy plus w times the squares of all weights but biases and norms."""
    decayed = [p for n, p in model.named_parameters() if p.requires_grad and "bias" not in n and "LayerNorm" not in n]
    return model(**batch).loss + weight_decay * sum(p.square().sum() for p in decayed)


def gradient(model, batch, weight_decay, **more):
    parameters = [p for p in model.parameters() if p.requires_grad]
    return torch.autograd.grad(loss_with_decay(model, batch, weight_decay), parameters, **more)


def authors_influence(model, damp, scale, depth, batch_size, weight_decay, seed):
    """h <- v + (1 - damp) h - H h / scale from h = v; s_test = h / scale; I = - s_test . grad L(z)."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    train, scores = batches(TRAIN), []
    for query in range(len(QUERIES)):
        v = gradient(model, batches(QUERIES).take([query]), weight_decay)
        h, random = v, np.random.default_rng([seed, 0])
        for _ in range(depth):
            batch = train.take(random.choice(len(TRAIN), batch_size, replace=False))
            slope = gradient(model, batch, weight_decay, create_graph=True)
            product = torch.autograd.grad(slope, parameters, grad_outputs=h)
            h = [a + (1 - damp) * b - c / scale for a, b, c in zip(v, h, product, strict=True)]
        rows = [gradient(model, train.take([row]), weight_decay) for row in range(len(TRAIN))]
        scores.append([-sum((a * b).sum() for a, b in zip(row, h, strict=True)) / scale for row in rows])
    return np.array(scores, dtype=float)


@pytest.mark.parametrize(
    ("damp", "scale", "changes"),
    [(5e-3, 1e4, {}), (5e-2, 1e3, {"lissa_scale": 1e3, "lissa_batch_size": 3})],
)
def test_preset_is_the_recursion_of_the_authors(tmp_path, damp, scale, changes):
    model = tiny_model(frozen=1)
    args = InfluenceConfig.fastif(
        str(tmp_path), use_cpu=True, report_to="none", disable_tqdm=True, lissa_depth=60, num_neighbors=None, **changes
    )
    trainer = InfluenceTrainer(model, args, train_dataset=TRAIN, processing_class=tiny_tokenizer())

    found = trainer.compute_influence(QUERIES)

    expected = authors_influence(
        tiny_model(frozen=1), damp, scale, 60, args.lissa_batch_size, args.loss_weight_decay, args.seed
    )
    np.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-4 * np.abs(expected).max())
    trainer.args.loss_weight_decay = 0.0
    assert not np.allclose(trainer.compute_influence(QUERIES), expected, rtol=2e-2)
