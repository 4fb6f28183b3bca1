"""Going on from the states behind the frozen layers changes nothing, and no frozen layer runs twice on a batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny import batches, tiny_data, tiny_model, tiny_trainer

from hf_fastif.model import Objective
from hf_fastif.model import prefix_cache as frozen
from hf_fastif.model.objective import STATES
from hf_fastif.model.parameters import layer_stack
from hf_fastif.model.prefix_cache import find_frozen_states


DATA = tiny_data(11)
ARCHITECTURES = ["bert", "roberta", "distilbert", "electra", "modernbert", "gpt2", "llama", "deberta"]
PLENTY = 1 << 30


def with_states(model, memory=PLENTY):
    objective, examples = Objective(model), batches(DATA)
    examples.states = find_frozen_states(objective, examples, memory)
    if examples.states is not None:
        objective.frozen = examples.states.frozen
    return objective, examples


def logits(objective, examples, rows):
    with torch.no_grad():
        return objective.logits(objective.theta, examples.take(rows))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_outputs_and_gradients_are_those_of_the_whole_model(architecture):
    model = tiny_model(architecture, double=True)
    objective, examples = with_states(model)
    assert examples.states is not None
    for rows in ([3], [0, 5, 3], [7, 3, 0, 1, 10], [0, 5, 3]):  # the last is kept
        batch, plain = examples.take(rows), batches(DATA).take(rows)
        assert STATES in batch
        # ModernBERT takes its softmax in float32
        tolerance = {"rtol": 1e-4, "atol": 1e-5} if architecture == "modernbert" else {"rtol": 1e-9, "atol": 1e-9}
        torch.testing.assert_close(logits(objective, examples, rows), model(**plain).logits.detach(), **tolerance)
        torch.testing.assert_close(objective.gradient(batch), Objective(model).gradient(plain), **tolerance)


def test_frozen_layers_see_a_batch_once():
    model = tiny_model()
    objective, examples = with_states(model)
    seen = []
    _, layers = layer_stack(model)
    layers[0].intermediate.register_forward_hook(lambda _module, args, _output: seen.append(len(args[0])))
    for rows in ([0, 1, 2], [3, 0], [0, 1, 2], np.array([3, 0])):
        examples.take(rows)
        logits(objective, examples, rows)
    assert seen == [3, 2]


def test_states_do_not_depend_on_what_was_asked_before():
    """An example alone and in company, padded and not, has other last bits."""
    model = tiny_model()
    long, short = (int(pick([len(ids) for ids in DATA["input_ids"]])) for pick in (np.argmax, np.argmin))
    _, first = with_states(model)
    expected = first.take([short])[STATES]
    _, second = with_states(model)
    second.take([long, short])
    torch.testing.assert_close(second.take([short])[STATES], expected, rtol=0, atol=0)
    assert len(second.states._cached) == 2


def test_memory_is_kept_to():
    model = tiny_model()
    memory = 3 * 12 * 8 * 4  # three examples at most
    objective, examples = with_states(model, memory)
    for _ in range(2):
        for rows in ([0], [1, 2], [3, 4, 5, 6, 7], [8], [9], [10]):
            torch.testing.assert_close(
                logits(objective, examples, rows), logits(Objective(model), batches(DATA), rows)
            )
    kept = examples.states._cached.values()
    assert 0 < sum(states.nbytes for states in kept) == examples.states.used <= memory
    assert 0 < len(kept) < 6


def test_the_others_together_may_fill_the_memory_once_more(tmp_path):
    sets = {f"set-{number}": tiny_data(6, seed=number) for number in range(3)}

    def used_after(order, memory):
        trainer, digests = tiny_trainer(tmp_path, train=DATA, frozen_states_gb=memory / 2**30), {}
        for name in order:
            with trainer.session() as session:
                pool = session.pool(name, sets[name])
                digests[name] = pool.digest
                session.predict(pool)
        by_set = {key[2]: states.used for key, states in trainer._cache.states.items()}
        return {name: by_set[digests[name]] for name in sets if digests.get(name) in by_set}

    order = ["set-0", "set-1", "set-0", "set-2"]
    whole = used_after(order, PLENTY)
    assert list(whole) == list(sets) and min(whole.values()) > 0
    largest = max(whole.values())
    assert largest < whole["set-0"] + whole["set-1"]
    assert used_after(order, largest) == {name: whole[name] for name in ("set-0", "set-2")}  # the last one used stays


def trained_embeddings():
    model = tiny_model()
    model.bert.embeddings.word_embeddings.weight.requires_grad_(True)
    return model


def trained_position_bias():
    model = tiny_model("mpnet")
    model.mpnet.encoder.relative_attention_bias.requires_grad_(True)
    return model


@pytest.mark.parametrize(
    "model",
    [
        lambda: tiny_model(frozen=0),
        lambda: tiny_model("albert", frozen=None),
        trained_embeddings,
        trained_position_bias,
    ],
    ids=["no layer is frozen", "layers are shared", "embeddings are trained", "the position bias is trained"],
)
def test_nothing_is_kept_where_the_model_cannot_go_on(model):
    assert with_states(model())[1].states is None


def test_nothing_is_kept_of_a_layer_that_is_never_called(monkeypatch):
    monkeypatch.setattr(frozen, "_first_layers", lambda _model: [torch.nn.Linear(8, 8)])
    assert with_states(tiny_model())[1].states is None


def test_a_model_that_sees_the_padding_is_found_out(monkeypatch):
    model = tiny_model()
    _, layers = layer_stack(model)
    forward = layers[1].forward  # the first trained layer looks at all places, padding too
    monkeypatch.setattr(
        layers[1], "forward", lambda x, *args, **kwargs: forward(x + x.sum(dim=1, keepdim=True), *args, **kwargs)
    )
    assert with_states(model)[1].states is None


@pytest.mark.parametrize("solver", ["sdca", "lissa", "cg"])
def test_the_trainer_answers_the_same_with_and_without(tmp_path, solver):
    settings = {"solver": solver, "lissa_depth": 5, "damping": 1.0, "sdca_visits": 60, "cg_samples": 20}
    settings |= {"solver_tolerance": 1e-4, "cg_steps": 60}  # rounding may move the step at which a rough one stops
    queries = tiny_data(2, seed=1)
    found, expected = (
        tiny_trainer(tmp_path, train=DATA, frozen_states_gb=memory, **settings).compute_influence(queries)
        for memory in (0.25, 0.0)
    )
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


def test_states_are_forgotten_when_frozen_layers_change(tmp_path):
    trainer = tiny_trainer(tmp_path, train=DATA, solver="identity")
    queries = tiny_data(1, seed=1)
    before = trainer.compute_influence(queries)
    with torch.no_grad():
        trainer.model.bert.encoder.layer[0].output.dense.weight.mul_(-1)
    after = trainer.compute_influence(queries)
    fresh = tiny_trainer(tmp_path, trainer.model, DATA, solver="identity").compute_influence(queries)
    assert not np.allclose(before, after, rtol=0.1)
    np.testing.assert_array_equal(after, fresh)
