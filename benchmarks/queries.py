"""Seconds of queries: of an index of 400,000 rows, and of a newcomer's first script.

    python benchmarks/queries.py --output_dir out/queries
    python benchmarks/queries.py --output_dir out/queries --num_rows 4000 --num_examples 60

The index holds random features of 1,024 numbers in the default factory, and is asked by 64 queries at once. The script
trains the packaged MiniLM, nothing frozen, for one epoch on 400 generated pairs (training is not timed), and calls
`find_influential` with the default settings. Prints a table and writes `queries.json`.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from transformers import AutoModelForSequenceClassification, AutoTokenizer, set_seed

from hf_fastif import InfluenceConfig, InfluenceTrainer
from hf_fastif.artifacts import atomic_write
from hf_fastif.index import InfluenceIndex, made_index
from hf_fastif.training.corpora.encoder import default_encoder
from hf_fastif.training.corpora.nli import generate_nli


SIZE, QUERIES, K = 1024, 64, 1000
TOGETHER = 32  # queries of the script in one call
WRITTEN = 4096  # rows that are made at once


def main(output_dir: str, num_rows: int, num_examples: int) -> None:
    folder = Path(output_dir)
    numbers = {
        "rows": num_rows,
        **time_index(folder / "index", num_rows),
        "examples": num_examples,
    }
    with TemporaryDirectory(dir=folder) as script_folder:  # nothing is there yet
        numbers |= time_script(script_folder, num_examples)
    print("| | |\n|---|---|")
    for what, number in numbers.items():
        print(f"| {what} | {number:,.2f} |" if isinstance(number, float) else f"| {what} | {number:,} |")
    atomic_write(folder / "queries.json", lambda file: file.write_text(json.dumps(numbers, indent=2), "utf-8"))


def time_index(folder: Path, num_rows: int) -> dict[str, float]:
    """Time scores and search for 64 queries in an index of synthetic features."""
    manifest = {
        "model": "",
        "dataset": "",
        "model_name": "",
        "base_model": None,
        "datasets": [],
        "versions": {},
        "inner_product": True,
        "factory": InfluenceConfig.index_factory,
        "search": None,
        "shard_size": InfluenceConfig.index_shard_size,
        "rows": num_rows,
    }
    empty = made_index(SIZE, manifest["factory"], True, None)
    InfluenceIndex.write(folder, "gradient_sketch", empty, synthetic_features(num_rows), manifest, None)
    index, seconds = timed(lambda: InfluenceIndex.load(folder))
    queries = np.random.default_rng(1).standard_normal((QUERIES, SIZE), dtype=np.float32)
    index.search(queries[:1], 1)  # warms up
    before = peak_memory()
    _, scoring = timed(lambda: index.scores(queries))
    _, searching = timed(lambda: index.search(queries, min(K, num_rows)))
    return {
        "loading the index, s": seconds,
        f"scores for {QUERIES} queries, s": scoring,
        f"search for {QUERIES} queries, k = {K:,}, s": searching,
        "peak memory before the queries, GB": before,
        "peak memory with the queries, GB": peak_memory(),
    }


def synthetic_features(count: int) -> Iterator[np.ndarray]:
    """Yield random features (n, d) block by block."""
    random = np.random.default_rng(0)
    for start in range(0, count, WRITTEN):
        yield random.standard_normal((min(WRITTEN, count - start), SIZE), dtype=np.float32)


def time_script(folder: str, num_examples: int) -> dict[str, float]:
    """Time the first calls after one epoch of training, with the default settings."""
    set_seed(0)
    splits = generate_nli(num_train=num_examples, num_validation=max(10, 2 * TOGETHER), num_challenge=10)
    tokenizer = AutoTokenizer.from_pretrained(default_encoder())
    train, dev = (
        splits[name].map(lambda rows: tokenizer(rows["premise"], rows["hypothesis"]), batched=True)
        for name in ("train", "validation")
    )
    trainer = InfluenceTrainer(
        model=AutoModelForSequenceClassification.from_pretrained(default_encoder(), num_labels=2),
        args=InfluenceConfig(folder, num_train_epochs=1, report_to="none", disable_tqdm=True),
        train_dataset=train,
        processing_class=tokenizer,
    )
    trainer.train()
    calls = {
        "the first query, s": [0],
        "the next query, s": [1],
        f"{TOGETHER} queries at once, s": range(2, 2 + TOGETHER),
    }
    return {
        what: timed(lambda rows=rows: trainer.find_influential(dev.select(rows)))[1] for what, rows in calls.items()
    }


def timed(run: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    return run(), time.perf_counter() - start


def peak_memory() -> float:
    """Return the peak memory of this process in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", required=True)
    parser.add_argument("--num_rows", type=int, default=400_000)
    parser.add_argument("--num_examples", type=int, default=400)
    main(**vars(parser.parse_args()))
