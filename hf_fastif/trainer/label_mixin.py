"""Find wrong predictions and wrong labels, for `InfluenceTrainer`."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from datasets import Dataset

from hf_fastif.data import without_indexes
from hf_fastif.errors import InfluenceError
from hf_fastif.influence import predict_classes_at_moments
from hf_fastif.results import Suspects, find_suspects


class LabelMixin:
    """The methods of [`InfluenceTrainer`] that compare labels with predictions."""

    def find_misclassified(self, examples: Dataset) -> np.ndarray:
        """Return the rows, ascending, whose label (or any label, if they have several) the model does not predict.

        Raises:
            InfluenceError: If the labels are not classes.

        Example:
            ```python
            errors = dev.select(trainer.find_misclassified(dev))
            ```
        """
        with self.session() as session:
            return np.flatnonzero(session.queries(examples).predictions.wrong())

    def suspects(self, k: int | None = None) -> Suspects:
        """List the training examples whose labels are most probably wrong, for a person to look at.

        The estimate takes what the model predicts for its training examples, on average over `args.checkpoints` and
        the model as it is, and how often each class is given each label, counted where the model is sure. It is as
        good as the model: labels that the model is wrongly sure of are suspected too.

        Args:
            k (`int`, *optional*): The number of rows to return; by default all.

        Returns:
            [`Suspects`]: The most suspicious row first; `to_pandas()` returns its table.

        Raises:
            InfluenceError: If labels are missing or are not classes.

        Example:
            ```python
            print(trainer.suspects(k=20))
            ```
        """
        if k is not None and k < 1:
            raise InfluenceError(f"k={k}: give at least 1, or None for all training examples.")
        with self.session() as session:
            probabilities, predictions = predict_classes_at_moments(session)
        train = without_indexes(self.train_dataset)
        suspects = find_suspects(train, probabilities, predictions, self.model.config.id2label)
        return replace(suspects, table=suspects.table.head(k or len(train)))
