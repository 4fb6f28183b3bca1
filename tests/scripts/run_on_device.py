"""Compute influence of every kind on a CPU or a GPU, and save the numbers.

python run_on_device.py cpu|cuda FILE.npz
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from tiny import tiny_data, tiny_model, tiny_trainer
from tiny_heads import CASES

from hf_fastif import Margin, QuerySet


TRAIN, QUERIES = tiny_data(40), tiny_data(5, seed=1)
SOLVERS = ("exact", "cg", "sdca", "lissa", "ekfac", "identity")
FEATURES = ("pooled", "mean_pooled", "gradient_sketch")


def computed(folder: Path, on_cpu: bool) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the numbers of each call, with its name."""
    for architecture in ("bert", "gpt2"):
        for solver in SOLVERS:
            place = folder / f"{architecture}-{solver}"
            settings = {"solver": solver, "use_cpu": on_cpu, "curvature_samples": 40, "damping": 0.3}
            trainer = tiny_trainer(place, tiny_model(architecture), TRAIN, **settings)
            assert (trainer.args.device.type == "cpu") == on_cpu
            yield f"{architecture} {solver} scan", trainer.compute_influence(QUERIES)
            yield f"{architecture} {solver} self", trainer.self_influence()
            anchors = QuerySet(QUERIES, reduce="mean")
            yield f"{architecture} {solver} margin", trainer.compute_influence(anchors, measure=Margin())
            if solver != "ekfac":
                continue
            for features in FEATURES:
                trainer.args.index_features = features
                trainer.build_index()
                result = trainer.find_influential(QUERIES, num_examples=None, num_neighbors=12)
                table = result.to_pandas().sort_values(["query_index", "train_index"])
                yield f"{architecture} {features} rows", table["train_index"].to_numpy()
                yield f"{architecture} {features} scores", table["influence"].to_numpy()
    for name in ("causal-llama", "seq2seq-t5", "token", "question-answering"):
        case = CASES[name]
        case.model.float()
        trainer = case.trainer(folder / name, case.data(12, seed=0), solver="identity", use_cpu=on_cpu)
        yield f"{name} scan", trainer.compute_influence(case.data(2, seed=1))


if __name__ == "__main__":
    with TemporaryDirectory() as folder:
        np.savez(sys.argv[2], **dict(computed(Path(folder), sys.argv[1] == "cpu")))
