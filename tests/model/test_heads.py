"""Every head: its loss is the trainer's, and s_test and scores are those of the exact damped inverse."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_heads import CASES, gradients_and_curvature

from hf_fastif.scoring import covering_layers


DAMPING = 0.3


@pytest.mark.parametrize("name", CASES)
def test_losses_are_the_trainers_for_batches_of_one(name, tmp_path):
    case = CASES[name]
    data = case.data(5)
    trainer = case.trainer(tmp_path, data, loss_reduction="mean")
    with trainer.session() as session:
        examples, objective = session.examples("examples", data), session.objective
        together = objective.losses(objective.theta, examples.take(range(5)))  # padded
        alone = [trainer.compute_loss(trainer.model, examples.take([row])) for row in range(5)]
    torch.testing.assert_close(together, torch.stack(alone).to(together), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_s_test_and_scores_are_those_of_the_exact_inverse(name, tmp_path):
    case = CASES[name]
    train, queries = case.data(6), case.data(2, seed=1)
    trainer = case.trainer(tmp_path, train, solver="exact", damping=DAMPING, influence_batch_size=4)
    gradients, matrix = gradients_and_curvature(case, trainer, train)
    wanted, _ = gradients_and_curvature(case, trainer, queries)
    expected = torch.linalg.solve(matrix + DAMPING * torch.eye(len(matrix)).to(matrix), wanted.T).T

    s_test = trainer.compute_s_test(queries)
    scores = trainer.compute_influence(queries, s_test=s_test)

    torch.testing.assert_close(s_test.vectors, expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(scores, -(expected @ gradients.T).detach(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", CASES)
def test_which_heads_tell_gradients_in_one_pass(name, tmp_path):
    case = CASES[name]
    trainer = case.trainer(tmp_path, case.data(3))
    with trainer.session() as session:
        layers = covering_layers(session.objective, session.examples("examples", trainer.train_dataset), tied=True)
    assert (layers is None) == (name in ("seq2seq-bart", "seq2seq-t5"))
