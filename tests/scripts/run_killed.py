"""Run by the tests: long work that is killed in the middle, and done again."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from tiny import tiny_data, tiny_model, tiny_trainer

from hf_fastif import InfluenceTrainer
from hf_fastif.checkpoints.checkpoint import Checkpoint, save_checkpoint
from hf_fastif.curvature import Entries
from hf_fastif.execution import sweeps as passes
from hf_fastif.index import PooledFeatures, sketches
from hf_fastif.influence import attribution
from hf_fastif.scoring import Scoring
from hf_fastif.solvers import DualAscent


passes.PIECE = 2
sketches.BLOCK = 2 * 2 * 100 * 8  # eight rows: two directions of 100 entries, in half precision
TRAIN, QUERIES = tiny_data(40), tiny_data(4, seed=1)
SETTINGS = {
    "influence_batch_size": 4,
    "query_batch_size": 1,
    "solver": "sdca",
    "sdca_visits": 40,
    "index_features": "pooled",
    "sketch_size": 100,
}


def build_index(trainer: InfluenceTrainer) -> np.ndarray:
    return trainer.build_index().faiss_index.reconstruct_n()


def build_sketch(trainer: InfluenceTrainer) -> np.ndarray:
    trainer.args.index_features = "gradient_sketch"
    return trainer.build_index().faiss_index.reconstruct_n()


def find_influential(trainer: InfluenceTrainer) -> np.ndarray:
    trainer.build_index()
    result = trainer.find_influential(QUERIES, None, num_neighbors=17)
    return result.influences.select_columns(["query_index", "train_index", "influence"]).to_pandas().to_numpy()


def compute_influence(trainer: InfluenceTrainer) -> np.ndarray:
    return trainer.compute_influence(QUERIES)


def self_influence(trainer: InfluenceTrainer) -> np.ndarray:
    trainer.args.solver = "ekfac"
    return trainer.self_influence()


def between_checkpoints(trainer: InfluenceTrainer) -> np.ndarray:
    folder, paths = Path(trainer.args.output_dir) / "kept", []
    for step in (1, 2):
        moved = {name: p + 0.1 * step for name, p in trainer.model.named_parameters() if p.requires_grad}
        paths.append(str(folder / f"step-{step:08d}.safetensors"))
        if not Path(paths[-1]).exists():
            save_checkpoint(folder, moved, Checkpoint(step=step))
    trainer.args.checkpoints, trainer.args.solver = paths, "identity"
    return trainer.compute_influence(QUERIES.select([0]))


# The call, what is counted in it, after how many of these it is killed, and how many of them its finished pieces hold.
STAGES: dict[str, tuple[Callable, object, str, int, int]] = {
    "index": (build_index, PooledFeatures, "of_batch", 5, 4),
    "sketch": (build_sketch, Entries, "of_losses_and_curvature", 5, 4),
    "solving": (lambda trainer: trainer.compute_s_test(QUERIES).vectors.numpy(), DualAscent, "solve", 2, 2),
    "scan": (compute_influence, Scoring, "batch_scores", 15, 14),
    "candidates": (find_influential, Scoring, "batch_scores", 8, 7),
    "self-influence": (self_influence, attribution, "self_influence", 7, 6),
    "checkpoints": (between_checkpoints, Scoring, "batch_scores", 13, 12),
}


def counted(owner: object, name: str, stop: Callable[[int], None] = lambda _done: None) -> list[int]:
    """Counts the calls of a function from now on, and asks `stop` before each."""
    function = getattr(owner, f"counted_{name}", getattr(owner, name))
    setattr(owner, f"counted_{name}", function)
    calls: list[int] = []

    def call(*args, **kwargs):
        stop(len(calls))
        calls.append(1)
        return function(*args, **kwargs)

    setattr(owner, name, call)
    return calls


def trainer_in(folder: Path) -> InfluenceTrainer:
    return tiny_trainer(folder, tiny_model(), TRAIN, **SETTINGS)


def killed(stage: str, folder: Path, number: signal.Signals) -> int:
    """Does the work in a process that gets a signal in the middle; returns how that ended."""
    call, owner, name, after, _ = STAGES[stage]
    child = os.fork()
    if not child:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # shells let what runs in the background ignore it
        counted(owner, name, lambda done: os.kill(os.getpid(), number) if done == after else None)
        try:
            call(trainer_in(folder))
        except KeyboardInterrupt:
            os._exit(130)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def cut_short(folder: Path) -> None:
    """Halves a finished piece, as a full disk or a power cut may."""
    piece = max((folder / "influence" / "unfinished").rglob("*.safetensors"))
    piece.write_bytes(piece.read_bytes()[: piece.stat().st_size // 2])


def compare(stage: str, folder: Path) -> dict[str, int | bool]:
    """Goes on with the work in a folder, and does it in another from the beginning."""
    call, owner, name, _, finished = STAGES[stage]
    batches = counted(owner, name)
    again = call(trainer_in(folder))
    whole = counted(owner, name)
    expected = call(trainer_in(folder.with_name(f"{folder.name}-whole")))
    # States behind frozen layers come out of other batches where pieces are skipped, so the last bits may differ.
    same = np.allclose(again, expected, rtol=1e-5, atol=1e-6 * np.abs(expected).max())
    left = any((folder / "influence" / "unfinished").rglob("*.safetensors"))
    return {"same": bool(same), "batches": len(batches), "whole": len(whole), "finished": finished, "left": left}


def all_killed(folder: Path) -> None:
    runs = {stage: (stage, signal.SIGKILL) for stage in STAGES}
    runs |= {"scan, Ctrl-C": ("scan", signal.SIGINT), "scan, cut short": ("scan", signal.SIGKILL)}
    ends = {run: killed(stage, folder / run, number) for run, (stage, number) in runs.items()}
    cut_short(folder / "scan, cut short")
    found = {run: compare(stage, folder / run) | {"end": ends[run]} for run, (stage, _) in runs.items()}
    (folder / "found.json").write_text(json.dumps(found))


def unlucky(folder: Path) -> None:
    """Lets the second of several processes fail, after six batches of its own."""
    trainer = trainer_in(folder / "unlucky")

    def stop(done: int) -> None:
        if done == 6 and trainer.accelerator.process_index == 1:
            raise RuntimeError("the second process is out of luck")

    counted(Scoring, "batch_scores", stop)
    compute_influence(trainer)


if __name__ == "__main__":
    {"all": all_killed, "unlucky": unlucky}[sys.argv[1]](Path(sys.argv[2]))
