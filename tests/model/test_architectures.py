"""Models whose layers are not those of BERT: what is frozen, and scores against plain autograd row by row."""

from __future__ import annotations

import numpy as np
import oracles
import pytest
import torch
from datasets import concatenate_datasets
from tiny import batches, tiny_data, tiny_model, tiny_tokenizer, tiny_trainer
from tiny_architectures import (
    EXPERTS,
    bart,
    collate_sounds,
    funnel,
    language_data,
    longformer,
    relative_deberta,
    row_gradients,
    sound_data,
    switch,
    t5,
    wav2vec2,
)
from transformers import DataCollatorForTokenClassification

from hf_fastif import freeze
from hf_fastif.curvature import GaussNewton, captured_layers
from hf_fastif.model import Objective, derivatives_along, differentiable


DATA, QUERIES = tiny_data(10), tiny_data(2, seed=1)


def trained(model) -> set[str]:
    return {name for name, p in model.named_parameters() if p.requires_grad}


def of_rows(data):
    return [batches(data).take([row]) for row in range(len(data))]


def gradient_products(model, train, queries):
    return -(row_gradients(model, queries) @ row_gradients(model, train).T).numpy()


# ------------------------------------------------------------------------------------------------------------ freezing


@pytest.mark.parametrize("model", [relative_deberta(norm_rel_ebd="layer_norm"), tiny_model("mpnet", frozen=None)])
def test_freeze_takes_relative_positions_behind_the_layers(model):
    freeze(model, 1)
    behind = trained(model.base_model.encoder)
    assert behind == {name for name, _ in model.base_model.encoder.named_parameters() if name.startswith("layer.1.")}


@pytest.mark.parametrize(
    ("make", "count", "frozen", "stays"),
    [
        (funnel, 2, ["encoder.blocks.0.0", "encoder.blocks.1.0"], ["encoder.blocks.1.1"]),
        (bart, 1, ["encoder.layers.0"], ["encoder.layers.1", "encoder.layernorm_embedding", "decoder"]),
        (t5, 1, ["encoder.block.0"], ["encoder.block.1", "encoder.final_layer_norm", "decoder.block.0"]),
    ],
)
def test_freeze_counts_layers_in_blocks_and_of_encoders(make, count, frozen, stays):
    model = make()
    freeze(model, count)
    base = model.base_model
    assert not trained(base.get_input_embeddings())
    assert not any(trained(base.get_submodule(name)) for name in frozen)
    for name in stays:
        part = base.get_submodule(name)
        unused = {n for n in ("embed_positions.weight", "embed_tokens.weight") if name == "decoder"}
        assert trained(part) >= {n for n, _ in part.named_parameters()} - unused


def test_funnel_goes_on_behind_frozen_layers(tmp_path):
    torch.manual_seed(1)
    model = funnel()
    freeze(model, 1)
    train, queries = (tiny_data(8, seed=seed, lengths=(6, 7)) for seed in (0, 1))  # its pooling feels padding
    found = tiny_trainer(tmp_path, model, train, solver="identity").compute_influence(queries)
    expected = gradient_products(model, of_rows(train), of_rows(queries))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


def test_states_are_left_out_of_batches_that_the_model_pads_on_its_own(tmp_path):
    torch.manual_seed(1)
    model = longformer()
    freeze(model, 1)
    train = tiny_data(8, lengths=(8, 9)).select(range(6))  # a multiple of its window, and others follow
    mixed = concatenate_datasets([train, tiny_data(6, seed=2)])
    trainer = tiny_trainer(tmp_path, model, mixed, solver="identity", influence_batch_size=3, query_batch_size=1)
    with trainer.session() as session:
        assert session.train.states is not None
    expected = gradient_products(model, of_rows(mixed), of_rows(QUERIES))
    found = trainer.compute_influence(QUERIES)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


# ------------------------------------------------------------------------------------------ inputs that all share


@pytest.mark.parametrize("share", [False, True])
def test_layers_that_all_examples_share_the_input_of_have_rows(share, tmp_path):
    model = relative_deberta(share_att_key=share)
    freeze(model, 1)
    trainer = tiny_trainer(tmp_path, model, DATA, solver="sdca", damping=0.3, sdca_visits=400)
    s_test = trainer.compute_s_test(QUERIES)
    with trainer.session() as session:
        assert session.setup().iterative == "sdca"
    model.double().eval()
    with differentiable(model):
        matrix = oracles.gauss_newton(model, batches(DATA))
        vectors = oracles.loss_gradients(model, batches(QUERIES))
    expected = torch.linalg.solve(matrix + 0.3 * torch.eye(len(matrix)).to(matrix), vectors.T).T
    assert (s_test.vectors - expected).norm() < 1e-4 * expected.norm()


def test_layers_of_one_input_are_told_apart_only_where_that_is_asked_for():
    model = relative_deberta()
    freeze(model, 1)
    objective, batch = Objective(model), batches(DATA).take(range(3))
    modules = {layer.module.rpartition(".")[2] for layer in captured_layers(objective, batch)}
    assert not modules & {"pos_key_proj", "pos_query_proj"}
    assert not GaussNewton(objective)._rows_pay(batch, 100)  # passes of single examples are slow
    common = {
        layer.module.rpartition(".")[2] for layer in captured_layers(objective, batch, common=True) if layer.common
    }
    assert common == {"pos_key_proj", "pos_query_proj"}


# ------------------------------------------------------------------------------------------------------------- experts


@pytest.mark.parametrize("name", EXPERTS)
def test_experts_are_switched_to_eager_and_back(name, tmp_path):
    torch.manual_seed(1)
    model, collate = EXPERTS[name](), DataCollatorForTokenClassification(tiny_tokenizer())
    train, queries = language_data(6), language_data(2, seed=1)
    before = model.config._experts_implementation
    assert before != "eager"
    trainer = tiny_trainer(tmp_path, model, train, solver="identity")
    trainer.data_collator = collate
    found = trainer.compute_influence(queries)
    assert model.config._experts_implementation == before
    expected = gradient_products(model, *([collate([row]) for row in data] for data in (train, queries)))
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5 * np.abs(expected).max())


def test_a_loss_of_the_router_is_refused_and_named(tmp_path):
    model = EXPERTS["mixtral"](output_router_logits=True, router_aux_loss_coef=0.5)
    trainer = tiny_trainer(tmp_path, model, language_data(6), solver="identity")
    trainer.data_collator = DataCollatorForTokenClassification(tiny_tokenizer())
    with pytest.raises(ValueError, match="MixtralForCausalLM gives the losses.*output_router_logits=False"):
        trainer.compute_influence(language_data(1))


# ----------------------------------------------------------------------------------------------- without forward mode


def sound_trainer(folder, **settings):
    torch.manual_seed(1)
    trainer = tiny_trainer(folder, wav2vec2(), sound_data(6), **settings)
    trainer.data_collator = collate_sounds
    return trainer


def sounds(data):
    return [collate_sounds([row]) for row in data]


@pytest.mark.parametrize("scoring", ["auto", "forward_mode"])
def test_weight_norm_is_scored_by_backward_passes(scoring, tmp_path):
    trainer, queries = sound_trainer(tmp_path, solver="identity", scoring=scoring), sound_data(2, seed=1)
    expected = gradient_products(trainer.model, sounds(trainer.train_dataset), sounds(queries))
    found = trainer.compute_influence(queries)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5 * np.abs(expected).max())
    one = trainer.compute_influence(queries.select([1]))
    np.testing.assert_allclose(one[0], found[1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "settings",
    [
        {"solver": "lissa", "lissa_batch_size": 6, "lissa_depth": 200},
        {"solver": "cg", "cg_steps": 50, "cg_samples": 6, "solver_tolerance": 1e-5},
    ],
    ids=lambda settings: settings["solver"],
)
def test_weight_norm_is_solved_for_by_backward_passes(settings, tmp_path):
    trainer, queries = sound_trainer(tmp_path, damping=0.3, **settings), sound_data(2, seed=1)
    model = trainer.model
    found = trainer.compute_s_test(queries).vectors.double()
    vectors = row_gradients(model, sounds(queries))
    total = torch.zeros(found.shape[1], found.shape[1], dtype=torch.float64)
    double = model.double().eval()
    with differentiable(double):
        for row in sounds(trainer.train_dataset):
            jacobian = oracles.jacobian(
                double, {name: v.double() if v.is_floating_point() else v for name, v in row.items()}
            )
            with torch.no_grad():
                logits = double(row["input_values"].double()).logits[0]
            total += jacobian.T @ oracles.softmax_hessian(logits) @ jacobian / 6
    expected = torch.linalg.solve(total + 0.3 * torch.eye(len(total)), vectors.T).T
    assert (found - expected).norm() < 1e-3 * expected.norm()


def test_a_model_that_no_transform_bears_is_scored_with_its_tokens(tmp_path):
    torch.manual_seed(1)
    model, collate = switch(), DataCollatorForTokenClassification(tiny_tokenizer())
    train, queries = language_data(5), language_data(2, seed=1)
    trainer = tiny_trainer(tmp_path, model, train, solver="identity")
    trainer.data_collator = collate
    expected = gradient_products(model, *([collate([row]) for row in data] for data in (train, queries)))
    tolerance = {"rtol": 1e-3, "atol": 1e-5 * np.abs(expected).max()}
    np.testing.assert_allclose(trainer.compute_influence(queries), expected, **tolerance)
    tokens = trainer.token_influence(queries, [0, 3])
    totals = [[scores.sum() for scores in query] for query in tokens]
    np.testing.assert_allclose(totals, expected[:, [0, 3]], **tolerance)


def test_backward_passes_give_what_forward_mode_gives():
    objective, batch = Objective(tiny_model("bert", double=True, frozen=0)), batches(DATA).take(range(4))
    vectors = torch.randn(3, objective.space.size, dtype=torch.float64)

    def losses(theta):
        return objective.losses(theta, batch)

    expected = derivatives_along(objective, losses, vectors)
    assert objective.forward_mode
    objective.forward_mode = False
    found = derivatives_along(objective, losses, vectors)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_errors_that_are_not_about_forward_mode_are_not_hidden():
    objective = Objective(tiny_model())

    def broken(_theta):
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        derivatives_along(objective, broken, torch.zeros(1, objective.space.size))
    assert objective.forward_mode
