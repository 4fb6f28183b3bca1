"""Indexes through the trainer: built, written, read, refused, and searched for candidates."""

from __future__ import annotations

import json

import numpy as np
import pytest
from datasets import Dataset
from tiny import tiny_data, tiny_model, tiny_trainer

from hf_fastif.curvature import KroneckerFit
from hf_fastif.data import without_indexes
from hf_fastif.data.batches import ExampleBatches
from hf_fastif.execution.sweeps import DatasetSweep
from hf_fastif.index import InfluenceIndex, vectors


QUERIES = tiny_data(4, seed=1)
QUICK = {"solver": "ekfac", "damping": 0.5, "ekfac_samples": 40}
KINDS = ["pooled", "mean_pooled", "gradient_sketch"]


def trainer_of(tmp_path, train=None, model=None, **settings):
    return tiny_trainer(tmp_path, model, train if train is not None else tiny_data(40), **QUICK | settings)


def candidates_of(trainer, k, **more):
    result = trainer.find_influential(QUERIES, num_examples=None, num_neighbors=k, **more)
    return result.to_pandas().groupby("query_index")["train_index"].apply(lambda rows: sorted(rows)).tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_all_neighbors_are_the_full_scan_and_few_a_part_of_it(tmp_path, kind):
    trainer = trainer_of(tmp_path, index_features=kind)
    index = trainer.build_index()
    assert trainer.train_dataset.list_indexes() == [kind] and len(index) == 40
    scan = trainer.compute_influence(QUERIES)
    for k in (40, 6):
        found = trainer.find_influential(QUERIES, num_examples=None, num_neighbors=k).to_pandas()
        assert len(found) == 4 * k
        expected = scan[found["query_index"], found["train_index"]]
        np.testing.assert_allclose(found["influence"], expected, rtol=1e-3, atol=1e-5)


def test_a_whole_sketch_finds_the_strongest_of_both_directions(tmp_path):
    model = tiny_model()
    for name, parameter in model.named_parameters():  # the linear layers alone, which are what a sketch sees
        parameter.requires_grad_(parameter.requires_grad and "LayerNorm" not in name)
    trainer = trainer_of(tmp_path, model=model, index_size=1_000_000)
    trainer.build_index()
    orders = np.argsort(trainer.compute_influence(QUERIES), axis=1)
    expected = [sorted([*order[:3].tolist(), *order[-3:].tolist()]) for order in orders]
    assert candidates_of(trainer, 6) == expected


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_is_read_and_answers_the_same(tmp_path, kind):
    trainer = trainer_of(tmp_path, index_features=kind, index_shard_size=15)
    trainer.build_index()
    folder = next((tmp_path / "influence" / "indexes").iterdir())
    assert len(list(folder.glob("shard-*.faiss"))) == 3
    assert not (tmp_path / "influence" / "unfinished").exists() or not any(
        (tmp_path / "influence" / "unfinished").iterdir()
    )
    other = trainer_of(tmp_path / "other", index_on_disk=True)
    assert other.load_index(folder).name == kind
    assert candidates_of(other, 9) == candidates_of(trainer, 9)


def test_the_same_rows_from_another_place_are_accepted(tmp_path):
    trainer = trainer_of(tmp_path)
    trainer.build_index()
    folder = next((tmp_path / "influence" / "indexes").iterdir())
    trainer.train_dataset.to_parquet(tmp_path / "train.parquet")
    copy = Dataset.from_parquet(str(tmp_path / "train.parquet"), cache_dir=str(tmp_path / "cache"))
    assert copy._fingerprint != trainer.train_dataset._fingerprint
    trainer_of(tmp_path / "other", copy).load_index(folder)


@pytest.mark.parametrize("change", ["order", "labels", "rows", "model"])
def test_another_dataset_order_or_model_is_refused_with_both_names(tmp_path, change):
    trainer = trainer_of(tmp_path)
    built = trainer.build_index()
    folder = next((tmp_path / "influence" / "indexes").iterdir())
    train, model = tiny_data(40), tiny_model()
    if change == "order":
        train = train.select([1, 0, *range(2, 40)])
    elif change == "labels":
        train = tiny_data(40).map(lambda row: {"label": (row["label"] + 1) % 3})
    elif change == "rows":
        train = train.select(range(39))
    else:
        model.classifier.bias.data += 1
    what = "model" if change == "model" else "dataset"
    with pytest.raises(ValueError, match=f"built with the {what} {built.manifest[what]}, and this is [0-9a-f]+;"):
        trainer_of(tmp_path / "other", train, model).load_index(folder)


def test_features_of_your_own(tmp_path):
    random = np.random.default_rng(0)
    own, asked = random.standard_normal((40, 5)), random.standard_normal((4, 5))
    trainer = trainer_of(tmp_path)
    trainer.build_index(features=own)
    nearest = np.argsort(((asked[:, None] - own[None]) ** 2).sum(-1), axis=1)[:, :6]
    assert candidates_of(trainer, 6, query_features=asked) == np.sort(nearest, axis=1).tolist()
    with pytest.raises(ValueError, match=r"query_features.*\(4, d\)"):
        trainer.find_influential(QUERIES, num_neighbors=6)
    with pytest.raises(ValueError, match=r"shape \(3, 5\); give \(40, d\)"):
        trainer.build_index(features=own[:3])
    with pytest.raises(ValueError, match="features='nowhere': the columns are"):
        trainer.build_index(features="nowhere")


def test_features_of_your_own_in_a_column(tmp_path):
    train = tiny_data(40).add_column("state", np.arange(80, dtype=np.float32).reshape(40, 2).tolist())
    trainer = trainer_of(tmp_path, train)
    trainer.build_index(features="state")
    asked = np.array([[0, 1], [78, 79], [20, 21], [40, 41]], np.float32)
    assert candidates_of(trainer, 1, query_features=asked) == [[0], [39], [10], [20]]


def test_an_index_that_visits_too_few_says_so(tmp_path):
    trainer = trainer_of(tmp_path, index_factory="IVF8,Flat", index_search="nprobe=1")
    trainer.build_index()
    with pytest.raises(ValueError, match="num_neighbors=39: the index found only .*'nprobe=1'"):
        trainer.find_influential(QUERIES, num_neighbors=39)


def test_a_factory_that_faiss_does_not_know_is_named(tmp_path):
    with pytest.raises(ValueError, match="index_factory='Flatt', index_search=None"):
        trainer_of(tmp_path, index_factory="Flatt", index_features="pooled").build_index()


def test_an_interrupted_index_is_not_there(tmp_path, monkeypatch):
    trainer = trainer_of(tmp_path)
    monkeypatch.setattr(json, "dumps", lambda *_args, **_named: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        trainer.build_index()
    monkeypatch.undo()
    with pytest.raises(FileNotFoundError, match="holds no index"):
        InfluenceIndex.load(tmp_path / "influence" / "indexes" / "gradient_sketch")
    assert len(trainer.build_index()) == 40


def test_a_view_without_indexes_leaves_the_dataset_its_index(tmp_path):
    trainer = trainer_of(tmp_path)
    trainer.build_index()
    view = without_indexes(trainer.train_dataset)
    assert view.list_indexes() == []
    assert trainer.train_dataset.list_indexes() == ["gradient_sketch"]
    assert view.select([2])[0] == trainer.train_dataset[2]


@pytest.mark.parametrize("kind", [*KINDS, "own"])
def test_rows_are_added_without_computing_the_others_again(tmp_path, kind, monkeypatch):
    random = np.random.default_rng(0)
    own, asked = random.standard_normal((40, 5)).astype(np.float32), random.standard_normal((4, 5)).astype(np.float32)
    features = (lambda count: own[:count]) if kind == "own" else (lambda _count: None)
    more = {"query_features": asked} if kind == "own" else {}
    name = "pooled" if kind == "own" else kind
    train = tiny_data(40)
    whole = trainer_of(tmp_path / "whole", index_features=name)
    first = trainer_of(tmp_path / "first", train.select(range(25)), index_features=name)
    part = first.build_index(features=features(25))
    grown = trainer_of(tmp_path / "first", train, index_features=name)
    grown.find_misclassified(tiny_data(1))  # looks at the loss of a few rows, once
    seen, take = [], ExampleBatches.take
    monkeypatch.setattr(ExampleBatches, "take", lambda self, rows: seen.extend(rows) or take(self, rows))
    index = grown.build_index(features=features(40), add_to=part)
    assert set(seen) <= {0, 1, 2, 3, *range(25, 40)}  # a few of the first are looked at for frozen layers
    monkeypatch.undo()
    assert len(index) == 40 and len(list(index.folder.glob("shard-*.faiss"))) == 2
    assert len(InfluenceIndex.load(part.folder)) == 25
    if kind != "gradient_sketch":  # whose entries are chosen with the first rows alone
        whole.build_index(features=features(40))
        assert candidates_of(grown, 9, **more) == candidates_of(whole, 9, **more)
    assert len(candidates_of(grown, 9, **more)) == 4


def test_rows_are_only_added_to_an_index_of_the_first_ones(tmp_path):
    train = tiny_data(40)
    part = trainer_of(tmp_path, train.select(range(25))).build_index()
    with pytest.raises(ValueError, match="built with the dataset"):
        trainer_of(tmp_path, train.select([1, 0, *range(2, 40)])).build_index(add_to=part)


def test_features_are_computed_and_added_block_by_block(tmp_path, monkeypatch):
    kind = {"index_features": "pooled", "index_factory": "Flat"}
    whole = trainer_of(tmp_path / "whole", **kind).build_index()
    blocks, over = [], DatasetSweep.over

    def counted(self, examples, rows, width, *rest):
        blocks.append(4 * width * len(rows))
        return over(self, examples, rows, width, *rest)

    monkeypatch.setattr(vectors, "BLOCK", 4 * 8 * 7)
    monkeypatch.setattr(DatasetSweep, "over", counted)
    index = trainer_of(tmp_path / "blocks", **kind).build_index()
    assert max(blocks) <= 4 * 8 * 7 and len(blocks) == 6
    found, expected = (each.faiss_index.reconstruct_n(0, 40) for each in (index, whole))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_a_bad_factory_is_refused_before_anything_is_fitted(tmp_path, monkeypatch):
    monkeypatch.setattr(KroneckerFit, "bases", lambda _: pytest.fail("fitted first"))
    with pytest.raises(ValueError, match="index_factory='IVF,Flat'"):
        trainer_of(tmp_path, index_factory="IVF,Flat").build_index()


@pytest.mark.parametrize("kind", KINDS)
def test_an_index_made_in_the_same_way_is_not_made_again(tmp_path, kind, monkeypatch):
    first = trainer_of(tmp_path, index_features=kind).build_index()
    seen, columns_of = [], DatasetSweep.columns_of
    monkeypatch.setattr(DatasetSweep, "columns_of", lambda *given: seen.append(1) or columns_of(*given))

    def builds(**settings):
        seen.clear()
        index = trainer_of(tmp_path, index_features=kind, **settings).build_index()
        assert len(index) == 40
        return bool(seen)

    assert not builds()
    (first.folder / "shard-00000.faiss").write_bytes(b"not what was written")
    assert builds()  # a damaged one does not count
    assert builds(index_factory="Flat")
    assert builds(index_factory="Flat", label_smoothing_factor=0.1)
    assert builds(index_factory="Flat", label_smoothing_factor=0.1, overwrite=True)
    if kind == "gradient_sketch":
        smooth = {"index_factory": "Flat", "label_smoothing_factor": 0.1}
        assert builds(index_size=50, **smooth) and not builds(index_size=50, **smooth)
