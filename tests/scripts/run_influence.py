"""Run by the tests under one or several processes: computes everything and writes what each process got."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from tiny import tiny_data, tiny_trainer


folder = Path(sys.argv[1])
trainer = tiny_trainer(
    folder, train=tiny_data(23), lissa_depth=6, num_repeats=3, lissa_batch_size=4, influence_batch_size=4
)
queries = tiny_data(3, seed=1)
trainer.build_index()
s_test = trainer.compute_s_test(queries)
scores = trainer.compute_influence(queries, s_test=s_test)
result = trainer.find_influential(queries, num_examples=None, num_neighbors=9, s_test=s_test)
np.savez(
    folder / f"{trainer.accelerator.num_processes}-{trainer.accelerator.process_index}.npz",
    s_test=s_test.vectors.numpy(),
    residual=s_test.residual.numpy(),
    std_err=s_test.std_err.numpy(),
    scores=scores,
    train_index=np.asarray(result.influences["train_index"]),
    rank=np.asarray(result.influences["rank"]),
)
