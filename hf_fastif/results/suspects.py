"""List training examples by how probably their labels are wrong."""

from __future__ import annotations

from dataclasses import dataclass
from textwrap import shorten

import numpy as np
import pandas as pd
from datasets import Dataset

from hf_fastif.data import names_of_labels, text_columns
from hf_fastif.diagnosis import class_posterior
from hf_fastif.influence import Predictions


SHOWN = 20  # rows that are printed
WIDTH = 90  # characters of a text that are printed


@dataclass(frozen=True)
class Suspects:
    """Training examples by how probably their labels are wrong.

    Attributes:
        table (`pandas.DataFrame`): The most suspicious row first, with `train_index`, `suspicion` (the estimated
            probability that the label is wrong), `label` (as recorded), `suggested` (the most probable label), `loss`
            (of the model as it is), and the text columns of the training set.
        num_train (`int`): Number of training examples, of which the table may hold the first few.
    """

    table: pd.DataFrame
    num_train: int

    def __len__(self) -> int:
        return len(self.table)

    def __str__(self) -> str:
        shown = self.table.head(SHOWN)
        lines = [f"The {len(shown):,} most suspicious of {self.num_train:,} training labels"]
        for row in shown.to_dict("records"):
            texts = list(row.values())[list(row).index("loss") + 1 :]
            label = f"{row['label']}, rather {row['suggested']}" if row["suggested"] != row["label"] else row["label"]
            text = shorten(" / ".join(map(str, texts)), WIDTH, placeholder=" ...")
            lines.append(f"{row['suspicion']:4.0%}  row {row['train_index']:<7} {label}:  {text}")
        return "\n".join(lines)

    def to_pandas(self) -> pd.DataFrame:
        """Return the table.

        Example:
            ```python
            trainer.suspects().to_pandas().to_csv("suspects.csv")
            ```
        """
        return self.table


def find_suspects(
    train: Dataset, probabilities: np.ndarray, predictions: Predictions, model_names: dict[int, str]
) -> Suspects:
    """Order the training examples, the most suspicious label first, and equal suspicions by their loss.

    Args:
        train (`datasets.Dataset`): N training examples.
        probabilities (`np.ndarray` of shape `(N, C)`): The labels that the model predicts, over some moments.
        predictions ([`Predictions`]): What the model as it is predicts.
        model_names (`dict`): The names of the labels (`config.id2label`).
    """
    labels = predictions.labels.astype(np.int64)
    posterior = class_posterior(probabilities, labels)
    suspicion = 1 - posterior[np.arange(len(labels)), labels]
    order = np.lexsort((-predictions.losses, -suspicion))
    names = names_of_labels(train, model_names)
    if len(names) != posterior.shape[1]:  # the choices of a multiple-choice model
        names = [str(choice) for choice in range(posterior.shape[1])]
    columns = {
        "train_index": order,
        "suspicion": suspicion[order],
        "label": [names[label] for label in labels[order]],
        "suggested": [names[label] for label in posterior.argmax(axis=1)[order]],
        "loss": predictions.losses[order],
    }
    texts = train.select_columns(text_columns(train)).with_format(None).select(order)
    return Suspects(pd.DataFrame(columns | texts.to_dict()), len(train))
