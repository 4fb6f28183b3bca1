"""EK-FAC of kronfluence, EK-FAC of this library and its index: seconds of the fit and of all scores.

    python benchmarks/ekfac.py --model_name_or_path out/mnli --train_file mnli_train.jsonl.gz \
        --validation_file mnli_dev_matched.jsonl.gz --text_columns premise hypothesis --max_train_examples 2000 \
        --output_dir out/ekfac

All get the same model, of which only linear layers are trained, so that all cover the same parameters, the same
examples, batches and damping (a tenth of each layer's mean eigenvalue; the index: its default). Factors are fitted to
the whole training set. kronfluence is left out where it is not installed
(`pip install --no-deps kronfluence==1.0.1 einops einconv opt-einsum`). Prints a table and writes `ekfac.json`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from peers import kronfluence_scores
from scipy.stats import spearmanr
from transformers import set_seed

from hf_fastif import InfluenceConfig, InfluenceTrainer
from hf_fastif.analysis import changed
from hf_fastif.artifacts import atomic_write
from hf_fastif.training import DataArguments, ModelArguments, make_trainer, parse_arguments


@dataclass
class BenchmarkArguments(ModelArguments):
    """What to measure."""

    num_queries: int = field(default=200, metadata={"help": "Validation examples."})


@dataclass
class Measured:
    """The cost of a method and its scores (Q, N), negative for helpful examples."""

    method: str
    fitting: float
    scoring: float
    scores: np.ndarray


def main(benchmark: BenchmarkArguments, data: DataArguments, config: InfluenceConfig) -> None:
    set_seed(config.seed)
    config.query_batch_size = benchmark.num_queries
    trainer, examples = make_trainer(benchmark, data, config)
    config.ekfac_samples = len(trainer.train_dataset)
    for module in trainer.model.modules():
        if not isinstance(module, torch.nn.Linear):
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad_(False)
    queries = examples["validation"].shuffle(config.seed).select(range(benchmark.num_queries))
    trainer.find_misclassified(queries)  # opens a session, hashes model and data
    methods = [by_index, by_ekfac] + [by_kronfluence] * (find_spec("kronfluence") is not None)
    measured = [method(trainer, queries) for method in methods]
    truth = measured[-1]
    print(f"{benchmark.num_queries} x {len(trainer.train_dataset):,} scores")
    print(f"| | fit, s | scores, s | total, s | Spearman with {truth.method} |\n|---|---|---|---|---|")
    rows = []
    for one in measured:
        pairs = zip(one.scores, truth.scores, strict=True)
        agreement = float(np.mean([spearmanr(*pair).statistic for pair in pairs]))
        rows.append({"method": one.method, "fit": one.fitting, "scores": one.scoring, "spearman": agreement})
        total = one.fitting + one.scoring
        print(f"| {one.method} | {one.fitting:.1f} | {one.scoring:.1f} | {total:.1f} | {agreement:.3f} |")
    atomic_write(
        Path(config.output_dir) / "ekfac.json", lambda file: file.write_text(json.dumps(rows, indent=2), "utf-8")
    )


def by_index(trainer: InfluenceTrainer, queries: Dataset) -> Measured:
    _, fitting = timed(trainer.build_index)
    scores, scoring = timed(lambda: trainer.compute_influence(queries))
    return Measured("our index", fitting, scoring, scores)


def by_ekfac(trainer: InfluenceTrainer, queries: Dataset) -> Measured:
    with changed(trainer, solver="ekfac"):
        with trainer.session() as session, session.checkpoints.at(0):
            session.cache.fitted.clear()  # the bases, which the index needs too
            _, fitting = timed(session.setup().factors)
        scores, scoring = timed(lambda: trainer.compute_influence(queries))
    return Measured("our EK-FAC", fitting, scoring, scores)


def by_kronfluence(trainer: InfluenceTrainer, queries: Dataset) -> Measured:
    with trainer.session() as session, session.checkpoints.at(0):
        (scores,), _, fitting, (scoring,) = kronfluence_scores(
            session, queries, trainer.train_dataset, "ekfac", (None,)
        )
    return Measured("kronfluence EK-FAC", fitting, scoring, -scores)


def timed(run: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    return run(), time.perf_counter() - start


if __name__ == "__main__":
    main(*parse_arguments(BenchmarkArguments, DataArguments, InfluenceConfig))
