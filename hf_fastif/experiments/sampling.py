"""Draw the queries and training examples of an experiment, and compute the intervals of its means."""

from __future__ import annotations

import numpy as np
import torch
from datasets import Dataset

from hf_fastif.data import label_name
from hf_fastif.errors import InfluenceError
from hf_fastif.execution import Tensors
from hf_fastif.metrics import two_way_interval
from hf_fastif.scoring import DIRECTIONS
from hf_fastif.trainer import InfluenceTrainer


GROUPS = {"predicted wrong": False, "predicted right": True}


def balanced_queries(
    trainer: InfluenceTrainer, dataset: Dataset, count: int, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Draw examples half of which the model predicts wrong and half right, as in the experiments of the paper.

    Args:
        trainer ([`InfluenceTrainer`]): The trainer of the model.
        dataset (`datasets.Dataset`): The dataset to draw from, such as the validation set.
        count (`int`): Number of examples. If it is odd, one more example is predicted right than wrong.
        seed (`int`, *optional*, defaults to 0): Seed of the draw.

    Returns:
        `tuple[np.ndarray, np.ndarray]`: The rows `(count,)`, those predicted wrong first, and whether each is
            predicted right, bool `(count,)`.

    Raises:
        InfluenceError: If the dataset has too few wrong or right predictions.

    Example:
        ```python
        rows, right = balanced_queries(trainer, dev, 100)
        result = retraining(trainer, dev.select(rows), right, train_on=train_on, depends_on={"epochs": "3"})
        ```
    """
    wanted = {"wrong": count // 2, "right": count - count // 2}
    order = np.random.default_rng(seed).permutation(len(dataset))
    drawn: dict[str, list[int]] = {kind: [] for kind in wanted}
    for rows in np.array_split(order, max(1, len(order) // max(64, 4 * count))):
        wrong = np.isin(np.arange(len(rows)), trainer.find_misclassified(dataset.select(rows)))
        drawn["wrong"] += rows[wrong].tolist()
        drawn["right"] += rows[~wrong].tolist()
        if all(len(drawn[kind]) >= wanted[kind] for kind in wanted):
            break
    if few := [f"{len(drawn[kind])} {kind}" for kind in wanted if len(drawn[kind]) < wanted[kind]]:
        raise InfluenceError(
            f"count={count}: half of the queries must be predicted wrong and half right, but the {len(dataset)} "
            f"examples have only {' and '.join(few)} predictions; ask for fewer, or give more examples."
        )
    rows = np.array(drawn["wrong"][: wanted["wrong"]] + drawn["right"][: wanted["right"]], dtype=np.int64)
    return rows, np.arange(count) >= wanted["wrong"]


def strongest_rows(trainer: InfluenceTrainer, queries: Dataset, count: int, k: int | None, name: str) -> Tensors:
    """Find the most helpful and the most harmful training examples of each query.

    Args:
        trainer ([`InfluenceTrainer`]): The trainer that computes influence.
        queries (`datasets.Dataset`): The Q queries.
        count (`int`): Number of examples of each direction.
        k (`int`, *optional*): Number of nearest neighbors to score, or None for all training examples.
        name (`str`): Name of the argument that determines `count`, for the error message.

    Returns:
        `dict[str, torch.Tensor]`: The rows `(Q, count)` by direction, the strongest first.

    Raises:
        InfluenceError: If a query has fewer examples of a direction.
    """
    if k is not None:
        trainer.build_index()
    table = trainer.find_influential(queries, count, num_neighbors=k).influences.to_pandas()
    strongest = {}
    for direction in DIRECTIONS:
        by_query = table[table["direction"] == direction].sort_values("rank").groupby("query_index")["train_index"]
        rows = [by_query.get_group(q).to_numpy() if q in by_query.groups else [] for q in range(len(queries))]
        few = [f"query {q} has only {len(one)}" for q, one in enumerate(rows) if len(one) < count]
        if few:
            raise InfluenceError(
                f"{name}={count}: too few {direction} examples ({', '.join(few)}); give a smaller number, other "
                "queries, or more candidates to score."
            )
        strongest[direction] = torch.from_numpy(np.stack(rows))
    return strongest


def random_rows(train: Dataset, count: int, seed: int | tuple[int, ...], name: str) -> dict[str, np.ndarray]:
    """Draw rows (count,) of each label.

    Args:
        train (`datasets.Dataset`): The examples to draw from.
        count (`int`): Number of rows of each label.
        seed (`int` or `tuple[int, ...]`): Seed of the draw.
        name (`str`): Name of the argument that determines `count`, for the error message.

    Returns:
        `dict[str, np.ndarray]`: The rows by the name of the label.

    Raises:
        InfluenceError: If there are fewer examples of a label.
    """
    labels, random, drawn = np.asarray(train["label"]), np.random.default_rng(seed), {}
    for number in np.unique(labels):
        rows, label = np.flatnonzero(labels == number), label_name(train, int(number))
        if len(rows) < count:
            raise InfluenceError(
                f"{name}={count}: only {len(rows)} training examples have the label {label}; give a smaller number."
            )
        drawn[label] = random.choice(rows, count, replace=False)
    return drawn


def mean_and_interval(values: np.ndarray, seed: int) -> tuple[float, float, float]:
    """Compute the mean of a table (Q, R), and the ends of its 95 % interval from resampling rows and columns.

    The ends are NaN for a single number.
    """

    def drawn_means(queries: np.ndarray, repeats: np.ndarray) -> np.ndarray:
        return values[queries[:, :, None], repeats[:, None, :]].mean(axis=(1, 2))

    return float(values.mean()), *two_way_interval(drawn_means, values.shape, seed=seed)
