"""What the analyses share: queries, other settings for a while, and finished parts that are kept."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from datasets import ClassLabel, Dataset

from hf_fastif.errors import InfluenceError
from hf_fastif.identity import hexdigest
from hf_fastif.pieces import Pieces, Tensors
from hf_fastif.processes import alone


if TYPE_CHECKING:
    from hf_fastif.trainer import InfluenceTrainer

DIRECTIONS = ("helpful", "harmful")
GROUPS = {"predicted wrong": False, "predicted right": True}
NUM_DRAWS = 1000  # for an interval


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


def label_name(dataset: Dataset, label: int) -> str:
    """What a class is called in a dataset; its number where classes have no names."""
    feature = dataset.features["label"]
    return feature.int2str(label) if isinstance(feature, ClassLabel) else str(label)


def mean_and_interval(values: np.ndarray, seed: int) -> tuple[float, float, float]:
    """The mean of a table (Q, R), and its 95 % interval from drawing rows and columns anew; NaN of one number."""
    if values.size == 1:
        return float(values.mean()), np.nan, np.nan
    random = np.random.default_rng(seed)
    queries, repeats = (random.integers(size, size=(NUM_DRAWS, size)) for size in values.shape)
    means = values[queries[:, :, None], repeats[:, None, :]].mean(axis=(1, 2))
    low, high = np.quantile(means, [0.025, 0.975])
    return float(values.mean()), float(low), float(high)


@contextmanager
def changed(trainer: InfluenceTrainer, **settings: Any) -> Iterator[None]:
    """Gives a trainer other settings of influence within the block.

    Raises:
        ValueError: If there is no such setting, or its value is refused.
    """
    before, args = trainer.args, copy.copy(trainer.args)
    if unknown := set(settings) - set(args.influence_settings()):
        raise InfluenceError(
            f"settings: {', '.join(sorted(unknown))} is no setting of influence; see InfluenceConfig."
        )
    for name, value in settings.items():
        setattr(args, name, value)
    args.check()
    trainer.args = args
    try:
        yield
    finally:
        trainer.args = before


def influence_manifest(trainer: InfluenceTrainer, **datasets: Dataset) -> dict[str, str]:
    """What influence depends on: the model, the training set, settings, and other datasets by their names."""
    settings = {name: str(value) for name, value in trainer.args.influence_settings().items()}
    with trainer._context() as context:
        about = {"model": context.checkpoints.fingerprint, "loss": context.loss, "seed": str(trainer.args.seed)}
    return about | settings | digests(trainer, train_dataset=trainer.train_dataset, **datasets)


def digests(trainer: InfluenceTrainer, **datasets: Dataset) -> dict[str, str]:
    """Short digests of the rows of some datasets, as the model sees them, by their names."""
    with trainer._context() as context:
        return {name: context.examples(name, rows).digest for name, rows in datasets.items()}


def kept_parts(trainer: InfluenceTrainer, name: str, manifest: Mapping[str, str]) -> Pieces:
    """Finished parts of an analysis, in `output_dir/NAME`: in a folder of their own for each manifest.

    They are left there, so that an analysis that was stopped or is made larger goes on from them, unless
    `trainer.args.overwrite` is set.
    """
    # Probe values of a loss may differ by rounding; they are compared when the folder is opened.
    exact = {key: value for key, value in manifest.items() if key != "loss"}
    folder = Path(trainer.args.output_dir) / name / hexdigest([json.dumps(exact, sort_keys=True)])
    begun = trainer._kept.begun
    if trainer.args.overwrite and folder not in begun and trainer.is_world_process_zero():
        shutil.rmtree(folder, ignore_errors=True)
    begun.add(folder)
    return Pieces(folder, manifest, trainer.accelerator)


class Retrained:
    """Models that are trained again on changed training sets: each one once, and what is measured of it is kept.

    The models are dealt to the processes. Each is trained as by a single process, without DDP, so that several
    processes give the models of one; see `hf_fastif.processes.alone` for what `train_on` must keep to.

    Args:
        parts (`Pieces`): Where it is kept.
        train_on (`Callable`): Given training examples and the number of a repeat (for a seed), trains a model and
            returns numbers (n,) that are measured of it.
    """

    def __init__(self, parts: Pieces, train_on: Callable[[Dataset, int], np.ndarray]):
        self.parts = parts
        self.train_on = train_on
        self._known: dict[str, np.ndarray] = {}

    def train(self, wanted: Iterable[tuple[str, int, Callable[[], Dataset]]]) -> None:
        """Trains those of some models that are missing, so that `measured` finds them; given as it takes them."""
        work = {_name(change, repeat): partial(self._work, repeat, train) for change, repeat, train in wanted}
        self.parts.deal(work, "Training again")

    def measured(self, change: str, repeat: int, train: Callable[[], Dataset]) -> np.ndarray:
        """The numbers (n,) of the model that a changed training set gives.

        Args:
            change (`str`): A short name of the change, for a file.
            repeat (`int`): The number of the repeat.
            train (`Callable`): Makes the changed training set.
        """
        name = _name(change, repeat)
        if name not in self._known:
            found = self.parts.get(name, partial(self._work, repeat, train))
            self._known[name] = found["numbers"].cpu().numpy()
        return self._known[name]

    def _work(self, repeat: int, train: Callable[[], Dataset]) -> Tensors:
        with alone():
            return {"numbers": torch.as_tensor(self.train_on(train(), repeat), dtype=torch.float64)}


def _name(change: str, repeat: int) -> str:
    return f"{change}-repeat-{repeat}"
