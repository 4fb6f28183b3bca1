"""What the recipe of corrections makes anchors, test examples and candidates."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
from recipe_modules import recipe_module
from tiny import tiny_model, tiny_tokenizer

from hf_fastif.training import DataArguments, load_examples


@pytest.fixture
def recipe(monkeypatch):
    return recipe_module("correction", monkeypatch)


@pytest.fixture
def trainer():
    """All that reading takes of one."""
    model = tiny_model(num_labels=2, id2label={0: "bad", 1: "good"}, label2id={"bad": 0, "good": 1})
    return SimpleNamespace(
        model=model, processing_class=tiny_tokenizer(), args=SimpleNamespace(seed=0), train_dataset=None
    )


def write(path, count, **columns):
    rows = [
        {"id": f"{path.stem}-{i}", "text": f"w{i} w1 w2", "label": ["good", "bad"][i // 2 % 2]}
        | {name: values[i % len(values)] for name, values in columns.items()}
        for i in range(count)
    ]
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return str(path)


@pytest.fixture
def data(tmp_path):
    return DataArguments(train_file=write(tmp_path / "a.jsonl", 20), validation_file=write(tmp_path / "b.jsonl", 10))


def ids(dataset):
    return set(dataset["id"])


def test_slices_have_anchors_and_test_examples_of_their_own(recipe, trainer, data, tmp_path):
    queries = write(tmp_path / "queries.jsonl", 30, heuristic="xyz")
    given = recipe.RecipeArguments(sliced_validation_file=queries, num_validation=3, num_tested=5, slices=["x", "z"])
    found, anchors, pool = recipe.sliced(given, data, trainer)
    assert len(found) == 30 and anchors is None and pool is None
    slices = recipe.anchors_and_tests(given, found, anchors)
    assert list(slices) == ["HANS, x", "HANS, z"]
    for name, (own, test) in slices.items():
        assert {*own["heuristic"], *test["heuristic"]} == {name[-1]}
        assert (len(own), len(test), len(ids(own) | ids(test))) == (3, 5, 8)
    with pytest.raises(ValueError, match="num_validation=10: HANS, x has 10 examples"):
        recipe.anchors_and_tests(recipe.RecipeArguments(num_validation=10, slices=["x"]), found, None)
    with pytest.raises(ValueError, match="slices: w is not among the values of 'heuristic'"):
        recipe.anchors_and_tests(recipe.RecipeArguments(slices=["w"]), found, None)


def test_a_data_set_with_slices_is_read_whole(recipe, data):
    """Its rows may be in the order of the slices, so that the first ones lack some."""
    sliced = recipe.RecipeArguments(sliced_train_file="c.jsonl", sliced_validation_file="d.jsonl")
    own = recipe.sliced_data(sliced, replace(data, max_train_examples=5))
    assert (own.train_file, own.validation_file, own.max_train_examples) == ("c.jsonl", "d.jsonl", None)


def test_candidates_are_those_that_are_asked_for(recipe, trainer, data, tmp_path):
    files = {
        "sliced_train_file": write(tmp_path / "more.jsonl", 12),
        "sliced_validation_file": write(tmp_path / "queries.jsonl", 30),
    }
    queries, _, pool = recipe.sliced(recipe.RecipeArguments(candidates_from="sliced", **files), data, trainer)
    assert ids(pool) == {f"more-{i}" for i in range(12)} and len(queries) == 30
    few = recipe.RecipeArguments(candidates_from="sliced", num_pool=4, **files)
    assert len(ids(recipe.sliced(few, data, trainer)[2])) == 4
    held_out = recipe.RecipeArguments(candidates_from="held_out", num_pool=11, **files)
    queries, _, pool = recipe.sliced(held_out, data, trainer)
    assert (len(pool), len(queries), len(ids(pool) | ids(queries))) == (11, 19, 30)
    trainer.train_dataset = load_examples(data, {}, new_head=True)["train"]
    pool = recipe.sliced(recipe.RecipeArguments(num_pool=7, **files), data, trainer)[2]
    assert len(pool) == 7 and ids(pool) < {f"a-{i}" for i in range(20)}
    with pytest.raises(ValueError, match="num_pool=None: say how many of the 30 queries to hold out"):
        recipe.sliced(recipe.RecipeArguments(candidates_from="held_out", **files), data, trainer)


def test_other_rows_of_the_same_files(recipe, trainer, tmp_path):
    """As with reviews: one file, of which domain and split say what a row is for."""
    path = write(
        tmp_path / "all.jsonl", 40, domain=["books", "toys", "books", "video"], split=["train"] * 5 + ["test"]
    )
    data = DataArguments(
        train_file=path,
        validation_file=path,
        train_where=["domain=books", "split=train"],
        validation_where=["split=test"],
    )
    train = load_examples(data, {}, new_head=True)["train"]
    assert set(train["domain"]) == {"books"} and set(train["split"]) == {"train"}
    given = recipe.RecipeArguments(
        slice_column="domain",
        sliced_name="reviews",
        sliced_validation_where=["split=train"],
        num_validation=2,
        slices=["toys"],
    )
    queries, anchors, _ = recipe.sliced(given, data, trainer)
    assert set(queries["split"]) == {"train"}
    assert list(recipe.anchors_and_tests(given, queries, anchors)) == ["reviews, toys"]


def test_anchors_of_another_split_of_the_embedded_data(recipe, trainer):
    trainer.model.config.id2label = {0: "entailment", 1: "non-entailment"}
    given = recipe.RecipeArguments(
        sliced_test_split="challenge",
        sliced_anchors_split="validation",
        slice_column="label",
        num_validation=5,
        num_tested=9,
    )
    queries, anchors, _ = recipe.sliced(given, DataArguments(), trainer)
    slices = recipe.anchors_and_tests(given, queries, anchors)
    assert (len(queries), len(anchors), list(slices)) == (300, 400, ["HANS, 0", "HANS, 1"])
    own, test = slices["HANS, 0"]
    assert ids_of_pairs(own) <= ids_of_pairs(anchors) and ids_of_pairs(test) <= ids_of_pairs(queries)
    assert len(own) == 5 and len(test) == 9 and set(test["label"]) == {0}


def ids_of_pairs(dataset):
    return set(zip(dataset["premise"], dataset["hypothesis"], strict=True))
