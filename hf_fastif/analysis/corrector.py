"""Choose the examples of a correction and take its steps, each as large as the guard allows.

This module is the engine of `correct` in `correction.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np
import torch
from datasets import Dataset

from hf_fastif.analysis.session_tools import changed, influence_manifest, open_analysis_results
from hf_fastif.data import ExampleBatches, check_dataset, hexdigest, label_column, with_label_names, without_indexes
from hf_fastif.errors import InfluenceError
from hf_fastif.execution import Tensors
from hf_fastif.index import check_num_neighbors
from hf_fastif.influence import QuerySet
from hf_fastif.model import Objective, load_parameters_, model_fingerprint
from hf_fastif.trainer import InfluenceTrainer


System = Literal["helpful", "balanced", "harmful", "random", "anchors"]
SYSTEMS = get_args(System)
ANCHORS, GUARD = "anchors", "guard"
MAX_HALVINGS = 6
Log = list[dict[str, Any]]


@dataclass(frozen=True)
class Plan:
    """The settings of a correction.

    Attributes:
        system (`str`): The examples of each step; see [`correct`].
        steps (`int`): Number of gradient steps.
        num_examples (`int`): Number of examples in each step.
        learning_rate (`float`): Learning rate of the first step.
        max_guard_drop (`float`, *optional*): The accepted drop of the accuracy on the guard. None accepts any.
        seed (`int`): Seed of the random choices.

    Example:
        ```python
        plan = Plan(system="balanced", steps=5, learning_rate=3e-3)
        ```
    """

    system: str = "helpful"
    steps: int = 10
    num_examples: int = 10
    learning_rate: float = 1e-3
    max_guard_drop: float | None = 0.01
    seed: int = 0

    def __post_init__(self):
        if self.system not in SYSTEMS:
            raise InfluenceError(f"system={self.system!r}: give one of {', '.join(SYSTEMS)}.")
        for name in ("steps", "num_examples"):
            if getattr(self, name) < 1:
                raise InfluenceError(f"{name}={getattr(self, name)}: give at least 1.")
        if not 0 < self.learning_rate < float("inf"):
            raise InfluenceError(f"learning_rate={self.learning_rate}: give a number above 0, such as 1e-3.")
        if self.max_guard_drop is not None and not 0 <= self.max_guard_drop <= 1:
            raise InfluenceError(
                f"max_guard_drop={self.max_guard_drop}: give a fraction from 0 to 1 (0.01 accepts a drop of the "
                "guard's accuracy by one point), or None to accept any drop."
            )


@dataclass(frozen=True)
class Choice:
    """The examples of a step.

    Attributes:
        rows (`np.ndarray`): Their rows in the candidates, or in the anchors if the step is taken on anchors.
        influences (`np.ndarray`, *optional*): Their influence on the mean loss of the anchors.
        anchors (`np.ndarray`): The rows of the anchors that they were chosen for.
    """

    rows: np.ndarray
    influences: np.ndarray | None
    anchors: np.ndarray


class Corrector:
    """The engine that corrects the model of a trainer according to one or several plans.

    Influence scores are saved under a digest of the steps before them. Plans with the same first steps share them, and
    an interrupted correction resumes.

    Args:
        trainer ([`InfluenceTrainer`]): The trainer of the model.
        anchors (`datasets.Dataset`): Examples that the model should improve on.
        candidates (`datasets.Dataset`, *optional*): Examples that steps may be taken on, by default the training set.
        others (`Mapping[str, Dataset]`): Other examples to measure by name, among them the "guard".
        num_anchors (`int`, *optional*): Number of anchors to draw for each step, by default all.
        num_candidates (`int`, *optional*): Number of candidates to draw for each step, by default all.

    Example:
        ```python
        corrector = Corrector(trainer, anchors, None, {"guard": dev})
        log, parameters_before = corrector.correct(Plan(steps=5))
        ```
    """

    def __init__(
        self,
        trainer: InfluenceTrainer,
        anchors: Dataset,
        candidates: Dataset | None,
        others: Mapping[str, Dataset],
        *,
        num_anchors: int | None = None,
        num_candidates: int | None = None,
    ):
        self.trainer, self.anchors = trainer, without_indexes(anchors)
        with trainer.session() as session:
            self.name, self.candidates = session.named(candidates, "candidates")
        if ANCHORS in others:
            raise InfluenceError(f"measured: the name {ANCHORS!r} is taken; give another one.")
        self.watched = {ANCHORS: self.anchors} | dict(others)
        self.num_anchors, self.num_candidates = num_anchors, num_candidates
        for name, dataset in (self.watched | {self.name: self.candidates}).items():
            check_dataset(name, dataset)
        for name, value, pool in (
            ("num_anchors", num_anchors, len(anchors)),
            ("num_candidates", num_candidates, trainer.args.num_neighbors or len(self.candidates)),
        ):
            if value is not None and not 1 <= value <= pool:
                raise InfluenceError(
                    f"{name}={value}: there are {pool} to draw from; give 1 to {pool}, or None for all."
                )
        check_num_neighbors(trainer.args.num_neighbors, len(self.candidates))
        with changed(trainer, checkpoints=["final"]):
            manifest = influence_manifest(trainer, anchors=self.anchors, candidates=self.candidates)
        self.parts = open_analysis_results(trainer, "corrections", manifest)
        self._measured: dict[tuple[str, str], dict[str, float]] = {}

    def correct(self, plan: Plan) -> tuple[Log, Tensors]:
        """Take the steps of a plan.

        If they fail or are interrupted, the model keeps its original parameters.

        Args:
            plan ([`Plan`]): The settings.

        Returns:
            `tuple`: The log of [`Correction`], and the trained parameters before the first step.

        Raises:
            InfluenceError: If a step has more examples than there are candidates.
        """
        if plan.system != ANCHORS and plan.num_examples > len(self.candidates):
            raise InfluenceError(
                f"num_examples={plan.num_examples}: there are {len(self.candidates)} candidates; give at most "
                f"{len(self.candidates)}."
            )
        with changed(self.trainer, checkpoints=["final"]):
            before, first = self._parameters(), self._model()
            with self.trainer.session() as session:
                fitted = session.cache.fitted
            fitted_before = set(fitted)
            try:
                return list(self._steps(plan)), before
            except BaseException:
                self._fill(before)
                raise
            finally:
                for key in set(fitted) - fitted_before:
                    if first not in key:  # fitted for a model that no longer exists
                        del fitted[key]

    def _steps(self, plan: Plan) -> Iterator[dict[str, Any]]:
        measures = self._measure(self.watched)
        yield _entry(0, measures, 0.0, Choice(*[np.array([], dtype=int)] * 3), {})
        limit, rate = -1.0, plan.learning_rate
        if plan.max_guard_drop is not None and GUARD in measures:
            limit = measures[GUARD]["accuracy"] - plan.max_guard_drop - 1e-9  # a drop of exactly this size is allowed
        history = ""  # digest of the steps so far
        for step in range(1, plan.steps + 1):
            choice = self._choose(plan, step, history)
            if not len(choice.rows):
                return
            rate = self._move(self._gradient(plan.system, choice.rows), rate, limit, plan.learning_rate)
            if not rate:
                return
            history = hexdigest([history, str(choice.rows.tolist()), str(rate)])
            yield _entry(step, self._measure(self.watched), rate, choice, self._labels(plan.system, choice.rows))

    def _move(self, gradient: torch.Tensor, rate: float, limit: float, first_rate: float) -> float:
        """Take a step against a gradient, halving the learning rate until the guard's accuracy reaches the limit.

        Args:
            gradient (`torch.Tensor` of shape `(P,)`): The gradient of the mean loss.
            rate (`float`): The learning rate to start with.
            limit (`float`): The lowest accepted accuracy on the guard.
            first_rate (`float`): The learning rate of the plan, which is halved at most `MAX_HALVINGS` times.

        Returns:
            `float`: The learning rate of the step, or 0 if no step was taken.
        """
        start = self._parameters()
        while rate * 2**MAX_HALVINGS >= first_rate:
            with self.trainer.session() as session:
                partials = session.objective.space.split(gradient)
            self._fill({name: values - rate * partials[name] for name, values in start.items()})
            if GUARD not in self.watched or self._measure([GUARD])[GUARD]["accuracy"] >= limit:
                return rate
            rate /= 2
        self._fill(start)
        return 0.0

    def _choose(self, plan: Plan, step: int, history: str) -> Choice:
        random = np.random.default_rng((plan.seed, step))
        anchors = _drawn(random, np.arange(len(self.anchors)), self.num_anchors)
        if plan.system == ANCHORS:
            return Choice(anchors, None, anchors)
        if plan.system == "random":
            return Choice(_drawn(random, np.arange(len(self.candidates)), plan.num_examples), None, anchors)
        scored = _drawn(random, self._pool, self.num_candidates)
        scores = self._scores(anchors, scored, history)
        labels = self._label_numbers[scored] if plan.system == "balanced" else None
        places = most_helpful(-scores if plan.system == "harmful" else scores, plan.num_examples, labels)
        return Choice(scored[places], scores[places], anchors)

    @cached_property
    def _pool(self) -> np.ndarray:
        """Return the rows of the candidates to score: all, or the k nearest neighbors of the anchors in an index."""
        trainer, k = self.trainer, self.trainer.args.num_neighbors
        if k is None:
            return np.arange(len(self.candidates))

        def nearest() -> Tensors:
            with trainer.session() as session:
                index = session.cache.indexes.get(self.candidates._fingerprint)
            if index is None or index.manifest["model"] != self._model():
                trainer.build_index(self.candidates)
            rows = trainer.find_candidates(QuerySet(self.anchors, reduce="mean"), k, self.candidates)[0]
            return {"rows": torch.from_numpy(rows)}

        return self.parts.get("neighbors", nearest)["rows"].cpu().numpy()

    def _scores(self, anchors: np.ndarray, scored: np.ndarray, history: str) -> np.ndarray:
        """Read or compute the influence (k,) of the scored candidates on the mean loss of the drawn anchors."""
        query_set = QuerySet(self.anchors.select(anchors), reduce="mean")
        with self.trainer.session() as session:
            queries, pool = session.queries(query_set), session.candidates(self.candidates)
            name = hexdigest([history, str(anchors.tolist()), str(scored.tolist())])

            def compute() -> Tensors:
                with session.attribution("correct", queries.identity, pool.digest, name) as attribution:
                    (scores,) = attribution.score(queries, pool.batches, lambda *_: scored[None], None)
                return {"scores": torch.from_numpy(scores.scores)}

            return self.parts.get(f"scores-{name}", compute)["scores"].cpu().numpy()

    def _gradient(self, system: str, rows: np.ndarray) -> torch.Tensor:
        """Compute the gradient (P,) of the mean loss of rows of the candidates or anchors."""
        with self.trainer.session() as session:
            name, dataset = (ANCHORS, self.anchors) if system == ANCHORS else (self.name, self.candidates)
            examples = session.pool(name, dataset)
            gradient = mean_gradient(session.objective, examples, rows, session.args.influence_batch_size)
            return self.trainer.accelerator.reduce(gradient, "mean")  # since processes may round differently

    def _measure(self, names: Iterable[str]) -> dict[str, dict[str, float]]:
        """Return loss and accuracy of the current model on the named examples, measuring each model once."""
        model = self._model()
        with self.trainer.session() as session:
            for name in names:
                if (model, name) not in self._measured:
                    predicted = session.predict(session.pool(name, self.watched[name]))
                    accuracy = 1 - predicted.wrong().mean()
                    self._measured[model, name] = {"loss": float(predicted.losses.mean()), "accuracy": float(accuracy)}
        return {name: self._measured[model, name] for name in names}

    def _model(self) -> str:
        with self.trainer.session() as session:
            return model_fingerprint(session.objective.model)

    def _labels(self, system: str, rows: np.ndarray) -> dict[str, int]:
        dataset = self.anchors if system == ANCHORS else without_indexes(self.candidates)
        column = label_column(dataset)
        names = with_label_names(dataset.select(rows).select_columns([column]))[column]
        return dict(sorted(Counter(str(name) for name in names).items()))

    @cached_property
    def _label_numbers(self) -> np.ndarray:
        return np.asarray(self.candidates[label_column(self.candidates)])

    def _parameters(self) -> Tensors:
        with self.trainer.session() as session:
            return {name: p.detach().clone() for name, p in session.objective.theta.items()}

    def _fill(self, values: Tensors) -> None:
        with self.trainer.session() as session:
            load_parameters_(session.objective.theta, values)


def _entry(
    step: int, measures: Mapping[str, Mapping[str, float]], rate: float, choice: Choice, labels: dict[str, int]
) -> dict[str, Any]:
    by_measure = {key: {name: row[key] for name, row in measures.items()} for key in ("loss", "accuracy")}
    return by_measure | {
        "step": step,
        "learning_rate": rate,
        "examples": choice.rows.tolist(),
        "influences": None if choice.influences is None else choice.influences.tolist(),
        "labels": labels,
        "anchors": choice.anchors.tolist(),
    }


def _drawn(random: np.random.Generator, rows: np.ndarray, count: int | None) -> np.ndarray:
    """Draw `count` of the rows without replacement, or return all of them if it is None."""
    return rows if count is None else random.choice(rows, count, replace=False)


def most_helpful(scores: np.ndarray, count: int, labels: np.ndarray | None = None) -> np.ndarray:
    """Return the positions of the `count` most negative scores, or fewer if there are not as many negative ones.

    Args:
        scores (`np.ndarray` of shape `(k,)`): Influence, negative for helpful examples.
        count (`int`): Number of positions.
        labels (`np.ndarray` of shape `(k,)`, *optional*): Labels. If given, every label gets the same share of
            `count`, give or take one.
    """
    order = np.argsort(scores, kind="stable")
    order = order[scores[order] < 0]
    if labels is None:
        return order[:count]
    classes = np.unique(labels)
    shares = [count // len(classes) + (number < count % len(classes)) for number in range(len(classes))]
    return np.concatenate([order[labels[order] == label][:n] for label, n in zip(classes, shares, strict=True)])


def mean_gradient(objective: Objective, examples: ExampleBatches, rows: np.ndarray, batch_size: int) -> torch.Tensor:
    """Compute the gradient (P,) of the mean loss of the given rows, batch by batch to bound memory."""
    parts = examples.grouped_by_length(rows, batch_size)
    return sum(len(part) / len(rows) * objective.gradient(examples.take(part)) for part in parts)
