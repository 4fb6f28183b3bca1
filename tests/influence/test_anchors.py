"""Several examples as one query, whose loss is their mean."""

from __future__ import annotations

import numpy as np
import pytest
from tiny import tiny_data, tiny_trainer

from hf_fastif import InfluenceResult, QuerySet


TRAIN, ANCHORS = tiny_data(30), tiny_data(7, seed=1)


@pytest.fixture
def trainer(tmp_path):
    return tiny_trainer(tmp_path, train=tiny_data(30), solver="exact", damping=0.5)


@pytest.mark.parametrize("size", [2, 50])
def test_influence_on_the_mean_loss_is_the_mean_influence(trainer, size):
    trainer.args.query_batch_size = size
    expected = trainer.compute_influence(ANCHORS).mean(axis=0)
    found = trainer.compute_influence(QuerySet(ANCHORS, reduce="mean"))
    assert found.shape == (1, 30)
    np.testing.assert_allclose(found[0], expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kind", ["gradient_sketch", "pooled"])
def test_candidates_of_anchors_are_found_and_scored(trainer, kind):
    trainer.args.index_features = kind
    trainer.build_index()
    s_test = trainer.compute_s_test(QuerySet(ANCHORS, reduce="mean"))
    scan = trainer.compute_influence(QuerySet(ANCHORS, reduce="mean"), s_test=s_test)[0]
    result = trainer.find_influential(
        QuerySet(ANCHORS, reduce="mean"), num_examples=None, num_neighbors=8, s_test=s_test
    )
    table = result.to_pandas()
    assert sorted(table["train_index"]) == sorted(
        trainer.find_candidates(QuerySet(ANCHORS, reduce="mean"), 8, s_test=s_test)[0]
    )
    np.testing.assert_allclose(table["influence"], scan[table["train_index"]], rtol=1e-3, atol=1e-5)


def test_result_holds_one_query_and_all_anchors(trainer, tmp_path):
    result = trainer.find_influential(QuerySet(ANCHORS, reduce="mean"), num_examples=2)
    result = InfluenceResult.load_from_disk(result.save_to_disk(tmp_path / "result"))
    assert result.summary.num_queries == 1
    assert result.queries["text"] == ANCHORS["text"] and set(result.queries["query_index"]) == {0}
    assert len(result.helpful(0)) == len(result.harmful(0)) == 2
    assert not any(name.startswith("query_") and name != "query_index" for name in result.influences.column_names)
    assert "InfluenceResult: 1 queries" in repr(result) and "query 0 is the mean of 7 anchors" in repr(result)
    with pytest.raises(IndexError, match="query=1"):
        result.helpful(1)
    page = result.to_html(tmp_path / "report.html").read_text()
    assert page.count('<article class="card"') == 1
    assert "the mean loss of 7 anchors" in page and all(text in page for text in ANCHORS["text"])


def test_s_test_of_single_queries_is_not_that_of_anchors(trainer):
    s_test = trainer.compute_s_test(ANCHORS)
    with pytest.raises(ValueError, match="s_test holds 7 vectors"):
        trainer.compute_influence(QuerySet(ANCHORS, reduce="mean"), s_test=s_test)
