"""Measures in place of the loss of a query, against derivatives by autograd."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from oracles import flat, gauss_newton, logits_of, loss_gradients, trainable
from tiny import batches, tiny_data, tiny_model, tiny_tokenizer, tiny_trainer
from tiny_heads import CASES

from hf_fastif import Contrast, InfluenceTrainer, Logit, LogProbability, Margin, Measure, QuerySet


TRAIN, QUERIES = tiny_data(20), tiny_data(3, seed=1)
DAMPING = 0.3
NAMES = {"contradiction": 0, "neutral": 1, "entailment": 2}


@pytest.fixture
def trainer(tmp_path) -> InfluenceTrainer:
    model = tiny_model()
    model.config.label2id, model.config.id2label = NAMES, {number: name for name, number in NAMES.items()}
    return tiny_trainer(tmp_path, model, TRAIN, solver="exact", damping=DAMPING)


@dataclass(frozen=True)
class SquaredOutputs(Measure):
    """A measure of a user's own."""

    def values(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return logits.square().sum(dim=-1)


def margin(f, label):
    p = f.softmax(-1)[label]
    return (p / (1 - p)).log()


MEASURES = {  # and the number that each is, given outputs (C,) and the label of a query
    Margin(): margin,
    Logit(): lambda f, label: f[label],
    Logit("entailment"): lambda f, _: f[2],
    Logit(1): lambda f, _: f[1],
    LogProbability(): lambda f, label: f.softmax(-1)[label].log(),
    LogProbability("neutral"): lambda f, _: f.softmax(-1)[1].log(),
    Contrast("entailment", "contradiction"): lambda f, _: (f.softmax(-1)[2] / f.softmax(-1)[0]).log(),
    SquaredOutputs(): lambda f, _: (f**2).sum(),
}


@pytest.mark.parametrize("measure", MEASURES, ids=repr)
def test_influence_on_a_measure_is_that_of_its_gradient(measure, trainer):
    model, parameters = trainer.model.eval(), trainable(trainer.model)
    rows = []
    for row in range(len(QUERIES)):
        logits, labels = logits_of(model, batches(QUERIES), row)
        value = MEASURES[measure](logits[0], int(labels))
        rows.append(flat(torch.autograd.grad(value, parameters, allow_unused=True), parameters))
    train = batches(TRAIN)
    curvature = gauss_newton(model, train)
    system = curvature + DAMPING * torch.eye(len(curvature), dtype=curvature.dtype)
    s_test = torch.linalg.solve(system.double(), torch.stack(rows).T.double()).T
    # Helpful examples raise the measure: their gradient of the loss points against its own.
    expected = s_test @ loss_gradients(model, train).T.double()
    scores = trainer.compute_influence(QUERIES, measure=measure)
    np.testing.assert_allclose(scores, expected.detach().numpy(), rtol=2e-3, atol=1e-4 * expected.abs().max().item())
    assert scores.std() > 0


def test_the_log_probability_of_the_label_is_the_loss(trainer):
    np.testing.assert_allclose(
        trainer.compute_influence(QUERIES, measure=LogProbability()), trainer.compute_influence(QUERIES), rtol=1e-4
    )


def test_the_log_probability_of_a_completion_is_its_loss(tmp_path):
    case = CASES["causal-gpt2"]
    train, queries = case.data(8, seed=0), case.data(2, seed=1)
    trainer = case.trainer(tmp_path, train, solver="identity")
    influence = trainer.compute_influence(queries)
    np.testing.assert_allclose(trainer.compute_influence(queries, measure=LogProbability()), influence, rtol=1e-3)
    a, b = (trainer.compute_influence(queries, measure=Logit(token)) for token in (5, 7))
    np.testing.assert_allclose(trainer.compute_influence(queries, measure=Contrast(5, 7)), a - b, rtol=1e-3, atol=1e-4)


def test_a_completion_is_contrasted_with_another(tmp_path):
    case = CASES["causal-gpt2"]
    train, queries, others = case.data(8, seed=0), case.data(3, seed=1), case.data(3, seed=2)
    trainer = case.trainer(tmp_path, train, solver="identity", query_batch_size=2)
    difference = trainer.compute_influence(queries) - trainer.compute_influence(others)
    contrast = QuerySet(queries, rather_than=others)
    np.testing.assert_allclose(trainer.compute_influence(contrast), difference, rtol=1e-3, atol=1e-3)
    anchors = QuerySet(queries, reduce="mean", rather_than=others)
    mean = difference.mean(axis=0, keepdims=True)
    np.testing.assert_allclose(trainer.compute_influence(anchors), mean, rtol=1e-3, atol=1e-3)
    result = trainer.find_influential(contrast, num_examples=1)
    assert result.summary.measure == "loss minus that of the alternative"
    assert "more weight raises loss minus that of the alternative of the query" in result.summary.sign
    losses = [np.array(trainer.find_influential(each, num_examples=1).queries["loss"]) for each in (queries, others)]
    np.testing.assert_allclose(result.queries["loss_at_attribution"], losses[0] - losses[1], rtol=1e-3, atol=1e-4)
    s_test = trainer.compute_s_test(contrast)
    with pytest.raises(ValueError, match="s_test"):
        trainer.compute_influence(QuerySet(queries, rather_than=queries), s_test=s_test)
    with pytest.raises(ValueError, match="rather_than has 2 rows; give one for each of the 3 examples"):
        QuerySet(queries, rather_than=others.select([0, 1]))


def test_tokens_are_named_by_their_text(tmp_path):
    case = CASES["causal-gpt2"]
    train, queries = case.data(8, seed=0), case.data(2, seed=1)
    trainer = case.trainer(tmp_path, train, solver="identity")
    with pytest.raises(ValueError, match="the trainer has no tokenizer to look"):
        trainer.compute_influence(queries, measure=Logit("w5"))
    tokenizer = trainer.processing_class = tiny_tokenizer()
    a, b = (tokenizer.convert_ids_to_tokens(token) for token in (5, 7))
    scores = trainer.compute_influence(queries, measure=Contrast(a, b))
    np.testing.assert_array_equal(scores, trainer.compute_influence(queries, measure=Contrast(5, 7)))
    with pytest.raises(ValueError, match="and must be one token of its vocabulary"):
        trainer.compute_influence(queries, measure=Logit(f"{a} {b}"))


def test_results_say_what_is_measured(trainer, tmp_path):
    contrast = Contrast("entailment", "neutral")
    query_set = QuerySet(QUERIES, reduce="mean")
    result = trainer.find_influential(query_set, num_examples=2, measure=contrast)
    assert result.summary.measure == "Contrast(label='entailment', rather_than='neutral')"
    assert "lowers Contrast(label='entailment', rather_than='neutral')" in result.summary.sign
    scores = trainer.compute_influence(query_set, measure=contrast)[0]
    assert result.helpful(0)["train_index"][0] == scores.argmin()
    assert result.harmful(0)["train_index"][0] == scores.argmax()
    assert trainer.find_influential(QUERIES, num_examples=2).summary.measure == "loss"


def test_results_hold_the_measure_and_its_predicted_change(trainer):
    model = trainer.model.eval()
    values = [logits_of(model, batches(QUERIES), row)[0][0].detach() for row in range(len(QUERIES))]
    result = trainer.find_influential(QUERIES, num_examples=2, measure=Contrast("entailment", "contradiction"))
    np.testing.assert_allclose(
        result.queries["loss_at_attribution"], [float(f[2] - f[0]) for f in values], rtol=1e-4, atol=1e-5
    )
    assert result.queries["loss"] == trainer.find_influential(QUERIES, num_examples=1).queries["loss"]
    assert max(result.helpful(0)["predicted_loss_change"]) < 0  # without what raises the measure it is lower
    changes = np.array(result.influences["influence"]) / len(TRAIN)
    np.testing.assert_allclose(result.influences["predicted_loss_change"], changes, rtol=1e-5)


def test_s_test_belongs_to_its_measure(trainer):
    s_test = trainer.compute_s_test(QUERIES, measure=Margin())
    by_hand = trainer.compute_influence(QUERIES, s_test=s_test, measure=Margin())
    np.testing.assert_allclose(by_hand, trainer.compute_influence(QUERIES, measure=Margin()), rtol=1e-4)
    with pytest.raises(
        ValueError, match=r"computed for the measure Margin\(\) \w+, and this is loss; give compute_s_test the same"
    ):
        trainer.compute_influence(QUERIES, s_test=s_test)


@pytest.mark.parametrize(
    ("measure", "message"),
    [
        (Logit("entailmant"), "classes are contradiction, neutral, entailment; did you mean 'entailment'"),
        (Logit(3), "classes are 0 to 2; 3 is none of them"),
        (Logit(1.5), "classes are 0 to 2; 1.5 is none of them"),
        (Margin, "give a Measure, such as"),
        ("margin", "give a Measure, such as"),
        (Contrast(None, 1), "None is none of them"),
        (Contrast("neutral", 1), "both are the same class"),
    ],
)
def test_unknown_classes_are_refused(measure, message, trainer):
    with pytest.raises(ValueError, match=message):
        trainer.find_influential(QUERIES, measure=measure)


def test_measures_of_classes_need_classes(tmp_path):
    case = CASES["regression"]
    trainer = case.trainer(tmp_path, case.data(8, seed=0), solver="identity")
    with pytest.raises(ValueError, match="does not choose among classes"):
        trainer.compute_influence(case.data(2, seed=1), measure=Margin())


def test_values_must_be_one_number_an_example(trainer):
    @dataclass(frozen=True)
    class Outputs(Measure):
        def values(self, logits, labels):
            return logits

    with pytest.raises(ValueError, match=r"shape \(\d, 3\); give one number an example"):
        trainer.compute_influence(QUERIES, measure=Outputs())


def test_a_measure_of_tokens_takes_the_labels_of_the_head_whatever_the_loss(tmp_path):
    case = CASES["causal-gpt2"]
    train, queries = case.data(8, seed=0), case.data(3, seed=1)
    expected = case.trainer(tmp_path / "plain", train, solver="identity").compute_influence(queries)
    trainer = case.trainer(tmp_path / "custom", train, solver="identity")

    def token_loss(outputs, labels, num_items_in_batch=None):
        logits, targets = outputs.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
        total = torch.nn.functional.cross_entropy(logits, targets, reduction="sum")
        return total / (num_items_in_batch if num_items_in_batch is not None else (targets != -100).sum())

    trainer.compute_loss_func = token_loss
    scores = trainer.compute_influence(queries, measure=LogProbability())
    np.testing.assert_allclose(scores, expected, rtol=1e-3, atol=1e-3)


def test_measures_named_alike_are_told_apart(trainer):
    def scaled(factor: float) -> Measure:
        @dataclass(frozen=True)
        class Scaled(Measure):
            def values(self, logits, labels):
                return factor * logits[:, 0]

        return Scaled()

    assert repr(scaled(1.0)) == repr(scaled(2.0))
    s_test = trainer.compute_s_test(QUERIES, measure=scaled(1.0))
    with pytest.raises(ValueError, match="s_test was computed for the measure"):
        trainer.compute_influence(QUERIES, s_test=s_test, measure=scaled(2.0))
    twice = trainer.compute_influence(QUERIES, measure=scaled(2.0))
    once = trainer.compute_influence(QUERIES, s_test=s_test, measure=scaled(1.0))
    np.testing.assert_allclose(twice, 2 * once, rtol=1e-4)


def test_values_must_be_differentiable(trainer):
    @dataclass(frozen=True)
    class Right(Measure):
        def values(self, logits, labels):
            return (logits.argmax(dim=-1) == labels).to(logits.dtype)

    with pytest.raises(ValueError, match="do not depend on the outputs by a differentiable function"):
        trainer.compute_influence(QUERIES, measure=Right())


def test_spans_have_no_classes(tmp_path):
    case = CASES["question-answering"]
    trainer = case.trainer(tmp_path, case.data(8, seed=0), solver="identity")
    with pytest.raises(ValueError, match="chooses among the tokens of a text, and has no classes"):
        trainer.compute_influence(case.data(2, seed=1), measure=Logit(1))
    assert trainer.compute_influence(case.data(2, seed=1), measure=Margin()).std() > 0


def test_an_example_without_labels_is_refused(tmp_path):
    case = CASES["causal-gpt2"]
    queries = case.data(2, seed=1)
    unlabelled = queries.map(lambda row: {"labels": [-100] * len(row["labels"])})
    trainer = case.trainer(tmp_path, case.data(8, seed=0), solver="identity")
    with pytest.raises(ValueError, match="rather_than: row 0 has no labelled token"):
        trainer.compute_influence(QuerySet(queries, rather_than=unlabelled))
    with pytest.raises(ValueError, match="examples: row 0 has no labelled token"):
        trainer.find_influential(unlabelled)
