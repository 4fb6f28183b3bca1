"""List training examples by how probably their labels are wrong."""

from __future__ import annotations

import numpy as np
import pandas as pd
from datasets import Dataset

from hf_fastif.data import names_of_labels, text_columns
from hf_fastif.diagnosis import class_posterior
from hf_fastif.influence import Predictions


def suspects_table(
    train: Dataset, probabilities: np.ndarray, predictions: Predictions, model_names: dict[int, str]
) -> pd.DataFrame:
    """Return the training examples, the most suspicious label first.

    Args:
        train (`datasets.Dataset`): N training examples.
        probabilities (`np.ndarray` of shape `(N, C)`): The labels that the model predicts, over some moments.
        predictions ([`Predictions`]): What the model as it is predicts.
        model_names (`dict`): The names of the labels (`config.id2label`).

    Returns:
        `pandas.DataFrame`: The columns that `InfluenceMixin.suspects` names.
    """
    labels = predictions.labels.astype(np.int64)
    posterior = class_posterior(probabilities, labels)
    suspicion = 1 - posterior[np.arange(len(labels)), labels]
    order = np.lexsort((-predictions.losses, -suspicion))  # equal suspicions by loss
    names = names_of_labels(train, model_names)
    if len(names) != posterior.shape[1]:  # the choices of a multiple-choice model
        names = list(range(posterior.shape[1]))
    texts = train.select_columns(text_columns(train)).with_format(None).select(order)
    return pd.DataFrame(
        {
            "train_index": order,
            "suspicion": suspicion[order],
            "label": np.array(names)[labels[order]],
            "suggested": np.array(names)[posterior.argmax(axis=1)[order]],
            "loss": predictions.losses[order],
            **texts.to_dict(),
        }
    )
