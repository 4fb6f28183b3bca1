"""What a result holds, shows, saves and loads."""

from __future__ import annotations

import json

import numpy as np
import pytest
from datasets import ClassLabel, Features, Value
from small_results import QUERIES, TRAIN, make

from hf_fastif import InfluenceResult


@pytest.fixture
def result() -> InfluenceResult:
    return make(num_examples=2)


def test_strongest_of_each_direction_first(result):
    assert result.helpful(0)["train_index"] == [1, 5]  # equal scores: the smaller index first
    assert result.helpful(0)["influence"] == [-2, -2]
    assert result.harmful(0)["train_index"] == [3, 0]
    assert result.harmful(0)["rank"] == [1, 2]
    assert len(result.helpful(1)) == 0
    assert result.harmful(1)["train_index"] == [5, 4]
    assert result.harmful(1)["text"] == ["training sentence number 5", "training sentence number 4"]


def test_every_candidate_but_the_indifferent():
    assert len(make().influences) == 11  # one score is zero: neither helpful nor harmful


def test_one_row_for_each_query_and_candidate(result):
    row = result.influences[0]
    assert row == {
        "query_index": 0,
        "train_index": 1,
        "influence": -2.0,
        "direction": "helpful",
        "rank": 1,
        "query_text": "is this a query",
        "query_label": 1,
        "query_index_": 7,
        "train_text": "training sentence number 1",
        "train_label": 1,
        "train_index_": 11,
    }
    assert result.influences.features["train_label"] == ClassLabel(names=["no", "yes"])


def test_queries_carry_prediction_loss_and_quality(result):
    row = result.queries[1]
    assert (row["prediction"], row["loss"], row["residual"], row["text"]) == ("yes", 1.31, 0.1, "and this one too")
    assert row["probability"] == pytest.approx(1 / (1 + np.exp(-1)))
    assert np.isnan(row["std_err"])


def test_names_of_the_dataset_where_the_model_has_none():
    features = Features({**TRAIN.features, "label": ClassLabel(names=["bad", "good"])})
    named = make(train=TRAIN.cast(features), names=("LABEL_0", "LABEL_1"))
    assert named.queries["prediction"] == ["good", "good"]
    assert named.to_pandas()["query_label"].tolist()[0] == "good"


def test_regression_labels_stay_numbers():
    features = Features({**QUERIES.features, "label": Value("float64")})
    train = TRAIN.cast(Features({**TRAIN.features, "label": Value("float64")}))
    assert make(queries=QUERIES.cast(features), train=train).queries["label"] == [1.0, 0.0]


def test_to_pandas_names_labels(result):
    frame = result.to_pandas()
    assert frame["train_label"].tolist()[:2] == ["yes", "yes"]
    assert len(frame) == 6


def test_round_trip(result, tmp_path):
    loaded = InfluenceResult.load_from_disk(result.save_to_disk(tmp_path / "result"))
    assert loaded.influences.to_list() == result.influences.to_list()
    assert loaded.influences.features == result.influences.features
    assert loaded.queries.features == result.queries.features
    assert loaded.summary == result.summary
    assert repr(loaded) == repr(result)
    assert sorted(path.name for path in (tmp_path / "result").iterdir()) == [
        "influences.parquet",
        "queries.parquet",
        "summary.json",
    ]


def test_a_save_that_was_cut_short_is_not_loaded(result, tmp_path, monkeypatch):
    result.save_to_disk(tmp_path)

    def fail(path):
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(result.influences, "to_parquet", fail)
    with pytest.raises(OSError, match="disk full"):
        result.save_to_disk(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no complete result \(summary.json missing\)"):
        InfluenceResult.load_from_disk(tmp_path)
    assert not list(tmp_path.glob(".*"))  # nothing half-written is left


def test_representation_says_what_the_sign_means(result):
    text = repr(result)
    assert "positive influence is harmful" in text
    assert "query 0: 'is this a query' [yes] predicted yes" in text
    assert "helpful #1 -2 'training sentence number 1' [yes]" in text
    assert "harmful #3 +3 'training sentence number 3' [yes]" in text


def test_unknown_query(result):
    with pytest.raises(IndexError, match="query=2: must be between 0 and 1"):
        result.helpful(2)


def test_a_summary_that_cannot_be_saved_leaves_what_is_there(result, tmp_path):
    folder = result.save_to_disk(tmp_path / "result")
    result.summary.accuracy = float("nan")
    with pytest.raises(ValueError, match="summary: accuracy=nan cannot be saved"):
        result.save_to_disk(folder)
    assert InfluenceResult.load_from_disk(folder).summary.accuracy is None


def test_a_summary_of_other_tables_is_refused(result, tmp_path):
    result.summary.num_queries = 7
    with pytest.raises(ValueError, match="says that there are 7 queries, and the tables hold 2"):
        InfluenceResult.load_from_disk(result.save_to_disk(tmp_path / "result"))


def test_entries_of_the_summary_have_the_names_of_the_file(result, tmp_path):
    entries = json.loads((result.save_to_disk(tmp_path / "result") / "summary.json").read_text("utf-8"))
    entries.pop("files")
    assert entries == {name: result.summary[name] for name in entries}
    with pytest.raises(KeyError, match="dampink"):
        result.summary["dampink"]
