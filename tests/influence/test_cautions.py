"""Results say when their scores mean little: damping, memorization, single directions, what the index leaves out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from oracles import loss_gradients
from tiny import batches, tiny_data, tiny_model, tiny_trainer

from hf_fastif import InfluenceResult
from hf_fastif.scoring import grade_of


QUERIES = tiny_data(3, seed=1)


def explained(folder, train=None, model=None, **settings):
    return tiny_trainer(folder, model or tiny_model(), train or tiny_data(40), **settings).find_influential(QUERIES)


def test_nothing_is_said_without_a_cause(tmp_path):
    result = explained(tmp_path)
    assert result.summary.cautions == [] and "Caution" not in repr(result)
    assert set(result.queries["ranking"]) == {"good"}


@pytest.mark.parametrize(("factor", "said"), [(10.0, "Above, influence approaches"), (0.01, "Below, directions that")])
@pytest.mark.parametrize("solver", ["sketch", "sdca"])
def test_a_damping_outside_of_what_is_recommended(tmp_path, factor, said, solver):
    automatic = explained(tmp_path).summary.damping
    result = explained(tmp_path, damping=factor * automatic, solver=solver)
    assert any(said in line for line in result.summary.cautions)
    assert said in repr(result) and said in result.to_html(tmp_path / "report.html").read_text("utf-8")
    result.save_to_disk(tmp_path / "saved")
    assert InfluenceResult.load_from_disk(tmp_path / "saved").summary.cautions == result.summary.cautions


def test_few_examples_that_hold_most_of_the_gradient(tmp_path):
    train = tiny_data(400)
    model = tiny_model()
    model.classifier.weight.data.zero_()
    model.classifier.bias.data = torch.tensor([12.0, 0.0, 0.0])
    labels = np.zeros(400, dtype=int)
    labels[7] = 1  # the only example that the model does not predict with certainty
    train = train.remove_columns("label").add_column("label", labels)
    (line,) = [each for each in explained(tmp_path, train, model).summary.cautions if "fits most" in each]
    assert "half of all gradient comes from 0.25% of them" in line


def test_what_the_index_leaves_out_of_a_query(tmp_path):
    result = explained(tmp_path, sketch_size=4, index_size=2, damping=1e-3)
    trainer = tiny_trainer(tmp_path, tiny_model(), tiny_data(40), sketch_size=4, index_size=2, damping=1e-3)
    gradients = loss_gradients(tiny_model(double=True), batches(QUERIES)).float()
    inside = trainer.session
    with inside() as session:
        sketch = session.setup().sketch()
        part = sketch.of_vectors(session.objective.space, gradients)
    expected = (1 - part.square().sum(dim=1) / gradients.square().sum(dim=1)).sqrt()
    # Layers without entries are not part of the norm that a query is compared with.
    residual = torch.tensor(result.queries["residual"])
    assert (residual <= expected + 1e-4).all() and residual.min() > 0.2
    torch.testing.assert_close(trainer.compute_s_test(QUERIES).residual, expected, rtol=1e-3, atol=1e-4)
    grades = [grade_of(value, by_index=True) for value in residual.tolist()]
    assert result.queries["ranking"] == grades and "poor" in grades
    assert any("the index leaves out most of their gradient" in line for line in result.summary.cautions)


def test_a_query_that_follows_a_single_direction(tmp_path):
    result = explained(tmp_path, index_size=1)
    assert any("is a single direction of the gradient" in line for line in result.summary.cautions)


@pytest.mark.parametrize(("residual", "by_index", "grade"), [(0.15, False, "good"), (0.2, False, "rough")])
def test_grades_follow_residuals(residual, by_index, grade):
    assert grade_of(residual, by_index) == grade
    assert grade_of(float("nan"), by_index) is None
    assert grade_of(0.7, by_index=True) == "good" and grade_of(0.31, by_index=False) == "poor"
