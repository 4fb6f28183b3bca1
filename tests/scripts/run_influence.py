"""Run by the tests under one or several processes: computes everything and writes what each process got."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from tiny import tiny_data, tiny_trainer

from hf_fastif.checkpoints.checkpoint import Checkpoint, save_checkpoint
from hf_fastif.solvers import exact


folder = Path(sys.argv[1])
settings = {"lissa_depth": 6, "num_repeats": 3, "lissa_batch_size": 4, "influence_batch_size": 4, "cg_steps": 4}
trainer = tiny_trainer(
    folder / "out", train=tiny_data(23), solver="lissa", sdca_visits=30, cg_samples=17, ekfac_samples=19, **settings
)
queries = tiny_data(3, seed=1)
trainer.build_index()
s_test = trainer.compute_s_test(queries)
scores = trainer.compute_influence(queries, s_test=s_test)
result = trainer.find_influential(queries, num_examples=None, num_neighbors=9, s_test=s_test)
solved = {"self_influence": trainer.self_influence()}
exact.MAX_PRIMAL = 10
for name in ("sdca", "cg", "ekfac", "exact"):
    trainer.args.solver = name
    solution = trainer.compute_s_test(queries)
    solved[f"{name}/s_test"] = solution.vectors.numpy()
    solved[f"{name}/residual"] = solution.residual.numpy()
    solved[f"{name}/trace"] = solution.trace.numpy()
paths = []
for step in (1, 2):
    with torch.no_grad():
        moved = {name: p + 0.1 * step * p.sign() for name, p in trainer.model.named_parameters() if p.requires_grad}
    path = folder / f"{trainer.accelerator.process_index}-run" / "checkpoints"
    save_checkpoint(path, moved, Checkpoint(step=step))
    paths.append(str(path / f"step-{step:08d}.safetensors"))
trainer.args.solver, trainer.args.checkpoints = "cg", paths
solved["checkpoints"] = trainer.compute_influence(queries)
trainer.build_index()
solved["checkpoints/candidates"] = trainer.find_candidates(queries, 6)
np.savez(
    folder / f"{trainer.accelerator.num_processes}-{trainer.accelerator.process_index}.npz",
    s_test=s_test.vectors.numpy(),
    residual=s_test.residual.numpy(),
    std_err=s_test.std_err.numpy(),
    scores=scores,
    train_index=np.asarray(result.influences["train_index"]),
    rank=np.asarray(result.influences["rank"]),
    **solved,
)
