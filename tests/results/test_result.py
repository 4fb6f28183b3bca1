"""What a result holds, shows, saves and loads."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Features, Value
from small_results import QUERIES, TRAIN, make

from hf_fastif import InfluenceResult
from hf_fastif.artifacts import describe_files
from hf_fastif.results import NUMBERS
from hf_fastif.results.tables import NULLABLE
from hf_fastif.results.words import ScoreWords, signed


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
        "predicted_loss_change": None,
        "percentile": 50.0,
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
    assert "helpful #1 -2.00 'training sentence number 1' [yes]" in text
    assert "harmful #3 +3.00 'training sentence number 3' [yes]" in text


REMOVED = {"change": "removed", "num_train": 6}


@pytest.mark.parametrize(
    ("change", "measure", "factor"),
    [
        ("removed", "loss", -1 / 6),
        ("added", "loss", 1 / 6),
        ("removed", "Margin()", 1 / 6),
        ("added", "Margin()", -1 / 6),
        ("removed", "loss minus that of the alternative", -1 / 6),
        ("removed", "Margin() minus that of the alternative", 1 / 6),
    ],
)
def test_the_predicted_change_is_that_of_what_is_measured(change, measure, factor):
    result = make(change=change, num_train=6, measure=measure)
    influences = np.array(result.influences["influence"])
    np.testing.assert_allclose(result.influences["predicted_loss_change"], factor * influences, rtol=1e-6)
    assert result.influences.features["predicted_loss_change"] == Value("float32")
    # More weight on a helpful example lowers a loss and raises a measure; to be removed means less weight.
    lowers = (change == "added") == measure.startswith("loss")
    assert (np.array(result.helpful(0)["predicted_loss_change"]) < 0).all() == lowers
    verb = "without" if change == "removed" else "with"
    assert f"{verb} it: {measure} 0.250 -> {0.25 - 2 * factor:#.3g}" in repr(result).replace("below 0", "-0.0833")


def test_percentiles_are_those_of_all_candidates():
    result = make()
    assert result.harmful(0)["percentile"] == pytest.approx([100 * 5 / 6, 100 / 6])  # of 3 and 0.5; a 0 is weaker too
    assert result.helpful(0)["percentile"] == pytest.approx([50, 50, 100 / 3])  # of two that are equal, and 1
    assert make(train=TRAIN.select([*range(6), 0])).influences["percentile"] == [None] * 11  # one was not scored


def test_representation_says_what_a_removal_would_do():
    text = repr(make(num_examples=2, **REMOVED))
    assert "change of the loss of the query if the example were removed from the 6 training examples and" in text
    assert "predicted yes, loss 0.13 (0.250 at attribution)\n" in text and "loss 1.31\n" in text
    assert "helpful #1 +0.333 'training sentence number 1' [yes]\n" in text
    assert "      without it: loss 0.250 -> 0.583; stronger than 50.0 % of the training set\n" in text
    assert "harmful #3 -0.500 'training sentence number 3' [yes]\n      without it: loss 0.250 -> below 0;" in text
    pool = repr(make(**REMOVED | {"change": "added", "measure": "Margin()"}))
    assert "change of Margin() of the query if the example were added to the 6 training examples and" in pool
    assert "loss 0.13, Margin() 0.250\n" in pool and "of the candidates" in pool


@pytest.mark.parametrize(
    ("number", "text"),
    [(0.27812, "+0.278"), (-0.02, "-0.0200"), (1.234e-5, "+1.2e-05"), (-556.4, "-556"), (12345.6, "+1.23e+04")],
)
def test_numbers_have_three_digits(number, text):
    assert signed(number) == text


def test_the_strongest_is_never_stronger_than_all():
    words = ScoreWords(make(**REMOVED).summary)
    for percentile, share in ((99.95, "99.95"), (99.9999, "99.99"), (99.9, "99.9"), (97.28, "97.2"), (0, "0.0")):
        assert words.strength(float(np.float32(percentile))) == f"stronger than {share} % of the training set"


def test_changes_too_small_to_see_are_numbers_only():
    words = ScoreWords(make(**REMOVED | {"num_train": 10**6}).summary)
    assert words.number(-2) == "+2e-06" and words.consequence(2.68, -2) is None
    assert words.consequence(None, -2e6) is None


def test_a_result_of_an_earlier_version_has_raw_scores(result, tmp_path):
    folder = result.save_to_disk(tmp_path)
    summary = json.loads((folder / "summary.json").read_text("utf-8"))
    for name in ("influences", "queries"):
        table = pq.read_table(folder / f"{name}.parquet")
        pq.write_table(table.select([n for n in table.column_names if n not in NULLABLE]), folder / f"{name}.parquet")
    files = describe_files(folder, NUMBERS)
    for name, rows in (("influences.parquet", 6), ("queries.parquet", 2)):
        files[name]["rows"] = rows
    old = {name: value for name, value in summary.items() if name not in ("change", "num_train")}
    (folder / "summary.json").write_text(json.dumps(old | {"files": files}), "utf-8")
    loaded = InfluenceResult.load_from_disk(folder)
    assert loaded.influences["predicted_loss_change"] == loaded.influences["percentile"] == [None] * 6
    assert "helpful #1 -2.00 'training" in repr(loaded) and "without it" not in repr(loaded)
    assert '<b class="influence">−2.00</b>' in loaded.to_html(tmp_path / "report.html").read_text("utf-8")
    again = InfluenceResult.load_from_disk(loaded.without_text().save_to_disk(tmp_path / "again"))
    assert again.helpful(0)["train_index"] == result.helpful(0)["train_index"]


@pytest.mark.parametrize("changes", [{"change": "moved", "num_train": 6}, {"change": "removed"}])
def test_a_unit_that_makes_no_sense_is_refused(changes):
    with pytest.raises(ValueError, match="summary: change="):
        replace(make().summary, **changes).to_json()


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
