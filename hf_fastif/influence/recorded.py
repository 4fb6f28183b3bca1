"""Describe how scores were computed, for the summary of a result."""

from __future__ import annotations

from typing import Any

from hf_fastif.artifacts import model_name, sources
from hf_fastif.influence.queries import CandidatePool
from hf_fastif.influence.session import InfluenceSession
from hf_fastif.scoring import ADDED, REMOVED
from hf_fastif.solvers import find_solver


def recorded_settings(
    session: InfluenceSession, num_neighbors: int | None, num_examples: int | None, solver: str | None = None
) -> dict[str, Any]:
    """Return the settings that a result records.

    Args:
        session (`InfluenceSession`): The session that computed the scores.
        num_neighbors (`int`, *optional*): k.
        num_examples (`int`, *optional*): The number of examples per direction.
        solver (`str`, *optional*): The solver that was used instead of `args.solver`.
    """
    descriptions, largest = [], []
    for number in range(len(session.checkpoints)):
        with session.checkpoints.at(number):
            setup = session.setup(solver)
            descriptions.append(setup.describe())
            if setup.has_one_damping:
                largest.append(setup.spectrum.largest)
    return {
        "model": model_name(session.trainer.model),
        **sources(session.trainer.model, session.trainer.train_dataset),
        "num_parameters": session.objective.space.size,
        "num_neighbors": num_neighbors,
        "num_examples": num_examples,
        "solver": descriptions[0],
        "curvature": session.args.curvature,
        "largest_eigenvalue": sum(largest) / len(largest) if largest else None,
        "damping_by_layer": setup.damps_by_layer,
        "seed": session.args.seed,
        "checkpoints": [
            {"name": member.name, "step": member.step, "epoch": member.epoch, "weight": weight}
            for member, weight in zip(session.checkpoints.members, session.checkpoints.weights, strict=True)
        ],
    }


def unit_of_scores(session: InfluenceSession, pool: CandidatePool) -> dict[str, Any]:
    """Return what turns the scores of a pool into predicted changes: the number of training examples, and which.

    Examples of the training set can be removed from it; a pool that holds others can be added to it. A solver
    without curvature predicts neither.
    """
    change = None
    if find_solver(session.setup().name).uses_curvature:
        change = REMOVED if _is_trained_on(session, pool) else ADDED
    return {"num_train": len(session.train), "change": change}


def _is_trained_on(session: InfluenceSession, pool: CandidatePool) -> bool:
    key, known = (session.train.digest, pool.digest), session.cache.trained_on
    if key not in known:
        known[key] = session.train.holds(pool.batches)
    return known[key]
