"""What models predict that were trained without some examples, as a table and a sentence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


NOTHING, HARMFUL, RANDOM = "nothing", "most harmful", "random"


@dataclass(frozen=True)
class TrainedWithout:
    """What a model predicts that was trained without some examples.

    Attributes:
        removed (`str`): How the examples were chosen: "nothing" (none was), "most harmful", "random" or "nearest".
        rows (`list[int]`): The removed rows of the training set, the most harmful first, the nearest first, or random.
        num_train (`int`): N, the number of training examples before.
        right (`int`): Number of the explained predictions that are right.
        num_explained (`int`): Number of explained predictions.
        accuracy (`float`): Share of the other validation examples that are predicted right.
        num_others (`int`): Number of the other validation examples.
        num_wrong_labels (`int`, *optional*): Number of known wrong labels among the removed examples.
        num_all_wrong_labels (`int`, *optional*): Number of known wrong labels in the training set; None if unknown.
    """

    removed: str
    rows: list[int]
    num_train: int
    right: int
    num_explained: int
    accuracy: float
    num_others: int
    num_wrong_labels: int | None = None
    num_all_wrong_labels: int | None = None

    @property
    def num_removed(self) -> int:
        """The number of removed examples."""
        return len(self.rows)


def check_table(models: Sequence[TrainedWithout]) -> list[list[str]]:
    """Return the table that compares models, its heading first.

    Args:
        models (`Sequence[TrainedWithout]`): The models; the first one was trained on all examples.
    """
    full, noun = models[0], _explained(models)
    heading = ["training examples removed", f"{noun} now right", f"accuracy on the other {full.num_others:,}"]
    rows = [
        [_removed(model, noun), f"{model.right} of {model.num_explained}", f"{model.accuracy:.1%}"] for model in models
    ]
    if full.num_all_wrong_labels:
        heading.append(f"of {full.num_all_wrong_labels:,} wrong labels removed")
        for model, row in zip(models, rows, strict=True):
            row.append(f"{model.num_wrong_labels:,}")
    return [heading, *rows]


def check_sentence(models: Sequence[TrainedWithout]) -> str:
    """Say what removing the most harmful examples changed, compared with the other removals.

    Args:
        models (`Sequence[TrainedWithout]`): The models; the first one was trained on all examples, the second one
            without the most harmful ones.
    """
    full, harmful, *others = models
    compared = "".join(
        f" Without {each.num_removed:,} {each.removed} ones instead: {each.right}, and {each.accuracy:.1%}."
        for each in others
    )
    return (
        f"Trained again without the {harmful.num_removed:,} of {harmful.num_train:,} training examples most harmful "
        f"to the {full.num_explained} {_explained(models)}, the model predicts {harmful.right} of these right, and "
        f"{harmful.accuracy:.1%} of the other {full.num_others:,} validation examples (before: {full.accuracy:.1%})."
        f"{compared}"
    )


def check_text(models: Sequence[TrainedWithout]) -> str:
    """Return sentence and table as lines of text."""
    table = check_table(models)
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ["   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in table]
    return "\n".join([check_sentence(models), *(f"  {line.rstrip()}" for line in lines)])


def _explained(models: Sequence[TrainedWithout]) -> str:
    return "predictions" if models[0].right else "errors"


def _removed(model: TrainedWithout, noun: str) -> str:
    if not model.num_removed:
        return model.removed
    of_what = f" to the {noun}" if model.removed == HARMFUL else ""
    return f"{model.num_removed:,} {model.removed}{of_what}"
