"""kronfluence's EK-FAC on the ground truth that recipes/lds.py left, at the final model and at one checkpoint.

With its default damping of 1e-8, and with a tenth of each layer's mean eigenvalue.

    python benchmarks/lds_kronfluence.py --config recipes/configs/lds-mnli-small.yaml --epochs 1

Takes the flags of that recipe, and adds its rows to lds.json.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field, replace
from pathlib import Path


sys.path.insert(0, str(Path(__file__).parent.parent / "recipes"))

import lds as recipe  # noqa: E402
from peers import kronfluence_scores  # noqa: E402

from hf_fastif import InfluenceConfig
from hf_fastif.analysis import LdsOfMethods
from hf_fastif.metrics import SubsetLosses, lds
from hf_fastif.training import DataArguments, make_trainer, parse_arguments, runs_of, shuffled


DAMPINGS = (1e-8, None)


@dataclass
class BenchmarkArguments(recipe.RecipeArguments):
    """What to measure."""

    epochs: list[str] = field(default_factory=lambda: ["1"], metadata={"help": "Checkpoints beside the final model."})


def main(benchmark: BenchmarkArguments, data: DataArguments, config: InfluenceConfig) -> None:
    folder, runs = Path(config.output_dir), runs_of(config, benchmark.num_seeds)
    first = replace(benchmark, model_name_or_path=runs[0].output_dir)
    trainer, examples = make_trainer(first, data, runs[0])
    queries = shuffled(examples["validation"], config.seed, benchmark.num_queries)
    truth = SubsetLosses.load(folder / "subsets" / "subsets.safetensors")
    moments = recipe.moments_of([run.output_dir for run in runs])
    result = LdsOfMethods.load(folder / "lds.json")
    for moment in ["final", *(f"epoch {epoch}" for epoch in benchmark.epochs)]:
        trainer.args.checkpoints = moments[moment]
        with trainer.session() as session, session.checkpoints.at(0):
            settings = "ekfac", DAMPINGS
            all_scores, _, fitting, seconds = kronfluence_scores(session, queries, trainer.train_dataset, *settings)
        for damping, scores, scoring in zip(DAMPINGS, all_scores, seconds, strict=True):
            score, method = lds(-scores, truth), f"kronfluence EK-FAC, damping {damping or 'by layer'}"
            numbers = {"lds": score.mean, "low": score.low, "high": score.high, "seconds": round(fitting + scoring, 1)}
            result.table.append({"moment": moment, "method": method} | numbers)
            print(f"{moment:24} {method} LDS {score}   {fitting:.0f} + {scoring:.0f} s", flush=True)
    result.write(folder, "lds")


if __name__ == "__main__":
    main(*parse_arguments(BenchmarkArguments, DataArguments, InfluenceConfig))
