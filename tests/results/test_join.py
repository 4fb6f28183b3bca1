"""Several results as one."""

from __future__ import annotations

import pytest
from synthetic import synthetic_result

from hf_fastif import InfluenceResult
from hf_fastif.results.report.graph import influence_graph


@pytest.fixture
def parts():
    return {
        "one": synthetic_result({"a": 2}, num_trains=30, k=10),
        "two": synthetic_result({"b": 3}, num_trains=30, k=10, seed=1),
    }


def test_queries_come_behind_each_other(parts):
    joined = InfluenceResult.join(parts)
    one, two = parts.values()
    assert joined.summary.num_queries == 5 and joined.summary.slices == {"one": 2, "two": 3}
    assert joined.queries["query_index"] == [0, 1, 2, 3, 4]
    assert joined.queries["premise"] == [*one.queries["premise"], *two.queries["premise"]]
    for query in range(3):
        assert joined.harmful(2 + query).to_list() == two.harmful(query).to_list()
    assert joined.helpful(1).to_list() == one.helpful(1).to_list()
    assert joined.influences.features == one.influences.features


def test_the_parts_are_the_slices_of_the_graph_also_without_texts(parts, tmp_path):
    joined = InfluenceResult.join(parts)
    for result in (joined, joined.without_text(), InfluenceResult.load_from_disk(joined.save_to_disk(tmp_path))):
        graph = influence_graph(result)
        assert graph.slices == ["one", "two"] and graph.query_slices.tolist() == [0, 0, 1, 1, 1]


def test_columns_that_only_one_has_are_empty_in_the_other(parts):
    parts["one"].queries = parts["one"].queries.rename_column("group", "genre")
    joined = InfluenceResult.join(parts)
    assert joined.queries["genre"] == ["a", "a", None, None, None]
    assert joined.queries["group"] == [None, None, "b", "b", "b"]


def test_rows_of_the_source_are_kept_where_all_know_them(parts):
    parts["one"].summary.query_rows = [7, 9]
    assert InfluenceResult.join(parts).summary.query_rows is None
    parts["two"].summary.query_rows = [1, 2, 3]
    assert InfluenceResult.join(parts).summary.query_rows == [7, 9, 1, 2, 3]


@pytest.mark.parametrize(
    "name, value",
    [
        ("model", "another"),
        ("damping", 0.5),
        ("num_candidates", 31),
        ("measure", "Margin()"),
        ("num_train", 31),
        ("change", "added"),
    ],
)
def test_results_of_different_settings_are_refused(parts, name, value):
    setattr(parts["two"].summary, name, value)
    with pytest.raises(ValueError, match=f"results: 'one' and 'two' differ in {name}"):
        InfluenceResult.join(parts)


def test_nothing_to_join():
    with pytest.raises(ValueError, match="results is empty"):
        InfluenceResult.join({})


def test_slices_that_do_not_add_up_are_refused(parts):
    joined = InfluenceResult.join(parts)
    joined.summary.slices = {"one": 2}
    with pytest.raises(ValueError, match=r"summary.slices is {'one': 2}, which is not 5 queries in all"):
        influence_graph(joined)
