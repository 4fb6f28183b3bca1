"""`InfluenceTrainer`: a `Trainer` that also says which training examples made the model answer as it did."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from datasets import Dataset
from torch import nn
from transformers import Trainer, TrainingArguments

from hf_fastif.artifacts import model_name, sources
from hf_fastif.config import with_influence
from hf_fastif.data import ExampleBatches, check_dataset, check_rows, check_train_dataset, without_indexes
from hf_fastif.diagnosis import Diagnosis, diagnose
from hf_fastif.errors import InfluenceError
from hf_fastif.index import InfluenceIndex, Vectors, check_num_neighbors, choose_features, write_index
from hf_fastif.influence import InfluenceSession, QuerySet, SessionCache, open_session
from hf_fastif.model import Measure, check_model
from hf_fastif.results import InfluenceResult, build_result
from hf_fastif.scoring import has_token_losses, influence_of_tokens, texts_of_tokens
from hf_fastif.solvers import Solution
from hf_fastif.trainer.compiled import uncompiled
from hf_fastif.trainer.hub_mixin import HubMixin
from hf_fastif.trainer.run_mixin import RunMixin


class InfluenceMixin(HubMixin, RunMixin):
    """What [`InfluenceTrainer`] can do, for any subclass of `Trainer`, such as trl's `SFTTrainer`.

    Its arguments must hold the settings of influence:

    ```python
    @dataclass
    class InfluenceSFTConfig(InfluenceConfig, SFTConfig): ...

    class InfluenceSFTTrainer(InfluenceMixin, SFTTrainer): ...
    ```

    Queries are rows of the kind that the trainer makes of its datasets, such as `trainer.eval_dataset.select([0])`.
    """

    def __init__(
        self, model: nn.Module | None = None, args: TrainingArguments | None = None, *other: Any, **named: Any
    ):
        train_dataset = named.get("train_dataset", other[1] if len(other) > 1 else None)
        check_train_dataset(train_dataset)
        if (make := named.get("model_init")) is not None and _has_defaults(make):
            named["model_init"] = lambda: make()
        super().__init__(model, with_influence(args), *other, **named)
        self._cache = SessionCache()

    @contextmanager
    def session(self) -> Iterator[InfluenceSession]:
        """Open the engine on this trainer's model, data and settings: see [`InfluenceSession`].

        Example:
            ```python
            with trainer.session() as session:
                print(session.checkpoints.members, session.setup().damping)
            ```
        """
        with (
            uncompiled(self, self._unwrapped(self.model)),
            open_session(self, self._cache, self.example_batches) as session,
        ):
            yield session

    def example_batches(self, dataset: Dataset, name: str | None = None) -> ExampleBatches:
        """Return the rows of a dataset as the model sees them; `name` is that of the argument, for messages."""
        rows = self._remove_unused_columns(dataset, name)
        return ExampleBatches(rows, self.data_collator, self._prepare_inputs, self._cache.digests)

    def build_index(
        self,
        dataset: Dataset | None = None,
        features: np.ndarray | str | None = None,
        add_to: InfluenceIndex | None = None,
    ) -> InfluenceIndex:
        """Makes a FAISS index of the features of a dataset, writes it, and attaches it to the dataset, in place.

        The features are those of `args.index_features`. The index is written to `output_dir/influence/indexes`, from
        where `load_index` reads it; one that was made in the same way is not made again, unless `args.overwrite`
        says so. Afterwards `dataset.get_nearest_examples(index.name, vector, k)` works too.
        Other datasets made from this one have no index: of `datasets`' operations some drop it (`map`, `cast`,
        `add_column`), and some refuse to work on a dataset that has one (`select`, `shuffle`, `filter`, `push_to_hub`;
        `hf_fastif.index.without_indexes(dataset)` is a view of the same rows for these).

        Args:
            dataset (`datasets.Dataset`, *optional*): `trainer.train_dataset` unless given; give a candidate pool that
                was never trained on to search that.
            features (`np.ndarray` of shape `(N, d)` or `str`, *optional*): Features of your own, or the column that
                holds them, compared by L2 distance. `find_influential` then needs `query_features`.
            add_to ([`InfluenceIndex`], *optional*): An index of the first rows of the dataset, to which the others
                are added; only their features are computed.

        Returns:
            [`InfluenceIndex`]: The index.

        Raises:
            ValueError: If FAISS does not know `args.index_factory` or `args.index_search`, or `add_to` was made with
                another model or other rows.
        """
        with self.session() as session:
            pool, checkpoints = session.candidates(dataset, "dataset"), session.checkpoints
            if add_to is not None:
                rows = without_indexes(pool.dataset).select(range(min(len(add_to), len(pool.dataset))))
                add_to.check(session.belongs(session.examples(pool.name, rows)))
            kind, made = choose_features(pool.dataset, features, add_to, checkpoints, session.setup)
            folder = self._influence_folder / "indexes" / f"{kind}-{pool.digest}"
            extended = None if add_to is None else add_to.identity
            with session.partial_results("build_index", pool.digest, kind, extended) as partials:
                vectors = Vectors(made, pool.batches, checkpoints, session.sweep, partials)
                provenance = {"model_name": model_name(self.model), **sources(self.model, pool.dataset)}
                write_index(folder, kind, vectors, self.args, session.belongs(pool.batches) | provenance, add_to)
        return self._attach(InfluenceIndex.load(folder, **self._index_place()), pool.dataset)

    def find_candidates(
        self,
        examples: Dataset | QuerySet,
        num_neighbors: int,
        candidates: Dataset | None = None,
        s_test: Solution | None = None,
        query_features: np.ndarray | None = None,
        measure: Measure | None = None,
    ) -> np.ndarray:
        """Return the rows (queries, k) that the index ranks highest for each query, strongest first.

        Where the index compares with s_test, helpful and harmful ones take turns.
        The arguments are those of `find_influential`, which scores the candidates that this method returns.

        Example:
            ```python
            trainer.build_index()
            rows = trainer.find_candidates(dev.select([0]), num_neighbors=100)[0]
            ```
        """
        self._check_candidates(candidates, num_neighbors)
        solution = self.compute_s_test(examples, measure) if s_test is None else s_test
        with self.session() as session:
            queries, pool = session.queries(examples, measure), session.candidates(candidates)
            session.check_s_test(solution, queries)
            search = session.search(queries, pool, num_neighbors, query_features)
            return search(range(len(solution)), solution.vectors)

    def find_misclassified(self, examples: Dataset) -> np.ndarray:
        """The rows (ascending) of a dataset whose label the model does not predict: the ones to ask about.

        Of examples with several labels (tokens, or where an answer starts and ends) one that is not predicted is
        enough.

        Raises:
            ValueError: If the labels are not one of several classes.
        """
        with self.session() as session:
            return np.flatnonzero(session.queries(examples).predictions.wrong())

    def compute_s_test(self, examples: Dataset | QuerySet, measure: Measure | None = None) -> Solution:
        """Compute s_test = (C + lambda I)^-1 grad L for every query (sections 3.3 and 3.4 of the paper).

        The solver is `args.solver`. C is the curvature of the mean loss over `train_dataset`. All queries share the
        batches it is drawn from, so that solving for several at once costs less than solving one by one, and gives the
        same answer.

        Args:
            examples (`datasets.Dataset` or [`QuerySet`]): The queries; `QuerySet(anchors, reduce="mean")` makes one
                query of all.
            measure ([`Measure`], *optional*): What is differentiated in place of the loss of a query, such as
                `Margin()`.

        Returns:
            [`Solution`]: Vectors of shape (queries, parameters), residual and standard error. With several
            `args.checkpoints` the parameters of each come one behind the other.

        Raises:
            DivergenceError: If `lissa_scale` was given and is too small, naming one that converges.
            InfluenceError: If the Hessian is so indefinite that `damping` does not outweigh it, or the solver does
                not work for this model or training set.

        Example:
            ```python
            s_test = trainer.compute_s_test(dev.select(range(8)))
            print(s_test.residual)
            ```
        """
        with self.session() as session:
            queries = session.queries(examples, measure)
            queries.check_losses()
            with session.attribution("compute_s_test", queries.identity) as attribution:
                return replace(attribution.s_test(queries), origin=session.origin(queries))

    def compute_influence(
        self,
        examples: Dataset | QuerySet,
        candidates: Dataset | None = None,
        s_test: Solution | None = None,
        measure: Measure | None = None,
    ) -> np.ndarray:
        """Compute the influence of every candidate on every query: the full scan.

        Args:
            examples (`datasets.Dataset` or [`QuerySet`]): The queries.
            candidates (`datasets.Dataset`, *optional*): `trainer.train_dataset` unless given.
            s_test ([`Solution`], *optional*): What `compute_s_test(examples, measure)` returned, if it was called
                before.
            measure ([`Measure`], *optional*): What is attributed in place of the loss of a query.

        Returns:
            `np.ndarray` of shape `(queries, candidates)`, float32: Positive is harmful, negative is helpful.

        Example:
            ```python
            scores = trainer.compute_influence(dev.select([0]))[0]
            most_helpful = scores.argsort()[:10]
            ```
        """
        with self.session() as session:
            queries, pool = session.queries(examples, measure), session.candidates(candidates)
            session.check_s_test(s_test, queries)
            queries.check_losses()
            identity = (queries.identity, pool.digest, None if s_test is None else s_test.vectors)
            with session.attribution("compute_influence", *identity) as attribution:
                return np.stack([each.scores for each in attribution.score(queries, pool.batches, None, s_test)])

    def token_influence(
        self,
        examples: Dataset,
        rows: Sequence[int],
        candidates: Dataset | None = None,
        s_test: Solution | None = None,
        measure: Measure | None = None,
    ) -> list[list[np.ndarray]]:
        """Compute which tokens of some training examples carry their influence, for heads that predict tokens.

        Args:
            examples (`datasets.Dataset`): Q queries.
            rows (`Sequence[int]`): Candidates, such as `result.helpful(0)["train_index"]`.
            candidates (`datasets.Dataset`, *optional*): `trainer.train_dataset` unless given.
            s_test ([`Solution`], *optional*): What `compute_s_test(examples, measure)` returned, if it was called
                before.
            measure ([`Measure`], *optional*): What is attributed in place of the loss of a query.

        Returns:
            `list` over queries of `list` over rows of `np.ndarray` of shape `(T,)`, float32: the influence of
            predicting each token, 0 where it has no label (a prompt). They add up to the influence of the row.

        Raises:
            InfluenceError: If an example has one label, or a row is not among the candidates.

        Example:
            ```python
            tokens = trainer.token_influence(dev.select([0]), rows=[12, 7])
            print(tokens[0][1])  # of row 7, for the first query
            ```
        """
        check_rows("rows", rows, len(self._check_candidates(candidates)))
        solution = self.compute_s_test(examples, measure) if s_test is None else s_test
        with self.session() as session:
            session.check_s_test(solution, session.queries(examples, measure))
            pool = session.examples(*session.named(candidates, "candidates"))
            by_row = influence_of_tokens(
                session.objective, session.checkpoints, pool, solution.vectors, np.array(rows), session.sweep
            )
        return [[scores[query] for scores in by_row] for query in range(len(solution))]

    def self_influence(self, examples: Dataset | None = None) -> np.ndarray:
        """How much training on an example lowers the loss on itself: grad L^T (C + lambda I)^-1 grad L.

        It is the influence of an example on itself with its sign turned, so that it is never negative (with the
        Gauss-Newton matrix). Examples that little else in the training set speaks for have a large one, such as
        atypical and many mislabelled ones (Koh and Liang, 2017, section 5.4).

        With `solver="auto"` C is EK-FAC's, which costs a few forward passes an example; `"identity"` gives
        ||grad L||^2. Any other solver is run for every example.

        Args:
            examples (`datasets.Dataset`, *optional*): `trainer.train_dataset` unless given.

        Returns:
            `np.ndarray` of shape `(examples,)`, float32, in the order of the dataset.
        """
        with self.session() as session:
            pool = session.candidates(examples, "examples")
            with session.attribution("self_influence", pool.digest) as attribution:
                return attribution.self_influence(pool.batches)

    def find_influential(
        self,
        examples: Dataset | QuerySet,
        num_examples: int | None = 10,
        num_neighbors: int | None | Literal["config"] = "config",
        candidates: Dataset | None = None,
        s_test: Solution | None = None,
        query_features: np.ndarray | None = None,
        measure: Measure | None = None,
    ) -> InfluenceResult:
        """Find the training examples that helped and harmed the loss on each query the most.

        Of language models, and other heads that predict tokens, the result also tells which tokens of these training
        examples carry their influence, unless `num_examples` is None.

        Args:
            examples (`datasets.Dataset` or [`QuerySet`]): The queries, tokenized as the training set is, with labels.
                `QuerySet(anchors, reduce="mean")` makes one query of all.
            num_examples (`int`, *optional*, defaults to 10): How many of each direction to return; None returns every
                scored candidate.
            num_neighbors (`int`, *optional*): k: only the k nearest neighbours of each query are scored, found in the
                index of `build_index()`. None scores every candidate. `args.num_neighbors` unless given.
            candidates (`datasets.Dataset`, *optional*): `trainer.train_dataset` unless given. For a pool that was
                never trained on, the answer is what training on it would do.
            s_test ([`Solution`], *optional*): What `compute_s_test(examples, measure)` returned, if it was called
                before.
            query_features (`np.ndarray` of shape `(queries, d)`, *optional*): Features of the queries, where the index
                is of your own features.
            measure ([`Measure`], *optional*): What is attributed in place of the loss of a query: `Margin()`,
                `Logit("entailment")`, `LogProbability()`, `Contrast("entailment", "neutral")`, or one of your own.
                Helpful examples raise it.

        Returns:
            [`InfluenceResult`]: The same on every process.

        Raises:
            InfluenceError: If there are no examples, labels or index, k exceeds the candidates, a dataset changed
                after its index was built, the measure does not suit the model, or a loss is NaN.

        Example:
            ```python
            result = trainer.find_influential(dev.select(range(8)))
            print(result.harmful(0)[0])
            why_not_neutral = trainer.find_influential(dev, measure=Contrast("entailment", "neutral"))
            ```
        """
        k = self.args.num_neighbors if num_neighbors == "config" else num_neighbors
        if num_examples is not None and num_examples < 1:
            raise InfluenceError(f"num_examples={num_examples}: give at least 1, or None for every scored candidate.")
        self._check_candidates(candidates, k)
        with self.session() as session:
            queries, pool = session.queries(examples, measure), session.candidates(candidates)
            session.check_s_test(s_test, queries)
            predictions = queries.predictions
            search = None if k is None else session.search(queries, pool, k, query_features)
            num_shown = num_examples if has_token_losses(session.objective) else None
            identity = (
                *(queries.identity, pool.digest, None if s_test is None else s_test.vectors, k, num_shown),
                None if search is None else search.index.identity,
            )
            with session.attribution("find_influential", *identity) as attribution:
                scores = list(attribution.score(queries, pool.batches, search, s_test, num_shown))
            texts = texts_of_tokens(session.objective, pool.batches, scores, self.processing_class)
            settings = session.settings(k, num_examples) | {
                "scoring": attribution.scoring,
                "measure": queries.objective.measured,
            }
        return build_result(
            without_indexes(queries.query_set.dataset),
            without_indexes(pool.dataset),
            predictions,
            scores,
            num_examples,
            self.model.config.id2label,
            settings,
            texts,
        )

    def diagnose(self, examples: Dataset | None = None, s_test: Solution | None = None) -> Diagnosis:
        """Looks at curvature, damping and solver, and says what it sees: `print(trainer.diagnose())`.

        Which checkpoint, which damping, which scale, how many steps, is the answer to be trusted, what does the sign
        mean? Of several `args.checkpoints` it looks at the first.

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
        with self.session() as session:
            queries, checkpoints = session.queries(examples), session.checkpoints
            session.check_s_test(s_test, queries)
            queries.check_losses()
            signals, solved = session.signals(), s_test if len(checkpoints) == 1 else None
            with checkpoints.at(0):
                gradients = queries.gradients(range(len(queries)), self.accelerator)
                return diagnose(session.setup(), gradients, signals, solved)

    def _check_candidates(self, candidates: Dataset | None, k: int | None = None) -> Dataset:
        """Refuse candidates and a k that cannot be, before anything is computed; returns the candidates."""
        name, dataset = ("train_dataset", self.train_dataset) if candidates is None else ("candidates", candidates)
        check_dataset(name, dataset)
        check_num_neighbors(k, len(dataset))
        return dataset

    def _attach(self, index: InfluenceIndex, dataset: Dataset) -> InfluenceIndex:
        index.attach(dataset)
        self._cache.indexes[dataset._fingerprint] = index
        return index

    def _remove_unused_columns(self, dataset: Dataset, description: str | None = None) -> Dataset:
        # Every dataloader comes through here; see without_indexes for what it spares.
        if isinstance(dataset, Dataset):
            dataset = without_indexes(dataset)
        return super()._remove_unused_columns(dataset, description)


def _has_defaults(make: Callable[..., nn.Module]) -> bool:
    """Tell whether a function can be called without arguments though it takes several, which `Trainer` refuses."""
    parameters = inspect.signature(make).parameters.values()
    return len(parameters) > 1 and all(parameter.default is not parameter.empty for parameter in parameters)


class InfluenceTrainer(InfluenceMixin, Trainer):
    """A `Trainer` with `build_index`, `compute_s_test`, `find_influential` and `compute_influence`.

    Influence never calls `train()`: it takes the model as it is, trained here or loaded. Indices in results are
    positions in `train_dataset`. Under `accelerate launch` every process must make the same calls; the work is dealt
    out and every process gets the same answer.

    Args:
        model (`PreTrainedModel` or `PeftModel`): A model with one of the heads in the table of `docs/heads.md`. Its
            parameters with `requires_grad` are trained and attributed ([`freeze`] leaves the last layers; of a
            `PeftModel` they are the adapters).
        args ([`InfluenceConfig`] or `TrainingArguments`, *optional*): Plain `TrainingArguments` are completed with
            the default settings of influence.
        *other, **named: The other arguments of `Trainer`. `train_dataset` must be a `datasets.Dataset`.
    """

    def __init__(
        self, model: nn.Module | None = None, args: TrainingArguments | None = None, *other: Any, **named: Any
    ):
        check_model(model)
        super().__init__(model, args, *other, **named)
