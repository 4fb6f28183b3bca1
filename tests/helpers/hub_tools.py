"""What the tests of publishing share."""

from __future__ import annotations

import numpy as np
import torch
from datasets import Dataset

from hf_fastif import InfluenceResult
from hf_fastif.analysis import Recall
from hf_fastif.checkpoints import Checkpoint
from hf_fastif.curvature import Spectrum
from hf_fastif.diagnosis.diagnosis import Diagnosis
from hf_fastif.diagnosis.signals import CheckpointSignal
from hf_fastif.influence.predictions import Predictions
from hf_fastif.results.build import build_result
from hf_fastif.scoring.scores import QueryScores
from hf_fastif.solvers import Solution


TEXTS = [f"training sentence number {i}" for i in range(6)] + ["is this a query", "and this one too"]
SCORES = np.array([[0.5, -2.0, 0.0, 3.0, -1.0, -2.0], [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]], np.float32)


def make_result(as_one: bool = False, **changes) -> InfluenceResult:
    """Two queries (or anchors) and six candidates, as `find_influential` would have them."""
    quality = {"residual": 0.1, "std_err": float("nan"), "damping": 0.2, "scale": None}
    settings = {
        "model": "me/tiny",
        "base_model": "me/tiny",
        "datasets": ["you/sentences"],
        "num_parameters": 1234,
        "num_neighbors": 5,
        "num_examples": 3,
        "solver": "SDCA, 40 examples visited",
        "curvature": "gauss_newton",
        "largest_eigenvalue": 40.0,
        **changes,
    }
    return build_result(
        Dataset.from_dict({"text": TEXTS[6:], "label": [1, 0]}),
        Dataset.from_dict({"text": TEXTS[:6], "label": [0, 1] * 3}),
        Predictions(np.array([[0.0, 2.0], [0.0, 1.0]]), np.array([0.13, 1.31]), np.array([1.0, 0.0])),
        np.array([0.13, 1.31]),
        [QueryScores(np.arange(6), scores, quality) for scores in SCORES[: 1 if as_one else 2]],
        3,
        {0: "no", 1: "yes"},
        settings,
    )


def make_recall() -> Recall:
    rows = [{"direction": "absolute", "m": 10, "k": k, "recall": r, "std_err": 0.0} for k, r in ((1, 0.5), (4, 0.97))]
    others = [row | {"direction": name} for row in rows for name in ("helpful", "harmful")]
    return Recall(rows + others, num_candidates=6, num_queries=2)


def make_diagnosis() -> Diagnosis:
    solution = Solution.direct(torch.zeros(2, 0), torch.tensor([0.1, 0.2]), 0.2)
    known = torch.tensor([0.5, 0.6])
    spectrum = Spectrum(np.array([10.0, 1.0, 0.1]))
    signals = [CheckpointSignal(Checkpoint(), False, 0.3, 0.4, 11.1)]
    return Diagnosis(
        "gauss_newton", spectrum, 6, 6, 1234, 0.2, False, "SDCA", 1, solution, known, known, 32, 20.0, signals
    )


FULL = make_recall(), make_diagnosis()
