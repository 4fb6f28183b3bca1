"""Measure whether influential examples explain a model: whether they bring a simulator closer to its predictions.

Section 6.1 and appendix C.1 of the paper, figures 4 and 11.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from datasets import ClassLabel, Dataset
from numpy.typing import ArrayLike
from scipy.stats import bootstrap

from hf_fastif.analysis import AnalysisResult, digests, influence_manifest, open_analysis_results
from hf_fastif.artifacts.plots import TEXT, add_legend, colors_of, draw_curve, draw_level, name_panel, new_figure
from hf_fastif.data import hexdigest, label_name, relabelled, without_indexes
from hf_fastif.errors import InfluenceError
from hf_fastif.execution import Tensors
from hf_fastif.experiments.sampling import GROUPS, random_rows, strongest_rows
from hf_fastif.model import Batch, Objective, model_fingerprint
from hf_fastif.scoring import DIRECTIONS
from hf_fastif.trainer import InfluenceTrainer


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LEARNING_RATES = tuple(np.logspace(-5, -2.5, 50).tolist())  # as in the paper (section 6.1 and appendix C.1)
RANDOM = "random"
SAME_LABEL = "random, label predicted"
EXPLAINING = "explaining"
OVER_RANDOM, OVER_SAME_LABEL = "explaining, over random", "explaining, over random of the label predicted"
COLUMNS = 5  # of the figure with a panel for each query


@dataclass(frozen=True)
class Simulatability(AnalysisResult):
    """The loss of a simulator on the predictions of an explained model, after one step on one training example.

    Attributes:
        curves (`list[dict]`): Rows with `query`, `kind` of example ("helpful" or "harmful" for the explained model's
            loss on the query, or "random, LABEL"), and `mean`, `low` and `high`: for each learning rate, the mean, the
            smallest and the largest loss over the examples of this kind.
        queries (`list[dict]`): Rows with `query`, `right` (whether the explained model predicts it right), `predicted`
            (the label that it predicts), `before` (the simulator's loss on this label before a step) and `agrees`
            (whether the simulator predicts this label before a step).
        learning_rates (`list[float]`): Learning rates of the step.
        num_examples (`int`): Number of examples of each kind for each query.
    """

    curves: list[dict[str, Any]]
    queries: list[dict[str, Any]]
    learning_rates: list[float]
    num_examples: int

    def gains(self) -> dict[str, np.ndarray]:
        """Compute how much the steps lower the simulator's loss, for each query (Q,), by kind of example.

        The gain is the loss before the step minus the loss after it, which the paper uses as the measure of an
        explanation, averaged over examples and learning rates. Beside "helpful" and "harmful", the kinds are:

        - "random": random examples, averaged over their labels;
        - "random, label predicted": random examples with the label that the explained model predicts;
        - "explaining": helpful examples if the prediction is right, harmful ones if it is wrong;
        - "explaining, over random" and "explaining, over random of the label predicted": the differences of gains.

        Example:
            ```python
            print(result.gains()["explaining, over random"].mean())
            ```
        """
        queries, curves = pd.DataFrame(self.queries).set_index("query"), pd.DataFrame(self.curves)
        after = curves.assign(mean=curves["mean"].map(np.mean)).pivot(index="query", columns="kind", values="mean")
        gains = after.rsub(queries["before"], axis="index")
        random = gains.drop(columns=[*DIRECTIONS])
        gains = gains[[*DIRECTIONS]]
        gains[RANDOM] = random.mean(axis="columns")
        gains[SAME_LABEL] = [random.at[query, _random(label)] for query, label in queries["predicted"].items()]
        gains[EXPLAINING] = gains["helpful"].where(queries["right"], gains["harmful"])
        gains[OVER_RANDOM] = gains[EXPLAINING] - gains[RANDOM]
        gains[OVER_SAME_LABEL] = gains[EXPLAINING] - gains[SAME_LABEL]
        return {kind: values.to_numpy() for kind, values in gains.items()}

    def summary(self, seed: int = 0) -> list[dict[str, Any]]:
        """Average the gains over queries.

        The 95 % intervals come from resampling queries, and are NaN for a single query.

        Args:
            seed (`int`, *optional*, defaults to 0): Seed of the bootstrap samples.

        Returns:
            `list[dict]`: Rows with `group` ("all" queries, "predicted wrong" or "predicted right"), `kind`, `gain`,
                and the ends `low` and `high` of its interval.

        Example:
            ```python
            print(pd.DataFrame(result.summary()))
            ```
        """
        gains, summary = self.gains(), []
        for group, rows in self._groups().items():
            for kind, values in gains.items():
                numbers = map(float, _mean_and_interval(values[rows], seed))
                row = dict(zip(("gain", "low", "high"), numbers, strict=True))
                summary.append({"group": group, "kind": kind} | row)
        return summary

    def __str__(self) -> str:
        agreeing = sum(query["agrees"] for query in self.queries)
        lines = [
            f"Decrease of the simulator's loss on {len(self.queries)} predictions (before: "
            f"{np.mean([query['before'] for query in self.queries]):.3f}, {agreeing} predicted alike) by a step on "
            "one example;",
            f"mean over {self.num_examples} examples of each kind and {len(self.learning_rates)} learning rates from "
            f"{min(self.learning_rates):.1e} to {max(self.learning_rates):.1e}, with 95 % intervals",
        ]
        for row in self.summary():
            gain = f"{row['gain']:+.5f} ({row['low']:+.5f} to {row['high']:+.5f})"
            lines.append(f"  {row['group']:16} {row['kind']:46} {gain}")
        return "\n".join(lines)

    def figures(self, name: str) -> dict[str, Figure]:
        """Return the figure of `figure` as `NAME`, and that of `figure_of_queries` as `NAME-queries`."""
        return {name: self.figure(), f"{name}-queries": self.figure_of_queries()}

    def figure(self) -> Figure:
        """Draw the change of the loss against the learning rate, with one panel each for wrong and right predictions.

        Lines are means over queries, and bands their 95 % intervals.
        """
        groups = {name: rows for name, rows in self._groups().items() if name in GROUPS}
        size = {"columns": len(groups), "sharey": True, "title": self._conclusion()}
        figure, panels = new_figure(4.2 * len(groups) + 2.4, 4.2, **size)
        before = np.array([query["before"] for query in self.queries])
        for axes, (group, rows) in zip(panels[0], groups.items(), strict=True):
            for kind, curves in pd.DataFrame(self.curves).groupby("kind", sort=False):
                changes = np.stack(curves.set_index("query")["mean"].loc[rows]) - before[rows, None]
                self._draw(axes, kind, *_mean_and_interval(changes, seed=0))
            draw_level(axes, 0)
            axes.set_xlabel("learning rate of the step")
            name_panel(axes, f"{group} ({len(rows)})")
        panels[0, 0].set_ylabel("change of the simulator's loss")
        add_legend(figure, axes)
        return figure

    def _conclusion(self) -> str:
        row = next(row for row in self.summary() if row["kind"] == OVER_RANDOM)
        return (
            "A step on explaining examples lowers the simulator's loss by "
            f"{row['gain']:.3g} ({row['low']:.3g} to {row['high']:.3g}) more than a step on random examples"
        )

    def figure_of_queries(self) -> Figure:
        """Draw the loss against the learning rate, with one panel for each query, as in the paper.

        Lines are means over examples, and bands extend from the smallest to the largest loss.

        Example:
            ```python
            result.figure_of_queries().savefig("queries.pdf")
            ```
        """
        width = min(COLUMNS, len(self.queries))
        height = -(-len(self.queries) // width)
        figure, panels = new_figure(3 * width, 2.6 * height + 1, height, width, self._conclusion())
        for axes, query in zip(panels.ravel(), self.queries, strict=False):
            for curve in (curve for curve in self.curves if curve["query"] == query["query"]):
                self._draw(axes, curve["kind"], curve["mean"], curve["low"], curve["high"])
            draw_level(axes, query["before"])
            verdict = "right" if query["right"] else "wrong"
            name_panel(axes, f"query {query['query']}, {verdict}: {query['predicted']}")
        for axes in panels.ravel()[len(self.queries) :]:
            axes.set_axis_off()
        figure.supxlabel("learning rate of the step", fontsize=9, color=TEXT)
        figure.supylabel("loss of the simulator", fontsize=9, color=TEXT)
        add_legend(figure, panels[0, 0])
        return figure

    def _draw(self, axes: Axes, kind: str, middle: ArrayLike, low: ArrayLike, high: ArrayLike) -> None:
        color = colors_of([curve["kind"] for curve in self.curves])[kind]
        style = {"color": color, "linestyle": "-" if kind in DIRECTIONS else "--", "label": kind}
        draw_curve(axes, self.learning_rates, middle, low, high, **style)
        axes.set_xscale("log")

    def _groups(self) -> dict[str, np.ndarray]:
        """Return the rows of all queries, and those of the wrong and right predictions unless there are none."""
        right = np.array([query["right"] for query in self.queries])
        groups = {"all": np.arange(len(right))}
        groups |= {name: np.flatnonzero(right == value) for name, value in GROUPS.items()}
        return {name: rows for name, rows in groups.items() if len(rows)}


def as_predicted(trainer: InfluenceTrainer, examples: Dataset, dataset: Dataset) -> Dataset:
    """Return a dataset whose labels are the predictions of a model, to train or evaluate a simulator on.

    Args:
        trainer ([`InfluenceTrainer`]): The trainer of the model that predicts.
        examples (`datasets.Dataset`): The examples to predict, tokenized for this model.
        dataset (`datasets.Dataset`): The same examples tokenized for the simulator.

    Returns:
        `datasets.Dataset`: `dataset` with other labels.

    Raises:
        InfluenceError: If the datasets differ in length, or a predicted label is not among the class names of
            `dataset`.

    Example:
        ```python
        simulator = InfluenceTrainer(small_model, config, train_dataset=as_predicted(trainer, train, small_train))
        simulator.train()
        ```
    """
    if len(examples) != len(dataset):
        raise InfluenceError(f"dataset: it has {len(dataset):,} rows; give the {len(examples):,} of examples.")
    with trainer.session() as session:
        predicted = session.predict(session.examples("examples", examples)).logits.argmax(axis=1)
    feature, names = dataset.features["label"], trainer.model.config.id2label
    if isinstance(feature, ClassLabel):
        if unknown := sorted({names[label] for label in predicted} - set(feature.names)):
            raise InfluenceError(
                f"dataset: the model predicts {', '.join(unknown)}, and the labels are {', '.join(feature.names)}; "
                "give both the same names."
            )
        predicted = np.array([feature.str2int(names[label]) for label in predicted])
    return relabelled(without_indexes(dataset), predicted)


def losses_after_step(
    objective: Objective, example: Batch, query: Batch, learning_rates: Sequence[float]
) -> torch.Tensor:
    """Compute the loss on a query after a step of gradient descent on an example, for each learning rate.

    The step is theta' = theta - eta grad L(example, theta), without momentum or dropout, as in the authors' code. A
    single gradient therefore serves all learning rates.

    Args:
        objective (`Objective`): The loss and the model, whose parameters stay unchanged.
        example (`Batch`): A batch of one training example.
        query (`Batch`): A batch of one query.
        learning_rates (`Sequence[float]`): The L learning rates eta.

    Returns:
        `torch.Tensor` of shape `(L,)`: The losses.
    """
    gradient, losses = objective.space.split(objective.gradient(example)), []
    with torch.no_grad():
        for rate in learning_rates:
            theta = {name: p.sub(gradient[name], alpha=rate) for name, p in objective.theta.items()}
            losses.append(objective.losses_of_logits(objective.logits(theta, query), query["labels"]))
    return torch.cat(losses)


def simulatability(
    trainer: InfluenceTrainer,
    simulator: InfluenceTrainer,
    queries: Dataset,
    *,
    simulated: Dataset,
    examples: Dataset,
    num_neighbors: int | None = None,
    num_examples: int = 10,
    learning_rates: Sequence[float] = LEARNING_RATES,
) -> Simulatability:
    """Take one step with a simulator on influential or random examples, and measure its loss on a model's predictions.

    The influential examples are those with the strongest influence on the explained model's loss on the true label of
    a query. Steps use the true labels of the examples. Finished parts are saved in `output_dir/simulatability` and
    `output_dir/simulated`.

    Args:
        trainer ([`InfluenceTrainer`]): The trainer of the explained model.
        simulator ([`InfluenceTrainer`]): The trainer of a model that was trained on its predictions, see
            `as_predicted`.
        queries (`datasets.Dataset`): The Q queries.
        simulated (`datasets.Dataset`): The queries tokenized for the simulator.
        examples (`datasets.Dataset`): `trainer.train_dataset` tokenized for the simulator, with the true labels.
        num_neighbors (`int`, *optional*): Number k of nearest neighbors of each query to score. None scores all
            training examples.
        num_examples (`int`, *optional*, defaults to 10): Number of examples of each kind for each query.
        learning_rates (`Sequence[float]`, *optional*): Learning rates of the step, by default those of the paper
            (section 6.1 and appendix C.1): 50 from 1e-5 to 10^-2.5.

    Returns:
        [`Simulatability`]: The loss of the simulator for every query, kind of example and learning rate.

    Raises:
        InfluenceError: If the datasets differ in length, a query has too few influential examples, a label has too few
            examples, or the loss after a step is not finite.

    Example:
        ```python
        result = simulatability(trainer, simulator, dev, simulated=small_dev, examples=small_train)
        print(result)
        ```
    """
    if len(examples) != len(trainer.train_dataset):
        raise InfluenceError(
            f"examples: there are {len(examples):,}; give the {len(trainer.train_dataset):,} of the training set."
        )
    simulated = as_predicted(trainer, queries, simulated)
    chosen = _choose(trainer, queries, examples, num_neighbors, num_examples)
    predicted = [label_name(simulated, label) for label in simulated["label"]]
    right = [label_name(queries, label) == name for label, name in zip(queries["label"], predicted, strict=True)]
    if unknown := sorted({name for name in predicted if _random(name) not in chosen[0]}):
        raise InfluenceError(
            f"examples: the model predicts labels that no example has ({', '.join(unknown)}); give other queries."
        )
    with simulator.session() as session:
        answers = session.predict(session.examples("simulated", simulated))
    agrees = answers.logits.argmax(axis=1) == answers.labels
    losses = _losses(trainer, simulator, simulated, examples, chosen, learning_rates)
    curves = [
        {"query": query, "kind": kind, "mean": after.mean(0).tolist(), "low": after.min(0).tolist()}
        | {"high": after.max(0).tolist()}
        for query, losses_of_query in enumerate(losses)
        for kind, after in zip(chosen[query], losses_of_query, strict=True)
    ]
    columns = zip(range(len(queries)), right, predicted, answers.losses.tolist(), agrees.tolist(), strict=True)
    names = ("query", "right", "predicted", "before", "agrees")
    rows = [dict(zip(names, row, strict=True)) for row in columns]
    return Simulatability(curves, rows, [float(rate) for rate in learning_rates], num_examples)


def _mean_and_interval(values: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Compute means over queries (Q, ...) and 95 % intervals from resampling queries, NaN for a single query."""
    mean = values.mean(axis=0)
    if len(values) == 1:
        return mean, np.full_like(mean, np.nan), np.full_like(mean, np.nan)
    drawn = bootstrap((values,), np.mean, n_resamples=1000, axis=0, method="percentile", rng=seed)
    return mean, *drawn.confidence_interval


def _random(label: str) -> str:
    return f"{RANDOM}, {label}"


def _choose(
    trainer: InfluenceTrainer, queries: Dataset, examples: Dataset, k: int | None, count: int
) -> list[dict[str, np.ndarray]]:
    """Choose the influential and random examples of each query, as rows (count,) by kind."""
    drawn = [random_rows(examples, count, (trainer.args.seed, q), "num_examples") for q in range(len(queries))]
    manifest = influence_manifest(trainer, queries=queries) | {"k": str(k), "count": str(count)}
    parts = open_analysis_results(trainer, "simulatability", manifest)
    strongest = parts.get("strongest", partial(strongest_rows, trainer, queries, count, k, "num_examples"))
    tops = {direction: strongest[direction].cpu().numpy() for direction in DIRECTIONS}
    return [
        {direction: rows[q] for direction, rows in tops.items()}
        | {_random(label): rows for label, rows in by_label.items()}
        for q, by_label in enumerate(drawn)
    ]


def _losses(
    trainer: InfluenceTrainer,
    simulator: InfluenceTrainer,
    simulated: Dataset,
    examples: Dataset,
    chosen: Sequence[Mapping[str, np.ndarray]],
    learning_rates: Sequence[float],
) -> np.ndarray:
    """Compute the losses (Q, kinds, examples, learning rates), with the queries divided among the processes.

    Raises:
        InfluenceError: If a loss is not finite.
    """
    rows = np.array([list(by_kind.values()) for by_kind in chosen])
    with simulator.session() as session:
        objective = session.objective
        manifest = {"rows": hexdigest([torch.from_numpy(rows)]), "learning_rates": str(list(learning_rates))}
        manifest |= {"simulator": model_fingerprint(objective.model), "bf16": str(simulator.args.influence_bf16)}
        manifest |= digests(simulator, simulated=simulated, examples=examples)
        parts = open_analysis_results(trainer, "simulated", manifest)
        queries, train = session.pool("simulated", simulated), session.examples("examples", without_indexes(examples))

        def work(q: int) -> Tensors:
            query = queries.take([q])
            steps = [losses_after_step(objective, train.take([z]), query, learning_rates) for z in rows[q].ravel()]
            return {"losses": torch.stack(steps).double()}

        names = [f"query-{q}" for q in range(len(rows))]
        parts.compute_missing({name: partial(work, q) for q, name in enumerate(names)}, "Fine-tuning the simulator")
        losses = [parts.get(name, partial(work, q))["losses"].cpu().numpy() for q, name in enumerate(names)]
    losses = np.stack(losses).reshape(*rows.shape, len(learning_rates))
    if not np.isfinite(losses).all():
        raise InfluenceError(
            f"learning_rates: after a step with up to {max(learning_rates):g} a loss is not finite; give smaller "
            "learning rates."
        )
    return losses
