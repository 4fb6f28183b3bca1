"""Explains predictions by the training examples behind them.

Trains a classifier (`--do_train`) or loads one, builds the index, takes misclassified (or chosen) validation examples,
and writes `influences.parquet`, `queries.parquet`, `summary.json` and `report.html` into `OUTPUT_DIR/influence`, with
`--diagnose` also `diagnosis.txt` and `diagnosis.png`.

    python recipes/find_influential.py --config recipes/configs/find_influential-demo.yaml
    accelerate launch recipes/find_influential.py --config recipes/configs/find_influential-mnli.yaml --num_queries 20
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from datasets import Dataset
from transformers import set_seed

from hf_fastif import InfluenceConfig, InfluenceResult
from hf_fastif.checks import check_num_neighbors, check_rows
from hf_fastif.cli import check_processes, parse_arguments
from hf_fastif.data import DataArguments, planted_share
from hf_fastif.diagnosis import Diagnosis
from hf_fastif.files import write_whole
from hf_fastif.finetuning import ModelArguments, make_trainer


@dataclass
class RecipeArguments(ModelArguments):
    """What this recipe needs beside the settings of data, training and influence."""

    num_queries: int = field(default=10, metadata={"help": "How many misclassified examples to explain."})
    query_indices: list[int] | None = field(
        default=None, metadata={"help": "Explain these validation examples instead of misclassified ones."}
    )
    num_examples: int = field(default=10, metadata={"help": "Training examples to show in each direction."})
    diagnose: bool = field(
        default=False, metadata={"help": "Also look at curvature, damping and solver: diagnosis.txt and .png."}
    )


def main(recipe: RecipeArguments, data: DataArguments, config: InfluenceConfig) -> None:
    check_processes(config.world_size)
    set_seed(config.seed)
    trainer, examples = make_trainer(recipe, data, config)
    check_num_neighbors(config.num_neighbors, len(examples["train"]))
    check_rows("query_indices", recipe.query_indices or [], len(examples["validation"]))
    seconds: dict[str, float] = {}

    if config.do_train:
        with timed(seconds, "train"):
            trainer.train()
        trainer.save_model()
    with timed(seconds, "predict"):
        wrong = trainer.find_misclassified(examples["validation"])
    accuracy = 1 - len(wrong) / len(examples["validation"])
    if recipe.query_indices is None and not len(wrong):
        raise ValueError("The model predicts every validation example right; choose some with --query_indices.")
    errors = np.sort(np.random.default_rng(config.seed).permutation(wrong)[: recipe.num_queries])
    chosen = errors if recipe.query_indices is None else np.asarray(recipe.query_indices)
    queries = examples["validation"].select(chosen)

    with timed(seconds, "build_index"):
        trainer.build_index()
    s_test = None
    if recipe.diagnose:  # it looks at the same solutions; else they are kept with the scores if this is interrupted
        with timed(seconds, "compute_s_test"):
            s_test = trainer.compute_s_test(queries)
    with timed(seconds, "find_influential"):
        result = trainer.find_influential(queries, num_examples=recipe.num_examples, s_test=s_test)
    result.summary |= {"accuracy": accuracy, "seconds": seconds, "query_rows": chosen.tolist()}
    if data.text_columns is not None:
        result.summary["text_columns"] = data.text_columns
    diagnosis = trainer.diagnose(queries, s_test) if recipe.diagnose else None
    if trainer.is_world_process_zero():
        write(result, diagnosis, Path(config.output_dir) / "influence", trainer.train_dataset)


@contextmanager
def timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[stage] = round(time.perf_counter() - start, 1)


def write(result: InfluenceResult, diagnosis: Diagnosis | None, folder: Path, train: Dataset) -> None:
    result.save_to_disk(folder)
    report = result.to_html(folder / "report.html", diagnosis=diagnosis)
    print(result)
    if diagnosis is not None:
        print(diagnosis)
        write_whole(folder / "diagnosis.txt", lambda file: file.write_text(f"{diagnosis}\n", "utf-8"))
        diagnosis.plot(folder / "diagnosis.png")
    print(f"Accuracy on the validation examples: {result.summary['accuracy']:.1%}")
    print("Seconds: " + ", ".join(f"{stage} {time:.0f}" for stage, time in result.summary["seconds"].items()))
    if "planted" in train.column_names:
        print(planted_share(result, train))
    print(f"Report: {report}")


if __name__ == "__main__":
    main(*parse_arguments(RecipeArguments, DataArguments, InfluenceConfig))
