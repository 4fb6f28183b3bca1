"""What a query costs: no neighbours or k, the authors' algorithm or ours, on one process or several (table 1).

Starts itself anew on every number of processes that `--processes` names, puts the answers together and writes
`runtime.json`, `.png` and `.svg` into OUTPUT_DIR. With `--timed 100` only 100 steps and candidates of the authors'
algorithm are timed; times that follow from these are marked. What is finished is not timed again.

    python recipes/runtime.py --config recipes/configs/runtime-mnli-small.yaml
    python recipes/runtime.py --config recipes/configs/runtime-mnli.yaml --processes 1 4
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
    """What this recipe needs beside the settings of data, training and influence."""

    num_queries: int = field(default=10, metadata={"help": "Validation examples, half of them predicted wrong."})
    ks: list[int] = field(default_factory=lambda: [10_000, 1000], metadata={"help": "Numbers of neighbours."})
    processes: list[int] = field(default_factory=lambda: [1, 2], metadata={"help": "Numbers of processes."})
    authors_repeats: int = field(default=2, metadata={"help": "T of the authors' LiSSA, dealt to the processes."})
    timed: int | None = field(
        default=None, metadata={"help": "Time only so many steps and candidates of the authors' algorithm."}
    )


def main(recipe: RecipeArguments, data: DataArguments, config: InfluenceConfig) -> None:
    if "LOCAL_RANK" in os.environ:  # one of the processes that were started below
        measure(recipe, data, config)
        return
    # Trained here: by more processes the batches would be larger, and the model another one.
    trainer, _ = trained(recipe, data, config)
    model = ["--do_train", "false", "--model_name_or_path", config.output_dir] if config.do_train else []
    for processes in recipe.processes:
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        subprocess.run([sys.executable, *launcher, *sys.argv, *model], check=True)
    parts = [Runtime.load(path_of(config, processes)) for processes in recipe.processes]
    found = reduce(Runtime.joined, parts)
    report(found, "runtime", trainer, config, recipe)


def measure(recipe: RecipeArguments, data: DataArguments, config: InfluenceConfig) -> None:
    trainer, examples = make_trainer(recipe, data, config)
    rows, _ = balanced_queries(trainer, examples["validation"], recipe.num_queries, config.seed)
    found = runtime(trainer, examples["validation"].select(rows), recipe.ks, recipe.authors_repeats, recipe.timed)
    if trainer.is_world_process_zero():
        found.save(path_of(config, config.world_size))


def path_of(config: InfluenceConfig, processes: int) -> Path:
    return Path(config.output_dir) / f"runtime-{processes}.json"


if __name__ == "__main__":
    run_recipe(main, RecipeArguments, DataArguments, InfluenceConfig)
