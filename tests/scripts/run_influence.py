"""Run by the tests under one or several processes: makes every public call and writes what each process got."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from tiny import tiny_data, tiny_model, tiny_trainer
from tiny_heads import CASES
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from transformers import TrainerCallback, set_seed

from hf_fastif import InfluenceConfig, InfluenceTrainer, QuerySet
from hf_fastif.analysis import correct, query_losses, recall, retrain_on_subsets
from hf_fastif.solvers import Solution, exact


Found = Iterator[tuple[str, np.ndarray]]

TRAIN, QUERIES, POOL = tiny_data(23), tiny_data(3, seed=1), tiny_data(9, seed=2)
FIRST = TRAIN.select(range(16))
SETTINGS = {
    "lissa_depth": 6,
    "num_repeats": 3,
    "lissa_batch_size": 4,
    "influence_batch_size": 4,
    "cg_steps": 4,
    "sdca_visits": 30,
    "cg_samples": 17,
    "ekfac_samples": 19,
}
TRAINING = {
    "num_train_epochs": 2,
    "learning_rate": 0.1,
    "checkpoints": "final",
    "optim": "sgd",  # Adam makes steps of what is only rounding
    "save_strategy": "no",
    "logging_strategy": "no",
}
STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}  # masks differ with the sizes of batches


def solved(name: str, solution: Solution) -> Found:
    for part in ("vectors", "residual", "std_err", "trace"):
        yield f"{name}/{part}", getattr(solution, part).numpy()


def solving(trainer: InfluenceTrainer) -> Found:
    yield from solved("lissa", trainer.compute_s_test(QUERIES))
    with trainer.session() as session:  # steps that are too long for some repeats, which some processes run
        setup = session.setup()
        solver = setup.solver()
        solver.settings = replace(solver.settings, scale=solver.settings.scale / 100, depth=30)
        found = solver.solve(torch.ones(1, session.objective.space.size))
        yield "times that steps were halved", np.array(round(np.log2(found.scale / solver.settings.scale)))
    yield from solved("anchors", trainer.compute_s_test(QuerySet(POOL, reduce="mean")))
    for name in ("sdca", "cg", "ekfac", "exact"):
        trainer.args.solver = name
        yield from solved(name, trainer.compute_s_test(QUERIES))
    trainer.args.query_batch_size = 1  # groups for each process, and one left for all of two
    for name in ("sdca", "lissa"):
        trainer.args.solver, trainer.args.num_repeats = name, 1
        yield from solved(f"{name} apart", trainer.compute_s_test(QUERIES))
        yield f"{name} apart/scores", trainer.compute_influence(QUERIES, POOL)
    trainer.args.query_batch_size = 4
    for name in ("auto", "cg", "sdca"):
        trainer.args.solver = name
        yield f"{name}/self_influence", trainer.self_influence(POOL)
    trainer.args.solver = "cg"
    diagnosis = trainer.diagnose(QUERIES)
    yield "diagnosis", np.array([diagnosis.lissa_scale, diagnosis.damping, *diagnosis.distance, *diagnosis.cosine])
    yield "spectrum", diagnosis.spectrum.eigenvalues


def finding(trainer: InfluenceTrainer) -> Found:
    trainer.args.solver, trainer.args.num_repeats, trainer.args.query_batch_size = "lissa", 3, 8
    yield "rows of misclassified", trainer.find_misclassified(TRAIN)
    yield "losses", query_losses(trainer, QUERIES)
    s_test = trainer.compute_s_test(QUERIES)
    index = trainer.build_index()
    yield "scan", trainer.compute_influence(QUERIES, s_test=s_test)
    for name, reduce in (("each", None), ("as one", "mean")):
        solution = s_test if reduce is None else None
        result = trainer.find_influential(QuerySet(QUERIES, reduce), None, num_neighbors=9, s_test=solution)
        yield f"rows of {name}", np.asarray(result.influences["train_index"])
        yield f"rows of {name}, ranked", np.asarray(result.influences["rank"])
        yield f"influence on {name}", np.asarray(result.influences["influence"])
    trainer.args.solver = "sketch"
    yield "sketch/scores", trainer.compute_influence(QUERIES, POOL)
    yield "sketch/eigenvalues", index.sketches[0].eigenvalues.numpy()
    trainer.args.solver = "lissa"
    yield "recall", np.array([row["recall"] for row in recall(trainer, QUERIES, (2, 5), s_test=s_test).table])
    trainer.load_index(index.folder)
    yield "rows of loaded", trainer.find_candidates(QUERIES, 6, s_test=s_test)
    pooled = {"index_features": "pooled", "index_factory": "IVF2,Flat", "index_search": "nprobe=2"}
    before = {name: getattr(trainer.args, name) for name in pooled}
    vars(trainer.args).update(pooled)
    trainer.build_index(add_to=trainer.build_index(FIRST))
    yield "rows of added", trainer.find_candidates(QUERIES, 6, s_test=s_test)
    vars(trainer.args).update(before)


def answering(trainer: InfluenceTrainer) -> Found:
    before, trainer.args.solver = trainer.args.solver, "auto"
    yield "answers", trainer.compute_influence(QUERIES)
    yield "answers for another pool", trainer.compute_influence(QUERIES, POOL)
    yield "answer for anchors", trainer.compute_influence(QuerySet(POOL, reduce="mean"))
    yield "answers with neighbors", np.asarray(trainer.find_influential(QUERIES, 2, 6).influences["influence"])
    yield "self-influence in the index", trainer.self_influence()
    result = trainer.find_influential(QUERIES, None, rescore=2)
    yield "rows scored again", np.asarray(result.influences["train_index"])
    yield "influence scored again", np.asarray(result.influences["influence"])
    trainer.args.solver = before


def correcting(trainer: InfluenceTrainer) -> Found:
    before, trainer.args.solver = trainer.args.solver, "cg"
    correction = correct(trainer, QUERIES, POOL, steps=2, num_examples=3, guard=FIRST, num_anchors=2)
    yield "rows of correction", np.array([row["examples"] for row in correction.log[1:]])
    yield "losses of correction", np.array([list(row["loss"].values()) for row in correction.log])
    correction.roll_back(trainer)
    trainer.args.solver = before


def publishing(trainer: InfluenceTrainer) -> Found:
    name = f"me/w{trainer.accelerator.num_processes}"
    trainer.build_index()
    pushed = trainer.push_index_to_hub(f"{name}-index"), trainer.push_factors_to_hub(f"{name}-factors")
    yield (
        "pushed by the main process alone",
        np.array([(commit is not None) == trainer.accelerator.is_main_process for commit in pushed]),
    )
    trainer.accelerator.wait_for_everyone()
    trainer.load_index(f"{name}-index")
    yield "factors", trainer.load_factors(f"{name}-factors").blocks[0].eigenvalues.numpy()
    yield "rows of published", trainer.find_candidates(QUERIES, 6)


def language(folder: Path) -> Found:
    """Tokens of more candidates than a batch holds, of several queries; a query is shown fewer."""
    case = CASES["causal-gpt2"]
    trainer = case.trainer(folder, case.data(11), solver="identity", influence_batch_size=4)
    queries = case.data(2, seed=1)
    yield "answers for language", case.trainer(folder / "default", case.data(11)).compute_influence(queries)
    found = trainer.token_influence(queries, range(11))
    yield "influence of tokens", np.concatenate([tokens for query in found for tokens in query])
    listed = trainer.find_influential(queries, num_examples=3).influences["token_influence"]
    yield "influence of listed tokens", np.concatenate([np.asarray(tokens) for tokens in listed])


class Look(TrainerCallback):
    """Asks for influence in the middle of training."""

    trainer: InfluenceTrainer | None = None

    def on_step_end(self, *_args, **_kwargs):
        if self.trainer is not None:
            self.trainer.compute_influence(QUERIES)


def trained(folder: Path, look: bool = False, **settings) -> InfluenceTrainer:
    set_seed(3)
    trainer = tiny_trainer(folder, tiny_model(**STILL), tiny_data(24), **SETTINGS | TRAINING | settings)
    if look:
        callback = Look()
        callback.trainer = trainer
        trainer.add_callback(callback)
    trainer.train()
    return trainer


def training(folder: Path, processes: int) -> Found:
    together = {"per_device_train_batch_size": 12 // processes, "checkpoints": "epochs", "solver": "cg"}
    trainer = trained(folder / "run", **together)
    yield "trained", torch.cat([p.detach().flatten() for p in trainer.model.parameters()]).numpy()
    yield "checkpoints", trainer.compute_influence(QUERIES)
    trainer.build_index()
    yield "rows of checkpoints", trainer.find_candidates(QUERIES, 6)
    config = trainer.args

    def train_on(subset: Dataset, number: int) -> np.ndarray:
        assert InfluenceConfig(str(folder / "new"), use_cpu=True).world_size == 1
        own = copy.copy(config)
        own.seed, own.output_dir, own.per_device_train_batch_size = number, str(folder / f"subset-{number}"), 6
        set_seed(number)
        alone = InfluenceTrainer(tiny_model(), own, train_dataset=subset, processing_class=trainer.processing_class)
        alone.train()
        assert not isinstance(alone.model_wrapped, DistributedDataParallel) and alone.args.world_size == 1
        return query_losses(alone, QUERIES)

    found = retrain_on_subsets(train_on, trainer.train_dataset, folder / "subsets", num_subsets=2)
    yield "exactly: losses of subsets", found.losses
    yield "members of subsets", found.members
    yield "after subsets", trainer.compute_influence(QUERIES)


def only_of_two(folder: Path) -> Found:
    """What one process has no answer to."""
    mode = {"per_device_train_batch_size": 6, "solver": "identity", "bf16": True, "torch_compile_backend": "eager"}
    both = [trained(folder / "looked at", look, **mode) for look in (False, True)]
    same = zip(*(trainer.model.parameters() for trainer in both), strict=True)
    yield "training went on as if nobody had looked", np.array([torch.equal(*pair) for pair in same])
    sharded = tiny_trainer(folder / "sharded", train=TRAIN)
    fully_shard(sharded.model, mesh=init_device_mesh("cpu", (2,)))
    with pytest.raises(ValueError, match="model: its parameters are sharded over the processes by FSDP2"):
        sharded.compute_influence(QUERIES)

    from run_killed import compare  # makes pieces smaller, so it comes last

    again = compare("scan", folder / "unlucky")
    yield "the unlucky ones' answer is the same", np.array(again["same"])
    yield "batches that they did again", np.array(again["batches"])


def main(folder: Path) -> None:
    trainer = tiny_trainer(folder / "out", train=TRAIN, solver="lissa", **SETTINGS)
    exact.MAX_PRIMAL = 10
    rank, processes = trainer.accelerator.process_index, trainer.accelerator.num_processes
    found = dict(solving(trainer)) | dict(finding(trainer)) | dict(correcting(trainer))
    found |= dict(answering(trainer)) | dict(publishing(trainer)) | dict(language(folder / "language"))
    found |= dict(training(folder, processes)) | (dict(only_of_two(folder)) if processes == 2 else {})
    np.savez(folder / f"{processes}-{rank}.npz", **{name.replace("/", "|"): values for name, values in found.items()})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
