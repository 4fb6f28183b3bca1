"""The engine by hand: a session gives what the trainer's methods give."""

from __future__ import annotations

import numpy as np
import pytest
from tiny import tiny_data, tiny_model, tiny_trainer

from hf_fastif import InfluenceSession, Margin, QuerySet


TRAIN, QUERIES = tiny_data(20), tiny_data(3, seed=1)


@pytest.fixture
def trainer(tmp_path):
    return tiny_trainer(tmp_path, tiny_model(), TRAIN, solver="exact", damping=0.5, query_batch_size=2)


def test_scores_of_a_session_are_those_of_the_trainer(trainer):
    expected = trainer.compute_influence(QUERIES, measure=Margin())
    with trainer.session() as session:
        assert isinstance(session, InfluenceSession)
        queries, pool = session.queries(QUERIES, Margin()), session.candidates()
        with session.attribution("by hand", queries.identity, pool.digest) as attribution:
            scores = list(attribution.score(queries, pool.batches, search=None, s_test=None))
    assert [group.stop - group.start for group in queries.groups()] == [2, 1]
    np.testing.assert_array_equal([each.rows for each in scores], [np.arange(20)] * 3)
    np.testing.assert_allclose([each.scores for each in scores], expected, rtol=1e-6)


def test_the_model_is_given_back_as_it_was(trainer):
    trainer.model.train()
    with trainer.session() as session:
        assert not session.objective.model.training
        with trainer.session() as inner:  # sessions may be nested
            assert inner.cache is session.cache
        assert not session.objective.model.training
    assert trainer.model.training


def test_queries_with_equal_answers_have_equal_identities(trainer):
    with trainer.session() as session:
        identity = session.queries(QUERIES).identity
        assert session.queries(tiny_data(3, seed=1)).identity == identity
        assert session.queries(QuerySet(QUERIES)).identity == identity
        others = [
            session.queries(QUERIES.select([1, 0, 2])),
            session.queries(QuerySet(QUERIES, reduce="mean")),
            session.queries(QuerySet(QUERIES, rather_than=TRAIN.select(range(3)))),
            session.queries(QUERIES, Margin()),
        ]
        assert len({identity, *(other.identity for other in others)}) == 5
