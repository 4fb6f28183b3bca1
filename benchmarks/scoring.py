"""The cost of scoring candidates, in plain forward passes over the same candidates.

    python benchmarks/scoring.py --model_name_or_path out/mnli --train_file mnli_train.jsonl.gz \
        --validation_file mnli_dev_matched.jsonl.gz --text_columns premise hypothesis --output_dir out/scoring

Everything is timed in turn, `--rounds` times over, and the medians are compared. The loop that is compared with is
that of the FastIF authors: a backward pass for each candidate, padded to 128 tokens. kronfluence is compared with
where it is installed (`pip install --no-deps kronfluence einops einconv opt-einsum`, since torchvision, which it
names, does not fit torch's CPU build). With `--memory_scans` a scan of 3,000 and one of all candidates are run in
processes of their own, and their peak memory compared. Writes `scoring.json`.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from peers import kronfluence_scores
from scipy.stats import spearmanr
from transformers import set_seed

from hf_fastif import InfluenceConfig, InfluenceTrainer
from hf_fastif.execution import DatasetSweep
from hf_fastif.influence import loss_gradients
from hf_fastif.model import Objective, find_frozen_states
from hf_fastif.scoring import influence_scores
from hf_fastif.training import DataArguments, ModelArguments, make_trainer, parse_arguments


PADDED = 128  # tokens, in the loop over candidates
LOOP = 32  # candidates in that loop


@dataclass
class BenchmarkArguments(ModelArguments):
    """What to measure."""

    num_candidates: int = field(default=512, metadata={"help": "Training examples to score."})
    num_queries: int = field(default=64, metadata={"help": "Validation examples, for what several queries share."})
    rounds: int = field(default=3, metadata={"help": "How often everything is timed."})
    memory_scans: bool = field(default=False, metadata={"help": "Compare the peak memory of two full scans."})
    scan_only: int | None = field(default=None, metadata={"help": "Only scan that many, and print the peak memory."})


def main(benchmark: BenchmarkArguments, data: DataArguments, config: InfluenceConfig) -> None:
    set_seed(config.seed)
    config.solver = "identity"
    trainer, examples = make_trainer(benchmark, data, config)
    validation = examples["validation"].shuffle(config.seed)
    queries = validation.select(range(benchmark.num_queries))
    if benchmark.scan_only is not None:
        trainer.compute_influence(queries.select([0]), trainer.train_dataset.select(range(benchmark.scan_only)))
        print(json.dumps({"peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}))
        return
    record = time_all(benchmark, trainer, queries)
    if benchmark.memory_scans:
        record["peak memory of scans, GB"] = {count: peak(count) for count in (3_000, len(trainer.train_dataset))}
        print(record["peak memory of scans, GB"])
    folder = Path(config.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "scoring.json").write_text(json.dumps(record, indent=2))


def time_all(benchmark: BenchmarkArguments, trainer: InfluenceTrainer, queries) -> dict[str, object]:
    pool = trainer.train_dataset.shuffle(trainer.args.seed).select(range(benchmark.num_candidates))
    model = trainer.model
    rows = np.arange(len(pool))
    sweep = DatasetSweep(trainer.args.influence_batch_size, trainer.accelerator)

    def forward() -> None:
        model.eval()
        with torch.no_grad():
            for batch in examples.grouped_by_length(rows, sweep.batch_size):
                model(**examples.take(batch))

    def loop() -> None:
        parameters = [p for p in model.parameters() if p.requires_grad]
        for row in rows[:LOOP]:
            batch = {k: pad(v) if k != "labels" else v for k, v in examples.take([row]).items()}
            gradients = torch.autograd.grad(model(**batch).loss, parameters)
            torch.cat([g.flatten() for g in gradients]) @ s_test[0]

    def with_gradients() -> np.ndarray:
        vectors = loss_gradients(objective, session.examples("queries", queries), range(len(queries)))
        return influence_scores(objective, examples, vectors, rows, sweep)

    with trainer.session() as session:
        objective, examples = session.objective, session.examples("candidates", pool)
        cached, rough_cached = session.examples("candidates", pool), session.examples("candidates", pool)
        rough, resumed, both = Objective(model, bf16=True), Objective(model), Objective(model, bf16=True)
        s_test = loss_gradients(objective, session.examples("queries", queries), range(len(queries)))
        cached.states = find_frozen_states(resumed, cached, 1 << 33)
        rough_cached.states = find_frozen_states(both, rough_cached, 1 << 33)
        methods: dict[str, Callable[[], np.ndarray | None]] = {
            "a forward pass": forward,
            "one query": lambda: influence_scores(objective, examples, s_test[:1], rows, sweep),
            "one query by gradients": lambda: influence_scores(
                objective, examples, s_test[:1], rows, sweep, "gradients"
            ),
            "one query, bf16": lambda: influence_scores(rough, examples, s_test[:1], rows, sweep),
            "one query, frozen states kept": lambda: influence_scores(resumed, cached, s_test[:1], rows, sweep),
            "one query, bf16, frozen states kept": lambda: influence_scores(
                both, rough_cached, s_test[:1], rows, sweep
            ),
            f"{len(queries)} queries": lambda: influence_scores(objective, examples, s_test, rows, sweep),
            f"{len(queries)} queries and their gradients": with_gradients,
            f"{len(queries)} queries, bf16": lambda: influence_scores(rough, examples, s_test, rows, sweep),
            f"{len(queries)} queries, frozen states kept": lambda: influence_scores(
                resumed, cached, s_test, rows, sweep
            ),
            "a backward pass each, padded to 128": loop,
        }
        seconds, answers = time_in_turn(methods, benchmark.rounds)
        seconds["a backward pass each, padded to 128"] *= len(rows) / LOOP
        agreement = {name: agree(answer, answers) for name, answer in answers.items() if answer is not None}
        if find_spec("kronfluence") is not None:
            seconds["kronfluence"], correlation = kronfluence(session, queries, pool, s_test)
            agreement["kronfluence, on the layers that both cover"] = correlation
    report(seconds, agreement)
    return {"seconds": seconds, "agreement": agreement, "candidates": len(pool), "queries": len(queries)}


def pad(values: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.pad(values[:, :PADDED], (0, PADDED - values.shape[1]))


def time_in_turn(methods: dict[str, Callable], rounds: int) -> tuple[dict[str, float], dict[str, np.ndarray | None]]:
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    answers = {name: method() for name, method in methods.items()}  # warm
    for _ in range(rounds):
        for name, method in methods.items():
            start = time.perf_counter()
            method()
            seconds[name].append(time.perf_counter() - start)
    return {name: float(np.median(values)) for name, values in seconds.items()}, answers


def agree(answer: np.ndarray, answers: dict[str, np.ndarray | None]) -> float:
    """The lowest Spearman correlation, over queries, with the float32 scores of as many queries."""
    truth = next(other for other in answers.values() if other is not None and other.shape == answer.shape)
    return min(float(spearmanr(one, other).statistic) for one, other in zip(answer, truth, strict=True))


def report(seconds: dict[str, float], agreement: dict[str, float]) -> None:
    unit = seconds["a forward pass"]
    print("| | seconds | forward passes | Spearman |\n|---|---|---|---|")
    for name, value in seconds.items():
        print(f"| {name} | {value:.2f} | {value / unit:.2f} | {agreement.get(name, float('nan')):.5f} |")
    print({name: value for name, value in agreement.items() if name not in seconds})


def kronfluence(session, queries, pool, s_test) -> tuple[float, float]:
    """Seconds of kronfluence's gradient products (`identity`) for the same pairs, and the agreement with ours.

    Its time includes the gradients of the queries, so "queries and their gradients" is what to compare it with.
    """
    (theirs,), linear, _, (seconds,) = kronfluence_scores(session, queries, pool, "identity")
    shared = s_test.clone()
    for name, piece in session.objective.space.split(shared).items():
        if name.rpartition(".")[0] not in linear:
            piece.zero_()
    candidates, rows = session.examples("candidates", pool), np.arange(len(pool))
    ours = -influence_scores(session.objective, candidates, shared, rows, session.sweep)
    return seconds, min(float(np.corrcoef(one, other)[0, 1]) for one, other in zip(ours, theirs, strict=True))


def peak(count: int) -> float:
    """Peak memory in GB of a process that scans so many candidates for one query."""
    command = [sys.executable, *sys.argv, "--scan_only", str(count), "--memory_scans", "false"]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])[
        "peak"
    ]


if __name__ == "__main__":
    main(*parse_arguments(BenchmarkArguments, DataArguments, InfluenceConfig))
