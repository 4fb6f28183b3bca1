"""Define the attribution methods that analyses compare.

Each of them returns scores (Q, N) like `trainer.compute_influence(queries)`, negative where an example is helpful.
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
    """Return the checkpoints selected by a value of `InfluenceConfig.checkpoints`, and their weights, summing to 1."""
    with changed(trainer, checkpoints=list(checkpoints)), trainer.session() as session:
        return session.checkpoints.members, session.checkpoints.weights


def at_checkpoint(trainer: InfluenceTrainer, member: Checkpoint) -> AbstractContextManager[None]:
    """Compute influence at a single checkpoint within the block."""
    name = "final" if member.path is None else str(member.path)
    return changed(trainer, checkpoints=[name], checkpoint_weights=["uniform"])


def gradient_cosine(trainer: InfluenceTrainer, queries: Dataset) -> np.ndarray:
    """Compute - cos(grad L(z'), grad L(z)) (Q, N): the gradient product without the effect of gradient norms.

    It is averaged over `trainer.args.checkpoints`. Hanawa et al. (2021) compare it with other similarities.

    Args:
        trainer ([`InfluenceTrainer`]): The trainer with the training set z.
        queries (`datasets.Dataset`): The Q queries z'.

    Returns:
        `np.ndarray` of shape `(Q, N)`, float32: Scores from -1 (helpful) to 1 (harmful).

    Example:
        ```python
        scores = gradient_cosine(trainer, queries)
        nearest = scores.argsort(axis=1)[:, :10]
        ```
    """
    cosines = np.zeros((len(queries), len(trainer.train_dataset)), dtype=np.float32)
    for member, weight in zip(*members_of(trainer, trainer.args.checkpoints), strict=True):
        with at_checkpoint(trainer, member), changed(trainer, solver="identity", preconditioner=None):
            gradients = trainer.compute_s_test(queries)
            products = trainer.compute_influence(queries, s_test=gradients)
            sizes = np.outer(gradients.vectors.norm(dim=1).cpu().numpy(), np.sqrt(trainer.self_influence()))
        cosines += weight * np.divide(products, sizes, out=np.zeros_like(products), where=sizes > 0)
    return cosines


def representation_similarity(trainer: InfluenceTrainer, queries: Dataset) -> np.ndarray:
    """Compute - cos(h(z'), h(z)) (Q, N), where h is the pooled state before the output layer; labels play no role.

    For heads that score every token, such as those of language models, h is the mean over the tokens of an example,
    because the last token is often the same in all examples. The score is averaged over `trainer.args.checkpoints`.
    Hanawa et al. (2021) compare it with other similarities.

    Args:
        trainer ([`InfluenceTrainer`]): The trainer with the training set z.
        queries (`datasets.Dataset`): The Q queries z'.

    Returns:
        `np.ndarray` of shape `(Q, N)`, float32: Scores from -1 (similar) to 1.

    Example:
        ```python
        scores = representation_similarity(trainer, queries)
        nearest = scores.argsort(axis=1)[:, :10]
        ```
    """
    with trainer.session() as session:
        query_examples, train = session.examples("queries", queries), session.train
        cosines = np.zeros((len(query_examples), len(train)), dtype=np.float32)
        for number in range(len(session.checkpoints)):
            with session.checkpoints.at(number) as weight:
                features = PooledFeatures(session.objective, mean=session.objective.head.has_token_outputs)
                a, b = (features.of_queries(examples, session.sweep) for examples in (query_examples, train))
                lengths = np.outer(np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1))
                cosines -= weight * (a @ b.T) / lengths
    return cosines


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
    "sketch": partial(_by_solver, "sketch"),
}


def check_methods(names: Sequence[str]) -> None:
    """Check that every name is a key of `METHODS`.

    Raises:
        InfluenceError: If a method is unknown. The message lists the known ones.

    Example:
        ```python
        check_methods(["EK-FAC", "gradient cosine"])
        ```
    """
    if unknown := [name for name in names if name not in METHODS]:
        raise InfluenceError(f"methods: {', '.join(unknown)} is not one of {', '.join(METHODS)}.")
