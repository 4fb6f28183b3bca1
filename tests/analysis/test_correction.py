"""Correcting a model: every step done again by hand, the guard, rolling back, and going on."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from datasets import ClassLabel
from figures import curves
from tiny import tiny_data, tiny_model, tiny_trainer

from hf_fastif import QuerySet
from hf_fastif.analysis import Correction, correct, query_losses
from hf_fastif.analysis.corrector import Corrector, most_helpful
from hf_fastif.influence.attribution import Attribution


NAMES = ClassLabel(names=["a", "b", "c"])
TRAIN, POOL = (tiny_data(size, seed).cast_column("label", NAMES) for size, seed in ((40, 0), (30, 5)))
ANCHORS, GUARD, TEST = tiny_data(8, seed=1), tiny_data(60, seed=2), tiny_data(20, seed=3)
SETTINGS = {"solver": "identity", "influence_batch_size": 7}


@pytest.fixture
def trainer(tmp_path):
    return tiny_trainer(tmp_path, train=TRAIN, **SETTINGS)


def parameters(trainer):
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters()}


def same(one, other):
    return all(torch.equal(values, other[name]) for name, values in one.items())


def predicted_right(trainer):
    return GUARD.select(np.setdiff1d(np.arange(len(GUARD)), trainer.find_misclassified(GUARD)))


def gradients(trainer, data) -> torch.Tensor:
    """The gradient (N, P) of the loss of each example, by plain autograd."""
    trained, found = [p for p in trainer.model.parameters() if p.requires_grad], []
    for row in data:
        inputs = {name: torch.tensor([row[name]]) for name in ("input_ids", "attention_mask")}
        loss = torch.nn.functional.cross_entropy(trainer.model(**inputs).logits, torch.tensor([row["label"]]))
        parts = torch.autograd.grad(loss, trained, allow_unused=True)
        parts = [torch.zeros_like(p) if g is None else g for p, g in zip(trained, parts, strict=True)]
        found.append(torch.cat([part.flatten() for part in parts]))
    return torch.stack(found)


def moved(trainer, direction, rate):
    trained = [p for p in trainer.model.parameters() if p.requires_grad]
    torch.nn.utils.vector_to_parameters(torch.nn.utils.parameters_to_vector(trained) - rate * direction, trained)


def test_steps_are_plain_gradient_steps_on_the_most_helpful(trainer, tmp_path):
    found = correct(trainer, ANCHORS, steps=2, num_examples=5, learning_rate=0.003, measured={"test": TEST})

    again = tiny_trainer(tmp_path / "again", train=TRAIN)
    for row in found.log[1:]:
        candidates = gradients(again, TRAIN)
        influence = -candidates @ gradients(again, ANCHORS).mean(dim=0)
        assert row["examples"] == influence.argsort()[:5].tolist()
        np.testing.assert_allclose(row["influences"], influence[row["examples"]], rtol=1e-3, atol=1e-5)
        moved(again, candidates[row["examples"]].mean(dim=0), 0.003)
        labels = [NAMES.names[TRAIN[i]["label"]] for i in row["examples"]]
        assert row["labels"] == {name: labels.count(name) for name in sorted(set(labels))}
        for name, dataset in (("anchors", ANCHORS), ("test", TEST)):
            assert row["loss"][name] == pytest.approx(query_losses(again, dataset).mean(), rel=1e-4)
            right = 1 - len(again.find_misclassified(dataset)) / len(dataset)
            assert row["accuracy"][name] == pytest.approx(right)
    for name, values in parameters(trainer).items():
        torch.testing.assert_close(values, dict(again.model.named_parameters())[name].detach(), rtol=1e-4, atol=1e-6)
    assert not trainer.model.training and [row["step"] for row in found.log] == [0, 1, 2]
    assert found.log[2]["loss"]["anchors"] < found.log[1]["loss"]["anchors"] < found.log[0]["loss"]["anchors"]


def test_scores_are_those_of_the_trainer(tmp_path):
    trainer = tiny_trainer(tmp_path, train=TRAIN, solver="exact", damping=0.5, checkpoints="final")
    expected = trainer.compute_influence(QuerySet(ANCHORS, reduce="mean"), POOL)[0]
    fitted = set(trainer._cache.fitted)
    row = correct(trainer, ANCHORS, POOL, steps=1, num_examples=4).log[1]
    np.testing.assert_allclose(row["influences"], np.sort(expected)[:4], rtol=1e-3)
    assert set(trainer._cache.fitted) == fitted
    assert correct(trainer, ANCHORS, POOL, steps=2, num_examples=4).log[1]["influences"] != row["influences"]
    assert len(set(trainer._cache.fitted) - fitted) == 2  # spectrum and factors of where it began, and no others


def test_systems(trainer):
    scores = trainer.compute_influence(QuerySet(ANCHORS, reduce="mean"), POOL)[0]
    order, labels = np.argsort(scores), np.array(POOL["label"])
    found = {}
    for system in ("helpful", "balanced", "harmful", "random", "anchors"):
        correction = correct(trainer, ANCHORS, POOL, steps=1, num_examples=4, system=system, learning_rate=0.003)
        found[system] = correction.log[1]
        correction.roll_back(trainer)
    assert found["helpful"]["examples"] == order[:4].tolist()
    assert found["harmful"]["examples"] == order[::-1][:4].tolist()
    assert found["balanced"]["labels"] == {"a": 2, "b": 1, "c": 1}
    for label in range(3):
        best = [row for row in order if labels[row] == label][: 2 - (label > 0)]
        assert best == [row for row in found["balanced"]["examples"] if labels[row] == label]
    assert len(set(found["random"]["examples"])) == 4 and found["random"]["influences"] is None
    assert found["anchors"]["examples"] == list(range(8))
    change = {name: row["loss"]["anchors"] for name, row in found.items()}
    before = query_losses(trainer, ANCHORS).mean()
    assert change["helpful"] < before < change["harmful"] and change["anchors"] < before


def test_anchors_and_candidates_are_drawn_anew_for_each_step(trainer):
    few = {"num_anchors": 3, "num_candidates": 10, "steps": 3, "num_examples": 2}
    helpful = correct(trainer, ANCHORS, **few)
    helpful.roll_back(trainer)
    harmful = correct(trainer, ANCHORS, system="harmful", **few)
    asked = [row["anchors"] for row in helpful.log[1:]]
    assert asked == [row["anchors"] for row in harmful.log[1:]]  # the same, so that systems compare
    assert len({tuple(rows) for rows in asked}) == 3 and all(len(set(rows)) == 3 for rows in asked)
    influence = -gradients(trainer, TRAIN) @ gradients(trainer, ANCHORS).mean(dim=0)
    assert helpful.log[1]["examples"] != influence.argsort()[:2].tolist()


def test_only_helpful_ones_count_and_labels_share():
    scores = np.array([-3.0, 1.0, -2.0, -1.0, 0.0, -4.0])
    assert most_helpful(scores, 9).tolist() == [5, 0, 2, 3]
    assert most_helpful(scores, 3, np.array([0, 0, 0, 1, 1, 0])).tolist() == [5, 0, 3]
    assert most_helpful(-np.abs(scores), 4, np.array([0, 0, 2, 2, 2, 7])).tolist() == [0, 1, 2, 5]


def test_the_candidates_can_be_those_of_an_index(trainer):
    trainer.args.index_features, trainer.args.num_neighbors = "pooled", 12
    found = correct(trainer, ANCHORS, POOL, steps=2, num_examples=3)
    found.roll_back(trainer)
    near = trainer.find_candidates(QuerySet(ANCHORS, reduce="mean"), 12, POOL)[0]
    assert set(found.log[1]["examples"] + found.log[2]["examples"]) <= set(near.tolist())
    scores = trainer.compute_influence(QuerySet(ANCHORS, reduce="mean"), POOL)[0]
    assert found.log[1]["examples"] == near[np.argsort(scores[near])][:3].tolist()


def test_the_guard_undoes_steps_that_cost_too_much(trainer):
    before, guard = parameters(trainer), predicted_right(trainer)
    free = correct(trainer, ANCHORS, steps=3, learning_rate=0.1, guard=guard, max_guard_drop=None, system="harmful")
    drops = [free.log[0]["accuracy"]["guard"] - row["accuracy"]["guard"] for row in free.log]
    assert max(drops) > 0.3
    free.roll_back(trainer)

    kept = correct(trainer, ANCHORS, steps=3, learning_rate=0.1, guard=guard, max_guard_drop=0.2, system="harmful")
    drops = [kept.log[0]["accuracy"]["guard"] - row["accuracy"]["guard"] for row in kept.log]
    assert max(drops) <= 0.2 + 1e-9
    rates = [row["learning_rate"] for row in kept.log[1:]]
    assert rates == sorted(rates, reverse=True) and rates[0] in {0.1 / 2**n for n in range(1, 7)}
    assert query_losses(trainer, guard).mean() == pytest.approx(kept.log[-1]["loss"]["guard"])
    kept.roll_back(trainer)
    assert same(before, parameters(trainer))


def test_a_correction_that_no_rate_makes_bearable_ends_before_it_began(trainer):
    before, settings = parameters(trainer), {"learning_rate": 1e4, "max_guard_drop": 0.0, "system": "harmful"}
    found = correct(trainer, ANCHORS, steps=3, guard=predicted_right(trainer), **settings)
    assert len(found.log) == 1 and same(before, parameters(trainer))


def test_frozen_layers_run_on_what_is_measured_once_and_not_in_every_step(tmp_path):
    def seen(steps):
        trainer, found = tiny_trainer(tmp_path / str(steps), train=TRAIN, **SETTINGS), []
        inside = trainer.model.bert.encoder.layer[0].intermediate
        inside.register_forward_pre_hook(lambda _module, args: found.append(len(args[0])))
        correct(trainer, ANCHORS, steps=steps, guard=GUARD, measured={"test": TEST}, system="anchors")
        return sum(found)

    assert seen(1) == seen(4) > len(ANCHORS) + len(GUARD) + len(TEST)


def test_rolled_back_bit_for_bit_and_saved_without_parameters(trainer, tmp_path):
    before = parameters(trainer)
    found = correct(trainer, ANCHORS, steps=2, num_examples=3, guard=GUARD)
    assert not same(before, parameters(trainer))
    read = Correction.load(found.save(tmp_path / "correction.json"))
    assert read == found and read.before is None and "2 steps, helpful" in str(read)
    with pytest.raises(ValueError, match="was read from a file"):
        read.roll_back(trainer)
    with pytest.raises(ValueError, match="a model with other trained parameters"):
        found.roll_back(tiny_trainer(tmp_path / "other", model=tiny_model(frozen=0)))
    found.roll_back(trainer)
    assert same(before, parameters(trainer))
    found.plot(tmp_path / "correction.png")
    for panel in found.figure().axes:
        for name, points in curves(panel).items():
            assert points.tolist() == [[row["step"], row[panel.get_ylabel()][name]] for row in found.log]
        assert list(curves(panel)) == ["anchors", "guard"]


def test_an_interrupted_correction_leaves_the_model_and_goes_on(trainer, tmp_path, monkeypatch):
    before, settings = parameters(trainer), {"steps": 3, "num_examples": 4, "learning_rate": 0.02}
    gradient, calls = Corrector._gradient, []

    def interrupted(self, system, rows):
        calls.append(rows)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return gradient(self, system, rows)

    monkeypatch.setattr(Corrector, "_gradient", interrupted)
    with pytest.raises(KeyboardInterrupt):
        correct(trainer, ANCHORS, **settings)
    assert same(before, parameters(trainer)) and trainer.args.checkpoints == ["auto"]

    asked, scores, outcomes = [], Corrector._scores, Attribution.score
    monkeypatch.setattr(Corrector, "_scores", lambda *a: asked.append("scores") or scores(*a))
    monkeypatch.setattr(Attribution, "score", lambda *a: asked.append("solved") or outcomes(*a))
    again = correct(tiny_trainer(trainer.args.output_dir, train=TRAIN, **SETTINGS), ANCHORS, **settings)
    assert asked == ["scores"] * 3  # all three were finished
    whole = correct(tiny_trainer(tmp_path / "whole", train=TRAIN, **SETTINGS), ANCHORS, **settings)
    for one, other in zip(again.log, whole.log, strict=True):
        assert one["examples"] == other["examples"]
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)
    assert asked[3:] == ["scores", "solved"] * 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"system": "useful"}, "system='useful': give one of helpful, balanced"),
        ({"steps": 0}, "steps=0: give at least 1"),
        ({"learning_rate": 0.0}, "learning_rate=0.0: give a number above 0"),
        ({"max_guard_drop": 2}, "max_guard_drop=2: give a fraction from 0 to 1"),
        ({"num_anchors": 9}, "num_anchors=9: there are 8 to draw from"),
        ({"num_candidates": 41}, "num_candidates=41: there are 40"),
        ({"num_examples": 41}, "num_examples=41: there are 40 candidates"),
        ({"measured": {"anchors": TEST}}, "measured: the name 'anchors' is taken"),
        ({"measured": {"guard": TEST}, "guard": GUARD}, "measured: the name 'guard' is taken"),
        ({"guard": GUARD.select([])}, "guard has no rows"),
    ],
)
def test_what_makes_no_sense_is_refused_at_once(trainer, settings, message, monkeypatch):
    monkeypatch.setattr(Corrector, "_measure", None)
    with pytest.raises(ValueError, match=message):
        correct(trainer, ANCHORS, **settings)
