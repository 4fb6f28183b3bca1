"""Define `InfluenceTrainer`, a `Trainer` that also computes which training examples influenced a prediction."""

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

from hf_fastif.config import with_influence
from hf_fastif.data import ExampleBatches, check_dataset, check_rows, check_train_dataset, without_indexes
from hf_fastif.diagnosis import Diagnosis, diagnose
from hf_fastif.errors import InfluenceError
from hf_fastif.influence import (
    Estimate,
    InfluenceSession,
    QuerySet,
    Ranking,
    SessionCache,
    cautions,
    estimate_costs,
    open_session,
    recorded_settings,
    self_influence_by_index,
    unit_of_scores,
)
from hf_fastif.model import Measure, check_model
from hf_fastif.results import InfluenceResult, build_result
from hf_fastif.scoring import has_token_losses, influence_of_tokens, texts_of_tokens
from hf_fastif.solvers import Solution
from hf_fastif.trainer.compiled import uncompiled
from hf_fastif.trainer.hub_mixin import HubMixin
from hf_fastif.trainer.index_mixin import IndexMixin
from hf_fastif.trainer.run_mixin import RunMixin


class InfluenceMixin(IndexMixin, HubMixin, RunMixin):
    """The methods of [`InfluenceTrainer`], for any subclass of `Trainer`, such as trl's `SFTTrainer`.

    The arguments must include the settings of [`InfluenceConfig`], whose class comes last: the defaults of the first
    class win.

    ```python
    @dataclass
    class InfluenceSFTConfig(SFTConfig, InfluenceConfig): ...

    class InfluenceSFTTrainer(InfluenceMixin, SFTTrainer): ...
    ```

    Queries must be preprocessed like the trainer's datasets, such as `trainer.eval_dataset.select([0])`.
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
        """Open an [`InfluenceSession`] on this trainer's model, data and settings, for custom computations.

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
        """Return the rows of a dataset as the model sees them; `name` is the argument to name in messages.

        Example:
            ```python
            first = trainer.example_batches(train).take([0])  # one row, collated
            ```
        """
        rows = self._remove_unused_columns(dataset, name)
        return ExampleBatches(rows, self.data_collator, self._prepare_inputs, self._cache.digests)

    def find_misclassified(self, examples: Dataset) -> np.ndarray:
        """Return the rows, ascending, whose label (or any label, if they have several) the model does not predict.

        Raises:
            InfluenceError: If the labels are not classes.

        Example:
            ```python
            errors = dev.select(trainer.find_misclassified(dev))
            ```
        """
        with self.session() as session:
            return np.flatnonzero(session.queries(examples).predictions.wrong())

    def compute_s_test(self, examples: Dataset | QuerySet, measure: Measure | None = None) -> Solution:
        """Compute s_test = (C + lambda I)^-1 grad L of each query with `args.solver` (sections 3.3 and 3.4).

        C is the curvature of the mean loss over `train_dataset`. Queries share the batches that it is estimated from:
        solving for several at once gives the same result at a lower cost.

        Args:
            examples (`datasets.Dataset` or [`QuerySet`]): The queries.
            measure ([`Measure`], *optional*): The quantity to differentiate instead of the loss.

        Returns:
            [`Solution`]: Vectors (queries, checkpoints x parameters), residual and standard error.

        Raises:
            DivergenceError: If `args.lissa_scale` is too small; the message names one that converges.
            InfluenceError: If `damping` is too small for an indefinite Hessian, or the solver does not support the
                model or training set.

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
        """Compute the influence of every candidate on every query (equation 1 of the paper).

        The index answers if `args.solver` is "sketch"; other solvers, and a given s_test, take a full scan.

        Args:
            examples (`datasets.Dataset` or [`QuerySet`]): The queries.
            candidates (`datasets.Dataset`, *optional*): By default `trainer.train_dataset`.
            s_test ([`Solution`], *optional*): The return value of `compute_s_test(examples, measure)`, to reuse it.
            measure ([`Measure`], *optional*): The quantity to attribute instead of the loss.

        Returns:
            `np.ndarray` of shape `(queries, candidates)`, float32: Positive is harmful, negative is helpful.

        Raises:
            InfluenceError: If `s_test` was computed for other queries or another model, or a loss or score is NaN.

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
            scores, _ = Ranking(queries, pool, s_test=s_test).scores(session, "compute_influence")
            return np.stack([each.scores for each in scores])

    def token_influence(
        self,
        examples: Dataset,
        rows: Sequence[int],
        candidates: Dataset | None = None,
        s_test: Solution | None = None,
        measure: Measure | None = None,
    ) -> list[list[np.ndarray]]:
        """Compute the influence of each token of some training examples, for heads that predict tokens.

        Args:
            examples (`datasets.Dataset`): The queries.
            rows (`Sequence[int]`): Positions of candidates, such as `result.helpful(0)["train_index"]`.
            candidates (`datasets.Dataset`, *optional*): By default `trainer.train_dataset`.
            s_test ([`Solution`], *optional*): The return value of `compute_s_test(examples, measure)`, to reuse it.
            measure ([`Measure`], *optional*): The quantity to attribute instead of the loss.

        Returns:
            `list` over queries of `list` over rows of `np.ndarray` of shape `(T,)`, float32: the influence of
            predicting each token, 0 for tokens without a label (prompts). Their sum is the influence of the row.

        Raises:
            InfluenceError: If examples have a single label, or a row is not among the candidates.

        Example:
            ```python
            tokens = trainer.token_influence(dev.select([0]), rows=[12, 7])
            print(tokens[0][1])  # row 7, first query
            ```
        """
        with self.session() as session:
            pool = session.examples(*session.named(candidates, "candidates"))
            check_rows("rows", rows, len(pool))
            session.check_s_test(s_test, session.queries(examples, measure))
            solution = self.compute_s_test(examples, measure) if s_test is None else s_test
            by_row = influence_of_tokens(
                session.objective, session.checkpoints, pool, solution.vectors, np.array(rows), session.sweep
            )
        return [[scores[query] for scores in by_row] for query in range(len(solution))]

    def self_influence(self, examples: Dataset | None = None) -> np.ndarray:
        """Compute how much each example lowers its own loss: grad L^T (C + lambda I)^-1 grad L.

        This is the negative influence of an example on itself; with the Gauss-Newton matrix it is at least 0. It is
        large for examples with little support in the training set, such as atypical and many mislabelled ones (Koh and
        Liang, 2017, section 5.4). `solver="auto"` reads it from the index, `"ekfac"` takes C from EK-FAC, for a few
        forward passes per example, and `"identity"` gives ||grad L||^2; any other solver runs once per example.

        Args:
            examples (`datasets.Dataset`, *optional*): By default `trainer.train_dataset`.

        Returns:
            `np.ndarray` of shape `(examples,)`, float32, in the order of the dataset.

        Raises:
            InfluenceError: If the examples lack labels, or the solver does not support the model.

        Example:
            ```python
            suspects = trainer.self_influence().argsort()[::-1][:20]
            ```
        """
        with self.session() as session:
            pool = session.candidates(examples, "examples")
            if session.setup().name == "sketch":
                return self_influence_by_index(session, pool)
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
        rescore: int | None | Literal["config"] = "config",
    ) -> InfluenceResult:
        """Find the training examples that helped and harmed the model most on each query.

        For heads that predict tokens, the result also holds the influence of each token of these examples, unless
        `num_examples` is None.

        Args:
            examples (`datasets.Dataset` or [`QuerySet`]): The queries, tokenized like the training set, with labels.
                `QuerySet(anchors, reduce="mean")` combines them into a single query.
            num_examples (`int`, *optional*, defaults to 10): The number to return per direction; None returns every
                scored candidate.
            num_neighbors (`int`, *optional*): k: score only the k rows that the index ranks highest for a query. None
                scores every candidate. By default `args.num_neighbors`.
            candidates (`datasets.Dataset`, *optional*): By default `trainer.train_dataset`. For a dataset that was
                never trained on, scores predict the effect of training on it.
            s_test ([`Solution`], *optional*): The return value of `compute_s_test(examples, measure)`, to reuse it.
            query_features (`np.ndarray` of shape `(queries, d)`, *optional*): Features of the queries, if the index
                was built from custom features.
            measure ([`Measure`], *optional*): The quantity to attribute instead of the loss, which helpful examples
                raise: `Margin()`, `Logit("entailment")`, `LogProbability()`, `Contrast("entailment", "neutral")`, or
                a custom one.
            rescore (`int`, *optional*): The number of candidates per direction, those that the index ranks highest, to
                score again by `args.solver` (an iterative solver for "auto") and exact gradients; the result holds
                only these. By default `args.rescore`.

        Returns:
            [`InfluenceResult`]: The result, the same on every process.

        Raises:
            InfluenceError: If examples or labels are missing, k exceeds the candidates, a dataset changed
                after its index was built, the measure does not fit the model, or a loss is NaN.

        Example:
            ```python
            result = trainer.find_influential(dev.select(range(8)))
            print(result.harmful(0)[0])
            why_not_neutral = trainer.find_influential(dev, measure=Contrast("entailment", "neutral"))
            ```
        """
        k = self.args.num_neighbors if num_neighbors == "config" else num_neighbors
        again = self.args.rescore if rescore == "config" else rescore
        if num_examples is not None and num_examples < 1:
            raise InfluenceError(f"num_examples={num_examples}: give at least 1, or None for every scored candidate.")
        with self.session() as session:
            queries, pool = session.queries(examples, measure), session.candidates(candidates, k=k)
            num_shown = num_examples if has_token_losses(session.objective) else None
            ranking = Ranking(queries, pool, k, again, s_test, query_features, num_shown)
            session.check_s_test(s_test, queries)
            queries.check_losses()
            attributed = session.attributed(queries)
            scores, scoring = ranking.scores(session, "find_influential")
            texts = texts_of_tokens(session.objective, pool.batches, scores, self.processing_class)
            settings = recorded_settings(session, k, num_examples, ranking.solver(session)) | unit_of_scores(
                session, pool
            )
            by_index = ranking.index_answers(session)
            largest = settings["largest_eigenvalue"]
            settings |= {"scoring": scoring, "measure": queries.measured, "by_index": by_index}
            settings["cautions"] = cautions(session, queries, pool, scores, largest, by_index)
        return build_result(
            without_indexes(queries.query_set.dataset),
            without_indexes(pool.dataset),
            queries.predictions,
            attributed,
            scores,
            num_examples,
            self.model.config.id2label,
            settings,
            texts,
        )

    def estimate(self, num_queries: int = 1) -> Estimate:
        """Estimate the time and memory of the index, of queries and of other solvers, from one timed batch.

        Args:
            num_queries (`int`, *optional*, defaults to 1): The number of queries that are asked about together.

        Returns:
            [`Estimate`]: A table; `estimate["index"].seconds` is one of its numbers.

        Example:
            ```python
            print(trainer.estimate(num_queries=8))
            ```
        """
        if num_queries < 1:
            raise InfluenceError(f"num_queries={num_queries}: give at least 1.")
        with self.session() as session:
            return estimate_costs(session, num_queries)

    def diagnose(self, examples: Dataset | None = None, s_test: Solution | None = None) -> Diagnosis:
        """Diagnose curvature, damping and solver at the first checkpoint, and explain whether to trust the scores.

        Args:
            examples (`datasets.Dataset`, *optional*): Queries to solve for, by default four random ones of
                `eval_dataset`, or else of `train_dataset`.
            s_test ([`Solution`], *optional*): The return value of `compute_s_test(examples)`, to reuse it.

        Returns:
            [`Diagnosis`]: A page of text with advice on checkpoint, damping, scale and number of steps.

        Raises:
            InfluenceError: If the loss of a query is NaN, or `s_test` was computed for other queries.

        Example:
            ```python
            diagnosis = trainer.diagnose()
            print(diagnosis)
            diagnosis.plot("diagnosis.png")
            ```
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


def _has_defaults(make: Callable[..., nn.Module]) -> bool:
    """Tell whether a function has several arguments, all with defaults; `Trainer` accepts only one without any."""
    parameters = inspect.signature(make).parameters.values()
    return len(parameters) > 1 and all(parameter.default is not parameter.empty for parameter in parameters)


class InfluenceTrainer(InfluenceMixin, Trainer):
    """A `Trainer` that computes which training examples influenced a prediction.

    Its methods never call `train()`: the model may be trained here or loaded. Row numbers in results are positions in
    `train_dataset`. Under `accelerate launch`, every process must make the same calls; the work is divided among them,
    and every process gets the same result.

    Args:
        model (`PreTrainedModel` or `PeftModel`): A model with a head listed in `docs/heads.md`. Parameters with
            `requires_grad` are attributed: see [`freeze`]; for a `PeftModel`, the adapters.
        args ([`InfluenceConfig`] or `TrainingArguments`, *optional*): `TrainingArguments` get the default settings of
            influence.
        *other, **named: The other arguments of `Trainer`. `train_dataset` must be a `datasets.Dataset`.

    Example:
        ```python
        trainer = InfluenceTrainer(model=model, args=InfluenceConfig("out"), train_dataset=train)
        print(trainer.find_influential(dev.select(range(8))))
        ```
    """

    def __init__(
        self, model: nn.Module | None = None, args: TrainingArguments | None = None, *other: Any, **named: Any
    ):
        check_model(model)
        super().__init__(model, args, *other, **named)
