"""Find wrong predictions and wrong labels, for `InfluenceTrainer`."""

from __future__ import annotations

import numpy as np
import pandas as pd
from datasets import Dataset

from hf_fastif.data import without_indexes
from hf_fastif.errors import InfluenceError
from hf_fastif.influence import predict_classes_at_moments
from hf_fastif.results import suspects_table


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

    def suspects(self, k: int | None = None) -> pd.DataFrame:
        """List the training examples whose labels are most probably wrong, for a person to look at.

        The estimate takes what the model predicts for its training examples, on average over `args.checkpoints` and
        the model as it is, and how often the labels confuse each pair of classes, counted on the same predictions. It
        is cautious: a model has partly learned the wrong labels too.

        Args:
            k (`int`, *optional*): The number of rows to return; by default all.

        Returns:
            `pandas.DataFrame`: The most suspicious row first, with `train_index`, `suspicion` (the estimated
            probability that the label is wrong), `label` (as recorded), `suggested` (the most probable label),
            `loss` (of the model as it is), and the text columns.

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
        return suspects_table(train, probabilities, predictions, self.model.config.id2label).head(k or len(train))
