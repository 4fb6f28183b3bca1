"""kronfluence on the model, the pairs and the batches of a benchmark (`pip install --no-deps kronfluence==1.0.1`)."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from datasets import Dataset

from hf_fastif.data import without_indexes
from hf_fastif.influence import InfluenceSession


def kronfluence_scores(
    session: InfluenceSession,
    queries: Dataset,
    pool: Dataset,
    strategy: Literal["identity", "ekfac"],
    dampings: Sequence[float | None] = (1e-8,),
) -> tuple[list[np.ndarray], list[str], float, list[float]]:
    """Products of gradients, with or without EK-FAC's inverse, for the linear layers.

    It gets a copy of the model, of which it tracks the trained linear layers, and batches of similar length. 1e-8 is
    its default damping, and None a tenth of each layer's mean eigenvalue. Returns the scores (Q, N) for each damping
    with a positive sign for helpful examples, the layers, and the seconds for factors, and for the scores of each
    damping (gradients of queries included).
    """
    from kronfluence.analyzer import Analyzer, prepare_model
    from kronfluence.arguments import FactorArguments, ScoreArguments
    from kronfluence.utils.dataset import DataLoaderKwargs

    trainer, objective = session.trainer, session.objective
    model = copy.deepcopy(objective.model)
    trained = {name.rpartition(".")[0] for name in objective.theta}
    linear = [name for name, module in model.named_modules() if name in trained and type(module) is torch.nn.Linear]

    task, size = _classification(linear), trainer.args.influence_batch_size
    order = np.argsort([-len(ids) for ids in pool["input_ids"]], kind="stable")
    candidates, query_rows = (
        trainer.example_batches(rows).dataset for rows in (without_indexes(pool).select(order), queries)
    )
    folder = f"{trainer.args.output_dir}/kronfluence"
    analyzer = Analyzer("peer", prepare_model(model, task), task, cpu=True, output_dir=folder)
    analyzer.set_dataloader_kwargs(DataLoaderKwargs(collate_fn=lambda rows: dict(trainer.data_collator(rows))))
    start = time.perf_counter()
    analyzer.fit_all_factors(
        strategy,
        candidates,
        per_device_batch_size=size,
        factor_args=FactorArguments(strategy=strategy),
        overwrite_output_dir=True,
    )
    fitting = time.perf_counter() - start
    all_scores, seconds = [], []
    for damping in dampings:
        start = time.perf_counter()
        analyzer.compute_pairwise_scores(
            "scores",
            strategy,
            query_dataset=query_rows,
            train_dataset=candidates,
            per_device_query_batch_size=len(queries),
            per_device_train_batch_size=size,
            score_args=ScoreArguments(damping_factor=damping),
            overwrite_output_dir=True,
        )
        seconds.append(time.perf_counter() - start)
        scores = np.empty((len(queries), len(pool)), dtype=np.float32)
        scores[:, order] = analyzer.load_pairwise_scores("scores")["all_modules"].float().numpy()
        all_scores.append(scores)
    return all_scores, linear, fitting, seconds


def _classification(layers: list[str]):
    """What it asks to be told of a model of transformers with labels: losses, and which layers to look at."""
    from kronfluence.task import Task

    class Classification(Task):
        def compute_train_loss(self, batch, model, sample=False):
            logits = model(**{name: values for name, values in batch.items() if name != "labels"}).logits
            drawn = torch.multinomial(logits.detach().softmax(dim=1), 1)[:, 0]
            labels = drawn if sample else batch["labels"]
            return torch.nn.functional.cross_entropy(logits, labels, reduction="sum")

        def compute_measurement(self, batch, model):
            return self.compute_train_loss(batch, model)

        def get_influence_tracked_modules(self):
            return layers

        def get_attention_mask(self, batch):
            return batch["attention_mask"]

    return Classification()
