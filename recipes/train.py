"""Fine-tune a classifier as in the paper: first layers frozen, two or three labels, weight decay.

    python recipes/train.py --output_dir out/nli --checkpoints epochs
    python recipes/train.py --output_dir out/nli --checkpoints epochs --num_seeds 3

The recipe saves small checkpoints for influence during training (`--checkpoints epochs`, or a number of them). With
`--num_seeds` it trains several runs that differ in their seed. It does not repeat a finished run.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from hf_fastif import InfluenceConfig
from hf_fastif.config import with_settings
from hf_fastif.training import DataArguments, ModelArguments, fine_tune, run_recipe, runs_of


@dataclass
class RecipeArguments(ModelArguments):
    """Arguments of this recipe, in addition to those of data, training and influence."""

    num_seeds: int = field(
        default=1,
        metadata={
            "help": "Number of runs. Several runs go to OUTPUT_DIR/seed-N and differ in data order and initial head."
        },
    )


def main(recipe: RecipeArguments, data: DataArguments, config: InfluenceConfig) -> None:
    examples = recipe.read_examples(data, with_settings(config, do_train=True))
    for run in runs_of(config, recipe.num_seeds):
        accuracy = fine_tune(recipe, data, run, examples)
        if config.process_index == 0:
            print(f"{run.output_dir}: accuracy {accuracy:.1%} on the validation examples")


if __name__ == "__main__":
    run_recipe(main, RecipeArguments, DataArguments, InfluenceConfig)
