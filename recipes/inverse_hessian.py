"""Measure time and error of s_test for LiSSA's J, B and T and for the other solvers (figures 3b and 9 of the paper).

    python recipes/inverse_hessian.py --config recipes/configs/inverse_hessian-mnli-small.yaml
    python recipes/inverse_hessian.py --config recipes/configs/inverse_hessian-mnli.yaml

The reference is the exact inverse (`--reference '{"solver": "exact"}'`, for a few thousand training examples), any
other solver, or by default the costliest LiSSA, as in the paper. The recipe writes `inverse_hessian.json`, `.png` and
`.svg` into OUTPUT_DIR. It skips finished work.
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
    """Arguments of this recipe, in addition to those of data, training and influence."""

    num_queries: int = field(
        default=8, metadata={"help": "Number of validation examples, half of which are predicted wrong."}
    )
    depths: list[int] = field(
        default_factory=lambda: list(range(700, 1301, 100)), metadata={"help": "Values of J, the steps of LiSSA."}
    )
    batch_sizes: list[int] = field(
        default_factory=lambda: [1, 2, 4, 8, 16, 32, 64, 128],
        metadata={"help": "Values of B, the training examples per step."},
    )
    repeats: list[int] = field(
        default_factory=lambda: [1, 4], metadata={"help": "Values of T, the number of averaged runs."}
    )
    others: list[str] = field(
        default_factory=lambda: list(OTHERS),
        metadata={"help": f"Other solvers to measure, from: {', '.join(OTHERS)}."},
    )
    reference: str | None = field(
        default=None, metadata={"help": "Settings of the reference solver, as JSON; None uses the costliest LiSSA."}
    )


def main(recipe: RecipeArguments, data: DataArguments, config: InfluenceConfig) -> None:
    if unknown := set(recipe.others) - set(OTHERS):
        raise InfluenceError(f"others: {', '.join(sorted(unknown))} is not one of {', '.join(OTHERS)}.")
    trainer, examples = trained(recipe, data, config)
    rows, right = balanced_queries(trainer, examples["validation"], recipe.num_queries, config.seed)
    result = inverse_hessian(
        trainer,
        examples["validation"].select(rows),
        right,
        depths=recipe.depths,
        batch_sizes=recipe.batch_sizes,
        repeats=recipe.repeats,
        others={name: OTHERS[name] for name in recipe.others},
        reference=json.loads(recipe.reference) if recipe.reference else None,
    )
    report(result, "inverse_hessian", trainer, config, recipe)


if __name__ == "__main__":
    run_recipe(main, RecipeArguments, DataArguments, InfluenceConfig)
