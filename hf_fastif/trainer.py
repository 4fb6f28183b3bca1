"""`InfluenceTrainer`: a `Trainer` that also says which training examples made the model answer as it did."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from datasets import Dataset
from torch import nn
from transformers import Trainer, TrainingArguments

from hf_fastif.attribution import Attribution, digest
from hf_fastif.batches import ExampleBatches
from hf_fastif.checks import check_dataset, check_index, check_inputs, check_loss, check_num_neighbors, check_s_test
from hf_fastif.config import InfluenceConfig
from hf_fastif.diagnosis import Diagnosis, diagnose
from hf_fastif.frozen import FrozenStates, find_frozen_states
from hf_fastif.index import InfluenceIndex, without_indexes, write_index
from hf_fastif.indexing import index_features, own_features, searching
from hf_fastif.objective import Objective, differentiable
from hf_fastif.outcomes import build_result
from hf_fastif.parameters import model_fingerprint
from hf_fastif.passes import Passes
from hf_fastif.pieces import Pieces, pieces_of
from hf_fastif.queries import Predictions, loss_gradients, predict
from hf_fastif.results import InfluenceResult
from hf_fastif.scoring import choose_scoring
from hf_fastif.solvers import Solution
from hf_fastif.solving import SolverSetup


class InfluenceTrainer(Trainer):
    """A `Trainer` with `build_index`, `compute_s_test`, `find_influential` and `compute_influence`.

    Influence never calls `train()`: it takes the model as it is, trained here or loaded. Indices in results are
    positions in `train_dataset`. Under `accelerate launch` every process must make the same calls; the work is dealt
    out and every process gets the same answer.

    Args:
        model (`PreTrainedModel`): A model with a sequence-classification head. Its parameters with `requires_grad`
            are trained and attributed ([`freeze`] leaves the last layers).
        args ([`InfluenceConfig`] or `TrainingArguments`, *optional*): Plain `TrainingArguments` are completed with
            the default settings of influence.
        *other, **named: The other arguments of `Trainer`. `train_dataset` must be a `datasets.Dataset`.
    """

    def __init__(self, model: nn.Module, args: TrainingArguments | None = None, *other: Any, **named: Any):
        if args is None:
            args = InfluenceConfig()
        elif not isinstance(args, InfluenceConfig):
            args = InfluenceConfig(**{f.name: getattr(args, f.name) for f in fields(args) if f.init})
        super().__init__(model, args, *other, **named)
        self._indexes: dict[str, InfluenceIndex] = {}  # by the fingerprint of the dataset
        self._states: dict[tuple[Hashable, ...], FrozenStates | None] = {}  # behind frozen layers, by dataset
        self._fitted: dict[tuple[Hashable, ...], Any] = {}  # spectra, factors and the like, by what they belong to

    def build_index(self, dataset: Dataset | None = None, features: np.ndarray | str | None = None) -> InfluenceIndex:
        """Makes a FAISS index of the features of a dataset, writes it, and attaches it to the dataset, in place.

        The features are those of `args.index_features`. The index is written to `output_dir/influence/indexes`, from
        where `load_index` reads it. Afterwards `dataset.get_nearest_examples(index.name, vector, k)` works too.

        Args:
            dataset (`datasets.Dataset`, *optional*): `trainer.train_dataset` unless given; give a candidate pool that
                was never trained on to search that.
            features (`np.ndarray` of shape `(N, d)` or `str`, *optional*): Features of your own, or the column that
                holds them, compared by L2 distance. `find_influential` then needs `query_features`.

        Returns:
            [`InfluenceIndex`]: The index.
        """
        name, dataset = self._named_candidates(dataset, "dataset")
        with self._objective() as objective:
            pool = self._pool(objective, name, dataset)
            own = features is not None
            made = own_features(dataset, features) if own else index_features(self._setup(objective))
            kind = "own" if own else self.args.index_features
            folder = Path(self.args.output_dir) / "influence" / "indexes" / f"{kind}-{pool.digest}"
            belongs = {"model": model_fingerprint(objective.model), "dataset": pool.digest}
            with self._pieces(objective, "build_index", dataset, kind) as pieces:
                write_index(folder, kind, made, pool, self.args, belongs, self._passes, pieces)
        return self.load_index(folder, dataset)

    def load_index(self, folder: str | Path, dataset: Dataset | None = None) -> InfluenceIndex:
        """Reads an index that `build_index` wrote, and attaches it to its dataset, in place.

        Args:
            folder (`str` or `Path`): The index.
            dataset (`datasets.Dataset`, *optional*): `trainer.train_dataset` unless given.

        Raises:
            ValueError: If the index was made with another model, other rows, or another order of rows.
        """
        name, dataset = self._named_candidates(dataset, "dataset")
        index = InfluenceIndex.load(folder, self.args.index_on_disk, self.args.index_device)
        with self._objective() as objective:
            pool = self._examples(name, dataset)
            index.check({"model": model_fingerprint(objective.model), "dataset": pool.digest})
        index.attach(dataset)
        self._indexes[dataset._fingerprint] = index
        return index

    def find_candidates(
        self,
        examples: Dataset,
        num_neighbors: int,
        candidates: Dataset | None = None,
        s_test: Solution | None = None,
        query_features: np.ndarray | None = None,
    ) -> np.ndarray:
        """The rows (queries, k) that the index holds to be the most influential on each example, strongest first.

        Where the index compares with s_test, helpful and harmful ones take turns.
        The arguments are those of `find_influential`, which scores what it finds here.
        """
        name, candidates = self._named_candidates(candidates)
        check_dataset(name, candidates)
        check_num_neighbors(num_neighbors, len(candidates))
        solution = self.compute_s_test(examples) if s_test is None else s_test
        with self._objective() as objective:
            queries = self._examples("examples", examples)
            check_s_test(solution, len(queries), objective.space.size)
            index = check_index(name, candidates, self._indexes, objective.model)
            search = searching(index, objective, queries, query_features, num_neighbors, self._passes)
            return search(range(len(queries)), solution.vectors)

    def find_misclassified(self, examples: Dataset) -> np.ndarray:
        """The rows (ascending) of a dataset whose label the model does not predict: the ones to ask about.

        Raises:
            ValueError: If the labels are not one of several classes.
        """
        with self._objective() as objective:
            predictions = self._predict(objective, self._examples("examples", examples))
        if np.isnan(predictions.labels).any():
            raise ValueError(
                "examples: the labels are not classes (one whole number a row), so no prediction is right or wrong."
            )
        return np.flatnonzero(predictions.logits.argmax(axis=1) != predictions.labels)

    def compute_s_test(self, examples: Dataset) -> Solution:
        """s_test = (C + lambda I)^-1 grad L for every example (sections 3.3 and 3.4 of the paper), by `args.solver`.

        C is the curvature of the mean loss over `train_dataset`. All examples share the batches it is drawn from, so
        that asking for several costs less than asking one by one, and gives the same answer.

        Args:
            examples (`datasets.Dataset`): The queries.

        Returns:
            [`Solution`]: Vectors of shape (queries, parameters), residual and standard error.

        Raises:
            DivergenceError: If `lissa_scale` was given and is too small, naming one that converges.
            ValueError: If the Hessian is so indefinite that `damping` does not outweigh it, or the solver does not
                work for this model or training set.
        """
        with self._objective() as objective:
            queries = self._examples("examples", examples)
            self._predict(objective, queries)  # a NaN loss is an error now, not in an hour
            with self._attribution(objective, "compute_s_test", examples) as attribution:
                return attribution.s_test(queries)

    def compute_influence(
        self, examples: Dataset, candidates: Dataset | None = None, s_test: Solution | None = None
    ) -> np.ndarray:
        """The full scan: the influence of every candidate on every example.

        Args:
            examples (`datasets.Dataset`): The queries.
            candidates (`datasets.Dataset`, *optional*): `trainer.train_dataset` unless given.
            s_test ([`Solution`], *optional*): What `compute_s_test(examples)` returned, if it was called before.

        Returns:
            `np.ndarray` of shape `(queries, candidates)`, float32: Positive is harmful, negative is helpful.
        """
        with self._objective() as objective:
            queries = self._examples("examples", examples)
            name, candidates = self._named_candidates(candidates)
            pool = self._pool(objective, name, candidates)
            check_s_test(s_test, len(queries), objective.space.size)
            self._predict(objective, queries)
            with self._attribution(objective, "compute_influence", examples, candidates, s_test) as attribution:
                return np.stack([outcome.scores for outcome in attribution.outcomes(queries, pool, None, s_test)])

    def self_influence(self, examples: Dataset | None = None) -> np.ndarray:
        """How much training on an example lowers the loss on itself: grad L^T (C + lambda I)^-1 grad L.

        It is the influence of an example on itself with its sign turned, so that it is never negative (with the
        Gauss-Newton matrix). Examples that little else in the training set speaks for have a large one, such as
        mislabelled and atypical ones (Koh and Liang, 2017, section 5.4).

        With `solver="auto"` C is EK-FAC's, which costs a few forward passes an example; `"identity"` gives
        ||grad L||^2. Any other solver is run for every example.

        Args:
            examples (`datasets.Dataset`, *optional*): `trainer.train_dataset` unless given.

        Returns:
            `np.ndarray` of shape `(examples,)`, float32, in the order of the dataset.
        """
        name, examples = self._named_candidates(examples, "examples")
        with self._objective() as objective:
            pool = self._pool(objective, name, examples)
            with self._attribution(objective, "self_influence", examples) as attribution:
                return attribution.self_influence(pool)

    def find_influential(
        self,
        examples: Dataset,
        num_examples: int | None = 10,
        num_neighbors: int | None | Literal["config"] = "config",
        candidates: Dataset | None = None,
        s_test: Solution | None = None,
        query_features: np.ndarray | None = None,
    ) -> InfluenceResult:
        """Finds the training examples that helped and harmed the loss on each of some examples the most.

        Args:
            examples (`datasets.Dataset`): The queries, tokenized as the training set is, with labels.
            num_examples (`int`, *optional*, defaults to 10): How many of each direction to return; None returns every
                scored candidate.
            num_neighbors (`int`, *optional*): k: only the k nearest neighbours of each query are scored, found in the
                index of `build_index()`. None scores every candidate. `args.num_neighbors` unless given.
            candidates (`datasets.Dataset`, *optional*): `trainer.train_dataset` unless given. For a pool that was
                never trained on the answer is what training on it would do.
            s_test ([`Solution`], *optional*): What `compute_s_test(examples)` returned, if it was called before.
            query_features (`np.ndarray` of shape `(queries, d)`, *optional*): Where the index is of your own features.

        Returns:
            [`InfluenceResult`]: The same on every process.

        Raises:
            ValueError: If there are no examples, labels or index, k exceeds the candidates, a dataset changed after
                its index was built, or a loss is NaN.
        """
        if num_neighbors == "config":
            num_neighbors = self.args.num_neighbors
        if num_examples is not None and num_examples < 1:
            raise ValueError(f"num_examples={num_examples}: give at least 1, or None for every scored candidate.")
        name, candidates = self._named_candidates(candidates)
        check_dataset(name, candidates)
        check_num_neighbors(num_neighbors, len(candidates))
        with self._objective() as objective:
            queries = self._examples("examples", examples)
            pool = self._pool(objective, name, candidates)
            check_s_test(s_test, len(queries), objective.space.size)
            predictions = self._predict(objective, queries)
            on, search = (examples, candidates, s_test, num_neighbors), None
            if num_neighbors is not None:
                index = check_index(name, candidates, self._indexes, objective.model)
                search = searching(index, objective, queries, query_features, num_neighbors, self._passes)
                on += (str(index.manifest),)
            with self._attribution(objective, "find_influential", *on) as attribution:
                outcomes = list(attribution.outcomes(queries, pool, search, s_test))
            together = 1 if num_neighbors else min(len(queries), self.args.query_batch_size)
            settings = self._settings(objective, num_neighbors, num_examples)
            settings["scoring"] = choose_scoring(self.args.scoring, objective, pool, together).why
        return build_result(
            without_indexes(examples),
            without_indexes(candidates),
            predictions,
            outcomes,
            num_examples,
            self.model.config.id2label,
            settings,
        )

    def diagnose(self, examples: Dataset | None = None, s_test: Solution | None = None) -> Diagnosis:
        """Looks at curvature, damping and solver, and says what it sees: `print(trainer.diagnose())`.

        Which damping, which scale, how many steps, is the answer to be trusted, what does the sign mean?

        Args:
            examples (`datasets.Dataset`, *optional*): Queries to solve for; unless given, four drawn from
                `eval_dataset`, or else from `train_dataset`.
            s_test ([`Solution`], *optional*): What `compute_s_test(examples)` returned, if it was called before.

        Returns:
            [`Diagnosis`]: A page of text; `.plot(path)` writes its figure.
        """
        if examples is None:
            source = self.eval_dataset if isinstance(self.eval_dataset, Dataset) else self.train_dataset
            check_dataset("train_dataset", source)
            rows = np.random.default_rng(self.args.seed).permutation(len(source))[:4]
            examples = without_indexes(source).select(rows)
        with self._objective() as objective:
            queries = self._examples("examples", examples)
            check_s_test(s_test, len(queries), objective.space.size)
            self._predict(objective, queries)
            gradients = loss_gradients(objective, queries, range(len(queries)))
            return diagnose(self._setup(objective), gradients, s_test)

    def _predict(self, objective: Objective, examples: ExampleBatches) -> Predictions:
        return predict(objective, examples, self._passes)

    @property
    def _passes(self) -> Passes:
        return Passes(self.args.influence_batch_size, self.accelerator, show_progress=not self.args.disable_tqdm)

    @contextmanager
    def _attribution(
        self, objective: Objective, work: str, *on: Dataset | Solution | int | str | None
    ) -> Iterator[Attribution]:
        """What solves and scores, keeping what is finished until the work is done."""
        with self._pieces(objective, work, *on) as pieces:
            yield Attribution(objective, self.args, partial(self._setup, objective), self._passes, pieces)

    def _pieces(
        self, objective: Objective, work: str, *on: Dataset | Solution | int | str | None
    ) -> AbstractContextManager[Pieces]:
        """Keeps what is finished of some work, under `output_dir/influence`, until all of it is.

        Args:
            objective (`Objective`): The loss.
            work (`str`): Name of the call.
            *on: What it is about.
        """
        folder = Path(self.args.output_dir) / "influence" / "unfinished" / f"{work}-{digest(on)}"
        training = {"seed": self.args.seed, "label_smoothing_factor": self.args.label_smoothing_factor}
        manifest = {
            "model": model_fingerprint(objective.model),
            "train_dataset": getattr(self.train_dataset, "_fingerprint", None),
            **{name: str(value) for name, value in (self.args.influence_settings() | training).items()},
        }
        return pieces_of(folder, manifest, self.accelerator)

    def _setup(self, objective: Objective) -> SolverSetup:
        examples = self._pool(objective, "train_dataset", self.train_dataset)
        fingerprint = self.train_dataset._fingerprint
        return SolverSetup(self.args, objective, examples, fingerprint, self.accelerator, self._fitted)

    def _settings(self, objective: Objective, num_neighbors: int | None, num_examples: int | None) -> dict[str, Any]:
        setup = self._setup(objective)
        return {
            "model": self._model_name(),
            "num_parameters": objective.space.size,
            "num_neighbors": num_neighbors,
            "num_examples": num_examples,
            "solver": setup.describe(),
            "curvature": self.args.curvature,
            "largest_eigenvalue": None if setup.name == "identity" else setup.spectrum.largest,
            "seed": self.args.seed,
        }

    def _model_name(self) -> str:
        name = self.model.config._name_or_path or type(self.model).__name__
        # Of a local folder the last two parts: results are shared, and other people's paths are not for reading.
        return "/".join(Path(name).parts[-2:]) if Path(name).is_dir() else name

    @contextmanager
    def _objective(self) -> Iterator[Objective]:
        """The model as a function of its trainable parameters, in the state that exact derivatives need."""
        check_loss(self)
        model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        with differentiable(model):
            yield Objective(
                model,
                self.args.label_smoothing_factor,
                self.args.loss_weight_decay,
                self.get_decay_parameter_names(model) if self.args.loss_weight_decay else (),
                self.args.influence_bf16,
            )

    def _named_candidates(self, candidates: Dataset | None, name: str = "candidates") -> tuple[str, Dataset]:
        return ("train_dataset", self.train_dataset) if candidates is None else (name, candidates)

    def _pool(self, objective: Objective, name: str, dataset: Dataset) -> ExampleBatches:
        """The examples of a dataset that many passes are made over: what frozen layers make of them is kept."""
        examples = self._examples(name, dataset)
        memory = int(self.args.frozen_states_gb * 2**30)
        frozen = model_fingerprint(objective.model, frozen_only=True)
        key = (id(objective.model), frozen, dataset._fingerprint, memory, self.args.influence_bf16)
        if memory and key not in self._states:
            self._states[key] = find_frozen_states(objective, examples, memory)
            for old in list(self._states)[:-2]:  # a training set and a pool of other candidates
                del self._states[old]
        examples.states = self._states.get(key)
        if examples.states is not None:
            objective.frozen = examples.states.frozen
        return examples

    def _examples(self, name: str, dataset: Dataset) -> ExampleBatches:
        check_dataset(name, dataset)
        examples = ExampleBatches(self._remove_unused_columns(dataset, name), self.data_collator, self._prepare_inputs)
        # A collator that is given all columns may tokenize by itself.
        model_input = self.model.main_input_name if self.args.remove_unused_columns else None
        check_inputs(name, examples, model_input, self.model.config.num_labels)
        return examples

    def _remove_unused_columns(self, dataset: Dataset, description: str | None = None) -> Dataset:
        # Every dataloader comes through here; see without_indexes for what it spares.
        if isinstance(dataset, Dataset):
            dataset = without_indexes(dataset)
        return super()._remove_unused_columns(dataset, description)
