"""Recall of the index's own ranking against exact scores, for every kind of features and several sizes.

    python benchmarks/recall.py --model_name_or_path out/mnli --train_file mnli_train.jsonl.gz \
        --validation_file mnli_dev_matched.jsonl.gz --text_columns premise hypothesis --output_dir out/recall

Half of the queries are misclassified, half are not. The exact scores are products of whole gradients with s_test by
`--exact_solver` (for a few thousand examples "exact", which computes the inverse itself, otherwise "sdca"). Nothing is
scored again. Prints recall of the top 10, 100 and 1,000 at k = 1 % of the candidates, and writes `recall.json` and
`recall.png`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import set_seed

from hf_fastif import InfluenceConfig
from hf_fastif.analysis import changed, recall
from hf_fastif.artifacts import atomic_write
from hf_fastif.training import DataArguments, ModelArguments, make_trainer, parse_arguments


# The settings of each index: for sketches, d entries of which r combinations are stored.
KINDS: dict[str, dict[str, Any]] = {
    "pooled": {"index_features": "pooled"},
    "mean_pooled": {"index_features": "mean_pooled"},
    **{
        f"sketch, d = {d:,}, r = {r:,}": {"index_features": "gradient_sketch", "sketch_size": d, "index_size": r}
        for d, r in ((1024, 1024), (4096, 1024), (8192, 256), (8192, 1024), (8192, 2048), (16384, 1024))
    },
}
TOP = (10, 100, 1000)


@dataclass
class BenchmarkArguments(ModelArguments):
    """What to measure."""

    num_queries: int = field(default=100, metadata={"help": "Half of them misclassified."})
    exact_solver: str = field(default="sdca", metadata={"help": "Solver of the exact scores, such as exact or sdca."})


def main(benchmark: BenchmarkArguments, data: DataArguments, config: InfluenceConfig) -> None:
    set_seed(config.seed)
    trainer, examples = make_trainer(benchmark, data, config)
    validation = examples["validation"].shuffle(config.seed)
    wrong = trainer.find_misclassified(validation)
    right = np.setdiff1d(np.arange(len(validation)), wrong)
    half = benchmark.num_queries // 2
    queries = validation.select([*wrong[:half], *right[:half]])
    count = len(trainer.train_dataset)
    with changed(trainer, solver=benchmark.exact_solver):
        scan, seconds = timed(lambda: trainer.compute_influence(queries))
    forward = seconds_of_a_forward_pass(trainer)
    print(f"exact scores: {seconds:.0f} s; a forward pass: {forward:.0f} s", flush=True)
    rows, top = [], [m for m in TOP if m <= count]
    print("| features | numbers | index, forward passes | search, ms a query | " + " | ".join(map(str, top)) + " |")
    print("|---|---|---|---|" + "---|" * len(top))
    for name, settings in KINDS.items():
        with changed(trainer, **settings):
            index, building = timed(trainer.build_index)
            _, searching = timed(lambda: trainer.find_candidates(queries, max(1, count // 100)))
            result = recall(trainer, queries, top=top, scan=scan)
        row = {"features": name, "build": building / forward, "search": searching / len(queries)}
        rows.append(row | {"table": result.table})
        k = max(1, round(0.01 * count))
        at = {line["m"]: line["recall"] for line in result.table if (line["k"], line["direction"]) == (k, "absolute")}
        cells = [index.faiss_index.d, f"{row['build']:.1f}", f"{1000 * row['search']:.0f}"]
        print(f"| {' | '.join(map(str, [name, *cells, *(f'{value:.3f}' for value in at.values())]))} |", flush=True)
    folder = Path(config.output_dir)
    (folder / "recall.json").write_text(json.dumps(rows))
    plot(rows, folder / "recall.png")


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw recall of the strongest examples of either sign against k."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.8), layout="constrained")
    axes = figure.subplots()
    for number, features in enumerate(rows):
        for m, style in zip(TOP, ("-", "--", ":"), strict=True):
            curve = [row for row in features["table"] if (row["direction"], row["m"]) == ("absolute", m)]
            label = features["features"] if m == TOP[0] else None
            points = [row["k"] for row in curve], [row["recall"] for row in curve]
            axes.plot(*points, style, color=f"C{number}", label=label)
    axes.set(xscale="log", xlabel="k, candidates that the index ranks highest", ylabel="recall", ylim=(0, 1.03))
    axes.grid(alpha=0.3)
    title = "solid: top 10, dashed: top 100, dotted: top 1,000"
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, title=title)
    atomic_write(path, lambda file: figure.savefig(file, format="png", dpi=120))


def timed(run: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    return run(), time.perf_counter() - start


def seconds_of_a_forward_pass(trainer) -> float:
    """Of the whole training set, from 512 of its examples."""
    with trainer.session() as session:
        examples = session.examples("train_dataset", trainer.train_dataset)
    rows = np.random.default_rng(0).choice(len(examples), min(512, len(examples)), replace=False)
    batches = examples.grouped_by_length(rows, trainer.args.influence_batch_size)
    for _ in range(2):  # the first warms up
        start = time.perf_counter()
        with torch.no_grad():
            for batch in batches:
                trainer.model.eval()(**examples.take(batch))
    return (time.perf_counter() - start) / len(rows) * len(examples)


if __name__ == "__main__":
    main(*parse_arguments(BenchmarkArguments, DataArguments, InfluenceConfig))
