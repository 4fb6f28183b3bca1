"""Fine-tunes a classifier as the paper did: first layers frozen, two or three labels, weight decay.

Keeps light checkpoints for influence along training (`--checkpoints epochs`, or a number of them), and trains several
runs that differ in their seed with `--num_seeds`. A run that is finished is not trained again.

    python recipes/train.py --output_dir out/nli --checkpoints epochs
    python recipes/train.py --output_dir out/nli --checkpoints epochs --num_seeds 3
"""

from __future__ import annotations

from dataclasses import dataclass, field

from hf_fastif import InfluenceConfig
from hf_fastif.training import DataArguments, ModelArguments, fine_tune, run_recipe, runs_of


@dataclass
class RecipeArguments(ModelArguments):
    """What this recipe needs beside the settings of data, training and influence."""

    num_seeds: int = field(
        default=1, metadata={"help": "Runs; of several, each goes to OUTPUT_DIR/seed-N and differs in order and head."}
    )


def main(recipe: RecipeArguments, data: DataArguments, config: InfluenceConfig) -> None:
    for run in runs_of(config, recipe.num_seeds):
        accuracy = fine_tune(recipe, data, run)
        if config.process_index == 0:
            print(f"{run.output_dir}: accuracy {accuracy:.1%} on the validation examples")


if __name__ == "__main__":
    run_recipe(main, RecipeArguments, DataArguments, InfluenceConfig)
