"""The whole path through `InfluenceTrainer`, on tiny models."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from datasets import Dataset, concatenate_datasets
from tiny import batches, tiny_data, tiny_model, tiny_tokenizer, tiny_trainer
from transformers import Trainer, TrainingArguments

from hf_fastif import InfluenceConfig, InfluenceTrainer
from hf_fastif.influence import attribution
from hf_fastif.scoring import scan


TRAIN, QUERIES = tiny_data(40), tiny_data(5, seed=1)
QUICK = {"solver": "lissa", "lissa_depth": 4, "damping": 0.5, "lissa_scale": 50.0}


@pytest.fixture
def trainer(tmp_path):
    return tiny_trainer(tmp_path, train=tiny_data(40), **QUICK)


def matrix_of(result, num_train=40, column="influence"):
    matrix = np.full((len(result.queries), num_train), np.nan, np.float32)
    for row in result.influences:
        matrix[row["query_index"], row["train_index"]] = row[column]
    return matrix


def test_all_neighbors_give_the_full_scan(trainer):
    trainer.build_index()
    s_test = trainer.compute_s_test(QUERIES)
    scan = trainer.compute_influence(QUERIES, s_test=s_test)

    everything = trainer.find_influential(QUERIES, num_examples=None, num_neighbors=40, s_test=s_test)
    few = trainer.find_influential(QUERIES, num_examples=None, num_neighbors=7, s_test=s_test)

    assert scan.shape == (5, 40) and scan.dtype == np.float32
    np.testing.assert_allclose(matrix_of(everything), scan, rtol=1e-4, atol=1e-6)
    known = ~np.isnan(matrix_of(few))
    assert (known.sum(axis=1) == 7).all()
    np.testing.assert_allclose(matrix_of(few)[known], scan[known], rtol=1e-4, atol=1e-6)


def test_result_ranks_directions_and_texts(trainer):
    scan = trainer.compute_influence(QUERIES)
    result = trainer.find_influential(QUERIES, num_examples=3)

    for query in range(5):
        order = np.argsort(scan[query])
        assert result.helpful(query)["train_index"] == order[:3].tolist()
        assert result.harmful(query)["train_index"] == order[::-1][:3].tolist()
        assert result.helpful(query)["rank"] == [1, 2, 3]
        assert max(result.helpful(query)["influence"]) < 0 < min(result.harmful(query)["influence"])
        assert result.harmful(query)["text"] == [TRAIN[int(row)]["text"] for row in order[::-1][:3]]
    assert result.queries["text"] == QUERIES["text"]
    assert result.summary.num_parameters == sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    assert result.summary.damping == 0.5


def test_queries_batched_or_not_with_batches_large_or_small(tmp_path):
    one = tiny_trainer(tmp_path, train=TRAIN, **QUICK).compute_influence(QUERIES)
    settings = QUICK | {"query_batch_size": 2, "influence_batch_size": 3}
    np.testing.assert_allclose(
        tiny_trainer(tmp_path, train=TRAIN, **settings).compute_influence(QUERIES), one, rtol=1e-3, atol=1e-5
    )


def test_order_of_the_training_set_only_permutes(tmp_path):
    # Full batches, so that the order does not decide which examples a step draws.
    settings = QUICK | {"lissa_batch_size": 40}
    order = np.random.default_rng(0).permutation(40)
    scan = tiny_trainer(tmp_path, train=TRAIN, **settings).compute_influence(QUERIES)
    permuted = tiny_trainer(tmp_path, train=TRAIN.select(order), **settings).compute_influence(QUERIES)
    np.testing.assert_allclose(permuted, scan[:, order], rtol=1e-3, atol=1e-5)


def test_a_copy_of_the_query_in_the_training_set_is_most_helpful_for_its_size(tmp_path):
    query = tiny_data(1, seed=5)
    train = concatenate_datasets([tiny_data(20), query, tiny_data(19, seed=2)])
    trainer = tiny_trainer(tmp_path, train=train)
    helpful = trainer.find_influential(query).helpful(0)["train_index"]
    assert 20 in helpful[:3]  # others may have larger gradients, but none for its size
    relative = trainer.compute_influence(query)[0] / np.sqrt(trainer.self_influence())
    assert relative.argmin() == 20


def test_another_pool_is_scored_as_if_it_were_trained_on(trainer):
    pool = tiny_data(9, seed=3)
    scan = trainer.compute_influence(QUERIES, candidates=pool)
    trainer.build_index(pool)
    result = trainer.find_influential(QUERIES, num_examples=None, num_neighbors=9, candidates=pool)
    np.testing.assert_allclose(matrix_of(result, 9), scan, rtol=1e-3, atol=1e-5)
    assert trainer.train_dataset.list_indexes() == []


class ConvexProblem:
    """A convex model: frozen features and a trained, regularised output layer, which can be trained to the optimum."""

    damping = 0.05

    def __init__(self, train):
        self.model, self.train = tiny_model(double=True), train
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name.startswith("classifier"))
        states = []
        hook = self.model.classifier.register_forward_pre_hook(lambda _module, args: states.append(args[0].detach()))
        for data in (train, QUERIES):
            batch = batches(data).take(range(len(data)))
            self.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        hook.remove()
        self.features, self.query_features = states
        weight, self.before = self.retrained(torch.ones(len(train), dtype=torch.float64))
        self.model.classifier.weight.data, self.model.classifier.bias.data = (
            weight[:, :8].clone(),
            weight[:, 8].clone(),
        )

    def retrained(self, weights):
        """The output layer, and the losses of the queries, after training with these weights of the examples."""
        weight = torch.zeros(3, 9, dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.LBFGS([weight], max_iter=500, tolerance_grad=1e-12, line_search_fn="strong_wolfe")
        labels = torch.tensor(self.train["label"])

        def losses(x, labels):
            return torch.nn.functional.cross_entropy(x @ weight[:, :8].T + weight[:, 8], labels, reduction="none")

        def closure():
            optimizer.zero_grad()
            mean = weights @ losses(self.features, labels) / len(self.train)
            objective = mean + self.damping / 2 * weight.square().sum()
            objective.backward()
            return objective

        optimizer.step(closure)
        return weight.detach(), losses(self.query_features, torch.tensor(QUERIES["label"])).detach()

    def change(self, row, removed=1):
        """The change (Q,) of the losses of the queries if a share of an example is removed, per share."""
        weights = torch.ones(len(self.train), dtype=torch.float64)
        weights[row] -= removed
        return ((self.retrained(weights)[1] - self.before) / removed).numpy()

    def trainer(self, folder):
        settings = {"damping": self.damping, "solver": "cg", "solver_tolerance": 1e-6}
        return tiny_trainer(folder, self.model, self.train, **settings)


def test_influence_predicts_what_removal_does(tmp_path):
    """Leave-one-out retraining of a convex model."""
    problem = ConvexProblem(TRAIN)

    # Influence is the derivative by an example's weight, and removing z takes a weight of 1/N from it.
    predicted = -problem.trainer(tmp_path).compute_influence(QUERIES) / len(TRAIN)

    removal = np.stack([problem.change(row) for row in range(40)], axis=1)
    derivative = np.stack([problem.change(row, 0.01) for row in range(40)], axis=1)
    np.testing.assert_allclose(predicted, derivative, atol=0.03 * np.abs(derivative).max())
    for query in range(len(QUERIES)):
        assert np.corrcoef(predicted[query], removal[query])[0, 1] > 0.98
        strongest = np.argsort(-np.abs(predicted[query]))[:10]
        assert (np.sign(predicted[query]) == np.sign(removal[query]))[strongest].all()


def test_predicted_loss_changes_are_those_of_removal_and_addition(tmp_path):
    """To some 10 %: an example that is removed takes more with it than the derivative says, one that is added less."""
    everything = tiny_data(160)
    problem = ConvexProblem(everything.select(range(150)))
    trainer = problem.trainer(tmp_path)
    result = trainer.find_influential(QUERIES, num_examples=2)
    assert (result.summary.change, result.summary.num_train) == ("removed", 150)
    np.testing.assert_allclose(result.queries["loss_at_attribution"], problem.before, rtol=1e-4)
    for row in result.influences:
        measured = problem.change(row["train_index"])[row["query_index"]]
        assert row["predicted_loss_change"] == pytest.approx(measured, rel=0.12)

    more = ConvexProblem(everything)
    unseen = everything.select(range(150, 160))
    pool = trainer.find_influential(QUERIES, num_examples=None, candidates=unseen)
    assert pool.summary.change == "added"
    predicted, measured = matrix_of(pool, 10, "predicted_loss_change"), np.zeros((len(QUERIES), 10))
    for row in range(10):
        weights = torch.full((160,), 160 / 150, dtype=torch.float64)  # whose mean is over the first 150
        weights[150 : 150 + row] = weights[151 + row :] = 0
        measured[:, row] = more.retrained(weights)[1] - problem.before
    assert (predicted * measured).sum() / np.square(predicted).sum() == pytest.approx(1, abs=0.12)
    assert np.corrcoef(predicted.ravel(), measured.ravel())[0, 1] > 0.99


def test_candidates_from_the_training_set_can_be_removed(trainer):
    few = trainer.find_influential(QUERIES, candidates=TRAIN.select([3, 5, 8]).map(lambda row: {"note": "mine"}))
    assert few.summary.change == "removed" and few.summary.num_train == 40
    np.testing.assert_allclose(few.influences["predicted_loss_change"], -np.array(few.influences["influence"]) / 40)
    mixed = concatenate_datasets([TRAIN.select([3]), tiny_data(2, seed=3)])
    assert trainer.find_influential(QUERIES, candidates=mixed).summary.change == "added"


def test_a_solver_without_curvature_predicts_nothing(tmp_path):
    result = tiny_trainer(tmp_path, train=TRAIN, solver="identity").find_influential(QUERIES, num_examples=2)
    assert result.summary.change is None and result.influences["predicted_loss_change"] == [None] * 20
    assert result.influences["percentile"][0] > 50
    assert "A positive influence is harmful" in repr(result) and "without it" not in repr(result)


def test_percentiles_count_every_candidate(trainer):
    scan = np.abs(trainer.compute_influence(QUERIES))
    result = trainer.find_influential(QUERIES, num_examples=3)
    for row in result.influences:
        weaker = (scan[row["query_index"]] < abs(row["influence"]) * (1 - 1e-4)).mean()
        assert row["percentile"] == pytest.approx(100 * weaker)
    trainer.build_index()
    assert trainer.find_influential(QUERIES, num_neighbors=39).influences["percentile"][0] is None


def test_training_and_evaluating_with_an_index_attached(tmp_path):
    trainer = tiny_trainer(tmp_path, train=tiny_data(40), max_steps=2, save_strategy="no")
    trainer.build_index()
    index = trainer.train_dataset.get_index("gradient_sketch")

    trainer.train()
    trainer.evaluate(trainer.train_dataset)

    assert trainer.train_dataset.get_index("gradient_sketch") is index  # neither dropped nor copied
    seen = trainer.get_train_dataloader().dataset
    assert seen.list_indexes() == []


def test_influence_does_not_change_the_model_or_its_training(tmp_path):
    def losses(with_influence):
        torch.manual_seed(0)
        trainer = tiny_trainer(tmp_path, tiny_model(attn_implementation="sdpa"), TRAIN, max_steps=3, **QUICK)
        if with_influence:
            trainer.find_influential(QUERIES)
        return trainer.train().training_loss, trainer.model.state_dict()

    (before, plain), (after, explained) = losses(False), losses(True)
    assert before == after
    assert all(torch.equal(plain[name], explained[name]) for name in plain)


def test_plain_training_arguments_are_completed(tmp_path):
    args = TrainingArguments(
        str(tmp_path), use_cpu=True, learning_rate=0.3, lr_scheduler_type="cosine", report_to="none"
    )
    trainer = InfluenceTrainer(tiny_model(), args, train_dataset=TRAIN)
    assert isinstance(trainer.args, InfluenceConfig)
    assert (trainer.args.learning_rate, trainer.args.lr_scheduler_type, trainer.args.damping) == (
        0.3,
        "cosine",
        "auto",
    )


def test_misclassified_rows_are_in_the_order_of_the_dataset(tmp_path):
    trainer = tiny_trainer(tmp_path, train=TRAIN, influence_batch_size=3, train_sampling_strategy="group_by_length")
    expected = []
    for row in range(len(TRAIN)):
        batch = batches(TRAIN).take([row])
        expected += [row] if int(trainer.model(**batch).logits.argmax()) != int(batch["labels"]) else []

    assert trainer.find_misclassified(TRAIN).tolist() == expected
    assert 0 < len(expected) < len(TRAIN)


# ---------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize("k", [0, 41])
def test_k_out_of_range(trainer, k):
    with pytest.raises(ValueError, match=rf"num_neighbors={k}: there are 40 candidates"):
        trainer.find_influential(QUERIES, num_neighbors=k)


def test_no_examples_wanted(trainer):
    with pytest.raises(ValueError, match="num_examples=0"):
        trainer.find_influential(QUERIES, num_examples=0)


def test_model_changed_after_the_index_was_built(trainer):
    trainer.build_index()
    trainer.model.classifier.bias.data += 1
    with pytest.raises(ValueError, match="the model was changed after its index was built"):
        trainer.find_influential(QUERIES, num_neighbors=3)


def test_empty_queries(trainer):
    with pytest.raises(ValueError, match="examples has no rows"):
        trainer.find_influential(QUERIES.select([]))


def test_queries_that_are_no_dataset(trainer):
    with pytest.raises(ValueError, match="examples is a list; influence needs a datasets.Dataset"):
        trainer.compute_s_test(QUERIES.to_list())


def test_no_labels(trainer):
    with pytest.raises(ValueError, match="examples has no labels"):
        trainer.find_influential(QUERIES.remove_columns("label"))


def test_labels_that_the_model_does_not_know(trainer):
    unlabelled = QUERIES.map(lambda row: {"label": -1})
    with pytest.raises(ValueError, match="'label' holds labels from -1 to -1, but the model knows 0 to 2"):
        trainer.compute_influence(unlabelled)


def test_not_tokenized(trainer):
    with pytest.raises(ValueError, match="candidates has no column 'input_ids'.*tokenize"):
        trainer.compute_influence(QUERIES, candidates=Dataset.from_dict({"text": ["a b"], "label": [0]}))


def test_no_training_set(tmp_path):
    trainer = InfluenceTrainer(tiny_model(), InfluenceConfig(str(tmp_path), use_cpu=True, report_to="none"))
    with pytest.raises(ValueError, match="train_dataset is a NoneType"):
        trainer.build_index()


def test_nan_loss_of_a_query(trainer):
    with torch.no_grad():
        trainer.model.get_input_embeddings().weight[QUERIES[2]["input_ids"][0]] = float("nan")
    with pytest.raises(ValueError, match=r"examples: the loss of row \d is nan"):
        trainer.compute_s_test(QUERIES)


def test_nothing_trainable(trainer):
    trainer.model.requires_grad_(False)
    with pytest.raises(ValueError, match="no parameter has requires_grad"):
        trainer.compute_s_test(QUERIES)


def test_indefinite_hessian(tmp_path):
    trainer = tiny_trainer(tmp_path, train=TRAIN, curvature="hessian", damping=1e-3)
    with pytest.raises(ValueError, match=r"damping=0\.001: the Hessian has an eigenvalue of -.*gauss_newton"):
        trainer.compute_s_test(QUERIES)


def test_another_curvature_asks_for_its_own_spectrum(tmp_path):
    trainer = tiny_trainer(tmp_path, train=TRAIN, damping=1e-3, sdca_visits=40)
    trainer.compute_s_test(QUERIES)
    trainer.args.curvature = "hessian"
    with pytest.raises(ValueError, match="the Hessian has an eigenvalue of -"):
        trainer.compute_s_test(QUERIES)


def test_s_test_of_other_queries(trainer):
    s_test = trainer.compute_s_test(QUERIES)
    with pytest.raises(ValueError, match="s_test holds 5 vectors"):
        trainer.compute_influence(QUERIES.select([0]), s_test=s_test)


def test_other_losses(tmp_path):
    trainer = tiny_trainer(tmp_path, train=TRAIN)
    trainer.compute_loss_func = lambda outputs, labels, num_items_in_batch=None: outputs.logits.sum()
    with pytest.raises(ValueError, match="compute_loss_func"):
        trainer.compute_s_test(QUERIES)

    class Weighted(InfluenceTrainer):
        def compute_loss(self, model, inputs, *args, **kwargs):
            return 2 * Trainer.compute_loss(self, model, inputs, *args, **kwargs)

    weighted = Weighted(
        tiny_model(),
        InfluenceConfig(str(tmp_path), use_cpu=True, report_to="none"),
        train_dataset=TRAIN,
        processing_class=tiny_tokenizer(),
    )
    with pytest.raises(ValueError, match="Weighted.compute_loss is overridden"):
        weighted.compute_s_test(QUERIES)


@pytest.mark.parametrize(
    ("num_neighbors", "batch_size", "expected"),
    [
        (None, 8, "gradients of single examples, layer by layer, shared by 5 queries"),
        (None, 1, "forward mode, 1 tangents on one forward pass"),
        (35, 8, "gradients of single examples, layer by layer, shared by 5 queries"),
        (4, 8, "forward mode, 1 tangents on one forward pass"),
        (None, 4, "4 queries by gradients of .* shared by 4 queries; 1 queries by forward mode, 1 tangents"),
    ],
)
def test_the_summary_says_how_candidates_were_scored(tmp_path, monkeypatch, num_neighbors, batch_size, expected):
    trainer = tiny_trainer(tmp_path, train=TRAIN, solver="identity", query_batch_size=batch_size)
    trainer.build_index()
    if num_neighbors == 4:  # as if each query had candidates of its own
        monkeypatch.setattr(attribution, "SHARED_COST", 1e9)
    used, choose = set(), scan.choose_scoring
    monkeypatch.setattr(scan, "choose_scoring", lambda *args: used.add((way := choose(*args)).why) or way)
    summary = trainer.find_influential(QUERIES, num_neighbors=num_neighbors).summary
    assert re.fullmatch(expected + ".*", summary.scoring)
    assert all(why in summary.scoring for why in used) and used
