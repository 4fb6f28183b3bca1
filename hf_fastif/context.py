"""What every call of the trainer works with: the loss, the data, the solver, and what was made earlier."""

from __future__ import annotations

import shutil
from collections.abc import Hashable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from datasets import Dataset
from transformers import Trainer

from hf_fastif.attribution import Attribution
from hf_fastif.batches import ExampleBatches
from hf_fastif.checkpoints import Checkpoint, CheckpointSet, find_checkpoints, holds, kept_checkpoints, weights_of
from hf_fastif.checks import check_adapters, check_dataset, check_inputs, check_whole, warn_of_half_precision
from hf_fastif.config import InfluenceConfig
from hf_fastif.frozen import FrozenStates, find_frozen_states
from hf_fastif.index import InfluenceIndex
from hf_fastif.objective import Objective, OwnLoss, OwnStep, differentiable, settle_padding, trained_loss, uncompiled
from hf_fastif.parameters import model_fingerprint
from hf_fastif.passes import Passes
from hf_fastif.pieces import Pieces, digest, pieces_of
from hf_fastif.processes import check_shared_folder
from hf_fastif.provenance import model_name, sources
from hf_fastif.queries import Predictions, predict
from hf_fastif.signals import Signal, measure_signal
from hf_fastif.solvers import Solution
from hf_fastif.solving import SolverSetup


UNFINISHED = "unfinished"  # under the folder of influence


@dataclass
class Kept:
    """What earlier calls have made and later ones may use.

    Attributes:
        indexes (`dict`): Indexes by the fingerprint of their dataset.
        states (`dict`): States behind frozen layers, by dataset; None where there are none to keep.
        fitted (`dict`): Spectra, factors and the like, by what they belong to.
        digests (`dict`): Of the rows of datasets, by their fingerprint.
        losses (`dict`): What computes the loss of single examples, if it is not the model's head.
        prepared (`bool`): Whether the folder for all this was looked at.
        begun (`set[Path]`): Folders of what is kept for good that were opened.
    """

    indexes: dict[str, InfluenceIndex] = field(default_factory=dict)
    states: dict[tuple[Hashable, ...], FrozenStates | None] = field(default_factory=dict)
    fitted: dict[tuple[Hashable, ...], Any] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)
    losses: dict[tuple[Hashable, ...], OwnLoss | OwnStep | None] = field(default_factory=dict)
    prepared: bool = False
    begun: set[Path] = field(default_factory=set)


def _let_go(states: dict[tuple[Hashable, ...], FrozenStates | None], memory: int) -> None:
    """Of the datasets but the last one, those that were used last stay, as many as fit into the memory of one."""
    used = 0
    for key in list(states)[-2::-1]:
        used += 0 if states[key] is None else states[key].used
        if used > memory:
            del states[key]


class Context:
    """One call's view of a trainer.

    Args:
        trainer (`Trainer`): With an `InfluenceConfig` for arguments.
        objective (`Objective`): Its loss.
        kept (`Kept`): What earlier calls have made.
    """

    def __init__(self, trainer: Trainer, objective: Objective, kept: Kept):
        self.trainer = trainer
        self.objective = objective
        self.kept = kept
        self._loss_known = False

    @property
    def args(self) -> InfluenceConfig:
        """All settings."""
        return self.trainer.args

    @property
    def passes(self) -> Passes:
        """How long work is cut up."""
        show = not self.args.disable_tqdm
        return Passes(self.args.influence_batch_size, self.trainer.accelerator, show_progress=show)

    def examples(self, name: str, dataset: Dataset) -> ExampleBatches:
        """The examples of a dataset, checked."""
        check_dataset(name, dataset)
        trainer = self.trainer
        rows = trainer._remove_unused_columns(dataset, name)
        examples = ExampleBatches(rows, trainer.data_collator, trainer._prepare_inputs)
        # A collator that is given all columns may tokenize by itself.
        model_input = trainer.model.main_input_name if self.args.remove_unused_columns else None
        check_inputs(name, examples, model_input, self.objective)
        settle_padding(name, self.objective, examples)
        if not self._loss_known:
            train = trainer.train_dataset
            if name != "train_dataset" and isinstance(train, Dataset) and len(train):
                self.examples("train_dataset", train)  # what is told apart by many examples
            else:
                self._find_loss(examples)
        return examples

    def _find_loss(self, examples: ExampleBatches) -> None:
        args, losses = self.args, self.kept.losses
        key = (id(self.objective.model), self.trainer.compute_loss_func, args.loss_reduction)
        key += (args.curvature, args.solver == "identity", args.label_smoothing_factor)
        if key not in losses:
            losses[key] = trained_loss(self.trainer, self.objective, examples)
        self.objective.use_loss(losses[key])
        self._loss_known = True

    def pool(self, name: str, dataset: Dataset) -> ExampleBatches:
        """The examples of a dataset that many passes are made over: what frozen layers make of them is kept."""
        examples, states = self.examples(name, dataset), self.kept.states
        memory = int(self.args.frozen_states_gb * 2**30)
        frozen = model_fingerprint(self.objective.model, frozen_only=True)
        key = (id(self.objective.model), frozen, dataset._fingerprint, memory, self.args.influence_bf16)
        if memory and self.objective.own_step is None and key not in states:
            states[key] = find_frozen_states(self.objective, examples, memory)
        if key in states:
            states[key] = states.pop(key)  # now the last one used
            _let_go(states, memory)
        examples.states = states.get(key)
        if examples.states is not None:
            self.objective.frozen = examples.states.frozen
        return examples

    @cached_property
    def train(self) -> ExampleBatches:
        """The training set."""
        return self.pool("train_dataset", self.trainer.train_dataset)

    @cached_property
    def checkpoints(self) -> CheckpointSet:
        """The moments of training that influence is summed over, checked."""
        args = self.args
        self.trainer.accelerator.wait_for_everyone()  # the main process may have written one just now
        members = find_checkpoints(args.checkpoints, args.output_dir, self.objective.theta)
        found = CheckpointSet(self.objective, members, weights_of(members, args.checkpoint_weights))
        if any(member.path for member in members):
            found.check(self.train.digest)
        return found

    def signals(self) -> list[Signal]:
        """What each checkpoint that training left still holds, and the final model."""
        members = kept_checkpoints(self.args.output_dir)
        if members and holds(members[-1], self.objective.theta):
            members.pop()
        members.append(Checkpoint())
        checkpoints = CheckpointSet(self.objective, members, [1.0] * len(members))
        checkpoints.check(self.train.digest)
        found = []
        for number, member in enumerate(members):
            with checkpoints.at(number):
                found.append(measure_signal(self.setup(), member, self.passes))
        return found

    def predict(self, examples: ExampleBatches) -> Predictions:
        """What the model says about examples; a NaN loss is an error now, not in an hour."""
        return predict(self.objective, examples, self.passes)

    def setup(self) -> SolverSetup:
        """Curvature, damping and solver, at the checkpoint that is in the model."""
        fingerprint = self.trainer.train_dataset._fingerprint
        accelerator, fitted = self.trainer.accelerator, self.kept.fitted
        final = self.checkpoints.present.path is None
        name = "ekfac" if final else f"ekfac-{model_fingerprint(self.objective.model)}"
        factors = folder_of(self.args) / f"{name}.safetensors"
        return SolverSetup(self.args, self.objective, self.train, fingerprint, accelerator, fitted, factors)

    @contextmanager
    def attribution(
        self, work: str, *on: Dataset | Solution | int | str | None, as_one: bool = False
    ) -> Iterator[Attribution]:
        """What solves and scores, keeping what is finished until the work is done."""
        with self.pieces(work, *on, as_one) as pieces:
            yield Attribution(self.objective, self.args, self.checkpoints, self.setup, self.passes, pieces, as_one)

    def pieces(self, work: str, *on: Dataset | Solution | int | str | None) -> AbstractContextManager[Pieces]:
        """Keeps what is finished of some work, under `output_dir/influence`, until all of it is.

        Args:
            work (`str`): Name of the call.
            *on: What it is about.
        """
        args, trainer, kept = self.args, self.trainer, self.kept
        train = trainer.train_dataset
        about = (rows_digest(trainer, kept, thing) if isinstance(thing, Dataset) else thing for thing in on)
        about = (thing.vectors if isinstance(thing, Solution) else thing for thing in about)
        folder = folder_of(args) / UNFINISHED / f"{work}-{digest(about)}"
        training = {"seed": args.seed, "label_smoothing_factor": args.label_smoothing_factor}
        manifest = {
            "loss": self.objective.loss_name,
            "model": self.checkpoints.fingerprint,
            "train_dataset": rows_digest(trainer, kept, train) if isinstance(train, Dataset) else None,
            **{name: str(value) for name, value in (args.influence_settings() | training).items()},
        }
        return pieces_of(folder, manifest, trainer.accelerator)

    def loss_settings(self) -> dict[str, Any]:
        """What gradients depend on, beside model and examples."""
        names = ("label_smoothing_factor", "loss_weight_decay", "loss_reduction", "influence_bf16")
        return {"function": self.objective.loss_name} | {name: getattr(self.args, name) for name in names}

    def settings(self, num_neighbors: int | None, num_examples: int | None) -> dict[str, Any]:
        """What a result says about how it was made."""
        setup, largest = self.setup(), []
        for number in range(0 if setup.name == "identity" or setup.damps_by_layer else len(self.checkpoints)):
            with self.checkpoints.at(number):
                largest.append(self.setup().spectrum.largest)
        return {
            "model": model_name(self.trainer.model),
            **sources(self.trainer.model, self.trainer.train_dataset),
            "num_parameters": self.objective.space.size,
            "num_neighbors": num_neighbors,
            "num_examples": num_examples,
            "solver": setup.describe(),
            "curvature": self.args.curvature,
            "largest_eigenvalue": sum(largest) / len(largest) if largest else None,
            "damping_by_layer": setup.damps_by_layer,
            "seed": self.args.seed,
            "checkpoints": [
                {"name": member.name, "step": member.step, "epoch": member.epoch, "weight": weight}
                for member, weight in zip(self.checkpoints.members, self.checkpoints.weights, strict=True)
            ],
        }


@contextmanager
def context_of(trainer: Trainer, kept: Kept) -> Iterator[Context]:
    """The trainer's model as a function of its trainable parameters, in the state that exact derivatives need."""
    args = trainer.args
    model = trainer.accelerator.unwrap_model(trainer.model, keep_torch_compile=False)
    check_whole(model)
    check_adapters(model)
    if not kept.prepared:
        _prepare_folder(args, trainer.accelerator)
        kept.prepared = True
    with differentiable(model), uncompiled(trainer, model):
        decayed = trainer.get_decay_parameter_names(model) if args.loss_weight_decay else ()
        smoothing, weight_decay = args.label_smoothing_factor, args.loss_weight_decay
        objective = Objective(model, smoothing, weight_decay, decayed, args.influence_bf16, args.loss_reduction)
        warn_of_half_precision(objective)
        yield Context(trainer, objective, kept)


def rows_digest(trainer: Trainer, kept: Kept, dataset: Dataset) -> str:
    """A short digest of the rows of a dataset as the model sees them, computed once."""
    if dataset._fingerprint not in kept.digests:
        rows = trainer._remove_unused_columns(dataset)
        examples = ExampleBatches(rows, trainer.data_collator, trainer._prepare_inputs)
        kept.digests[dataset._fingerprint] = examples.digest
    return kept.digests[dataset._fingerprint]


def folder_of(args: InfluenceConfig) -> Path:
    """Where everything about influence is written."""
    return Path(args.output_dir) / "influence"


def _prepare_folder(args: InfluenceConfig, accelerator: Accelerator) -> None:
    """Looks whether all machines see the folder; forgets what earlier runs left to go on from, if that is wanted."""
    folder = folder_of(args)
    check_shared_folder(folder, accelerator)
    if args.overwrite and accelerator.is_main_process:
        shutil.rmtree(folder / UNFINISHED, ignore_errors=True)
        for factors in folder.glob("ekfac*.safetensors"):
            factors.unlink()
    accelerator.wait_for_everyone()
