"""A simulator's losses after one step, against copies of it that an optimizer moves."""

from __future__ import annotations

import copy
from importlib import import_module

import numpy as np
import pytest
import torch
from datasets import ClassLabel
from figures import curves
from tiny import batches, tiny_data, tiny_model, tiny_trainer

from hf_fastif.experiments import Simulatability, as_predicted, simulatability
from hf_fastif.experiments.simulatability import losses_after_step
from hf_fastif.model import Objective, differentiable
from hf_fastif.model.prefix_cache import find_frozen_states


NAMES = ["one", "two", "three"]
RATES = [1e-3, 1e-1, 1.0]
TRAIN, QUERIES = (
    tiny_data(size, seed).cast_column("label", ClassLabel(names=NAMES)) for size, seed in ((40, 0), (4, 1))
)


def moved(model, example, query, rate):
    """The loss on a query of a copy of the model that an optimizer has moved."""
    own = copy.deepcopy(model)
    optimizer = torch.optim.SGD([p for p in own.parameters() if p.requires_grad], lr=rate)
    own(**example).loss.backward()
    optimizer.step()
    with torch.no_grad():
        return own(**query).loss.item()


@pytest.mark.parametrize("architecture", ["bert", "distilbert"])
def test_losses_are_those_of_a_copy_that_took_the_step(architecture):
    model, data, asked = tiny_model(architecture, double=True), batches(TRAIN), batches(QUERIES)
    before = {name: p.clone() for name, p in model.named_parameters()}
    with differentiable(model):
        objective = Objective(model)
        for example, query in ((3, 0), (17, 2)):
            expected = [moved(model, data.take([example]), asked.take([query]), rate) for rate in RATES]
            found = losses_after_step(objective, data.take([example]), asked.take([query]), RATES)
            assert found.tolist() == pytest.approx(expected, rel=1e-10)
            assert np.ptp(expected) > 1e-2
        states = find_frozen_states(objective, asked, 2**20)  # what frozen layers made of the query is shared
        objective.frozen, asked.states = states.frozen, states
        assert losses_after_step(objective, data.take([17]), asked.take([2]), RATES).tolist() == pytest.approx(
            expected, rel=1e-10
        )
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A model, and a simulator of another architecture."""
    folder, labels = tmp_path_factory.mktemp("simulatability"), {"id2label": dict(enumerate(NAMES))}
    trainer = tiny_trainer(folder, tiny_model(**labels), TRAIN, solver="identity")
    return trainer, tiny_trainer(folder / "simulator", tiny_model("distilbert", **labels), TRAIN)


def run(pair, **changes):
    settings = {"num_examples": 3, "learning_rates": RATES} | changes
    return simulatability(*pair, QUERIES, simulated=QUERIES, examples=TRAIN, **settings)


@pytest.fixture(scope="module")
def found(pair):
    return run(pair)


def predictions(trainer, data):
    with torch.no_grad():
        inputs = [{k: v for k, v in batches(data).take([row]).items() if k != "labels"} for row in range(len(data))]
        return [int(trainer.model(**one).logits.argmax()) for one in inputs]


def test_labels_are_those_that_the_model_predicts(pair, found):
    trainer, simulator = pair
    predicted = predictions(trainer, QUERIES)
    assert as_predicted(trainer, QUERIES, QUERIES)["label"] == predicted
    assert [row["predicted"] for row in found.queries] == [NAMES[label] for label in predicted]
    assert [row["right"] for row in found.queries] == [
        a == b for a, b in zip(predicted, QUERIES["label"], strict=True)
    ]
    agrees = [a == b for a, b in zip(predicted, predictions(simulator, QUERIES), strict=True)]
    assert [row["agrees"] for row in found.queries] == agrees
    turned = QUERIES.cast_column("label", ClassLabel(names=NAMES[::-1]))  # a simulator may number them otherwise
    assert as_predicted(trainer, QUERIES, turned)["label"] == [2 - label for label in predicted]
    others = QUERIES.cast_column("label", ClassLabel(names=["a", "b", "c"]))
    with pytest.raises(ValueError, match="the model predicts .*, and the labels are a, b, c; give both the same"):
        as_predicted(trainer, QUERIES, others)
    with pytest.raises(ValueError, match="dataset: it has 40 rows; give the 4 of examples"):
        as_predicted(trainer, QUERIES, TRAIN)


def test_curves_of_influential_and_random_examples(pair, found):
    trainer, simulator = pair
    simulated = as_predicted(trainer, QUERIES, QUERIES)
    result, model, data = trainer.find_influential(QUERIES, 3), simulator.model, batches(TRAIN)
    kinds = ["helpful", "harmful", *(f"random, {name}" for name in NAMES)]
    assert [(c["query"], c["kind"]) for c in found.curves] == [(q, kind) for q in range(4) for kind in kinds]
    for curve in found.curves:
        query = batches(simulated).take([curve["query"]])
        if curve["kind"] in ("helpful", "harmful"):
            rows = getattr(result, curve["kind"])(curve["query"])["train_index"]
            expected = np.array([[moved(model, data.take([z]), query, rate) for rate in RATES] for z in rows])
            np.testing.assert_allclose(curve["mean"], expected.mean(axis=0), rtol=1e-4)
            np.testing.assert_allclose(curve["low"], expected.min(axis=0), rtol=1e-4)
            np.testing.assert_allclose(curve["high"], expected.max(axis=0), rtol=1e-4)
        before = model(**query).loss.item()
        assert found.queries[curve["query"]]["before"] == pytest.approx(before, rel=1e-4)
    # Any example with the label that is simulated helps, if the step is large: here the classifier's bias does it.
    last = {c["kind"]: c["mean"][-1] for c in found.curves if c["query"] == 0}
    same = f"random, {found.queries[0]['predicted']}"
    assert last[same] == min(values for kind, values in last.items() if kind.startswith("random"))


def test_finished_queries_are_not_done_again(pair, found, monkeypatch):
    monkeypatch.setattr(import_module("hf_fastif.experiments.simulatability"), "losses_after_step", None)
    assert run(pair) == found
    with pytest.raises(TypeError):
        run(pair, learning_rates=RATES[:2])


def made() -> Simulatability:
    """Two queries, one right and one wrong, and a loss of 1 that falls by what is written here."""
    falls = {
        ("helpful", 0): [0.1, 0.5],
        ("harmful", 0): [-0.1, -0.3],
        ("random, a", 0): [0.0, 0.2],
        ("random, b", 0): [0.0, 0.0],
        ("helpful", 1): [-0.2, -0.2],
        ("harmful", 1): [0.3, 0.5],
        ("random, a", 1): [0.0, 0.0],
        ("random, b", 1): [0.2, 0.4],
    }
    curves = [
        {"query": q, "kind": kind, **{name: [1 - fall for fall in own] for name in ("mean", "low", "high")}}
        for (kind, q), own in falls.items()
    ]
    queries = [
        {"query": 0, "right": True, "predicted": "a", "before": 1.0, "agrees": True},
        {"query": 1, "right": False, "predicted": "b", "before": 1.0, "agrees": False},
    ]
    return Simulatability(curves, queries, [0.1, 0.2], 1)


def test_gains_and_their_means():
    gains = made().gains()
    expected = {
        "helpful": [0.3, -0.2],
        "harmful": [-0.2, 0.4],
        "random": [0.05, 0.15],
        "random, label predicted": [0.1, 0.3],
        "explaining": [0.3, 0.4],
        "explaining, over random": [0.25, 0.25],
        "explaining, over random of the label predicted": [0.2, 0.1],
    }
    assert gains.keys() == expected.keys()
    for kind, values in expected.items():
        np.testing.assert_allclose(gains[kind], values, atol=1e-12)
    rows = {(row["group"], row["kind"]): row for row in made().summary()}
    assert rows["all", "explaining"]["gain"] == pytest.approx(0.35)
    assert (rows["all", "explaining"]["low"], rows["all", "explaining"]["high"]) == pytest.approx((0.3, 0.4))
    assert rows["predicted wrong", "harmful"]["gain"] == pytest.approx(0.4)
    assert np.isnan(rows["predicted right", "helpful"]["low"])


def test_saved_read_and_drawn(found, tmp_path):
    path = found.write(tmp_path, "simulatability")
    assert Simulatability.load(path) == found
    panels = found.figures("simulatability")["simulatability-queries"].axes
    for query, panel in zip(found.queries, panels, strict=False):
        drawn = curves(panel)
        for curve in (one for one in found.curves if one["query"] == query["query"]):
            expected = np.transpose([found.learning_rates, curve["mean"]])
            np.testing.assert_allclose(drawn.pop(curve["kind"]), expected)
        assert not drawn and panel.get_title().startswith(f"query {query['query']}, ")
    assert "explaining, over random" in str(found)


def test_what_cannot_be_asked_is_refused(pair):
    with pytest.raises(ValueError, match=r"num_examples=30: only \d+ training examples have the label"):
        run(pair, num_examples=30)
    with pytest.raises(ValueError, match="examples: there are 4; give the 40 of the training set"):
        simulatability(*pair, QUERIES, simulated=QUERIES, examples=QUERIES)
    with pytest.raises(ValueError, match=r"learning_rates: after a step with up to 1e\+30 a loss is not finite"):
        run(pair, learning_rates=[1e30], num_examples=1)
