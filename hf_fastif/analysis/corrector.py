"""Steps on what helps (or harms) some anchors most, each as far as a guard allows."""

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
    """How a model is corrected.

    Attributes:
        system (`str`): See [`correct`], as for the others.
        steps (`int`): Gradient steps.
        num_examples (`int`): Examples in each.
        learning_rate (`float`): Of the first.
        max_guard_drop (`float`, *optional*): None lets the guard fall.
        seed (`int`): For what is drawn.
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
                f"max_guard_drop={self.max_guard_drop}: it is a share of the guard, so give 0 to 1 (0.01 lets its "
                "accuracy fall by one point), or None to let it fall."
            )


@dataclass(frozen=True)
class Choice:
    """What a step is made on: rows of the candidates or of the anchors, and which anchors were asked about."""

    rows: np.ndarray
    influences: np.ndarray | None
    anchors: np.ndarray


class Corrector:
    """Corrects the model of a trainer, in one way or in several.

    Influence scores are kept by the steps that led to them, so that ways which begin alike share them, and a
    correction that was interrupted goes on.

    Args:
        trainer ([`InfluenceTrainer`]): Whose model it is.
        anchors (`datasets.Dataset`): What the model should do better.
        candidates (`datasets.Dataset`, *optional*): What it may be trained on; the training set unless given.
        others (`Mapping[str, Dataset]`): What else is measured, above all the "guard".
        num_anchors (`int`, *optional*): How many anchors are drawn for a step.
        num_candidates (`int`, *optional*): How many candidates are drawn for a step.
    """

    def __init__(
        self,
        trainer: InfluenceTrainer,
        anchors: Dataset,
        candidates: Dataset | None,
        others: Mapping[str, Dataset],
        num_anchors: int | None = None,
        num_candidates: int | None = None,
    ):
        self.trainer, self.anchors = trainer, without_indexes(anchors)
        self.name, self.candidates = (
            ("train_dataset", trainer.train_dataset) if candidates is None else ("candidates", candidates)
        )
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
        """Takes the steps, and returns their log (see [`Correction`]) and the trained parameters before the first.

        If that fails or is interrupted the model is as it was before.
        """
        if plan.system != ANCHORS and plan.num_examples > len(self.candidates):
            raise InfluenceError(
                f"num_examples={plan.num_examples}: there are {len(self.candidates)} candidates; give fewer."
            )
        with changed(self.trainer, checkpoints=["final"]):
            before, first = self._parameters(), self._model()
            with self.trainer.session() as session:
                fitted = session.cache.fitted
            known = set(fitted)
            try:
                return list(self._steps(plan)), before
            except BaseException:
                self._fill(before)
                raise
            finally:
                for key in set(fitted) - known:
                    if first not in key:  # it is of a model that is no more
                        del fitted[key]

    def _steps(self, plan: Plan) -> Iterator[dict[str, Any]]:
        measures = self._measure(self.watched)
        yield _entry(0, measures, 0.0, Choice(*[np.array([], dtype=int)] * 3), {})
        limit, rate = -1.0, plan.learning_rate
        if plan.max_guard_drop is not None and GUARD in measures:
            limit = measures[GUARD]["accuracy"] - plan.max_guard_drop - 1e-9  # the guard may fall by just that
        before = ""  # what stands for the steps so far
        for step in range(1, plan.steps + 1):
            choice = self._choose(plan, step, before)
            if not len(choice.rows):
                return
            rate = self._move(self._gradient(plan.system, choice.rows), rate, limit, plan.learning_rate)
            if not rate:
                return
            before = hexdigest([before, str(choice.rows.tolist()), str(rate)])
            yield _entry(step, self._measure(self.watched), rate, choice, self._labels(plan.system, choice.rows))

    def _move(self, gradient: torch.Tensor, rate: float, limit: float, first_rate: float) -> float:
        """Moves the model against a gradient, half as far as often as its guard asks; returns the rate, 0 for none."""
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

    def _choose(self, plan: Plan, step: int, before: str) -> Choice:
        random = np.random.default_rng((plan.seed, step))
        anchors = _drawn(random, np.arange(len(self.anchors)), self.num_anchors)
        if plan.system == ANCHORS:
            return Choice(anchors, None, anchors)
        if plan.system == "random":
            return Choice(_drawn(random, np.arange(len(self.candidates)), plan.num_examples), None, anchors)
        scored = _drawn(random, self._pool, self.num_candidates)
        scores = self._scores(anchors, scored, before)
        labels = self._label_numbers[scored] if plan.system == "balanced" else None
        places = most_helpful(-scores if plan.system == "harmful" else scores, plan.num_examples, labels)
        return Choice(scored[places], scores[places], anchors)

    @cached_property
    def _pool(self) -> np.ndarray:
        """The rows of the candidates that may be scored: those that an index holds to be the most influential ones."""
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

    def _scores(self, anchors: np.ndarray, scored: np.ndarray, before: str) -> np.ndarray:
        """The influence (k,) of some candidates on the mean loss of some anchors, after the steps before."""
        query_set = QuerySet(self.anchors.select(anchors), reduce="mean")
        with self.trainer.session() as session:
            queries, pool = session.queries(query_set), session.candidates(self.candidates)
            name = hexdigest([before, str(anchors.tolist()), str(scored.tolist())])

            def compute() -> Tensors:
                with session.attribution("correct", queries.identity, pool.digest, name) as attribution:
                    (scores,) = attribution.score(queries, pool.batches, lambda *_: scored[None], None)
                return {"scores": torch.from_numpy(scores.scores)}

            return self.parts.get(f"scores-{name}", compute)["scores"].cpu().numpy()

    def _gradient(self, system: str, rows: np.ndarray) -> torch.Tensor:
        """The gradient (P,) of the mean loss of some candidates or anchors."""
        with self.trainer.session() as session:
            name, dataset = (ANCHORS, self.anchors) if system == ANCHORS else (self.name, self.candidates)
            examples = session.pool(name, dataset)
            gradient = mean_gradient(session.objective, examples, rows, session.args.influence_batch_size)
            return self.trainer.accelerator.reduce(gradient, "mean")  # processes may round otherwise

    def _measure(self, names: Iterable[str]) -> dict[str, dict[str, float]]:
        """Loss and accuracy of the present model on what is watched; what was measured of it before is known."""
        model = self._model()
        with self.trainer.session() as session:
            for name in names:
                if (model, name) not in self._measured:
                    found = session.predict(session.pool(name, self.watched[name]))
                    accuracy = 1 - found.wrong().mean()
                    self._measured[model, name] = {"loss": float(found.losses.mean()), "accuracy": float(accuracy)}
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
    by_measure = {what: {name: row[what] for name, row in measures.items()} for what in ("loss", "accuracy")}
    return by_measure | {
        "step": step,
        "learning_rate": rate,
        "examples": choice.rows.tolist(),
        "influences": None if choice.influences is None else choice.influences.tolist(),
        "labels": labels,
        "anchors": choice.anchors.tolist(),
    }


def _drawn(random: np.random.Generator, rows: np.ndarray, count: int | None) -> np.ndarray:
    """So many of some rows, or all."""
    return rows if count is None else random.choice(rows, count, replace=False)


def most_helpful(scores: np.ndarray, count: int, labels: np.ndarray | None = None) -> np.ndarray:
    """The places of the `count` most negative scores; given labels, of each label (nearly) equally many.

    Scores that are not negative do not count, so that there may be fewer.
    """
    order = np.argsort(scores, kind="stable")
    order = order[scores[order] < 0]
    if labels is None:
        return order[:count]
    kinds = np.unique(labels)
    shares = [count // len(kinds) + (number < count % len(kinds)) for number in range(len(kinds))]
    return np.concatenate([order[labels[order] == kind][:n] for kind, n in zip(kinds, shares, strict=True)])


def mean_gradient(objective: Objective, examples: ExampleBatches, rows: np.ndarray, batch_size: int) -> torch.Tensor:
    """The gradient (P,) of the mean loss of some rows; memory is bounded by a batch."""
    parts = examples.grouped_by_length(rows, batch_size)
    return sum(len(part) / len(rows) * objective.gradient(examples.take(part)) for part in parts)
