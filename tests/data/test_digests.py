"""What is the same model, data set and loss: decided by bytes and by what is computed, never by names or sums."""

from __future__ import annotations

import copy

import datasets
import numpy as np
import pyarrow as pa
import pytest
import torch
from datasets import Dataset, concatenate_datasets
from tiny import tiny_data, tiny_model, tiny_trainer
from torch import nn
from torch.nn import functional as F

from hf_fastif import QuerySet, Solution
from hf_fastif.artifacts.identity import differences, loss_identity, same_loss
from hf_fastif.checkpoints import kept_checkpoints
from hf_fastif.data.digests import hexdigest, stored_digest
from hf_fastif.model.parameters import frozen_digest, model_fingerprint, trained_part, weights_digest


TRAIN, QUERIES = tiny_data(24), tiny_data(2, seed=1)


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def trainer_of(folder, model=None, train=TRAIN, **settings):
    return tiny_trainer(folder, model, train, **{"solver": "identity", "checkpoints": "final"} | settings)


def large_model():
    return nn.Sequential(nn.Embedding(30_522, 64), nn.Linear(64, 2))


def test_the_number_of_threads_makes_no_other_model(threads):
    torch.manual_seed(0)
    model, prints = large_model(), set()
    for count in (1, 2):
        threads(count)
        prints.add(model_fingerprint(model))
    assert len(prints) == 1


@pytest.mark.parametrize("seed", range(20))
def test_swapped_classes_make_another_model(seed):
    torch.manual_seed(seed)
    model = nn.Linear(16, 2)
    swapped = copy.deepcopy(model)
    swapped.weight.data, swapped.bias.data = model.weight.data.flip(0), model.bias.data.flip(0)
    assert torch.isclose(swapped.weight.norm(), model.weight.norm())
    assert model_fingerprint(swapped) != model_fingerprint(model)


def test_buffers_and_types_belong_to_a_model():
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    other = copy.deepcopy(model)
    other[1].running_mean += 1
    assert weights_digest(other) != weights_digest(model)
    assert weights_digest(copy.deepcopy(model).half()) != weights_digest(copy.deepcopy(model).bfloat16())
    assert weights_digest(copy.deepcopy(model)) == weights_digest(model)


def test_changes_without_a_version_are_seen(tmp_path):
    trainer = trainer_of(tmp_path)
    first = trainer.compute_influence(QUERIES)
    trainer.model.classifier.weight.data *= 1.5
    fresh = trainer_of(tmp_path / "fresh", trainer.model).compute_influence(QUERIES)
    assert not np.allclose(first, fresh, rtol=0.01)
    np.testing.assert_array_equal(trainer.compute_influence(QUERIES), fresh)


def test_what_is_trained_belongs_to_a_model():
    model = tiny_model(frozen=0)
    before, frozen = model_fingerprint(model), frozen_digest(model)
    model.bert.encoder.layer[0].requires_grad_(False)
    assert model_fingerprint(model) != before and frozen_digest(model) != frozen
    assert trained_part(model).startswith(f"{sum(p.numel() for p in model.parameters() if p.requires_grad):,} of ")


@pytest.mark.parametrize("solver", ["cg", "sdca", "exact", "ekfac"])
def test_parameters_frozen_between_two_calls(tmp_path, solver):
    trainer = trainer_of(tmp_path, tiny_model(frozen=1), solver=solver)
    trainer.compute_influence(QUERIES)
    trainer.model.bert.encoder.layer[1].requires_grad_(False)
    fresh = trainer_of(tmp_path / "fresh", trainer.model, solver=solver)
    np.testing.assert_array_equal(trainer.compute_influence(QUERIES), fresh.compute_influence(QUERIES))


COLUMNS = {
    "ids": [[1, 2], [], [3], None],
    "text": ["a", None, "bc", ""],
    "numbers": [0.5, None, 2.0, float("inf")],
    "nested": [[[1.5], []], [[2.5, 3.5]], [], [[4.0]]],
    "flags": [True, None, False, True],
    "facts": [{"a": 1, "b": "x"}, {"a": None, "b": "y"}, None, {"a": 2, "b": None}],
    "bytes": [b"1", b"", b"23", b"4"],
}


def test_how_rows_are_stored_makes_no_other_data():
    data = Dataset.from_dict(COLUMNS)
    cut = concatenate_datasets([data.select([0, 1]), data.select([2]), data.select([3])])
    wide = data.cast_column("ids", datasets.List(datasets.Value("int32")))
    digests = {stored_digest(rows) for rows in (data, cut, wide, data.select(range(4)), data.with_format("torch"))}
    assert len(digests) == 1


@pytest.mark.parametrize(
    ("column", "row", "value"),
    [
        ("ids", 0, [1, 3]),
        ("ids", 1, [0]),
        ("ids", 3, []),
        ("text", 1, ""),
        ("text", 2, "b"),
        ("numbers", 1, 0.0),
        ("numbers", 0, 0.5 + 2**-50),
        ("nested", 0, [[], [1.5]]),
        ("flags", 1, False),
        ("facts", 1, {"a": 0, "b": "y"}),
        ("facts", 2, {"a": None, "b": None}),
        ("bytes", 0, b"2"),
    ],
)
def test_any_other_value_makes_other_data(column, row, value):
    values = copy.deepcopy(COLUMNS)
    values[column][row] = value
    features = Dataset.from_dict(COLUMNS).features
    assert stored_digest(Dataset.from_dict(values, features=features)) != stored_digest(Dataset.from_dict(COLUMNS))


def test_order_belongs_to_data():
    data = Dataset.from_dict(COLUMNS)
    assert stored_digest(data.select([1, 0, 2, 3])) != stored_digest(data)


def test_float_columns_are_read_in_bounded_memory(monkeypatch):
    rows = np.random.default_rng(0).random((50, 1000), dtype=np.float32)
    offsets = pa.array(np.arange(51) * 1000, pa.int32())
    data = Dataset(pa.table({"pixels": pa.ListArray.from_arrays(offsets, pa.array(rows.ravel()))}))
    expected, sizes = stored_digest(data), []
    monkeypatch.setattr("hf_fastif.data.digests.CHUNK_BYTES", 10 * 4000)
    update = "hf_fastif.data.digests._ColumnDigests.add"
    from hf_fastif.data.digests import _ColumnDigests

    add = _ColumnDigests.add
    monkeypatch.setattr(update, lambda self, column, place: sizes.append(column.nbytes) or add(self, column, place))
    assert stored_digest(data) == expected and max(sizes) <= 11 * 4008


def collated(trainer, change):
    """The trainer with a collator that makes something else of the same rows."""
    collate = trainer.data_collator
    trainer.data_collator = lambda rows: {**(batch := collate(rows)), "input_ids": change(batch["input_ids"])}
    return trainer


def test_collators_and_transforms_belong_to_data(tmp_path):
    plain = trainer_of(tmp_path)
    with plain.session() as session:
        digest = session.train.digest
    with collated(trainer_of(tmp_path), lambda ids: ids.clamp_max(40)).session() as session:
        assert session.train.digest != digest

    def halved(rows):
        ids = rows["input_ids"]
        return {"input_ids": [row[:2] for row in ids], "attention_mask": [[1, 1] for _ in ids], "label": rows["label"]}

    for rows in (TRAIN.with_transform(halved), TRAIN.with_transform(lambda rows: halved(rows))):
        with trainer_of(tmp_path, train=rows, remove_unused_columns=False).session() as session:
            assert session.train.digest != digest


def test_indexes_and_factors_of_other_preprocessing_are_refused(tmp_path):
    trainer = trainer_of(tmp_path, solver="ekfac")
    trainer.build_index()
    collated(trainer, lambda ids: ids.clamp_max(40))
    with pytest.raises(ValueError, match="the dataset was changed after its index was built .*collator"):
        trainer.find_influential(QUERIES, num_neighbors=4)
    fresh = collated(trainer_of(tmp_path / "fresh", solver="ekfac"), lambda ids: ids.clamp_max(40))
    np.testing.assert_array_equal(trainer.compute_influence(QUERIES), fresh.compute_influence(QUERIES))


def weighted(weights):
    def loss(outputs, labels, num_items_in_batch=None):
        return F.cross_entropy(outputs.logits, labels, weight=weights, reduction="sum") / num_items_in_batch

    return loss


RARE = Dataset.from_list([{**row, "label": 2 if i == 13 else i % 2} for i, row in enumerate(tiny_data(200))])


def gradient_products(model, train, queries, loss):
    """- grad L(z) . grad L(z') from plain autograd, an example at a time."""
    model = copy.deepcopy(model).eval()
    theta = [p for p in model.parameters() if p.requires_grad]

    def gradient(row):
        inputs = {name: torch.tensor([row[name]]) for name in ("input_ids", "attention_mask")}
        value = loss(model(**inputs), torch.tensor([row["label"]]), num_items_in_batch=1)
        return torch.cat([g.flatten() for g in torch.autograd.grad(value, theta)])

    rows = torch.stack([gradient(row) for row in train])
    return -(torch.stack([gradient(row) for row in queries]) @ rows.T).numpy()


def test_a_loss_of_the_users_is_used_for_every_row(tmp_path):
    loss = weighted(torch.tensor([1.0, 1.0, 50.0]))
    trainer = trainer_of(tmp_path, tiny_model(), RARE)
    trainer.compute_loss_func = loss
    queries = RARE.select([13, 0])
    expected = gradient_products(trainer.model, RARE, queries, loss)
    np.testing.assert_allclose(trainer.compute_influence(queries), expected, rtol=1e-4, atol=1e-3)


def test_an_overridden_loss_that_differs_on_a_rare_label_is_seen(tmp_path):
    weights = torch.tensor([1.0, 1.0, 50.0])

    class Weighted(type(tiny_trainer(tmp_path))):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            labels = inputs.pop("labels")
            return (weights[labels] * F.cross_entropy(model(**inputs).logits, labels, reduction="none")).mean()

    trainer = trainer_of(tmp_path, tiny_model(), RARE)
    trainer = Weighted(trainer.model, trainer.args, train_dataset=RARE, processing_class=trainer.processing_class)
    queries = RARE.select([13, 0])
    expected = gradient_products(trainer.model, RARE, queries, weighted(weights))
    np.testing.assert_allclose(trainer.compute_influence(queries), expected, rtol=1e-4, atol=1e-3)
    weights[2] = 1.0
    expected = gradient_products(trainer.model, RARE, queries, weighted(weights))
    np.testing.assert_allclose(trainer.compute_influence(queries), expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("solver", ["ekfac", "exact", "sdca"])
def test_weights_of_a_loss_that_change_in_place_are_noticed(tmp_path, solver):
    weights = torch.tensor([1.0, 1.0, 50.0])
    trainer = trainer_of(tmp_path, train=RARE, solver=solver, sdca_visits=40)
    trainer.compute_loss_func = weighted(weights)
    trainer.build_index()
    before = trainer.compute_influence(QUERIES)
    weights[2] = 5.0
    with pytest.raises(ValueError, match="the loss was changed after its index was built"):
        trainer.find_influential(QUERIES, num_neighbors=5)
    fresh = trainer_of(tmp_path / "fresh", train=RARE, solver=solver, sdca_visits=40)
    fresh.compute_loss_func = weighted(weights)
    after = trainer.compute_influence(QUERIES)
    np.testing.assert_array_equal(after, fresh.compute_influence(QUERIES))
    assert not np.array_equal(after, before)


def test_a_loss_of_another_name_that_computes_the_same_is_the_same(tmp_path):
    trainer = trainer_of(tmp_path, train=RARE)
    trainer.compute_loss_func = weighted(torch.tensor([1.0, 2.0, 3.0]))
    trainer.build_index()
    other = weighted(torch.tensor([1.0, 2.0, 3.0]))
    trainer.compute_loss_func = lambda *args, **kwargs: other(*args, **kwargs)
    assert len(trainer.find_influential(QUERIES, num_neighbors=5).influences)


def test_losses_are_compared_by_their_values():
    one = loss_identity("a", [1.0, 2.0], label_smoothing=0.0)
    assert same_loss(one, loss_identity("b", [1.0 + 1e-7, 2.0], label_smoothing=0.0))
    assert not same_loss(one, loss_identity("a", [1.0, 2.01], label_smoothing=0.0))
    assert not same_loss(one, loss_identity("a", [1.0, 2.0], label_smoothing=0.1))
    assert not same_loss(one, loss_identity("a", [1.0], label_smoothing=0.0)) and not same_loss(one, "None")
    assert differences({"loss": one, "model": "x"}, {"loss": one, "model": "y", "data": "z"}) == ["model", "data"]


def changed_loss(trainer):
    trainer.compute_loss_func = weighted(torch.tensor([1.0, 2.0, 3.0]))


def changed_model(trainer):
    trainer.model.classifier.bias.data += 1


def changed_preprocessing(trainer):
    collated(trainer, lambda ids: ids.clamp_min(3))


def changed_part(trainer):
    head = trainer.model.classifier
    size = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    trainer.model.requires_grad_(False)
    head.requires_grad_(True)
    return size


CHANGES = {
    "loss": (changed_loss, "s_test was computed with the loss .*, and this is"),
    "model": (changed_model, "s_test was computed with the model [0-9a-f]+, and this is [0-9a-f]+"),
    "preprocessing": (changed_preprocessing, "s_test was computed (for other examples|with the dataset)"),
    "part": (changed_part, "s_test holds 2 vectors of .* parameters"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_an_s_test_of_something_else_is_refused(tmp_path, change):
    trainer = trainer_of(tmp_path)
    s_test = trainer.compute_s_test(QUERIES)
    CHANGES[change][0](trainer)
    for call in (trainer.compute_influence, trainer.find_influential):
        with pytest.raises(ValueError, match=CHANGES[change][1]):
            call(QUERIES, s_test=s_test)


def test_an_s_test_of_other_queries_or_another_checkpoint_is_refused(tmp_path):
    trainer = trainer_of(tmp_path, checkpoints="auto", num_train_epochs=2, save_strategy="no", learning_rate=1e-2)
    trainer.train()
    trainer.args.checkpoints = [str(kept_checkpoints(trainer.args.output_dir)[0].path)]
    s_test = trainer.compute_s_test(QUERIES)
    other, reordered = tiny_data(2, seed=5), QUERIES.select([1, 0])
    calls = {
        "compute_influence": lambda queries: trainer.compute_influence(queries, s_test=s_test),
        "find_influential": lambda queries: trainer.find_influential(queries, s_test=s_test),
        "find_candidates": lambda queries: trainer.find_candidates(queries, 3, s_test=s_test),
        "diagnose": lambda queries: trainer.diagnose(queries, s_test=s_test),
    }
    for call in calls.values():
        for queries in (other, reordered):
            with pytest.raises(ValueError, match="s_test was computed for other examples: its query 0 has the digest"):
                call(queries)
    trainer.args.checkpoints = ["final"]
    with pytest.raises(ValueError, match="s_test was computed with the model [0-9a-f]+, and this is [0-9a-f]+"):
        trainer.compute_influence(QUERIES, s_test=s_test)


def test_parts_of_an_s_test_and_vectors_of_the_users(tmp_path):
    trainer = trainer_of(tmp_path)
    s_test, scores = trainer.compute_s_test(QUERIES), trainer.compute_influence(QUERIES)
    part = trainer.compute_influence(QUERIES.select([1]), s_test=s_test[1:2])
    np.testing.assert_allclose(part, scores[1:], rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="s_test was computed for other examples"):
        trainer.compute_influence(QUERIES.select([0]), s_test=s_test[1:2])
    vectors = Solution.direct(2 * s_test.vectors, s_test.residual, s_test.damping)
    np.testing.assert_allclose(trainer.compute_influence(QUERIES, s_test=vectors), 2 * scores, rtol=1e-3, atol=1e-4)
    anchors = trainer.compute_s_test(QuerySet(QUERIES, reduce="mean"))
    with pytest.raises(ValueError, match="s_test was computed for other examples"):
        trainer.compute_influence(QuerySet(QUERIES.select([1, 0]), reduce="mean"), s_test=anchors)


@pytest.mark.parametrize("count", [1, 2])
def test_a_resumed_call_goes_on_whatever_the_number_of_threads(tmp_path, threads, monkeypatch, count):
    from hf_fastif.execution import sweeps as passes
    from hf_fastif.scoring import Scoring

    monkeypatch.setattr(passes, "PIECE", 1)
    score, batches = Scoring.batch_scores, []

    def interrupted(self, objective, batch, s_test):
        if len(batches) == 3:
            raise KeyboardInterrupt
        batches.append(batch)
        return score(self, objective, batch, s_test)

    monkeypatch.setattr(Scoring, "batch_scores", interrupted)
    threads(count)
    with pytest.raises(KeyboardInterrupt):
        trainer_of(tmp_path, influence_batch_size=4).compute_influence(QUERIES)
    monkeypatch.setattr(Scoring, "batch_scores", lambda *args: batches.append(args) or score(*args))
    threads(3 - count)
    trainer_of(tmp_path, influence_batch_size=4).compute_influence(QUERIES)
    assert len(batches) == 6  # of 24 examples, each once


class InItsForward(type(tiny_model())):
    """A model that computes its loss by itself."""

    scale, weights = 1.0, None

    def forward(self, input_ids=None, attention_mask=None, labels=None, **kwargs):
        output = super().forward(input_ids=input_ids, attention_mask=attention_mask, **kwargs)
        if labels is not None:
            output.loss = self.scale * F.cross_entropy(output.logits, labels, weight=self.weights)
        return output


def test_class_weights_in_a_models_own_loss_are_refused(tmp_path):
    model = InItsForward(tiny_model().config)
    trainer_of(tmp_path, model).compute_influence(QUERIES)
    model.weights = torch.tensor([1.0, 5.0, 0.2])
    with pytest.raises(ValueError, match="for a batch InItsForward gives the loss .*class weights.*compute_loss_func"):
        trainer_of(tmp_path, model).compute_influence(QUERIES)


def test_a_models_own_loss_that_changes_between_two_calls_is_noticed(tmp_path):
    model = InItsForward(tiny_model().config)
    trainer = trainer_of(tmp_path, model)
    trainer.compute_influence(QUERIES)
    model.scale = 5.0
    with pytest.raises(ValueError, match="for single examples InItsForward gives the losses"):
        trainer.compute_influence(QUERIES)


def test_an_overridden_loss_that_differs_on_a_single_row_is_seen(tmp_path):
    rows = tiny_data(1500, lengths=(3, 5)).map(lambda _, i: {"weight": 50.0 if i == 1003 else 1.0}, with_indices=True)
    rows, pad = rows.remove_columns("text"), tiny_trainer(tmp_path).processing_class

    class Weighted(type(tiny_trainer(tmp_path))):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            labels, weights = inputs.pop("labels"), inputs.pop("weight")
            return (weights * F.cross_entropy(model(**inputs).logits, labels, reduction="none")).mean()

    def collate(batch):
        padded = pad.pad([{"input_ids": row["input_ids"]} for row in batch], return_tensors="pt")
        labels = torch.tensor([row["label"] for row in batch])
        return {**padded, "labels": labels, "weight": torch.tensor([row["weight"] for row in batch])}

    class TakesWeights(type(tiny_model())):
        def forward(self, weight=None, **inputs):
            return super().forward(**inputs)

    args = trainer_of(tmp_path, remove_unused_columns=False).args
    trainer = Weighted(TakesWeights(tiny_model().config), args, train_dataset=rows, data_collator=collate)
    with trainer.session() as session:
        session.examples("train_dataset", rows)
        assert session.objective.custom_compute_loss is not None


def test_the_side_of_padding_that_changes_between_two_calls_is_noticed(tmp_path):
    trainer = trainer_of(tmp_path, tiny_model("gpt2", frozen=None))
    trainer.processing_class.padding_side = "right"
    right = trainer.compute_influence(QUERIES)
    trainer.processing_class.padding_side = "left"
    np.testing.assert_allclose(trainer.compute_influence(QUERIES), right, rtol=1e-3, atol=1e-4)


def test_values_next_to_each_other_do_not_run_together():
    assert hexdigest(["a", 1, 11]) != hexdigest(["a", 11, 1])
    assert hexdigest([b"ab", b"c"]) != hexdigest([b"a", b"bc"])
