"""Language models: padding, labels, packing, checkpointing, tied weights, curvature and features, against oracles."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from problem import kronecker_factors
from tiny_heads import CASES, gradients_and_curvature
from transformers import DataCollatorForLanguageModeling, DataCollatorWithFlattening

from hf_fastif.curvature import GaussNewton, KroneckerFit, captured_layers, leading_entries, share_of
from hf_fastif.curvature.directions import random_directions
from hf_fastif.influence.predictions import loss_gradients
from hf_fastif.model import Objective
from hf_fastif.scoring import covering_layers


DATA = CASES["causal-gpt2"].data(6)
QUERIES = CASES["causal-gpt2"].data(2, seed=1)


@pytest.fixture
def gpt2(tmp_path):
    return CASES["causal-gpt2"].trainer(tmp_path, DATA, damping=0.3)


@pytest.mark.parametrize("name", ["causal-gpt2", "causal-llama"])
def test_padding_on_either_side_changes_nothing(name, tmp_path):
    found = []
    for side in ("right", "left"):
        trainer = CASES[name].trainer(tmp_path / side, DATA, padding_side=side, solver="identity")
        trainer.model = copy.deepcopy(trainer.model).float()  # Llama's softmax is float32, and its masks the model's
        found.append(trainer.compute_influence(QUERIES))
    np.testing.assert_allclose(found[1], found[0], rtol=1e-3, atol=1e-4)


def test_what_a_label_of_minus_100_hides_plays_no_part_and_no_label_at_all_no_influence(gpt2):
    gpt2.args.solver = "identity"
    scores = gpt2.compute_influence(QUERIES)
    last = DATA.map(lambda row: {"labels": row["labels"][:-1] + [-100]})
    changed = last.map(lambda row: {"input_ids": row["input_ids"][:-1] + [2]})  # nothing is predicted from it
    hidden, moved = (gpt2.compute_influence(QUERIES, candidates=data) for data in (last, changed))
    np.testing.assert_allclose(moved, hidden, rtol=1e-5, atol=1e-6)
    nothing = DATA.map(lambda row: {"labels": [-100] * len(row["labels"])})
    assert np.abs(gpt2.compute_influence(QUERIES, candidates=nothing)).max() == 0
    assert np.abs(scores).min() > 0


def test_the_mean_over_tokens_is_the_sum_by_their_number(tmp_path):
    case = CASES["causal-gpt2"]
    counts = [sum(label != -100 for label in row["labels"][1:]) for row in DATA]
    assert len(set(counts)) > 1
    one, other = (
        case.trainer(tmp_path / kind, DATA, loss_reduction=kind, solver="identity").compute_influence(DATA)
        for kind in ("sum", "mean")
    )
    np.testing.assert_allclose(other * np.outer(counts, counts), one, rtol=1e-4, atol=1e-5)


def test_checkpointed_activations_change_nothing(tmp_path, gpt2):
    settings = {"damping": 0.3, "solver": "cg", "cg_steps": 3}
    expected = CASES["causal-gpt2"].trainer(tmp_path / "before", DATA, **settings).compute_influence(QUERIES)
    gpt2.model.activation_checkpointing_enable()
    gpt2.model.enable_input_require_grads()
    try:
        gpt2.model.train()
        again = CASES["causal-gpt2"].trainer(tmp_path / "again", DATA, **settings)
        np.testing.assert_allclose(again.compute_influence(QUERIES), expected, rtol=1e-5, atol=1e-6)
        assert gpt2.model.get_input_embeddings()(torch.tensor([1])).requires_grad
    finally:
        gpt2.model.activation_checkpointing_disable()
        gpt2.model.get_input_embeddings()._forward_hooks.clear()
        gpt2.model.eval()


def test_tied_embeddings_are_contracted_from_both_of_their_uses(gpt2):
    assert gpt2.model.lm_head.weight is gpt2.model.transformer.wte.weight
    with gpt2.session() as session:
        examples, objective = session.examples("examples", DATA), session.objective
        assert covering_layers(objective, examples) is None  # squares of their parts do not add up
        layers = covering_layers(objective, examples, tied=True)
        assert share_of(layers, objective) == 1
    gpt2.args.solver = "identity"
    one_by_one = np.concatenate([gpt2.compute_influence(QUERIES.select([row])) for row in range(2)])
    gpt2.args.scoring = "gradients"
    np.testing.assert_allclose(gpt2.compute_influence(QUERIES), one_by_one, rtol=1e-4, atol=1e-5)
    gpt2.args.scoring = "forward_mode"
    np.testing.assert_allclose(gpt2.compute_influence(QUERIES), one_by_one, rtol=1e-4, atol=1e-5)


def test_tied_embeddings_are_captured_as_the_sum_of_both_uses(gpt2):
    with gpt2.session() as session:
        examples, objective = session.examples("examples", DATA), session.objective
        batch, rows = examples.take(range(len(DATA))), range(len(DATA))
        curvature = GaussNewton(objective)
        blocks = KroneckerFit(curvature, examples, [np.arange(len(DATA))], 0, gpt2.accelerator).bases()
        gradients = loss_gradients(objective, examples, rows)
        directions = random_directions(curvature, *_outputs(objective, batch), 2, 0, rows)
        logits = objective.logits(objective.theta, batch)
        products = [
            torch.autograd.grad(logits, list(objective.theta.values()), direction * one, retain_graph=True)
            for direction in directions
            for one in torch.eye(len(DATA))[:, :, None, None]
        ]
        pieces = [torch.stack(each) for each in zip(*products, strict=True)]
        jacobian = objective.space.join(pieces, lead=(len(products),))
        fit = KroneckerFit(curvature, examples, [np.arange(4), np.arange(4, len(DATA))], 0, gpt2.accelerator)
        factors = fit.factors(blocks)
        entries = leading_entries(blocks, 1 << 40)
        of_losses, squares = entries.of_losses_and_norms(objective, batch)
    assert [block.layer.kind for block in blocks].count("tied") == 1 and not factors.diagonal
    size = gradients.abs().max()
    torch.testing.assert_close(of_losses, entries.of_vectors(objective.space, gradients), rtol=1e-3, atol=1e-4 * size)
    torch.testing.assert_close(squares, gradients.square().sum(dim=1), rtol=1e-3, atol=1e-6)
    tied = next(block for block in factors.blocks if block.layer.kind == "tied")
    rotated = tied.output_basis.T @ tied.layer.to_matrix(objective.space.split(jacobian))
    expected = rotated.square().sum(dim=0) / len(DATA)
    torch.testing.assert_close(tied.eigenvalues, expected, rtol=1e-3, atol=1e-5 * float(expected.max()))


@pytest.mark.parametrize("name", ["seq2seq-bart", "seq2seq-t5"])
def test_layers_that_scale_or_shift_what_they_look_up_are_not_taken_for_plain_ones(name, tmp_path):
    case = CASES[name]
    trainer = case.trainer(tmp_path, case.data(4))
    with trainer.session() as session:
        examples, objective = session.examples("examples", trainer.train_dataset), session.objective
        kinds = {layer.module: layer.kind for layer in captured_layers(objective, examples.take([0]), embeddings=True)}
    assert not any("embed_" in module for module in kinds if name == "seq2seq-bart")
    assert "linear" in kinds.values()


@pytest.mark.parametrize("name", ["causal-llama", "token", "question-answering"])
def test_ekfac_directions_of_many_places_have_the_curvature_of_the_loss(name, tmp_path):
    case = CASES[name]
    data = case.data(3)
    trainer = case.trainer(tmp_path, data)
    with trainer.session() as session:
        objective, batch = session.objective, session.examples("examples", data).take(range(3))
        curvature, logits, labels = GaussNewton(objective), *_outputs(objective, batch)
        draws = [random_directions(curvature, logits, labels, 500, seed, range(3)).flatten(1) for seed in range(40)]
        found = sum(draw.T @ draw for draw in draws) / len(draws)
        units = torch.eye(logits.numel()).to(logits).view(-1, *logits.shape)
        exact = curvature.output_product(logits, labels, units).flatten(1)
    assert (found - exact).norm() < 0.1 * exact.norm()
    assert (found - exact).abs().max() < 0.05 * exact.abs().max()


def _outputs(objective, batch):
    return objective.logits(objective.theta, batch).detach(), objective.labels(batch)


def test_ekfac_has_the_trace_of_the_curvature(tmp_path):
    case = CASES["causal-llama"]
    data = case.data(6)
    trainer = case.trainer(tmp_path, data)
    _, matrix = gradients_and_curvature(case, trainer, data)
    with trainer.session() as session:
        examples, curvature = session.examples("examples", data), GaussNewton(session.objective)
        fits = [kronecker_factors(curvature, examples, [np.arange(3), np.arange(3, 6)], seed) for seed in range(12)]
    traces = [sum(float(block.eigenvalues.sum()) for block in fit.blocks) for fit in fits]
    assert not fits[0].diagonal
    assert np.mean(traces) == pytest.approx(float(matrix.trace()), rel=0.1)


def test_lissa_is_the_iterative_solver_and_damped_by_the_largest_eigenvalue(gpt2):
    case = CASES["causal-gpt2"]
    _, matrix = gradients_and_curvature(case, gpt2, DATA)
    gpt2.args.damping, gpt2.args.solver = "auto", "lissa"
    with gpt2.session() as session:
        session.examples("examples", QUERIES)
        setup = session.setup()
        assert setup.iterative == "lissa"
        assert setup.damping == pytest.approx(0.003 * float(torch.linalg.eigvalsh(matrix)[-1]), rel=0.03)
        assert not setup.spectrum.whole


@pytest.mark.parametrize(
    "solver",
    [{"solver": "lissa", "lissa_batch_size": 6, "lissa_depth": 100}, {"solver": "cg", "solver_tolerance": 1e-4}],
)
def test_iterative_solvers_reach_the_exact_one(solver, tmp_path):
    case = CASES["causal-llama"]
    train, queries = case.data(6), case.data(2, seed=1)
    exact, other = (
        case.trainer(tmp_path / settings["solver"], train, damping=3.0, cg_steps=80, **settings).compute_s_test(
            queries
        )
        for settings in ({"solver": "exact"}, solver)
    )
    assert ((other.vectors - exact.vectors).norm(dim=1) < 0.01 * exact.vectors.norm(dim=1)).all()


def test_features_of_the_last_token_and_of_the_mean(tmp_path):
    case = CASES["causal-llama"]
    states = []
    for row in DATA:
        output = case.model(input_ids=torch.tensor([row["input_ids"]]), output_hidden_states=True)
        states.append(output.hidden_states[-1][0].detach())
    expected = {"pooled": [s[-1] for s in states], "mean_pooled": [s.mean(dim=0) for s in states]}
    for kind, vectors in expected.items():
        trainer = case.trainer(
            tmp_path / kind, CASES["causal-gpt2"].data(6), index_features=kind, index_factory="Flat", solver="identity"
        )
        index = trainer.build_index()
        np.testing.assert_allclose(
            index.faiss_index.reconstruct_n(0, len(DATA)), torch.stack(vectors), rtol=1e-4, atol=1e-5
        )
        assert trainer.find_candidates(DATA.select([3]), 1)[0, 0] == 3


def test_results_count_the_tokens_that_are_predicted(gpt2, tmp_path):
    gpt2.args.solver = "identity"
    result = gpt2.find_influential(QUERIES, num_examples=2)
    right = []
    for row in QUERIES:
        predicted = gpt2.model(input_ids=torch.tensor([row["input_ids"]])).logits[0, :-1].argmax(dim=-1).tolist()
        labels = row["labels"][1:]
        pairs = [(p, y) for p, y in zip(predicted, labels, strict=True) if y != -100]
        right.append(f"{sum(p == y for p, y in pairs)} of {len(pairs)} right")
    assert result.queries["prediction"][:] == right
    assert right[0] in result.to_html(tmp_path / "report.html").read_text("utf-8")


# ---------------------------------------------------------------------------------------------------- bad input


def test_packed_rows_are_refused(gpt2):
    packed = DATA.map(lambda row: {"seq_lengths": [2, len(row["input_ids"]) - 2]})
    with pytest.raises(ValueError, match="several examples per row .it has seq_lengths.*packing=False"):
        gpt2.compute_influence(QUERIES, candidates=packed)
    restarting = DATA.map(lambda row: {"position_ids": [0, 1, *range(len(row["input_ids"]) - 2)]})
    with pytest.raises(ValueError, match="several examples per row .position_ids restart"):
        gpt2.compute_influence(QUERIES, candidates=restarting)
    gpt2.data_collator = DataCollatorWithFlattening()
    with pytest.raises(ValueError, match="several examples per row"):
        gpt2.compute_influence(QUERIES)


def test_a_collator_that_masks_at_random_is_refused(gpt2):
    from tiny import tiny_tokenizer

    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"mask_token": "[MASK]"})
    gpt2.data_collator = DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.5)
    with pytest.raises(ValueError, match="data_collator: it returns a different batch of the same rows"):
        gpt2.compute_influence(QUERIES.remove_columns("labels"))


def test_one_label_for_a_text_is_refused(gpt2):
    with pytest.raises(
        ValueError, match="'labels' holds one int64 per row, and a GPT2LMHeadModel needs one label per token"
    ):
        gpt2.compute_influence(QUERIES.map(lambda row: {"labels": 1}, remove_columns="labels"))


def test_an_objective_of_tokens_is_their_sum_unless_told():
    assert Objective(CASES["causal-gpt2"].model).head.reduction == "sum"


@pytest.mark.parametrize("name", ["causal-llama", "seq2seq-t5", "token"])
def test_influence_of_tokens_is_that_of_examples_with_one_label(name, tmp_path):
    case = CASES[name]
    data, queries = case.data(3), case.data(2, seed=1)
    trainer = case.trainer(tmp_path, data, solver="identity")
    s_test = trainer.compute_s_test(queries)
    found = trainer.token_influence(queries, [2, 0], s_test=s_test)
    np.testing.assert_allclose(
        [[scores.sum() for scores in query] for query in found],
        trainer.compute_influence(queries, s_test=s_test)[:, [2, 0]],
        rtol=1e-4,
        atol=1e-5,
    )
    labels = data[2]["labels"]
    if name == "seq2seq-t5":  # labels are the decoder's inputs too
        return
    singles = data.select([2] * len(labels)).map(
        lambda row, kept: {"labels": [y if place == kept else -100 for place, y in enumerate(row["labels"])]},
        with_indices=True,
    )
    alone = trainer.compute_influence(queries, candidates=singles, s_test=s_test)
    np.testing.assert_allclose(np.stack([query[0] for query in found]), alone, rtol=1e-4, atol=1e-5)
    assert np.flatnonzero(alone[0]).tolist() == [t for t, y in enumerate(labels) if y != -100]


def test_tokens_have_no_influence_of_their_own_where_an_example_has_one_label(tmp_path):
    case = CASES["image"]
    with pytest.raises(ValueError, match="ViTForImageClassification with this loss has no loss per token"):
        case.trainer(tmp_path, case.data(3), solver="identity").token_influence(case.data(1), [0])
