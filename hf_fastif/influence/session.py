"""What every call of the trainer works with: the loss, the data, the solver, and what was made earlier."""

from __future__ import annotations

import shutil
from collections.abc import Hashable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from datasets import Dataset
from transformers import Trainer
from transformers.utils import logging

from hf_fastif.artifacts import model_name, same_loss, sources
from hf_fastif.checkpoints import (
    Checkpoint,
    CheckpointSet,
    checkpoints_of,
    find_checkpoints,
    has_same_parameters,
    run_that_led_to,
    weights_of,
)
from hf_fastif.config import InfluenceConfig
from hf_fastif.data import ExampleBatches, check_dataset, hexdigest
from hf_fastif.diagnosis import CheckpointSignal, measure_checkpoint_signal
from hf_fastif.execution import (
    DatasetSweep,
    PartialResults,
    check_same_folder,
    check_shared_folder,
    open_partial_results,
)
from hf_fastif.index import InfluenceIndex
from hf_fastif.influence.attribution import Attribution
from hf_fastif.influence.checks import check_inputs
from hf_fastif.influence.predictions import Predictions, predict
from hf_fastif.model import (
    FrozenStates,
    LossFacts,
    Objective,
    TokenHead,
    check_adapters,
    check_no_inference_tensors,
    check_whole,
    differentiable,
    find_frozen_states,
    frozen_digest,
    resolve_training_loss,
    settle_padding,
    trained_part,
    trained_state,
    uncompiled,
    warn_of_half_precision,
    without_targets_of_padding,
)
from hf_fastif.solvers import Origin, Solution, SolverSetup


logger = logging.get_logger(__name__)

UNFINISHED = "unfinished"  # under the folder of influence


@dataclass
class SessionCache:
    """What earlier calls have made and later ones may use.

    Attributes:
        indexes (`dict`): Indexes by the fingerprint of their dataset.
        states (`dict`): States behind frozen layers, by dataset; None where there are none to keep.
        fitted (`dict`): Spectra, factors and the like, by what they belong to.
        digests (`dict`): Of the stored rows of datasets, by their fingerprint.
        checked (`dict`): The collators that datasets were checked with.
        positions (`dict`): Whether a model is told the positions of tokens, by collator and dataset.
        losses (`dict`): What was found out about losses.
        loss_identities (`list[str]`): What stands for the losses that there were.
        said (`str`): What the user was last told about the moment of training.
        prepared (`bool`): Whether the folder for all this was looked at.
        begun (`set[Path]`): Folders of what is kept for good that were opened.
    """

    indexes: dict[str, InfluenceIndex] = field(default_factory=dict)
    states: dict[tuple[Hashable, ...], FrozenStates | None] = field(default_factory=dict)
    fitted: dict[tuple[Hashable, ...], Any] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)
    checked: dict[tuple[Hashable, ...], Any] = field(default_factory=dict)
    positions: dict[tuple[Hashable, ...], tuple[Any, bool]] = field(default_factory=dict)
    losses: dict[Hashable, LossFacts] = field(default_factory=dict)
    loss_identities: list[str] = field(default_factory=list)
    said: str = ""
    prepared: bool = False
    begun: set[Path] = field(default_factory=set)


def _let_go(states: dict[tuple[Hashable, ...], FrozenStates | None], memory: int) -> None:
    """Of the datasets but the last one, those that were used last stay, as many as fit into the memory of one."""
    used = 0
    for key in list(states)[-2::-1]:
        used += 0 if states[key] is None else states[key].used
        if used > memory:
            del states[key]


class InfluenceSession:
    """One call's view of a trainer.

    Args:
        trainer (`Trainer`): With an `InfluenceConfig` for arguments.
        objective (`Objective`): Its loss.
        kept (`SessionCache`): What earlier calls have made.
    """

    def __init__(self, trainer: Trainer, objective: Objective, cache: SessionCache):
        self.trainer = trainer
        self.objective = objective
        self.cache = cache
        self._loss_known = False

    @property
    def args(self) -> InfluenceConfig:
        """All settings."""
        return self.trainer.args

    @property
    def sweep(self) -> DatasetSweep:
        """How long work is cut up."""
        show = not self.args.disable_tqdm
        return DatasetSweep(self.args.influence_batch_size, self.trainer.accelerator, show_progress=show)

    def examples(self, name: str, dataset: Dataset) -> ExampleBatches:
        """The examples of a dataset, checked."""
        check_dataset(name, dataset)
        trainer = self.trainer
        examples = batches_of(trainer, self.cache, dataset, name)
        if isinstance(self.objective.head, TokenHead) and self.objective.head.shift:
            examples.prepare = lambda batch: without_targets_of_padding(trainer._prepare_inputs(batch))
        key = (dataset._fingerprint, id(self.objective.model), self.args.remove_unused_columns)
        if self.cache.checked.get(key) is not trainer.data_collator:
            check_inputs(name, dataset, examples, trainer, self.objective)
            self.cache.checked[key] = trainer.data_collator
        settle_padding(name, self.objective, examples, self.cache.positions)
        if not self._loss_known:
            train = trainer.train_dataset
            if name != "train_dataset" and isinstance(train, Dataset) and len(train):
                self.examples("train_dataset", train)  # what is told apart by many examples
            else:
                self._find_loss(examples)
        return examples

    def _find_loss(self, examples: ExampleBatches) -> None:
        self.objective.use_loss(resolve_training_loss(self.trainer, self.objective, examples, self.cache.losses))
        self._loss_known = True

    @property
    def loss(self) -> str:
        """What stands for the loss; the same text for losses that compute the same."""
        identity, before = self.objective.loss_identity, self.cache.loss_identities
        for other in before:
            if same_loss(identity, other):
                return other
        before.append(identity)
        return identity

    def belongs(self, pool: ExampleBatches) -> dict[str, str]:
        """What an artifact about a dataset must belong to: model, dataset and loss."""
        model = {"trained": trained_part(self.objective.model), "model": self.checkpoints.fingerprint}
        return model | {"dataset": pool.digest, "loss": self.loss}

    def origin(self, queries: ExampleBatches, as_one: bool) -> Origin:
        """What the s_test of some queries belongs to."""
        digests = queries.row_digests
        return Origin(
            queries=(hexdigest(digests),) if as_one else digests,
            belongs=self.belongs(self.train),
        )

    def training_facts(self) -> dict[str, str]:
        """What a checkpoint keeps about the run that it is of."""
        examples = self.examples("train_dataset", self.trainer.train_dataset)
        return {
            "train_dataset": examples.training_digest,
            "loss": self.objective.training_loss_identity,
            "frozen": frozen_digest(self.objective.model),
        }

    def pool(self, name: str, dataset: Dataset) -> ExampleBatches:
        """The examples of a dataset that many passes are made over: what frozen layers make of them is kept."""
        examples, states = self.examples(name, dataset), self.cache.states
        memory = int(self.args.frozen_states_gb * 2**30)
        model = self.objective.model
        key = (id(model), frozen_digest(model), examples.digest, tuple(self.objective.theta), memory)
        key += (self.args.influence_bf16,)
        if memory and self.objective.custom_compute_loss is None and key not in states:
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
        objective = self.objective
        members, line = find_checkpoints(args.checkpoints, args.output_dir, objective.model)
        if line and (line != self.cache.said or members == [Checkpoint()]):
            logger.warning(line)
        self.cache.said = line
        checkpoints = CheckpointSet(objective, members, weights_of(members, args.checkpoint_weights))
        if any(member.path for member in members):
            checkpoints.check(self.train)
        return checkpoints

    def signals(self) -> list[CheckpointSignal]:
        """What each checkpoint that training left still holds, and the final model."""
        folder, model = self.args.output_dir, self.objective.model
        members = checkpoints_of(folder, run_that_led_to(folder, model))
        if members and has_same_parameters(members[-1], trained_state(model)):
            members.pop()
        members.append(Checkpoint())
        checkpoints = CheckpointSet(self.objective, members, [1.0] * len(members))
        checkpoints.check(self.train)
        found = []
        for number, member in enumerate(members):
            with checkpoints.at(number):
                found.append(measure_checkpoint_signal(self.setup(), member, self.sweep))
        return found

    def predict(self, examples: ExampleBatches) -> Predictions:
        """What the model says about examples; a NaN loss is an error now, not in an hour."""
        return predict(self.objective, examples, self.sweep)

    def setup(self) -> SolverSetup:
        """Curvature, damping and solver, at the checkpoint that is in the model."""
        accelerator, fitted = self.trainer.accelerator, self.cache.fitted
        final = self.checkpoints.present.path is None
        name = "ekfac" if final else f"ekfac-{hexdigest([self.objective.fingerprint])}"
        factors = folder_of(self.args) / f"{name}.safetensors"
        return SolverSetup(self.args, self.objective, self.train, self.loss, accelerator, fitted, factors)

    @contextmanager
    def attribution(
        self, work: str, *on: Dataset | Solution | int | str | None, as_one: bool = False
    ) -> Iterator[Attribution]:
        """What solves and scores, keeping what is finished until the work is done."""
        with self.partial_results(work, *on, as_one) as partials:
            yield Attribution(self.objective, self.args, self.checkpoints, self.setup, self.sweep, partials, as_one)

    def partial_results(
        self, work: str, *on: Dataset | Solution | int | str | None
    ) -> AbstractContextManager[PartialResults]:
        """Keeps what is finished of some work, under `output_dir/influence`, until all of it is.

        Args:
            work (`str`): Name of the call.
            *on: What it is about.
        """
        args, trainer, cache = self.args, self.trainer, self.cache
        train = trainer.train_dataset
        about = (batches_of(trainer, cache, thing).digest if isinstance(thing, Dataset) else thing for thing in on)
        about = (thing.vectors if isinstance(thing, Solution) else thing for thing in about)
        folder = folder_of(args) / UNFINISHED / f"{work}-{hexdigest(about)}"
        manifest = {
            "loss": self.loss,
            "model": self.checkpoints.fingerprint,
            "train_dataset": batches_of(trainer, cache, train).digest if isinstance(train, Dataset) else None,
            "seed": str(args.seed),
            **{name: str(value) for name, value in args.influence_settings().items()},
        }
        return open_partial_results(folder, manifest, trainer.accelerator)

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
def open_session(trainer: Trainer, cache: SessionCache) -> Iterator[InfluenceSession]:
    """The trainer's model as a function of its trainable parameters, in the state that exact derivatives need."""
    args = trainer.args
    model = trainer.accelerator.unwrap_model(trainer.model, keep_torch_compile=False)
    check_whole(model)
    check_adapters(model)
    check_no_inference_tensors(model)
    if not cache.prepared:
        _prepare_folder(args, trainer.accelerator)
        cache.prepared = True
    with torch.inference_mode(False), torch.enable_grad(), differentiable(model), uncompiled(trainer, model):
        decayed = trainer.get_decay_parameter_names(model) if args.loss_weight_decay else ()
        smoothing, weight_decay = args.label_smoothing_factor, args.loss_weight_decay
        objective = Objective(model, smoothing, weight_decay, decayed, args.influence_bf16, args.loss_reduction)
        warn_of_half_precision(objective)
        yield InfluenceSession(trainer, objective, cache)


def batches_of(trainer: Trainer, cache: SessionCache, dataset: Dataset, name: str | None = None) -> ExampleBatches:
    """The rows of a dataset as the model sees them."""
    rows = trainer._remove_unused_columns(dataset, name)
    return ExampleBatches(rows, trainer.data_collator, trainer._prepare_inputs, cache.digests)


def folder_of(args: InfluenceConfig) -> Path:
    """Where everything about influence is written."""
    return Path(args.output_dir) / "influence"


def _prepare_folder(args: InfluenceConfig, accelerator: Accelerator) -> None:
    """Looks whether all machines see the folder; forgets what earlier runs left to go on from, if that is wanted."""
    folder = folder_of(args)
    check_same_folder(Path(args.output_dir), accelerator)
    check_shared_folder(folder, accelerator)
    if args.overwrite and accelerator.is_main_process:
        shutil.rmtree(folder / UNFINISHED, ignore_errors=True)
        for factors in folder.glob("ekfac*.safetensors"):
            factors.unlink()
    accelerator.wait_for_everyone()
