"""What more processes save: an index, its answers, s_test with T = 4 repeats and a full scan, on one and on two.

    python benchmarks/scaling.py --model_name_or_path out/mnli --train_file mnli_train.jsonl.gz \
        --validation_file mnli_dev_matched.jsonl.gz --text_columns premise hypothesis --max_train_examples 2000 \
        --use_cpu --output_dir out/scaling

Every round starts one process and then two, with one thread and a core of its own each. Everything is done from the
beginning, and then once more, which is what counts; the medians over the rounds are compared. Prints a table
and writes `scaling.json`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from transformers import set_seed

from hf_fastif import InfluenceConfig, InfluenceTrainer
from hf_fastif.analysis import changed
from hf_fastif.artifacts import atomic_write
from hf_fastif.config import with_settings
from hf_fastif.training import DataArguments, ModelArguments, make_trainer, parse_arguments


@dataclass
class BenchmarkArguments(ModelArguments):
    """What to measure."""

    num_queries: int = field(default=4, metadata={"help": "Validation examples."})
    processes: list[int] = field(default_factory=lambda: [1, 2], metadata={"help": "Numbers of processes."})
    rounds: int = field(default=3, metadata={"help": "How often everything is timed."})
    measure: bool = field(default=False, metadata={"help": "Only time this process: what the benchmark starts."})


def main(benchmark: BenchmarkArguments, data: DataArguments, config: InfluenceConfig) -> None:
    if benchmark.measure:
        core = sorted(os.sched_getaffinity(0))[config.local_process_index]
        os.sched_setaffinity(0, {core})  # so that no process is put on the core of another
        set_seed(config.seed)
        config.num_repeats = 4
        for name in ("warm", "timed"):  # memory that a process touches for the first time is slow
            run = with_settings(config, output_dir=str(Path(config.output_dir, name)))
            trainer, examples = make_trainer(benchmark, data, run)
            seconds = measured(trainer, examples["validation"].select(range(benchmark.num_queries)))
        if trainer.is_world_process_zero():
            print(json.dumps(seconds))
        return
    folder = Path(config.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    timings = []
    for _ in range(benchmark.rounds):
        for count in benchmark.processes:
            timings.append({"processes": count, "seconds": launched(count, folder)})
            print(timings[-1], flush=True)
    report(timings, benchmark.processes)
    atomic_write(folder / "scaling.json", lambda file: file.write_text(json.dumps(timings, indent=2), "utf-8"))


def measured(trainer: InfluenceTrainer, queries) -> dict[str, float]:
    """Seconds of each kind of work."""
    seconds: dict[str, float] = {}

    @contextmanager
    def timed(name: str) -> Iterator[None]:
        trainer.accelerator.wait_for_everyone()
        start = time.perf_counter()
        yield
        trainer.accelerator.wait_for_everyone()
        seconds[name] = time.perf_counter() - start

    with timed("Kronecker bases, once for a model"), trainer.session() as session:
        setup = session.setup()
        setup.kronecker_bases()
        iterative = setup.iterative
    with timed("index"):
        trainer.build_index()
    with timed(f"{len(queries)} queries answered by the index"):
        trainer.find_influential(queries)
    with changed(trainer, solver=iterative):
        with timed(f"s_test of {len(queries)} queries by {iterative}, T = {trainer.args.num_repeats}"):
            s_test = trainer.compute_s_test(queries)
        with timed(f"full scan for {len(queries)} queries"):
            trainer.compute_influence(queries, s_test=s_test)
    return seconds


def launched(count: int, folder: Path) -> dict[str, float]:
    """What so many processes of one thread need."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={count}"]
    with TemporaryDirectory(dir=folder) as run_folder:
        command = [*launch, *sys.argv, "--measure", "true", "--disable_tqdm", "true", "--output_dir", run_folder]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout
    return json.loads(printed.splitlines()[-1])


def report(timings: list[dict], processes: list[int]) -> None:
    """A table of medians, and of how many times faster more processes are, with the lowest and highest round."""
    first, *others = processes
    print(f"| work | {first} process, s | " + " | ".join(f"{n} processes, s | times faster" for n in others) + " |")
    print("|---|---|" + "---|---|" * len(others))
    for work in timings[0]["seconds"]:
        taken = {n: np.array([row["seconds"][work] for row in timings if row["processes"] == n]) for n in processes}
        cells = [f"{np.median(taken[first]):.1f}"]
        for n in others:
            ratios = taken[first] / taken[n]
            cells.append(f"{np.median(taken[n]):.1f}")
            cells.append(f"{np.median(ratios):.2f} ({ratios.min():.2f} to {ratios.max():.2f})")
        print(f"| {work} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main(*parse_arguments(BenchmarkArguments, DataArguments, InfluenceConfig))
