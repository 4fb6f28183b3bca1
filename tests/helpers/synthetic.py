"""Results that are made up: as many queries, training examples and edges as wanted, with structure to see."""

from __future__ import annotations

import numpy as np
from datasets import ClassLabel, Dataset, Features, Value

from hf_fastif import InfluenceResult
from hf_fastif.influence.predictions import Predictions
from hf_fastif.results.build import build_result
from hf_fastif.scoring.scores import QueryScores


NAMES = ["entailment", "non-entailment"]
WORDS = "the a lawyer banker saw near while because helped slept tall quick artist doctor and <b>or</b> before".split()


def synthetic_result(
    slices: dict[str, int],
    num_trains: int = 300,
    k: int = 40,
    num_examples: int | None = None,
    seed: int = 0,
    **settings,
) -> InfluenceResult:
    """Slices of queries, each with training examples of its own and some that all share; few are helpful, but strong.

    Queries have the columns premise, hypothesis, label and group (their slice), training examples also (one of three).
    """
    random = np.random.default_rng(seed)
    names = [name for name, size in slices.items() for _ in range(size)]
    outcomes = []
    for number, name in enumerate(names):
        slice_number = list(slices).index(name)
        home = (slice_number + 0.5 + random.normal(0, 0.6, k)) / len(slices) + 0.1 * number / len(names)
        rows = np.unique((home % 1 * num_trains).astype(int))
        scores = random.gamma(0.7, 0.3, len(rows)) * (1 + 4 * slice_number)
        helpful = random.random(len(rows)) < 0.2
        scores = np.where(helpful, -4 * scores, scores).astype(np.float32)
        outcomes.append(QueryScores(rows, scores, {"residual": 0.1, "std_err": 0.02, "damping": 0.1, "scale": 2.0}))
    probabilities = random.uniform(0.5, 0.99, len(names))
    logits = np.log(np.stack([1 - probabilities, probabilities], axis=1))
    return build_result(
        pairs(names, random, "query"),
        pairs([f"group {i % 3}" for i in range(num_trains)], random, "training"),
        Predictions(logits, -np.log(1 - probabilities), np.zeros(len(names))),
        -np.log(1 - probabilities),
        outcomes,
        num_examples,
        dict(enumerate(NAMES)),
        {
            "model": "some/model",
            "num_parameters": 1234567,
            "largest_eigenvalue": 10.0,
            "curvature": "gauss_newton",
            "solver": "SDCA, 2,000 examples visited",
            "num_neighbors": k,
            "num_examples": num_examples,
            **settings,
        },
    )


def pairs(groups: list[str], random: np.random.Generator, name: str) -> Dataset:
    """Sentence pairs; queries have the label 0, training examples either."""
    sentences = [" ".join(random.choice(WORDS, 8)) for _ in groups]
    columns = {
        "premise": [f"{name} {i}: {sentence} and that was all" for i, sentence in enumerate(sentences)],
        "hypothesis": [f"{sentence[:20]} in {name} {i}" for i, sentence in enumerate(sentences)],
        "label": [0 if name == "query" else i % 2 for i in range(len(groups))],
        "group": groups,
    }
    text = Value("string")
    return Dataset.from_dict(
        columns,
        features=Features({"premise": text, "hypothesis": text, "label": ClassLabel(names=NAMES), "group": text}),
    )
