"""Check influence by training again without the examples that are most harmful to some predictions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from datasets import Dataset

from hf_fastif.analysis import Retrained, digests, open_analysis_results, representation_similarity, without_rows
from hf_fastif.data import without_indexes
from hf_fastif.errors import InfluenceError
from hf_fastif.influence import QuerySet
from hf_fastif.results import HARMFUL, NOTHING, RANDOM, TrainedWithout
from hf_fastif.trainer import InfluenceTrainer


NEAREST = "nearest"
BASELINES = (RANDOM, NEAREST)


def removal_check(
    trainer: InfluenceTrainer,
    validation: Dataset,
    explained: Sequence[int],
    count: int,
    *,
    train_on: Callable[[Dataset, int], np.ndarray],
    depends_on: Mapping[str, str],
    wrong_labels: np.ndarray | None = None,
    baselines: Sequence[str] = (RANDOM,),
) -> list[TrainedWithout]:
    """Remove the training examples that are most harmful to the mean loss of some predictions, and train again.

    These are searched for among all training examples. The same number of other examples is removed for comparison.
    What every retrained model predicts is saved in `output_dir/checked`, so that an interrupted call resumes.

    Args:
        trainer ([`InfluenceTrainer`]): The trainer of the model, with its N training examples.
        validation (`datasets.Dataset`): The V validation examples.
        explained (`Sequence[int]`): Rows of the validation examples whose mean loss is attributed, usually errors.
        count (`int`): Number of training examples to remove. If fewer are harmful, the least helpful ones follow.
        train_on (`Callable`): Trains a model and returns whether it predicts each validation example right, bool (V,),
            given training examples and the number of the repeat, which serves as the seed.
        depends_on (`Mapping[str, str]`): Everything else that `train_on` depends on. Saved predictions are reused only
            if it is equal.
        wrong_labels (`np.ndarray`, *optional*): Which training labels are known to be wrong, bool (N,), to count them.
        baselines (`Sequence[str]`, *optional*): What to remove for comparison: "random" examples, or those "nearest"
            to any of the explained ones, by the cosine of their representations.

    Returns:
        `list[TrainedWithout]`: The model of the trainer, then the model without the most harmful examples, then the
            baselines.

    Raises:
        InfluenceError: If a baseline is unknown, or `count` is not between 1 and N - 1.

    Example:
        ```python
        models = removal_check(trainer, dev, wrong[:20], 150, train_on=train_on, depends_on={"epochs": "3"})
        print(check_text(models))
        suspects = trainer.train_dataset[models[1].rows]
        ```
    """
    if unknown := sorted({*baselines} - {*BASELINES}):
        raise InfluenceError(
            f"baselines: {', '.join(unknown)} is not known; give one or more of {', '.join(BASELINES)}."
        )
    if not 0 < count < len(trainer.train_dataset):
        raise InfluenceError(
            f"count={count}: there are {len(trainer.train_dataset):,} training examples; give at least 1, and fewer."
        )
    train, queries = without_indexes(trainer.train_dataset), validation.select(explained)
    others = np.setdiff1d(np.arange(len(validation)), explained)
    removals = {HARMFUL: _most_harmful(trainer, queries, count)}
    for name in baselines:
        removals[name] = _random(trainer, count) if name == RANDOM else _nearest(trainer, queries, count)
    manifest = dict(depends_on) | digests(trainer, train=train, validation=validation)
    retrained = Retrained(open_analysis_results(trainer, "checked", manifest), train_on)

    def described(removed: str, rows: np.ndarray, is_right: np.ndarray) -> TrainedWithout:
        return TrainedWithout(
            removed=removed,
            rows=rows.tolist(),
            num_train=len(train),
            right=int(is_right[explained].sum()),
            num_explained=len(explained),
            accuracy=float(is_right[others].mean()),
            num_others=len(others),
            num_wrong_labels=None if wrong_labels is None else int(wrong_labels[rows].sum()),
            num_all_wrong_labels=None if wrong_labels is None else int(wrong_labels.sum()),
        )

    retrained.train(without_rows(train, rows) for rows in removals.values())
    models = [described(NOTHING, np.array([], dtype=np.int64), predicted_right(trainer, validation))]
    for removed, rows in removals.items():
        models.append(described(removed, rows, retrained.measured(*without_rows(train, rows))))
    return models


def predicted_right(trainer: InfluenceTrainer, examples: Dataset) -> np.ndarray:
    """Return whether the model predicts each of V examples right, bool (V,)."""
    return ~np.isin(np.arange(len(examples)), trainer.find_misclassified(examples))


def _most_harmful(trainer: InfluenceTrainer, queries: Dataset, count: int) -> np.ndarray:
    scores = trainer.compute_influence(QuerySet(queries, reduce="mean"))[0]
    return np.argsort(-scores, kind="stable")[:count]


def _random(trainer: InfluenceTrainer, count: int) -> np.ndarray:
    return np.random.default_rng(trainer.args.seed).choice(len(trainer.train_dataset), count, replace=False)


def _nearest(trainer: InfluenceTrainer, queries: Dataset, count: int) -> np.ndarray:
    return representation_similarity(trainer, queries).min(axis=0).argsort(kind="stable")[:count]
