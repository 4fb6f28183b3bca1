"""Measure the cost of a query by neighbours, processes and algorithm (table 1 of the paper).

    python recipes/runtime.py --config recipes/configs/runtime-mnli-small.yaml
    python recipes/runtime.py --config recipes/configs/runtime-mnli.yaml --processes 1 4

The recipe starts itself on every number of processes in `--processes`, joins the measurements, and writes
`runtime.json`, `.png` and `.svg` into OUTPUT_DIR. With `--timed 100` it times only 100 steps and candidates of the
authors' algorithm, and marks times that are extrapolated from these. It skips finished work.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path

from hf_fastif import InfluenceConfig
from hf_fastif.experiments import Runtime, balanced_queries, runtime
from hf_fastif.training import (
    DataArguments,
    ModelArguments,
    ResultArguments,
    make_trainer,
    report,
    run_recipe,
    trained,
)


@dataclass
class RecipeArguments(ModelArguments, ResultArguments):
    """Arguments of this recipe, in addition to those of data, training and influence."""

    num_queries: int = field(
        default=32, metadata={"help": "Number of validation examples in one call, half of which are predicted wrong."}
    )
    num_alone: int = field(default=10, metadata={"help": "Number of these that are also answered one by one."})
    ks: list[int] = field(default_factory=lambda: [10_000, 1000], metadata={"help": "Numbers of neighbours to score."})
    processes: list[int] = field(
        default_factory=lambda: [1, 2], metadata={"help": "Numbers of processes to measure with."}
    )
    authors_repeats: int = field(default=2, metadata={"help": "T of the authors' LiSSA, divided among the processes."})
    timed: int | None = field(
        default=None,
        metadata={"help": "Steps and candidates of the authors' algorithm to time; the rest is extrapolated."},
    )


def main(recipe: RecipeArguments, data: DataArguments, config: InfluenceConfig) -> None:
    if "LOCAL_RANK" in os.environ:  # one of the processes that are started below
        measure(recipe, data, config)
        return
    # Several processes would train with larger batches, and get a different model.
    trainer, _ = trained(recipe, data, config)
    model = ["--do_train", "false", "--model_name_or_path", config.output_dir] if config.do_train else []
    for processes in recipe.processes:
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        subprocess.run([sys.executable, *launcher, *sys.argv, *model], check=True)
    parts = [Runtime.load(path_of(config, processes)) for processes in recipe.processes]
    result = reduce(Runtime.joined, parts)
    report(result, "runtime", trainer, config, recipe)


def measure(recipe: RecipeArguments, data: DataArguments, config: InfluenceConfig) -> None:
    trainer, examples = make_trainer(recipe, data, config)
    rows, _ = balanced_queries(trainer, examples["validation"], recipe.num_queries, config.seed)
    queries = examples["validation"].select(rows)
    result = runtime(trainer, queries, recipe.ks, recipe.authors_repeats, recipe.timed, recipe.num_alone)
    if trainer.is_world_process_zero():
        result.save(path_of(config, config.world_size))


def path_of(config: InfluenceConfig, processes: int) -> Path:
    return Path(config.output_dir) / f"runtime-{processes}.json"


if __name__ == "__main__":
    run_recipe(main, RecipeArguments, DataArguments, InfluenceConfig)
