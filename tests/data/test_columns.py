"""Columns of the user's appear in results as they are stored, whatever they are called and whatever a format hides."""

from __future__ import annotations

import numpy as np
import pytest
from datasets import Dataset
from small_results import QUERIES, TRAIN, make
from tiny import tiny_data, tiny_tokenizer, tiny_trainer

from hf_fastif import InfluenceResult
from hf_fastif.data.columns import COMPUTED, set_apart


SETTINGS = {"solver": "identity", "checkpoints": "final"}


def with_columns(data: Dataset, names) -> Dataset:
    for number, name in enumerate(names):
        data = data.add_column(name, [f"{name} of row {row}, value {number}" for row in range(len(data))])
    return data


def test_names_that_are_taken_get_underscores():
    data = Dataset.from_dict({"loss": [1], "loss_": [2], "rank": [3], "label_": [4]})
    assert set_apart(data).to_list() == [{"loss__": 1, "loss_": 2, "rank_": 3, "label_": 4}]


def test_no_value_of_columns_with_our_names_is_lost(tmp_path):
    names = [*(name for name in COMPUTED if name != "index"), "index_", "label_", "train_text", "query_text", "query"]
    queries, train = with_columns(QUERIES, names), with_columns(TRAIN, names)
    result = make(queries=queries, train=train, num_examples=2)

    for query in range(2):
        plain = make(num_examples=2)
        for direction in ("helpful", "harmful"):
            shown, expected = (getattr(one, direction)(query) for one in (result, plain))
            for name in ("train_index", "influence", "rank"):
                assert shown[name] == expected[name]
            for name in names:
                place = f"{name}_" if name in COMPUTED else name
                assert shown[place] == [train[row][name] for row in expected["train_index"]]
            assert shown["index__"] == [train[row]["index"] for row in expected["train_index"]]
    assert result.queries["prediction"] == ["yes", "yes"]
    assert result.queries["prediction_"] == queries["prediction"]
    assert result.queries["loss"] == [0.13, 1.31]
    assert result.queries["query"] == queries["query"]

    assert "#1" in repr(result)
    frame = result.to_pandas()
    assert frame["query_loss_"].tolist() == [queries[row]["loss"] for row in frame["query_index"]]
    loaded = InfluenceResult.load_from_disk(result.save_to_disk(tmp_path / "saved"))
    assert loaded.influences.to_list() == result.influences.to_list()
    known, expected = (one.queries.remove_columns("std_err") for one in (loaded, result))  # NaN
    assert known.to_list() == expected.to_list()


def test_a_page_shows_columns_with_our_names(tmp_path, data):
    train, queries = (with_columns(rows, [name for name in COMPUTED if name != "index"]) for rows in data)
    result = tiny_trainer(tmp_path, train=train, **SETTINGS).find_influential(queries, num_examples=1)
    page = result.to_html(tmp_path / "report.html").read_text("utf-8")
    row = result.helpful(0)[0]["train_index"]
    for name in ("influence", "rank", "tokens", "loss", "prediction", "train_index"):
        assert f"{name} of row {row}, value" in page
    assert "probability of row 2, value" in page


def test_a_text_that_only_candidates_have():
    assert "query 0: '' [yes] predicted yes" in repr(make(queries=QUERIES.remove_columns("text")))


def test_label_numbers_that_are_no_classes_of_the_model():
    result = make(train=TRAIN.remove_columns("label").add_column("label", [0, 1, 2, 7, 1, 0]))
    assert sorted(result.influences["train_label"][:5]) == [0, 0, 1, 1, 7]


@pytest.fixture
def data() -> tuple[Dataset, Dataset]:
    return tiny_data(20), tiny_data(3, seed=1)


def test_texts_that_a_format_hides(tmp_path, data):
    shown = ["input_ids", "attention_mask", "label"]
    train, queries = (rows.with_format("torch", columns=shown) for rows in data)
    result = tiny_trainer(tmp_path, train=train, **SETTINGS).find_influential(queries, num_examples=3)
    plain = tiny_trainer(tmp_path, train=data[0], **SETTINGS).find_influential(data[1], num_examples=3)
    assert result.influences.to_list() == plain.influences.to_list()
    assert result.queries["text"] == data[1]["text"]
    assert data[0]["text"][result.helpful(0)[0]["train_index"]] in repr(result)


def test_a_transform_that_tokenizes(tmp_path, data):
    tokenizer = tiny_tokenizer()

    def tokenize(rows):
        return {**tokenizer(rows["text"]), "label": [{"none": 0, "some": 1, "all": 2}[name] for name in rows["label"]]}

    named = [
        rows.select_columns(["text", "label"]).map(lambda row: {"label": ["none", "some", "all"][row["label"]]})
        for rows in data
    ]
    train, queries = (rows.with_transform(tokenize) for rows in named)
    settings = SETTINGS | {"remove_unused_columns": False}
    trainer = tiny_trainer(tmp_path, train=train, **settings)
    result = trainer.find_influential(queries, num_examples=3)
    assert result.queries["text"] == data[1]["text"]
    assert result.queries["label"] == named[1]["label"]
    plain = tiny_trainer(tmp_path, train=data[0], **SETTINGS).compute_influence(data[1])
    np.testing.assert_allclose(trainer.compute_influence(queries), plain, rtol=1e-5, atol=1e-6)
    for place in range(3):
        row = result.helpful(0)[place]
        assert row["text"] == data[0][row["train_index"]]["text"]


def test_a_transform_whose_columns_are_dropped(tmp_path, data):
    train = data[0].select_columns(["text", "label"]).with_transform(lambda rows: rows)
    with pytest.raises(
        ValueError, match=r"no column 'input_ids' \(columns: text, label\).*remove_unused_columns=False"
    ):
        tiny_trainer(tmp_path, train=train, **SETTINGS).find_misclassified(train)
