"""`InfluenceTrainer`: a `Trainer` that also says which training examples made the model answer as it did."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from datasets import Dataset
from torch import nn
from transformers import Trainer, TrainingArguments
from transformers.trainer_utils import TrainOutput
from transformers.utils import logging

from hf_fastif.artifacts import model_name, sources
from hf_fastif.checkpoints import KeepCheckpoints, write_run_end
from hf_fastif.config import with_influence
from hf_fastif.data import check_dataset, check_rows, check_train_dataset, without_indexes
from hf_fastif.diagnosis import Diagnosis, diagnose
from hf_fastif.errors import InfluenceError
from hf_fastif.execution import same_random_state
from hf_fastif.index import (
    InfluenceIndex,
    Vectors,
    candidate_search,
    check_index,
    check_num_neighbors,
    custom_features,
    features_of,
    index_features,
    write_index,
)
from hf_fastif.influence import InfluenceSession, SessionCache, open_session, sharded_gradients
from hf_fastif.model import check_model, sharded_by
from hf_fastif.results import InfluenceResult, build_result
from hf_fastif.scoring import has_token_losses, influence_of_tokens, texts_of_tokens
from hf_fastif.solvers import Solution, check_s_test
from hf_fastif.trainer.hub_mixin import HubMixin


logger = logging.get_logger(__name__)


class InfluenceMixin(HubMixin):
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
        self._keeper = KeepCheckpoints(self._training_facts, self._unwrapped)
        self.add_callback(self._keeper)

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
        name, dataset = self._named(dataset, "dataset")
        with self.session() as session:
            pool, checkpoints = session.pool(name, dataset), session.checkpoints
            kind = "own" if features is not None else self.args.index_features if add_to is None else add_to.name
            if add_to is not None:
                rows = without_indexes(dataset).select(range(min(len(add_to), len(dataset))))
                add_to.check(session.belongs(session.examples(name, rows)))
            if features is not None:
                made = custom_features(dataset, features)
            elif add_to is not None:
                made = features_of(add_to, session.objective)
            else:
                made = []
                for number in range(len(checkpoints)):
                    with checkpoints.at(number):
                        made.append(index_features(session.setup(), len(checkpoints)))
            folder = self._influence_folder / "indexes" / f"{kind}-{pool.digest}"
            known = None if add_to is None else add_to.identity
            with session.partial_results("build_index", dataset, kind, known) as partials:
                vectors = Vectors(made, pool, checkpoints, session.sweep, partials)
                about = {"model_name": model_name(self.model), **sources(self.model, dataset)}
                write_index(folder, kind, vectors, self.args, session.belongs(pool) | about, add_to)
        return self._attach(InfluenceIndex.load(folder, **self._index_place()), dataset)

    def find_candidates(
        self,
        examples: Dataset,
        num_neighbors: int,
        candidates: Dataset | None = None,
        s_test: Solution | None = None,
        query_features: np.ndarray | None = None,
        as_one: bool = False,
    ) -> np.ndarray:
        """The rows (queries, k) that the index holds to be the most influential on each example, strongest first.

        Where the index compares with s_test, helpful and harmful ones take turns.
        The arguments are those of `find_influential`, which scores what it finds here.
        """
        name, candidates = self._named(candidates, "candidates")
        check_dataset(name, candidates)
        check_num_neighbors(num_neighbors, len(candidates))
        solution = self.compute_s_test(examples, as_one) if s_test is None else s_test
        with self.session() as session:
            queries, checkpoints = session.examples("examples", examples), session.checkpoints
            check_s_test(solution, session.origin(queries, as_one), checkpoints.size)
            belongs = session.belongs(session.examples(name, candidates))
            index = check_index(name, candidates, self._cache.indexes, belongs)
            search = candidate_search(
                index, checkpoints, queries, query_features, num_neighbors, session.sweep, as_one
            )
            return search(range(len(solution)), solution.vectors)

    def find_misclassified(self, examples: Dataset) -> np.ndarray:
        """The rows (ascending) of a dataset whose label the model does not predict: the ones to ask about.

        Of examples with several labels (tokens, or where an answer starts and ends) one that is not predicted is
        enough.

        Raises:
            ValueError: If the labels are not one of several classes.
        """
        with self.session() as session:
            return np.flatnonzero(session.predict(session.examples("examples", examples)).wrong())

    def compute_s_test(self, examples: Dataset, as_one: bool = False) -> Solution:
        """s_test = (C + lambda I)^-1 grad L for every example (sections 3.3 and 3.4 of the paper), by `args.solver`.

        C is the curvature of the mean loss over `train_dataset`. All examples share the batches it is drawn from, so
        that asking for several costs less than asking one by one, and gives the same answer.

        Args:
            examples (`datasets.Dataset`): The queries.
            as_one (`bool`, *optional*, defaults to `False`): Whether the examples are anchors: one query, whose loss
                is their mean.

        Returns:
            [`Solution`]: Vectors of shape (queries, parameters), residual and standard error. With several
            `args.checkpoints` the parameters of each come one behind the other.

        Raises:
            DivergenceError: If `lissa_scale` was given and is too small, naming one that converges.
            ValueError: If the Hessian is so indefinite that `damping` does not outweigh it, or the solver does not
                work for this model or training set.
        """
        with self.session() as session:
            queries = session.examples("examples", examples)
            session.predict(queries)  # a NaN loss is an error now, not in an hour
            with session.attribution("compute_s_test", examples, as_one=as_one) as attribution:
                return replace(attribution.s_test(queries), origin=session.origin(queries, as_one))

    def compute_influence(
        self,
        examples: Dataset,
        candidates: Dataset | None = None,
        s_test: Solution | None = None,
        as_one: bool = False,
    ) -> np.ndarray:
        """The full scan: the influence of every candidate on every example.

        Args:
            examples (`datasets.Dataset`): The queries.
            candidates (`datasets.Dataset`, *optional*): `trainer.train_dataset` unless given.
            s_test ([`Solution`], *optional*): What `compute_s_test(examples)` returned, if it was called before.
            as_one (`bool`, *optional*, defaults to `False`): Whether the examples are anchors: one query, whose loss
                is their mean.

        Returns:
            `np.ndarray` of shape `(queries, candidates)`, float32: Positive is harmful, negative is helpful.
        """
        with self.session() as session:
            queries = session.examples("examples", examples)
            name, candidates = self._named(candidates, "candidates")
            pool = session.pool(name, candidates)
            check_s_test(s_test, session.origin(queries, as_one), session.checkpoints.size)
            session.predict(queries)
            on = (examples, candidates, s_test)
            with session.attribution("compute_influence", *on, as_one=as_one) as attribution:
                return np.stack([outcome.scores for outcome in attribution.outcomes(queries, pool, None, s_test)])

    def token_influence(
        self,
        examples: Dataset,
        rows: Sequence[int],
        candidates: Dataset | None = None,
        s_test: Solution | None = None,
    ) -> list[list[np.ndarray]]:
        """Which tokens of some training examples carry their influence, for heads with a label for each token.

        Args:
            examples (`datasets.Dataset`): Q queries.
            rows (`Sequence[int]`): Candidates, such as `result.helpful(0)["train_index"]`.
            candidates (`datasets.Dataset`, *optional*): `trainer.train_dataset` unless given.
            s_test ([`Solution`], *optional*): What `compute_s_test(examples)` returned, if it was called before.

        Returns:
            `list` over queries of `list` over rows of `np.ndarray` of shape `(T,)`, float32: the influence of
            predicting each token, 0 where it has no label (a prompt). They add up to the influence of the row.

        Raises:
            ValueError: If an example has one label, or a row is not among the candidates.
        """
        name, candidates = self._named(candidates, "candidates")
        check_dataset(name, candidates)
        check_rows("rows", rows, len(candidates))
        solution = self.compute_s_test(examples) if s_test is None else s_test
        with self.session() as session:
            origin = session.origin(session.examples("examples", examples), as_one=False)
            check_s_test(solution, origin, session.checkpoints.size)
            pool, places = session.examples(name, candidates), np.array(rows)
            vectors, checkpoints = solution.vectors, session.checkpoints
            found = influence_of_tokens(session.objective, checkpoints, pool, vectors, places, session.sweep)
        return [[scores[query] for scores in found] for query in range(len(solution))]

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
        name, examples = self._named(examples, "examples")
        with self.session() as session:
            pool = session.pool(name, examples)
            with session.attribution("self_influence", examples) as attribution:
                return attribution.self_influence(pool)

    def find_influential(
        self,
        examples: Dataset,
        num_examples: int | None = 10,
        num_neighbors: int | None | Literal["config"] = "config",
        candidates: Dataset | None = None,
        s_test: Solution | None = None,
        query_features: np.ndarray | None = None,
        as_one: bool = False,
    ) -> InfluenceResult:
        """Finds the training examples that helped and harmed the loss on each of some examples the most.

        Of language models, and other heads with a label for each token, the result also tells which tokens of these
        training examples carry their influence, unless `num_examples` is None.

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
            as_one (`bool`, *optional*, defaults to `False`): Whether the examples are anchors: one query, whose loss
                is their mean.

        Returns:
            [`InfluenceResult`]: The same on every process.

        Raises:
            ValueError: If there are no examples, labels or index, k exceeds the candidates, a dataset changed after
                its index was built, or a loss is NaN.
        """
        if num_neighbors == "config":
            num_neighbors = self.args.num_neighbors
        if num_examples is not None and num_examples < 1:
            raise InfluenceError(f"num_examples={num_examples}: give at least 1, or None for every scored candidate.")
        name, candidates = self._named(candidates, "candidates")
        check_dataset(name, candidates)
        check_num_neighbors(num_neighbors, len(candidates))
        with self.session() as session:
            queries, pool = session.examples("examples", examples), session.pool(name, candidates)
            checkpoints = session.checkpoints
            check_s_test(s_test, session.origin(queries, as_one), checkpoints.size)
            predictions = session.predict(queries)
            on, search = (examples, candidates, s_test, num_neighbors), None
            if num_neighbors is not None:
                index = check_index(name, candidates, self._cache.indexes, session.belongs(pool))
                search = candidate_search(
                    index, checkpoints, queries, query_features, num_neighbors, session.sweep, as_one
                )
                on += (index.identity,)
            shown = num_examples if has_token_losses(session.objective) else None
            on += () if shown is None else (shown,)
            with session.attribution("find_influential", *on, as_one=as_one) as attribution:
                outcomes = list(attribution.outcomes(queries, pool, search, s_test, shown))
            texts = texts_of_tokens(session.objective, pool, outcomes, self.processing_class)
            settings = session.settings(num_neighbors, num_examples) | {"scoring": attribution.scoring}
        return build_result(
            without_indexes(examples),
            without_indexes(candidates),
            predictions,
            outcomes,
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
            queries, checkpoints = session.examples("examples", examples), session.checkpoints
            check_s_test(s_test, session.origin(queries, as_one=False), checkpoints.size)
            session.predict(queries)
            signals, solved = session.signals(), s_test if len(checkpoints) == 1 else None
            with checkpoints.at(0):
                gradients = sharded_gradients(session.objective, queries, range(len(queries)), self.accelerator)
                return diagnose(session.setup(), gradients, signals, solved)

    def _unwrapped(self, model: nn.Module) -> nn.Module:
        return self.accelerator.unwrap_model(model, keep_torch_compile=False)

    def session(self) -> AbstractContextManager[InfluenceSession]:
        return open_session(self, self._cache)

    def _attach(self, index: InfluenceIndex, dataset: Dataset) -> InfluenceIndex:
        index.attach(dataset)
        self._cache.indexes[dataset._fingerprint] = index
        return index

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        """Trains as `Trainer.train` does, and notes which run left the model, however it ends."""
        try:
            output = super().train(*args, **kwargs)
        except BaseException:
            with suppress(Exception):  # what stopped training is what the user must see
                self._note_run_end()
            raise
        self._note_run_end()
        self.accelerator.wait_for_everyone()
        return output

    def _note_run_end(self) -> None:
        # A model in shards is not known by its weights; influence refuses it.
        if self._keeper.run is not None and sharded_by(self.model) is None:
            write_run_end(self.args.output_dir, self._keeper.end(self.state, self.model))

    def _training_facts(self) -> dict[str, str] | None:
        """What checkpoints say about the run that begins: None where there can be none, since the model is sharded."""
        if sharded_by(self.model) is not None:
            return None
        with same_random_state():
            try:
                with self.session() as session:
                    return session.training_facts()
            except Exception as error:  # a model that influence does not know may be trained all the same
                logger.info(f"Checkpoints for influence will not say what they were trained on: {error}")
                return {}

    def _named(self, dataset: Dataset | None, name: str) -> tuple[str, Dataset]:
        return ("train_dataset", self.train_dataset) if dataset is None else (name, dataset)

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
