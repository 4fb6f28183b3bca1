"""The per-example loss is the model's own, and the model comes back as it was."""

from __future__ import annotations

import pytest
import torch
from tiny import batches, tiny_data, tiny_model, tiny_trainer
from torch.nn import functional as F

from hf_fastif.model import Objective, differentiable


DATA = tiny_data(6)


@pytest.mark.parametrize("architecture", ["bert", "roberta", "distilbert", "electra", "modernbert"])
def test_losses_are_those_of_the_model_alone_and_unpadded(architecture):
    model, examples = tiny_model(architecture), batches(DATA)
    objective = Objective(model)

    losses = objective.losses(objective.theta, examples.take(range(6)))

    alone = torch.stack([model(**examples.take([row])).loss for row in range(6)])
    torch.testing.assert_close(losses, alone, rtol=1e-4, atol=1e-5)


def test_label_smoothing_is_the_trainers(tmp_path):
    trainer = tiny_trainer(tmp_path, train=DATA, label_smoothing_factor=0.2)
    batch = batches(DATA).take(range(6))
    objective = Objective(trainer.model, label_smoothing=0.2)

    expected = trainer.compute_loss(trainer.model, dict(batch))

    torch.testing.assert_close(objective.losses(objective.theta, batch).mean(), expected)
    assert not torch.isclose(model_loss(trainer.model, batch), expected)


def model_loss(model, batch):
    return model(**batch).loss


@pytest.mark.parametrize(
    ("num_labels", "labels", "loss"),
    [
        (1, [0.5, -1.0, 2.0], lambda z, y: F.mse_loss(z.squeeze(-1), y)),
        (3, [[1.0, 0, 1], [0, 0, 0], [0, 1, 0]], F.binary_cross_entropy_with_logits),
    ],
)
def test_regression_and_multi_label_heads(num_labels, labels, loss):
    model = tiny_model(num_labels=num_labels)
    batch = batches(DATA).take(range(3)) | {"labels": torch.tensor(labels)}
    objective = Objective(model)

    losses = objective.losses(objective.theta, batch)

    expected = loss(
        model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits, batch["labels"]
    )
    assert losses.shape == (3,)
    torch.testing.assert_close(losses.mean(), expected)
    torch.testing.assert_close(model_loss(model, batch), expected)


def test_gradient_is_that_of_the_mean_loss():
    model, batch = tiny_model(), batches(DATA).take(range(6))
    model_loss(model, batch).backward()
    expected = torch.cat([p.grad.reshape(-1) for p in model.parameters() if p.requires_grad])
    torch.testing.assert_close(Objective(model).gradient(batch), expected, rtol=1e-4, atol=1e-5)


def test_other_heads_are_refused():
    from tiny import tiny_config
    from transformers import BertForTokenClassification

    class Tagger(BertForTokenClassification):
        """Of no class that transformers has a head for."""

    objective = Objective(Tagger(tiny_config("bert")))
    with pytest.raises(ValueError, match="Tagger returned logits of shape.*language modelling"):
        objective.losses(objective.theta, batches(DATA).take([0, 1]))


def test_model_comes_back_as_it_was_even_after_an_error():
    model = tiny_model(attn_implementation="sdpa").train()
    assert model.config._attn_implementation == "sdpa"

    with pytest.raises(RuntimeError, match="on purpose"), differentiable(model):
        assert not model.training
        assert model.config._attn_implementation == "eager"
        raise RuntimeError("on purpose")

    assert model.training
    assert model.config._attn_implementation == "sdpa"


def test_attention_that_cannot_be_switched_is_refused(monkeypatch):
    model = tiny_model()
    model.config._attn_implementation_internal = "flash_attention_2"
    monkeypatch.setattr(model, "set_attn_implementation", lambda name: None)
    with pytest.raises(ValueError, match="'flash_attention_2'.*attn_implementation='eager'"), differentiable(model):
        pass
    assert not model.training


def test_mixed_precision_training_leaves_exact_float32_derivatives(tmp_path):
    trainer = tiny_trainer(tmp_path, train=DATA, bf16=True, max_steps=1, save_strategy="no")
    trainer.train()
    model, batch = trainer.model, batches(DATA).take(range(6))
    assert "forward" in model.__dict__  # Accelerate's autocast is in place

    with differentiable(model):
        found = Objective(model).gradient(batch)
    assert "forward" in model.__dict__

    plain = tiny_model()
    plain.load_state_dict(model.state_dict())
    torch.testing.assert_close(found, Objective(plain).gradient(batch), rtol=1e-5, atol=1e-6)
