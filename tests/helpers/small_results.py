"""A small result of made-up scores."""

from __future__ import annotations

import numpy as np
from datasets import Dataset

from hf_fastif import InfluenceResult
from hf_fastif.influence.predictions import Predictions
from hf_fastif.results.build import build_result
from hf_fastif.scoring.scores import QueryScores


TRAIN = Dataset.from_dict(
    {
        "text": [f"training sentence number {i}" for i in range(6)],
        "label": [0, 1, 0, 1, 0, 1],
        "index": list(range(10, 16)),
        "input_ids": [[1, 2]] * 6,
    }
)
QUERIES = Dataset.from_dict({"text": ["is this a query", "and this one too"], "label": [1, 0], "index": [7, 8]})
SCORES = np.array([[0.5, -2.0, 0.0, 3.0, -1.0, -2.0], [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]], np.float32)


def make(num_examples=None, queries=QUERIES, train=TRAIN, names=("no", "yes"), **settings) -> InfluenceResult:
    quality = {"residual": 0.1, "std_err": float("nan"), "damping": 0.2, "scale": 30.0}
    return build_result(
        queries,
        train,
        Predictions(
            logits=np.array([[0.0, 2.0], [0.0, 1.0]]), losses=np.array([0.13, 1.31]), labels=np.array([1.0, 0.0])
        ),
        np.array([0.25, 1.31]),
        [QueryScores(np.arange(6), scores, quality) for scores in SCORES],
        num_examples,
        dict(enumerate(names)),
        {"model": "tiny", "largest_eigenvalue": None, **settings},
    )
