"""Draw the queries and training examples of an experiment, and the intervals of its numbers."""

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
    """Draws examples of which half are predicted wrong and half right, as in the experiments of the paper.

    Args:
        trainer ([`InfluenceTrainer`]): Whose model predicts.
        dataset (`datasets.Dataset`): To draw from, such as the validation set.
        count (`int`): How many; of an odd number the right ones are one more.
        seed (`int`, *optional*, defaults to 0): Of the draw.

    Returns:
        Their rows (count,), the wrong ones first, and whether each is predicted right, bool (count,).

    Raises:
        ValueError: If there are too few of one kind.
    """
    wanted = {"wrong": count // 2, "right": count - count // 2}
    order = np.random.default_rng(seed).permutation(len(dataset))
    found: dict[str, list[int]] = {kind: [] for kind in wanted}
    for rows in np.array_split(order, max(1, len(order) // max(64, 4 * count))):
        wrong = np.isin(np.arange(len(rows)), trainer.find_misclassified(dataset.select(rows)))
        found["wrong"] += rows[wrong].tolist()
        found["right"] += rows[~wrong].tolist()
        if all(len(found[kind]) >= wanted[kind] for kind in wanted):
            break
    if few := [f"{len(found[kind])} {kind}" for kind in wanted if len(found[kind]) < wanted[kind]]:
        raise InfluenceError(
            f"count={count}: half of the queries are to be predicted wrong and half right, but of {len(dataset)} "
            f"examples only {' and '.join(few)} ones were found; ask for fewer, or give more examples."
        )
    rows = np.array(found["wrong"][: wanted["wrong"]] + found["right"][: wanted["right"]], dtype=np.int64)
    return rows, np.arange(count) >= wanted["wrong"]


def strongest_rows(trainer: InfluenceTrainer, queries: Dataset, count: int, k: int | None, name: str) -> Tensors:
    """The rows (Q, count) of the most helpful and of the most harmful training examples of each query.

    Args:
        trainer ([`InfluenceTrainer`]): Whose influence it is.
        queries (`datasets.Dataset`): Q examples.
        count (`int`): How many; the strongest come first.
        k (`int`, *optional*): Nearest neighbours that are scored; None for all examples.
        name (`str`): Of the argument that asks for so many.

    Raises:
        ValueError: If a query has fewer of a direction.
    """
    if k is not None:
        trainer.build_index()
    table = trainer.find_influential(queries, count, num_neighbors=k).influences.to_pandas()
    found = {}
    for direction in DIRECTIONS:
        own = table[table["direction"] == direction].sort_values("rank").groupby("query_index")["train_index"]
        rows = [own.get_group(q).to_numpy() if q in own.groups else [] for q in range(len(queries))]
        few = [f"query {q} has {len(one)}" for q, one in enumerate(rows) if len(one) < count]
        if few:
            raise InfluenceError(
                f"{name}={count}: of {direction} examples {', '.join(few)}; give a smaller number, take other "
                "queries, or score more candidates."
            )
        found[direction] = torch.from_numpy(np.stack(rows))
    return found


def random_rows(train: Dataset, count: int, seed: int | tuple[int, ...], name: str) -> dict[str, np.ndarray]:
    """Random rows (count,) of each label, by the label's name; `name` is that of the argument that asks for so many.

    Raises:
        ValueError: If there are fewer examples of a label.
    """
    labels, random, found = np.asarray(train["label"]), np.random.default_rng(seed), {}
    for label in np.unique(labels):
        rows, called = np.flatnonzero(labels == label), label_name(train, int(label))
        if len(rows) < count:
            raise InfluenceError(
                f"{name}={count}: only {len(rows)} training examples have the label {called}; give a smaller number."
            )
        found[called] = random.choice(rows, count, replace=False)
    return found


def mean_and_interval(values: np.ndarray, seed: int) -> tuple[float, float, float]:
    """The mean of a table (Q, R), and its 95 % interval from drawing rows and columns anew; NaN of one number."""

    def drawn_means(queries: np.ndarray, repeats: np.ndarray) -> np.ndarray:
        return values[queries[:, :, None], repeats[:, None, :]].mean(axis=(1, 2))

    return float(values.mean()), *two_way_interval(drawn_means, values.shape, seed=seed)
