"""Ways to say how much each training example matters to a query, as they are compared with each other.

All of them answer like `trainer.compute_influence(queries)`: (Q, N) numbers, negative where an example helps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial

import numpy as np
from datasets import Dataset

from hf_fastif.analysis.session_tools import changed
from hf_fastif.checkpoints import Checkpoint
from hf_fastif.errors import InfluenceError
from hf_fastif.index import PooledFeatures
from hf_fastif.trainer import InfluenceTrainer


Method = Callable[["InfluenceTrainer", Dataset], np.ndarray]


def members_of(trainer: InfluenceTrainer, checkpoints: Sequence[str]) -> tuple[Sequence[Checkpoint], Sequence[float]]:
    """The checkpoints that `InfluenceConfig.checkpoints` names, and their weights, which sum to 1."""
    with changed(trainer, checkpoints=list(checkpoints)), trainer.session() as session:
        return session.checkpoints.members, session.checkpoints.weights


def at_checkpoint(trainer: InfluenceTrainer, member: Checkpoint) -> AbstractContextManager[None]:
    """Takes influence at a single checkpoint within the block."""
    name = "final" if member.path is None else str(member.path)
    return changed(trainer, checkpoints=[name], checkpoint_weights=["uniform"])


def gradient_cosine(trainer: InfluenceTrainer, queries: Dataset) -> np.ndarray:
    """- cos(grad L(z'), grad L(z)): the gradient product, to which every example is as loud as any other.

    A mean over `trainer.args.checkpoints`. Hanawa et al. (2021) compare it with other similarities.
    """
    found = np.zeros((len(queries), len(trainer.train_dataset)), dtype=np.float32)
    for member, weight in zip(*members_of(trainer, trainer.args.checkpoints), strict=True):
        with at_checkpoint(trainer, member), changed(trainer, solver="identity", preconditioner=None):
            gradients = trainer.compute_s_test(queries)
            products = trainer.compute_influence(queries, s_test=gradients)
            sizes = np.outer(gradients.vectors.norm(dim=1).cpu().numpy(), np.sqrt(trainer.self_influence()))
        found += weight * np.divide(products, sizes, out=np.zeros_like(products), where=sizes > 0)
    return found


def representation_similarity(trainer: InfluenceTrainer, queries: Dataset) -> np.ndarray:
    """- cos(h(z'), h(z)) of the pooled states h that the output layer sees, whatever the labels are.

    Of heads that score every token (language models) h is the mean over an example's tokens, of which the last one
    often is the same in all of them.
    A mean over `trainer.args.checkpoints`. Hanawa et al. (2021) compare it with other similarities.
    """
    with trainer.session() as session:
        asked, train = session.examples("queries", queries), session.train
        found = np.zeros((len(asked), len(train)), dtype=np.float32)
        for number in range(len(session.checkpoints)):
            with session.checkpoints.at(number) as weight:
                features = PooledFeatures(session.objective, mean=session.objective.head.has_token_outputs)
                a, b = (features.of_queries(examples, session.sweep) for examples in (asked, train))
                lengths = np.outer(np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1))
                found -= weight * (a @ b.T) / lengths
    return found


def _by_solver(solver: str, trainer: InfluenceTrainer, queries: Dataset) -> np.ndarray:
    with changed(trainer, solver=solver):
        return trainer.compute_influence(queries)


METHODS: dict[str, Method] = {
    "representation similarity": representation_similarity,
    "gradient product": partial(_by_solver, "identity"),
    "gradient cosine": gradient_cosine,
    "EK-FAC": partial(_by_solver, "ekfac"),
    "LiSSA": partial(_by_solver, "lissa"),
    "SDCA": partial(_by_solver, "sdca"),
    "exact": partial(_by_solver, "exact"),
}


def check_methods(names: Sequence[str]) -> None:
    """Refuses methods that are not known.

    Raises:
        ValueError: Naming those that are.
    """
    if unknown := [name for name in names if name not in METHODS]:
        raise InfluenceError(f"methods: {', '.join(unknown)} is not one of {', '.join(METHODS)}.")
