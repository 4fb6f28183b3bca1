"""Say when scores mean little: damping, training examples and queries that make them so."""

from __future__ import annotations

from collections.abc import Sequence

from hf_fastif.curvature import RECOMMENDED_DAMPING
from hf_fastif.execution import from_main
from hf_fastif.influence.queries import CandidatePool, Queries
from hf_fastif.influence.session import InfluenceSession
from hf_fastif.scoring import POOR, QueryScores, grade_of


ROUNDING = 1e-3
FEWEST = 0.01  # share of the training examples that hold half of all gradient, below which a model has memorized
DOMINATED = 0.5  # share of one direction in the self-influence of a query
SHOWN = 5  # numbers of queries that a line names


def cautions(
    session: InfluenceSession,
    queries: Queries,
    pool: CandidatePool,
    scores: Sequence[QueryScores],
    largest_eigenvalue: float | None,
    by_index: bool,
) -> list[str]:
    """Return what to know before trusting the scores of some queries, in a sentence each.

    Args:
        session (`InfluenceSession`): The session that computed them.
        queries (`Queries`): The queries.
        pool (`CandidatePool`): The candidates.
        scores (`Sequence[QueryScores]`): The scores of each query.
        largest_eigenvalue (`float`, *optional*): The largest eigenvalue of the curvature; None if lambda has no scale.
        by_index (`bool`): Whether the scores come from an index.
    """
    lines = []
    if largest_eigenvalue:
        lines += _about_damping(scores[0].quality["damping"] / largest_eigenvalue)
    grades = [grade_of(each.quality["residual"], by_index) for each in scores]
    if poor := [number for number, grade in enumerate(grades) if grade == POOR]:
        cause = "the index leaves out most of the gradient" if by_index else "s_test is far from solved"
        fix = "rescore=100 scores the strongest again exactly" if by_index else "take more steps"
        lines.append(f"The ranking of {_named(poor)} is poor, since {cause}; {fix}.")
    if not by_index:
        return lines
    sketched = session.sketched(queries, pool)
    concentrations = sketched.concentrations(range(len(queries))).tolist()
    if dominated := [number for number, share in enumerate(concentrations) if share > DOMINATED]:
        lines.append(
            f"Most of what the scores of {_named(dominated)} measure is a single direction of the gradient, such as "
            "the preference for a label: any query that follows it has nearly the same ranking."
        )
    return lines + _about_memorization(session, pool)


def _about_damping(share: float) -> list[str]:
    low, high = RECOMMENDED_DAMPING
    text = f"The damping is {share:.2%} of the largest eigenvalue; {low:.1%} to {high:.0%} is recommended"
    if share > high * (1 + ROUNDING):
        return [f"{text}. Above, influence approaches a product of gradients."]
    if share < low * (1 - ROUNDING):
        return [f"{text}. Below, directions that the training set barely determines have a large effect."]
    return []


def _about_memorization(session: InfluenceSession, pool: CandidatePool) -> list[str]:
    """Say if few examples hold most of the gradient, as in a model that fits nearly all of them."""
    if pool.digest != session.train.digest:
        return []
    index = session.index(pool)
    half = from_main(lambda: index.share_of_half, session.trainer.accelerator)
    if half >= FEWEST or len(index) * FEWEST < 1:
        return []
    return [
        f"The model fits most training examples: half of all gradient comes from {half:.2%} of them, which all "
        "rankings therefore name. An earlier checkpoint tells more (checkpoints='auto', after training with "
        "InfluenceTrainer)."
    ]


def _named(numbers: list[int]) -> str:
    names = ", ".join(map(str, numbers[:SHOWN]))
    more = f" and {len(numbers) - SHOWN} more" if len(numbers) > SHOWN else ""
    return f"quer{'y' if len(numbers) == 1 else 'ies'} {names}{more}"
