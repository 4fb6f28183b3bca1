"""Seconds and peak memory of the index and of queries on a GPU, for float32, TF32 and bfloat16.

    python benchmarks/gpu.py --output_dir out/gpu --minutes 8
    python benchmarks/gpu.py --output_dir out/gpu --rows 200 --tiny

Two models with random weights are measured with the default settings of influence: a classifier of the size of
BERT-base (last three layers and head trained) on 400,000 generated pairs of 40 tokens, and a causal language model of
0.4 billion parameters (LoRA if peft is installed, otherwise the last two layers trained) on 2,000 texts of 256 tokens,
of which 64 are labelled. Each of the six parts gets an equal share of the minutes that are left: it times a slice of
the rows, and takes as many rows as fit. Prints a table, and writes `gpu.json` after each part.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import wraps
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, BertConfig, LlamaConfig, set_seed

from hf_fastif import InfluenceConfig, InfluenceTrainer, freeze
from hf_fastif.artifacts import atomic_write
from hf_fastif.curvature import KroneckerFit, SecondMoment
from hf_fastif.execution import DatasetSweep, PartialResults
from hf_fastif.index import InfluenceIndex


QUERIES = 64
SLICE = 1024  # rows of the first slice
PRECISIONS = ("float32", "TF32", "bf16")
TOTAL = "index, in total"
STAGES = [  # of building an index: the name, and the function that takes the time
    ("Kronecker bases", KroneckerFit, "bases"),
    ("sweep: forward and backward passes", DatasetSweep, "columns_of"),
    ("blocks of the sweep on disk", PartialResults, "get"),
    ("curvature: sums", SecondMoment, "add"),
    ("curvature: eigenvectors", SecondMoment, "leading"),
    ("coordinates and FAISS files", InfluenceIndex, "write"),
]
GROWING = [name for name, _, function in STAGES if function in ("columns_of", "get", "add", "write")]  # with the rows
REST = "checks, hashes and the rest of the index"


def main(output_dir: str, minutes: float, rows: int, texts: int, tiny: bool) -> None:
    folder, deadline = Path(output_dir), time.perf_counter() + 60 * minutes
    folder.mkdir(parents=True, exist_ok=True)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    makers = [lambda: classifier(rows, tiny), lambda: language_model(min(texts, rows), tiny)]
    parts = [(make, precision) for precision in PRECISIONS for make in makers]
    watch = Stages.watching()
    measured: list[dict[str, Any]] = []
    for number, (make, precision) in enumerate(parts):
        set_seed(0)
        end = time.perf_counter() + (deadline - time.perf_counter()) / (len(parts) - number)
        torch.set_float32_matmul_precision("highest" if precision == "float32" else "high")
        part = measure_part(make(), precision, folder, watch, end)
        measured.append({"precision": precision} | part)
        print(f"{part['model']}, {precision}: {part['rows']:,} rows", flush=True)
        record = json.dumps({"device": device, "parts": measured}, indent=2)
        atomic_write(folder / "gpu.json", lambda file, record=record: file.write_text(record, "utf-8"))
    report(device, measured)


@dataclass
class Subject:
    """A model, its data and the batch size that suits them."""

    name: str
    model: torch.nn.Module
    train: Dataset
    queries: Dataset
    batch_size: int


def classifier(rows: int, tiny: bool) -> Subject:
    """Make a classifier of three labels and pairs of 40 tokens."""
    sizes = {"num_hidden_layers": 12, "hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}
    if tiny:
        sizes = {"num_hidden_layers": 4, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
    model = AutoModelForSequenceClassification.from_config(BertConfig(**sizes, vocab_size=30_522, num_labels=3))
    freeze(model, model.config.num_hidden_layers - 3)

    def pairs(count: int) -> Dataset:
        columns = {"input_ids": random_tokens(count, 40, 30_522)}
        second = np.zeros((count, 40), dtype=np.int64)
        second[:, 24:] = 1
        return as_dataset(columns | {"token_type_ids": second, "labels": np.random.randint(0, 3, count)})

    return Subject("BERT-base" if not tiny else "a tiny BERT", model, pairs(rows), pairs(2 * QUERIES), 256)


def language_model(texts: int, tiny: bool) -> Subject:
    """Make a causal language model, and texts of 256 tokens whose last 64 are labelled."""
    sizes = {"num_hidden_layers": 24, "hidden_size": 896, "intermediate_size": 4864, "num_attention_heads": 14}
    if tiny:
        sizes = {"num_hidden_layers": 3, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
    vocabulary = 500 if tiny else 49_152
    config = LlamaConfig(**sizes, num_key_value_heads=2, vocab_size=vocabulary, tie_word_embeddings=True)
    model = AutoModelForCausalLM.from_config(config)
    if find_spec("peft") is not None:
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(model, LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM"))
        name = "a language model with LoRA"
    else:
        freeze(model, config.num_hidden_layers - 2)
        name = "a language model, last two layers"

    def completions(count: int) -> Dataset:
        tokens = random_tokens(count, 256, vocabulary)
        labels = tokens.copy()
        labels[:, :192] = -100
        return as_dataset({"input_ids": tokens, "labels": labels})

    return Subject(name, model, completions(texts), completions(2 * QUERIES), 32)


def random_tokens(count: int, length: int, vocabulary: int) -> np.ndarray:
    return np.random.randint(10, vocabulary, (count, length))


def as_dataset(columns: dict[str, np.ndarray]) -> Dataset:
    """Make a dataset of arrays; `Dataset.from_dict` would go through lists of Python numbers."""
    arrays = {}
    for name, values in columns.items():
        arrays[name] = pyarrow.array(values.ravel())
        if values.ndim == 2:
            ends = np.arange(len(values) + 1, dtype=np.int32) * values.shape[1]
            arrays[name] = pyarrow.ListArray.from_arrays(pyarrow.array(ends), arrays[name])
    return Dataset(pyarrow.table(arrays))


@dataclass
class Stages:
    """Seconds and peak memory of stages; the seconds of a stage leave out those of stages within it."""

    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    peaks: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    _open: list[str] = field(default_factory=list)
    _last: float = 0.0

    @classmethod
    def watching(cls) -> Stages:
        """Watch the functions of `STAGES`."""
        stages = cls()
        for name, owner, function in STAGES:
            setattr(owner, function, stages._watched(name, owner.__dict__[function]))
        return stages

    def _watched(self, name: str, function: Any) -> Any:
        inner = function.__func__ if isinstance(function, staticmethod) else function

        @wraps(inner)
        def run(*args: Any, **options: Any) -> Any:
            if REST not in self._open:  # a query counts as a whole
                return inner(*args, **options)
            with self.stage(name):
                return inner(*args, **options)

        return staticmethod(run) if isinstance(function, staticmethod) else run

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        self._tick()
        self._open.append(name)
        try:
            yield
        finally:
            self._tick()
            self._open.pop()

    def _tick(self) -> None:
        """Give the time and memory since the last change of stage to the stages that are open."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
            peak = torch.cuda.max_memory_allocated()
            torch.cuda.reset_peak_memory_stats()
        else:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        now = time.perf_counter()
        if self._open:
            self.seconds[self._open[-1]] += now - self._last
            for name in self._open:
                self.peaks[name] = max(self.peaks[name], peak / 2**30)
        self._last = now

    def clear(self) -> None:
        self.seconds.clear()
        self.peaks.clear()


def measure_part(subject: Subject, precision: str, folder: Path, watch: Stages, end: float) -> dict[str, Any]:
    """Measure ever larger slices of the rows, until all are measured or no more rows fit."""
    rows = min(SLICE, len(subject.train))
    for share in (0.3, 0.8):  # of the time that is left, for the next slice
        start = time.perf_counter()
        numbers = measure(subject, rows, precision, folder, watch)
        now = time.perf_counter()
        growing = sum(numbers["stages"][name]["seconds"] for name in GROWING)
        available = share * (end - now) - (now - start - growing)
        following = min(len(subject.train), int(rows * available / growing))
        if following <= rows:
            return numbers
        rows = following
    return measure(subject, rows, precision, folder, watch)


def measure(subject: Subject, rows: int, precision: str, folder: Path, watch: Stages) -> dict[str, Any]:
    """Measure an index of so many rows, and queries."""
    watch.clear()
    with TemporaryDirectory(dir=folder) as output_dir:
        args = InfluenceConfig(
            output_dir,
            checkpoints=["final"],
            influence_bf16=precision == "bf16",
            influence_batch_size=subject.batch_size,
            query_batch_size=QUERIES,
            disable_tqdm=True,
            report_to="none",
        )
        train = subject.train.select(range(rows))
        trainer = InfluenceTrainer(model=subject.model, args=args, train_dataset=train)
        with watch.stage(REST):
            index = trainer.build_index()
        watch.seconds[TOTAL] = sum(watch.seconds.values())
        watch.peaks[TOTAL] = watch.peaks[REST]
        first, one, many, others = (
            subject.queries.select(rows) for rows in ([0], [1], range(2, QUERIES + 2), range(QUERIES, 2 * QUERIES))
        )
        calls = {
            "the first query": lambda: trainer.find_influential(first),
            "one query": lambda: trainer.find_influential(one),
            f"{QUERIES} queries": lambda: trainer.find_influential(many),
            f"{QUERIES} queries, all scores": lambda: trainer.compute_influence(others),
        }
        for name, call in calls.items():
            with watch.stage(name):
                call()
        features = np.random.default_rng(0).standard_normal((QUERIES, index.faiss_index.d), dtype=np.float32)
        with watch.stage(f"{QUERIES} queries, products with all rows alone"):
            index.scores(features)
    stages = {name: {"seconds": watch.seconds[name], "peak_gb": watch.peaks[name]} for name in watch.seconds}
    return {"model": subject.name, "rows": rows, "wanted": len(subject.train), "stages": stages}


def report(device: str, measured: list[dict[str, Any]]) -> None:
    """Print a table for each model."""
    memory = "peak GPU memory" if torch.cuda.is_available() else "peak memory of the process"
    print(f"\n{device}, torch {torch.__version__}, {os.cpu_count()} CPU cores. Seconds ({memory}, GB)")
    for model in dict.fromkeys(part["model"] for part in measured):
        parts = [part for part in measured if part["model"] == model]
        print(f"\n| {model} | " + " | ".join(part["precision"] for part in parts) + " |")
        print("|---|" + "---|" * len(parts))
        rows = [f"{part['rows']:,} of {part['wanted']:,}" for part in parts]
        print(f"| rows | {' | '.join(rows)} |")
        for name in ordered(parts):
            cells = [cell(part["stages"].get(name)) for part in parts]
            print(f"| {name} | {' | '.join(cells)} |")


def ordered(parts: list[dict[str, Any]]) -> list[str]:
    """Return the names of all stages, those of the index first and in their order."""
    first = [*(name for name, *_ in STAGES), REST, TOTAL]
    names = {name: None for part in parts for name in part["stages"]}
    return [name for name in first if name in names] + [name for name in names if name not in first]


def cell(numbers: dict[str, float] | None) -> str:
    return "" if numbers is None else f"{numbers['seconds']:.3g} ({numbers['peak_gb']:.2f})"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", required=True)
    parser.add_argument("--minutes", type=float, default=8.0, help="For everything.")
    parser.add_argument(
        "--rows", type=int, default=400_000, help="Pairs of the classifier, and at most so many texts."
    )
    parser.add_argument("--texts", type=int, default=2000, help="Texts of the language model.")
    parser.add_argument("--tiny", action="store_true", help="Use tiny models.")
    main(**vars(parser.parse_args()))
