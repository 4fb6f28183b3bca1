"""Open sessions, which check, batch, hash and predict examples once per call."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from datasets import Dataset
from transformers import Trainer
from transformers.utils import logging

from hf_fastif.artifacts import model_name, same_loss, sources
from hf_fastif.checkpoints import (
    Checkpoint,
    CheckpointSet,
    automatic_checkpoints,
    checkpoints_of,
    find_checkpoints,
    has_same_parameters,
    run_that_led_to,
    weights_of,
)
from hf_fastif.config import InfluenceConfig, with_settings
from hf_fastif.data import ExampleBatches, check_dataset, hexdigest
from hf_fastif.diagnosis import CheckpointSignal, measure_checkpoint_signal
from hf_fastif.execution import (
    DatasetSweep,
    PartialResults,
    check_same_folder,
    check_shared_folder,
    open_partial_results,
)
from hf_fastif.index import (
    IndexSearch,
    InfluenceIndex,
    check_num_neighbors,
    query_features_of,
)
from hf_fastif.influence.attribution import Attribution
from hf_fastif.influence.checks import check_inputs
from hf_fastif.influence.indexes import SKETCH, Indexes
from hf_fastif.influence.predictions import Predictions, predict
from hf_fastif.influence.queries import CandidatePool, Queries, QuerySet
from hf_fastif.influence.session_cache import SessionCache, evict
from hf_fastif.influence.sketched import SketchedQueries
from hf_fastif.model import (
    LOSS,
    Measure,
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
    warn_of_half_precision,
    without_targets_of_padding,
)
from hf_fastif.solvers import Origin, Solution, SolverSetup, check_s_test


logger = logging.get_logger(__name__)

BatchesOf = Callable[[Dataset, str | None], ExampleBatches]
Identity = str | int | torch.Tensor | None
UNFINISHED = "unfinished"  # subfolder of `output_dir/influence`


class InfluenceSession:
    """A model with its data and settings, prepared for influence; every method of the trainer works through one.

    `trainer.session()` opens a session. While it is open, the model is in the state that exact derivatives need.

    Args:
        trainer (`Trainer`): A trainer whose `args` are an `InfluenceConfig`.
        objective (`Objective`): The trainer's loss.
        cache (`SessionCache`): Results of earlier sessions.
        batches_of (`Callable`): Returns the examples of a dataset as the model sees them, given the dataset and the
            name of the argument it was given as.

    Example:
        ```python
        with trainer.session() as session:
            queries, pool = session.queries(dev), session.candidates()
            with session.attribution("my scores", queries.identity, pool.digest) as attribution:
                for scores in attribution.score(queries, pool.batches, search=None, s_test=None):
                    print(scores.rows, scores.scores)
        ```
    """

    def __init__(self, trainer: Trainer, objective: Objective, cache: SessionCache, batches_of: BatchesOf):
        self.trainer = trainer
        self.objective = objective
        self.cache = cache
        self._batches_of = batches_of
        self._loss_known = False

    @property
    def args(self) -> InfluenceConfig:
        """All settings."""
        return self.trainer.args

    @property
    def sweep(self) -> DatasetSweep:
        """How to divide a pass over examples into batches and processes."""
        show = not self.args.disable_tqdm
        return DatasetSweep(self.args.influence_batch_size, self.trainer.accelerator, show_progress=show)

    def queries(self, examples: Dataset | QuerySet, measure: Measure | None = None) -> Queries:
        """Check and prepare queries.

        Args:
            examples (`datasets.Dataset` or [`QuerySet`]): The queries.
            measure ([`Measure`], *optional*): The quantity to attribute instead of the loss.

        Raises:
            InfluenceError: If the examples lack a column that the model reads, or the measure does not fit the model.
        """
        query_set = QuerySet.of(examples)
        batches, alternatives = self.examples("examples", query_set.dataset), None
        if query_set.rather_than is not None:
            alternatives = self.examples("rather_than", query_set.rather_than)
        objective, processor = self.objective, self.trainer.processing_class
        if measure is not None:
            objective = objective.measuring(measure, batches.take([0]), getattr(processor, "tokenizer", processor))
        size = self.args.query_batch_size
        return Queries(query_set, batches, alternatives, objective, self.objective, self.sweep, size)

    def candidates(
        self, dataset: Dataset | None = None, name: str = "candidates", k: int | None = None
    ) -> CandidatePool:
        """Check and prepare candidates, by default `trainer.train_dataset`.

        Args:
            dataset (`datasets.Dataset`, *optional*): The candidates.
            name (`str`, *optional*): The argument that they were given as, for messages.
            k (`int`, *optional*): How many of them will be scored for each query; None for all.

        Raises:
            InfluenceError: If the examples lack a column that the model reads, or have invalid labels, or k exceeds
                their number.
        """
        name, dataset = self.named(dataset, name)
        check_dataset(name, dataset)
        check_num_neighbors(k, len(dataset))
        return CandidatePool(name, dataset, self.pool(name, dataset))

    def named(self, dataset: Dataset | None, name: str) -> tuple[str, Dataset]:
        """Return the name and dataset of an argument, or those of `trainer.train_dataset` if it is None."""
        return ("train_dataset", self.trainer.train_dataset) if dataset is None else (name, dataset)

    def search(
        self, queries: Queries, pool: CandidatePool, k: int, query_features: np.ndarray | None = None
    ) -> IndexSearch:
        """Return a search for the k candidates of each query in the index of the candidates.

        Args:
            queries (`Queries`): The queries.
            pool (`CandidatePool`): The candidates.
            k (`int`): The number of candidates per query.
            query_features (`np.ndarray` of shape `(Q, d)`, *optional*): Features of the queries, if the index was
                built from features that the user supplied.

        Raises:
            InfluenceError: If the attached index was built with another model, loss or other rows.
        """
        index = self.index(pool, any_kind=True)
        sweep, checkpoints = self.sweep, self.checkpoints
        features = query_features_of(index, checkpoints, queries.batches, query_features, queries.as_one, sweep)
        return IndexSearch(index, checkpoints, k, sweep, features)

    def sketched(self, queries: Queries, pool: CandidatePool) -> SketchedQueries:
        """Return the queries in the coordinates of the index of the candidates, which is built if there is none."""
        return SketchedQueries(queries, self.index(pool), self.checkpoints, self.setup, self.cache.coordinates)

    def check_s_test(self, s_test: Solution | None, queries: Queries) -> None:
        """Refuse an s_test that was computed for other queries, or with another model, training set, loss or measure.

        Raises:
            InfluenceError: If a digest differs; the message names what.
        """
        if s_test is not None:
            check_s_test(s_test, self.origin(queries), self.checkpoints.size)

    def examples(self, name: str, dataset: Dataset) -> ExampleBatches:
        """Check the examples of a dataset, given as the argument `name`, and return them as the model sees them.

        Raises:
            InfluenceError: If the examples lack a column that the model reads, or have invalid labels.
        """
        examples = self._checked(name, dataset)
        if not self._loss_known:
            train = self.trainer.train_dataset  # probed first, since more examples distinguish losses better
            has_rows = isinstance(train, Dataset) and len(train)
            probed = self._checked("train_dataset", train) if has_rows else examples
            self.objective.use_loss(resolve_training_loss(self.trainer, self.objective, probed, self.cache.losses))
            self._loss_known = True
        return examples

    def _checked(self, name: str, dataset: Dataset) -> ExampleBatches:
        check_dataset(name, dataset)
        trainer, head = self.trainer, self.objective.head
        examples = self._batches_of(dataset, name)
        if isinstance(head, TokenHead) and head.shift:
            prepare = examples.prepare
            examples.prepare = lambda batch: without_targets_of_padding(prepare(batch))
        key = (dataset._fingerprint, id(self.objective.model), self.args.remove_unused_columns)
        if self.cache.checked.get(key) is not trainer.data_collator:
            check_inputs(name, dataset, examples, trainer, self.objective)
            self.cache.checked[key] = trainer.data_collator
        settle_padding(name, self.objective, examples, self.cache.positions)
        return examples

    def index(self, pool: CandidatePool, any_kind: bool = False) -> InfluenceIndex:
        """Return the index of some candidates: the attached one, one on disk, or a new one.

        Args:
            pool (`CandidatePool`): The candidates.
            any_kind (`bool`, *optional*): Whether an index of any features will do, or only a gradient sketch.

        Raises:
            InfluenceError: If the attached index was built with another model, loss or other rows.
        """
        return self.indexes.of(pool, None if any_kind else SKETCH)

    @cached_property
    def indexes(self) -> Indexes:
        """The indexes on disk and in memory."""
        return Indexes(
            self.args,
            self.checkpoints,
            self.setup,
            self.sweep,
            self.candidates,
            lambda pool: self.belongs(pool.batches),
            lambda pool: self.provenance(pool.dataset),
            self.partial_results,
            folder_of(self.args) / "indexes",
            self.cache.indexes,
            self.cache.built,
        )

    def provenance(self, dataset: Dataset) -> dict[str, Any]:
        """Return the names of the model and of the dataset's source, for the manifest of an artifact."""
        model = self.trainer.model
        return {"model_name": model_name(model), **sources(model, dataset)}

    @property
    def loss(self) -> str:
        """The identity of the loss; losses that compute the same values share one."""
        identity, before = self.objective.loss_identity, self.cache.loss_identities
        for other in before:
            if same_loss(identity, other):
                return other
        before.append(identity)
        return identity

    def belongs(self, pool: ExampleBatches) -> dict[str, str]:
        """Return the digests of model, dataset and loss that an artifact of a dataset must match."""
        model = {"trained": trained_part(self.objective.model), "model": self.checkpoints.fingerprint}
        return model | {"dataset": pool.digest, "loss": self.loss}

    def origin(self, queries: Queries) -> Origin:
        """Return the digests that the s_test of these queries must match."""
        belongs = self.belongs(self.train) | {
            "measure": f"{queries.measured} {queries.objective.measure_digest}".strip()
        }
        return Origin(queries=queries.row_digests, belongs=belongs)

    def training_facts(self) -> dict[str, str]:
        """Return the digests of training set, loss and frozen parameters that each checkpoint of a run stores."""
        examples = self.examples("train_dataset", self.trainer.train_dataset)
        return {
            "train_dataset": examples.training_digest,
            "loss": self.objective.training_loss_identity,
            "frozen": frozen_digest(self.objective.model),
        }

    def pool(self, name: str, dataset: Dataset) -> ExampleBatches:
        """Return the examples of a dataset for repeated passes, with the outputs of frozen layers cached."""
        examples, states = self.examples(name, dataset), self.cache.states
        memory = int(self.args.frozen_states_gb * 2**30)
        model = self.objective.model
        key = (id(model), frozen_digest(model), examples.digest, tuple(self.objective.theta), memory)
        key += (self.args.influence_bf16,)
        if memory and self.objective.custom_compute_loss is None and key not in states:
            states[key] = find_frozen_states(self.objective, examples, memory)
        if key in states:
            states[key] = states.pop(key)  # now the most recently used
            evict(states, memory)
        examples.states = states.get(key)
        if examples.states is not None:
            self.objective.frozen = examples.states.frozen
        return examples

    @cached_property
    def train(self) -> ExampleBatches:
        """The training set as the model sees it."""
        return self.pool("train_dataset", self.trainer.train_dataset)

    @cached_property
    def checkpoints(self) -> CheckpointSet:
        """The checkpoints to sum over, chosen by `args.checkpoints` and checked."""
        args = self.args
        self.trainer.accelerator.wait_for_everyone()  # the main process may have just written one
        objective = self.objective
        members, line = find_checkpoints(args.checkpoints, args.output_dir, objective.model)
        if line and (line != self.cache.checkpoint_notice or members == [Checkpoint()]):
            logger.warning(line)
        self.cache.checkpoint_notice = line
        checkpoints = CheckpointSet(objective, members, weights_of(members, args.checkpoint_weights))
        if any(member.path for member in members):
            checkpoints.check(self.train)
        return checkpoints

    def signals(self) -> list[CheckpointSignal]:
        """Measure how much signal each checkpoint of the training run, and the final model, still holds."""
        folder, model = self.args.output_dir, self.objective.model
        end = run_that_led_to(folder, model)
        members = checkpoints_of(folder, end)
        automatic = automatic_checkpoints(members, end.step) if end else []
        if members and has_same_parameters(members[-1], trained_state(model)):
            members.pop()
        members.append(Checkpoint())
        checkpoints = CheckpointSet(self.objective, members, [1.0] * len(members))
        checkpoints.check(self.train)
        signals = []
        for number, member in enumerate(members):
            with checkpoints.at(number):
                signals.append(measure_checkpoint_signal(self.setup(), member, member in automatic, self.sweep))
        return signals

    def predict(self, examples: ExampleBatches) -> Predictions:
        """Compute predictions and losses of examples.

        Raises:
            InfluenceError: If the loss of an example is NaN or infinite.
        """
        return predict(self.objective, examples, self.sweep)

    def attributed(self, queries: Queries) -> np.ndarray:
        """Compute what is attributed, for each example (Q,), where influence is taken: the mean over the checkpoints.

        Raises:
            InfluenceError: If it is NaN or infinite for an example.
        """
        if queries.measured == LOSS and self.checkpoints.members == [Checkpoint()]:
            return queries.predictions.losses
        total = np.zeros(len(queries.batches))
        for number in range(len(self.checkpoints)):
            with self.checkpoints.at(number) as weight:
                total += weight * queries.attributed()
        return total

    def setup(self, solver: str | None = None) -> SolverSetup:
        """Return curvature, damping and solver for the checkpoint that is currently loaded.

        Args:
            solver (`str`, *optional*): The solver to use instead of `args.solver`.
        """
        args = self.args if solver is None else with_settings(self.args, solver=solver)
        accelerator, fitted = self.trainer.accelerator, self.cache.fitted
        final = self.checkpoints.present.path is None
        name = "ekfac" if final else f"ekfac-{hexdigest([self.objective.fingerprint])}"
        factors = folder_of(self.args) / f"{name}.safetensors"
        sketch = self.indexes.sketch
        return SolverSetup(args, self.objective, self.train, self.loss, accelerator, fitted, factors, sketch)

    def manifest(self) -> dict[str, str]:
        """Return what every result depends on besides datasets: model, loss, seed and settings."""
        settings = {name: str(value) for name, value in self.args.influence_settings().items()}
        return {"model": self.checkpoints.fingerprint, "loss": self.loss, "seed": str(self.args.seed)} | settings

    @contextmanager
    def attribution(self, work: str, *identity: Identity, solver: str | None = None) -> Iterator[Attribution]:
        """Open a computation of s_test and scores, which stores finished parts on disk until it is complete.

        Args:
            work (`str`): The name of the computation; names its folder.
            *identity: What the result depends on besides model, training set and settings: digests, numbers, vectors.
            solver (`str`, *optional*): The solver to use instead of `args.solver`.
        """
        with self.partial_results(work, *identity, solver) as partials:
            setup = partial(self.setup, solver)
            yield Attribution(self.objective, self.args, self.checkpoints, setup, self.sweep, partials)

    def partial_results(self, work: str, *identity: Identity) -> AbstractContextManager[PartialResults]:
        """Open a store of finished parts under `output_dir/influence`, which is removed when all parts are finished.

        Args:
            work (`str`): The name of the computation; names its folder.
            *identity: What the result depends on besides model, training set and settings: digests, numbers, vectors.
        """
        train = self.trainer.train_dataset
        digest = self._batches_of(train, None).digest if isinstance(train, Dataset) else None
        manifest = self.manifest() | {"train_dataset": digest}
        folder = folder_of(self.args) / UNFINISHED / f"{work}-{hexdigest(identity)}"
        return open_partial_results(folder, manifest, self.trainer.accelerator)


@contextmanager
def open_session(trainer: Trainer, cache: SessionCache, batches_of: BatchesOf) -> Iterator[InfluenceSession]:
    """Open a session on a trainer; see [`InfluenceSession`].

    Raises:
        InfluenceError: If exact derivatives of the model cannot be computed.
    """
    args = trainer.args
    model = trainer.accelerator.unwrap_model(trainer.model, keep_torch_compile=False)
    check_whole(model)
    check_adapters(model)
    check_no_inference_tensors(model)
    if not cache.prepared:
        _prepare_folder(args, trainer.accelerator)
        cache.prepared = True
    with torch.inference_mode(False), torch.enable_grad(), differentiable(model):
        decayed = trainer.get_decay_parameter_names(model) if args.loss_weight_decay else ()
        smoothing, weight_decay = args.label_smoothing_factor, args.loss_weight_decay
        objective = Objective(model, smoothing, weight_decay, decayed, args.influence_bf16, args.loss_reduction)
        warn_of_half_precision(objective)
        yield InfluenceSession(trainer, objective, cache, batches_of)


def folder_of(args: InfluenceConfig) -> Path:
    """Return the folder of all files that influence computations write."""
    return Path(args.output_dir) / "influence"


def _prepare_folder(args: InfluenceConfig, accelerator: Accelerator) -> None:
    """Check that all machines share the output folder; with `args.overwrite`, delete results of earlier runs."""
    folder = folder_of(args)
    check_same_folder(Path(args.output_dir), accelerator)
    check_shared_folder(folder, accelerator)
    if args.overwrite and accelerator.is_main_process:
        shutil.rmtree(folder / UNFINISHED, ignore_errors=True)
        for factors in folder.glob("ekfac*.safetensors"):
            factors.unlink()
    accelerator.wait_for_everyone()
