"""Score candidates for queries: by the index, or by a solver and exact gradients."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from hf_fastif.errors import InfluenceError
from hf_fastif.execution import from_main
from hf_fastif.index import Search
from hf_fastif.influence.queries import CandidatePool, Queries
from hf_fastif.influence.session import InfluenceSession
from hf_fastif.scoring import QueryScores
from hf_fastif.solvers import Solution


@dataclass(frozen=True)
class Ranking:
    """What to score.

    Attributes:
        queries (`Queries`): The queries.
        pool (`CandidatePool`): The candidates.
        k (`int`, *optional*): The number of nearest neighbors to score per query; None scores all.
        rescore (`int`, *optional*): The number of candidates per direction to score again exactly.
        s_test ([`Solution`], *optional*): s_test of the queries, if it is already known.
        query_features (`np.ndarray`, *optional*): Features of the queries, for an index of the user's features.
        num_shown (`int`, *optional*): The number of candidates per direction whose tokens are scored.
    """

    queries: Queries
    pool: CandidatePool
    k: int | None = None
    rescore: int | None = None
    s_test: Solution | None = None
    query_features: np.ndarray | None = None
    num_shown: int | None = None

    def __post_init__(self):
        if self.rescore is None:
            return
        if self.k is not None or self.s_test is not None:
            raise InfluenceError(
                f"rescore={self.rescore}: it takes its candidates from the scores of the index; give it without "
                "num_neighbors and s_test."
            )
        if not 1 <= self.rescore <= len(self.pool.dataset):
            raise InfluenceError(
                f"rescore={self.rescore}: there are {len(self.pool.dataset)} candidates; give 1 to "
                f"{len(self.pool.dataset)}, or None."
            )

    def scores(self, session: InfluenceSession, work: str) -> tuple[list[QueryScores], str]:
        """Return the scores of each query, and a description of how they were computed.

        Args:
            session (`InfluenceSession`): An open session.
            work (`str`): The name of the computation among the partial results.
        """
        if self.index_answers(session):
            with session.attribution(work, self.queries.identity) as attribution:
                sketched = session.sketched(self.queries, self.pool)
                scores = attribution.score_by_index(self.queries, self.pool.batches, sketched, self.k, self.num_shown)
                return list(scores), attribution.scoring
        search, solver = self._search(session), self.solver(session)
        given = None if self.s_test is None else self.s_test.vectors
        index = getattr(search, "index", None)
        identity = (self.queries.identity, self.pool.digest, given, self.k, self.num_shown, self.rescore)
        with session.attribution(work, *identity, index and index.identity, solver=solver) as attribution:
            scores = attribution.score(self.queries, self.pool.batches, search, self.s_test, self.num_shown)
            return list(scores), self._origin + attribution.scoring

    def solver(self, session: InfluenceSession) -> str | None:
        """Return the solver to use instead of `args.solver`: an iterative one to score again what the index ranks."""
        if self.rescore is None:
            return None
        setup = session.setup()
        return setup.iterative if setup.name == "sketch" else None

    @property
    def _origin(self) -> str:
        return "" if self.rescore is None else f"the index's {self.rescore} strongest in each direction, by "

    def index_answers(self, session: InfluenceSession) -> bool:
        """Tell whether the scores are products with the vectors of the index."""
        if self.s_test is not None or self.rescore is not None or session.setup().name != "sketch":
            return False
        return self.k is None or session.index(self.pool, any_kind=True).sketches is not None

    def _search(self, session: InfluenceSession) -> Search | None:
        if self.rescore is not None:
            sketched, k = session.sketched(self.queries, self.pool), min(2 * self.rescore, len(self.pool.dataset))
            return lambda numbers, _vectors: sketched.search(numbers, k)
        if self.k is not None:
            return session.search(self.queries, self.pool, self.k, self.query_features)
        return None


def self_influence_by_index(session: InfluenceSession, pool: CandidatePool) -> np.ndarray:
    """Compute grad L^T (C + lambda I)^-1 grad L (N,) of each candidate in its index, summed over the checkpoints."""
    index, setup, weights = session.index(pool), session.setup(), []
    for weight, sketch in zip(session.checkpoints.weights, index.sketches, strict=True):
        weights.append(weight * sketch.eigenvalues / (sketch.eigenvalues + setup.damping_in(sketch)))
    return from_main(lambda: index.squares(torch.cat(weights)), session.trainer.accelerator)
