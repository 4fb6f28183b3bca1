"""Recall of the candidates against the full scan, for every kind of features and three kinds of s_test.

    python benchmarks/recall.py --model_name_or_path out/mnli --train_file mnli_train.jsonl.gz \
        --validation_file mnli_dev_matched.jsonl.gz --text_columns premise hypothesis --output_dir out/recall

Half of the queries are misclassified, half are not. s_test is that of the authors' damping (50), of SDCA
at the default damping, and of EK-FAC. Writes `recall.json` and `recall.png`.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import set_seed

from hf_fastif import InfluenceConfig
from hf_fastif.analysis import recall
from hf_fastif.artifacts import atomic_write
from hf_fastif.scoring import influence_scores
from hf_fastif.solvers import Solution
from hf_fastif.training import DataArguments, ModelArguments, make_trainer, parse_arguments


KINDS = ["pooled", "gradient_sketch"]
S_TESTS = {
    "lambda 50": {"solver": "cg", "damping": 50.0},
    "SDCA": {"solver": "sdca", "damping": "auto"},
    "EK-FAC": {"solver": "ekfac", "damping": "auto"},
}


@dataclass
class BenchmarkArguments(ModelArguments):
    """What to measure."""

    num_queries: int = field(default=100, metadata={"help": "Half of them misclassified."})


def main(benchmark: BenchmarkArguments, data: DataArguments, config: InfluenceConfig) -> None:
    set_seed(config.seed)
    trainer, examples = make_trainer(benchmark, data, config)
    validation = examples["validation"].shuffle(config.seed)
    wrong = trainer.find_misclassified(validation)
    right = np.setdiff1d(np.arange(len(validation)), wrong)
    half = benchmark.num_queries // 2
    queries = validation.select([*wrong[:half], *right[:half]])
    folder = Path(config.output_dir)
    solutions, rows = {}, []
    fitted = seconds_of_fitting(trainer)
    for name, settings in S_TESTS.items():
        for key, value in settings.items():
            setattr(config, key, value)
        start = time.perf_counter()
        solutions[name] = trainer.compute_s_test(queries)
        print(f"s_test, {name}: {time.perf_counter() - start:.0f} s", flush=True)
    forward = seconds_of_a_forward_pass(trainer)
    start = time.perf_counter()
    scans = scan_together(trainer, solutions)
    print(f"full scan for {len(scans)} x {len(queries)} queries: {time.perf_counter() - start:.0f} s", flush=True)
    print(f"a forward pass: {forward:.0f} s; fitting EK-FAC: {fitted / forward:.1f} of them", flush=True)
    for kind in KINDS:
        config.index_features = kind
        start = time.perf_counter()
        index = trainer.build_index()
        built = (time.perf_counter() - start) / forward
        for name, solution in solutions.items():
            start = time.perf_counter()
            trainer.find_candidates(queries, len(trainer.train_dataset) // 100, s_test=solution)
            searched = (time.perf_counter() - start) / len(queries)
            result = recall(trainer, queries, top=(10, 100, 1000), s_test=solution, scan=scans[name])
            k = round(0.01 * result.num_candidates)
            at = {row["m"]: row["recall"] for row in result.table if (row["k"], row["direction"]) == (k, "absolute")}
            rows.append({"features": kind, "s_test": name, "build": built, "search": searched, "table": result.table})
            numbers = " | ".join(f"{at[m]:.3f}" for m in at)
            size_of = index.faiss_index.d
            print(f"| {kind} | {size_of} | {name} | {built:.1f} | {1000 * searched:.0f} | {numbers} |", flush=True)
    (folder / "recall.json").write_text(json.dumps(rows))
    plot(rows, folder / "recall.png")


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Recall of the strongest examples of either sign against k, a panel for each s_test."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.4), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(S_TESTS), sharey=True), S_TESTS, strict=True):
        for color, features in zip(("C1", "C0"), (row for row in rows if row["s_test"] == name), strict=True):
            for m, style in ((10, "-"), (100, "--"), (1000, ":")):
                curve = [row for row in features["table"] if (row["direction"], row["m"]) == ("absolute", m)]
                label = features["features"] if m == 10 else None
                axes.plot(
                    [row["k"] for row in curve], [row["recall"] for row in curve], style, color=color, label=label
                )
        axes.set(xscale="log", xlabel="k, neighbours scored", title=name, ylim=(0, 1.03))
        axes.grid(alpha=0.3)
        if name == next(iter(S_TESTS)):
            axes.set_ylabel("recall")
    title = "solid: top 10, dashed: top 100, dotted: top 1,000"
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, title=title)
    atomic_write(path, lambda file: figure.savefig(file, format="png", dpi=120))


def scan_together(trainer, solutions: dict[str, Solution]) -> dict[str, np.ndarray]:
    """The full scans of all kinds of s_test, from one pass over the training set."""
    with trainer.session() as session:
        stacked = torch.cat([solution.vectors for solution in solutions.values()])
        scores = influence_scores(
            session.objective, session.train, stacked, np.arange(len(session.train)), session.sweep
        )
    return dict(zip(solutions, np.split(scores, len(solutions)), strict=True))


def seconds_of_fitting(trainer) -> float:
    """EK-FAC's factors, which the sketch needs."""
    start = time.perf_counter()
    with trainer.session() as session:
        session.setup().factors()
    return time.perf_counter() - start


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
