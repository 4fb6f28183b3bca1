"""Predict the training set at several moments of training."""

from __future__ import annotations

import numpy as np
from scipy.special import softmax

from hf_fastif.checkpoints import Checkpoint, CheckpointSet, has_same_parameters
from hf_fastif.errors import InfluenceError
from hf_fastif.influence.predictions import Predictions
from hf_fastif.influence.session import InfluenceSession
from hf_fastif.model import trained_state


def predict_classes_at_moments(session: InfluenceSession) -> tuple[np.ndarray, Predictions]:
    """Predict the classes of the training set at the checkpoints of influence, and by the model as it is.

    Args:
        session (`InfluenceSession`): A session on a classifier.

    Returns:
        The mean of the probabilities (N, C) over these moments, and the predictions of the model as it is.

    Raises:
        InfluenceError: If the labels are not classes.
    """
    moments, total = _moments(session), 0.0
    for number in range(len(moments)):
        with moments.at(number):
            predictions = session.predict(session.train)
        if predictions.right is not None or predictions.logits.shape[1] < 2 or np.isnan(predictions.labels).any():
            raise InfluenceError(
                "train_dataset: its labels are not classes (one whole number per row), and only a class can be "
                "suggested instead; rank other examples by trainer.self_influence()."
            )
        total = total + softmax(predictions.logits.astype(np.float64), axis=1)
    return total / len(moments), predictions


def _moments(session: InfluenceSession) -> CheckpointSet:
    """Return the checkpoints of influence that differ from the model as it is, and this model, which comes last."""
    state = trained_state(session.objective.model)
    members = [
        member
        for member in session.checkpoints.members
        if member.path is not None and not has_same_parameters(member, state)
    ]
    members.append(Checkpoint())
    return CheckpointSet(session.objective, members, [1 / len(members)] * len(members))
