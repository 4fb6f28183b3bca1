"""Time and error of s_test over LiSSA's J, B and T, and of the other solvers (figures 3b and 9 of the paper).

The error is against the exact inverse (`--reference '{"solver": "exact"}'`, a few thousand training examples), against
any other settings, or, unless they are given, against the costliest LiSSA as in the paper. Writes
`inverse_hessian.json`, `.png` and `.svg` into OUTPUT_DIR. What is finished is not done again.

    python recipes/inverse_hessian.py --config recipes/configs/inverse_hessian-mnli-small.yaml
    python recipes/inverse_hessian.py --config recipes/configs/inverse_hessian-mnli.yaml
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from hf_fastif import InfluenceConfig
from hf_fastif.errors import InfluenceError
from hf_fastif.experiments import OTHERS, balanced_queries, inverse_hessian
from hf_fastif.training import (
    DataArguments,
    ModelArguments,
    ResultArguments,
    report,
    run_recipe,
    trained,
)


@dataclass
class RecipeArguments(ModelArguments, ResultArguments):
    """What this recipe needs beside the settings of data, training and influence."""

    num_queries: int = field(default=8, metadata={"help": "Validation examples, half of them predicted wrong."})
    depths: list[int] = field(
        default_factory=lambda: list(range(700, 1301, 100)), metadata={"help": "J, steps of LiSSA."}
    )
    batch_sizes: list[int] = field(
        default_factory=lambda: [1, 2, 4, 8, 16, 32, 64, 128], metadata={"help": "B, training examples a step."}
    )
    repeats: list[int] = field(default_factory=lambda: [1, 4], metadata={"help": "T, runs that are averaged."})
    others: list[str] = field(
        default_factory=lambda: list(OTHERS), metadata={"help": f"Other solvers, of: {', '.join(OTHERS)}."}
    )
    reference: str | None = field(
        default=None, metadata={"help": "Settings, as JSON, of the solver whose answer is taken for the truth."}
    )


def main(recipe: RecipeArguments, data: DataArguments, config: InfluenceConfig) -> None:
    if unknown := set(recipe.others) - set(OTHERS):
        raise InfluenceError(f"others: {', '.join(sorted(unknown))} is not one of {', '.join(OTHERS)}.")
    trainer, examples = trained(recipe, data, config)
    rows, right = balanced_queries(trainer, examples["validation"], recipe.num_queries, config.seed)
    found = inverse_hessian(
        trainer,
        examples["validation"].select(rows),
        right,
        depths=recipe.depths,
        batch_sizes=recipe.batch_sizes,
        repeats=recipe.repeats,
        others={name: OTHERS[name] for name in recipe.others},
        reference=json.loads(recipe.reference) if recipe.reference else None,
    )
    report(found, "inverse_hessian", trainer, config, recipe)


if __name__ == "__main__":
    run_recipe(main, RecipeArguments, DataArguments, InfluenceConfig)
