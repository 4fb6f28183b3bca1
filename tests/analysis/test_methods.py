"""Similarities that influence is compared with, against the gradients and states of each example by itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny import batches, tiny_data, tiny_model, tiny_trainer
from tiny_heads import CASES

from hf_fastif.analysis import gradient_cosine, representation_similarity


TRAIN, QUERIES = tiny_data(9), tiny_data(3, seed=1)


@pytest.fixture
def trainer(tmp_path):
    """A trainer asked about two moments: its model, and another one with other weights."""
    other = tiny_model()
    with torch.no_grad():
        for parameter in other.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    other.save_pretrained(tmp_path / "other")
    return tiny_trainer(tmp_path, tiny_model(), TRAIN, checkpoints=[str(tmp_path / "other")]), other


def cosines(a, b):
    a, b = (rows / rows.norm(dim=1, keepdim=True) for rows in (torch.stack(a), torch.stack(b)))
    return (a @ b.T).numpy()


def gradients(model, data):
    found, examples = [], batches(data)
    theta = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for row in range(len(data)):
        grads = torch.autograd.grad(model(**examples.take([row])).loss, theta)
        found.append(torch.cat([grad.flatten() for grad in grads]))
    return found


def states(model, data):
    """What the classifier of BERT sees: the pooler's output."""
    found, examples = [], batches(data)
    for row in range(len(data)):
        batch = {name: values for name, values in examples.take([row]).items() if name != "labels"}
        with torch.no_grad():
            found.append(model.bert(**batch).pooler_output[0])
    return found


@pytest.mark.parametrize(("method", "of_one"), [(gradient_cosine, gradients), (representation_similarity, states)])
def test_cosines_of_single_examples(trainer, method, of_one, tmp_path):
    trainer, other = trainer
    expected = [-cosines(of_one(model, QUERIES), of_one(model, TRAIN)) for model in (other, tiny_model())]
    np.testing.assert_allclose(method(trainer, QUERIES), expected[0], atol=1e-4)
    trainer.args.checkpoints = ["final"]
    np.testing.assert_allclose(method(trainer, QUERIES), expected[1], atol=1e-4)
    assert np.abs(expected[0] - expected[1]).max() > 0.01
    tiny_model().save_pretrained(tmp_path / "same")
    trainer.args.checkpoints = [str(tmp_path / "other"), str(tmp_path / "same")]
    np.testing.assert_allclose(method(trainer, QUERIES), sum(expected) / 2, atol=1e-4)


def test_language_models_are_compared_by_the_mean_of_their_states(tmp_path):
    case = CASES["causal-llama"]
    train, queries = case.data(5), case.data(2, seed=1)
    found = representation_similarity(case.trainer(tmp_path, train), queries)

    def means(data):
        outputs = [case.model(torch.tensor([row["input_ids"]]), output_hidden_states=True) for row in data]
        return [output.hidden_states[-1][0].mean(dim=0).detach() for output in outputs]

    np.testing.assert_allclose(found, -cosines(means(queries), means(train)), atol=1e-4)
