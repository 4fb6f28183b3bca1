"""Do influential examples explain a model, in that they bring a simulator nearer to what the model predicts?

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

LEARNING_RATES = tuple(np.logspace(-5, -2.5, 50).tolist())  # the paper's
RANDOM = "random"
SAME_LABEL = "random, label predicted"
EXPLAINING = "explaining"
OVER_RANDOM, OVER_SAME_LABEL = "explaining, over random", "explaining, over random of the label predicted"
COLUMNS = 5  # of panels, one for each query


@dataclass(frozen=True)
class Simulatability(AnalysisResult):
    """The loss of a simulator on what another model predicts, after one gradient step on one training example.

    Attributes:
        curves (`list[dict]`): `query`, `kind` of example ("helpful" or "harmful" to the other model's loss on the
            query, or "random, LABEL"), and `mean`, `low` and `high`: for each learning rate the mean, the smallest and
            the largest loss over the examples of that kind.
        queries (`list[dict]`): `query`, `right` (whether the other model predicts it right), `predicted` (the label
            that it predicts), `before` (the simulator's loss on that label without a step) and `agrees` (whether the
            simulator predicts that label already).
        learning_rates (`list[float]`): Of the step.
        num_examples (`int`): Examples of each kind, for each query.
    """

    curves: list[dict[str, Any]]
    queries: list[dict[str, Any]]
    learning_rates: list[float]
    num_examples: int

    def gains(self) -> dict[str, np.ndarray]:
        """How much nearer to the predictions the simulator came, for each query (Q,), by kind of example.

        The paper takes the difference of the loss before and after the step for the measure of an explanation; the
        gain is that difference as a mean over examples and learning rates. Beside "helpful" and "harmful" there are

        - "random": random examples, a mean over their labels;
        - "random, label predicted": those that have the label that the other model predicts;
        - "explaining": helpful examples where that prediction is right, harmful ones where it is wrong;
        - "explaining, over random" and "explaining, over random of the label predicted": the differences.
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
        """Means of `gains` over queries: `group`, `kind`, `gain`, `low` and `high`.

        The group is "all" queries, or those "predicted wrong" or "predicted right". From `low` to `high` is the 95 %
        interval from drawing queries anew; NaN for a single one.
        """
        gains, found = self.gains(), []
        for group, rows in self._groups().items():
            for kind, values in gains.items():
                numbers = map(float, _mean_and_interval(values[rows], seed))
                row = dict(zip(("gain", "low", "high"), numbers, strict=True))
                found.append({"group": group, "kind": kind} | row)
        return found

    def __str__(self) -> str:
        agreeing = sum(query["agrees"] for query in self.queries)
        lines = [
            f"Fall of the simulator's loss on {len(self.queries)} predictions (before: "
            f"{np.mean([query['before'] for query in self.queries]):.3f}; it agrees with {agreeing}) after a step on "
            "one example,",
            f"mean over {self.num_examples} examples of each kind and {len(self.learning_rates)} learning rates from "
            f"{min(self.learning_rates):.1e} to {max(self.learning_rates):.1e}, with 95 % intervals",
        ]
        for row in self.summary():
            gain = f"{row['gain']:+.5f} ({row['low']:+.5f} to {row['high']:+.5f})"
            lines.append(f"  {row['group']:16} {row['kind']:46} {gain}")
        return "\n".join(lines)

    def figures(self, name: str) -> dict[str, Figure]:
        """The figure of `figure`, and as `NAME-queries` a panel for each query."""
        return {name: self.figure(), f"{name}-queries": self.figure_of_queries()}

    def figure(self) -> Figure:
        """Draws the change of the loss against the learning rate, for wrong and for right predictions.

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
            f"{row['gain']:.3g} ({row['low']:.3g} to {row['high']:.3g}) more than one on random examples"
        )

    def figure_of_queries(self) -> Figure:
        """Draws the loss against the learning rate for each query, as the paper does.

        Lines are means over examples, and bands go from the smallest to the largest.
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
        """The rows of all queries, and of those predicted wrong and right, if there are such."""
        right = np.array([query["right"] for query in self.queries])
        groups = {"all": np.arange(len(right))}
        groups |= {name: np.flatnonzero(right == value) for name, value in GROUPS.items()}
        return {name: rows for name, rows in groups.items() if len(rows)}


def as_predicted(trainer: InfluenceTrainer, examples: Dataset, dataset: Dataset) -> Dataset:
    """A dataset with the labels that a model predicts, for a simulator of it to learn.

    Args:
        trainer ([`InfluenceTrainer`]): Whose model predicts.
        examples (`datasets.Dataset`): What it is asked about.
        dataset (`datasets.Dataset`): The same rows as the simulator takes them, which may be tokenized otherwise.

    Raises:
        ValueError: If the rows are not as many, or the dataset knows no class by the name of one that is predicted.
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
    """The loss (L,) on a query after a step of gradient descent on an example, for each learning rate.

    theta' = theta - eta grad L(example, theta), without momentum, as the authors' code has it; so one gradient serves
    all learning rates. Dropout is off.
    """
    gradient, found = objective.space.split(objective.gradient(example)), []
    with torch.no_grad():
        for rate in learning_rates:
            theta = {name: p.sub(gradient[name], alpha=rate) for name, p in objective.theta.items()}
            found.append(objective.losses_of_logits(objective.logits(theta, query), query["labels"]))
    return torch.cat(found)


def simulatability(
    trainer: InfluenceTrainer,
    simulator: InfluenceTrainer,
    queries: Dataset,
    simulated: Dataset,
    examples: Dataset,
    num_neighbors: int | None = None,
    num_examples: int = 10,
    learning_rates: Sequence[float] = LEARNING_RATES,
) -> Simulatability:
    """Takes a step with a simulator on influential or random examples, and asks it what the other model predicts.

    The examples are those that influence the other model's loss on the true label of a query the most, and have their
    true labels.

    Args:
        trainer ([`InfluenceTrainer`]): Of the model that is to be explained.
        simulator ([`InfluenceTrainer`]): Of a model that was trained on its predictions, see `as_predicted`.
        queries (`datasets.Dataset`): Q examples.
        simulated (`datasets.Dataset`): The queries as the simulator takes them.
        examples (`datasets.Dataset`): `trainer.train_dataset` as the simulator takes it, with the true labels.
        num_neighbors (`int`, *optional*): k: only the k nearest neighbours of a query are scored; None scores all.
        num_examples (`int`, *optional*, defaults to 10): Of each kind, for each query.
        learning_rates (`Sequence[float]`, *optional*): Of the step; by default the paper's, 50 from 1e-5 to 10^-2.5.

    Returns:
        [`Simulatability`]: What is finished is kept in `output_dir/simulatability` and `output_dir/simulated`.

    Raises:
        ValueError: If rows are not as many as they should be, a query has too few influential examples or a label too
            few examples, or the loss after a step is not finite.
    """
    if len(examples) != len(trainer.train_dataset):
        raise InfluenceError(
            f"examples: there are {len(examples):,}; give the {len(trainer.train_dataset):,} of the training set."
        )
    simulated = as_predicted(trainer, queries, simulated)
    chosen = _chosen(trainer, queries, examples, num_neighbors, num_examples)
    predicted = [label_name(simulated, label) for label in simulated["label"]]
    right = [label_name(queries, label) == name for label, name in zip(queries["label"], predicted, strict=True)]
    if unknown := sorted({_random(name) for name in predicted} - set(chosen[0])):
        raise InfluenceError(f"examples: none has the label that the model predicts: {', '.join(unknown)}.")
    with simulator.session() as session:
        answers = session.predict(session.examples("simulated", simulated))
    agrees = answers.logits.argmax(axis=1) == answers.labels
    losses = _losses(trainer, simulator, simulated, examples, chosen, learning_rates)
    curves = [
        {"query": query, "kind": kind, "mean": own.mean(0).tolist(), "low": own.min(0).tolist()}
        | {"high": own.max(0).tolist()}
        for query, of_query in enumerate(losses)
        for kind, own in zip(chosen[query], of_query, strict=True)
    ]
    columns = zip(right, predicted, answers.losses.tolist(), agrees.tolist(), strict=True)
    about = [dict(zip(("right", "predicted", "before", "agrees"), row, strict=True)) for row in columns]
    asked = [{"query": number} | row for number, row in enumerate(about)]
    return Simulatability(curves, asked, [float(rate) for rate in learning_rates], num_examples)


def _mean_and_interval(values: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Compute means over queries (Q, ...), and 95 % intervals from drawing queries anew; NaN for a single one."""
    mean = values.mean(axis=0)
    if len(values) == 1:
        return mean, np.full_like(mean, np.nan), np.full_like(mean, np.nan)
    drawn = bootstrap((values,), np.mean, n_resamples=1000, axis=0, method="percentile", rng=seed)
    return mean, *drawn.confidence_interval


def _random(label: str) -> str:
    return f"{RANDOM}, {label}"


def _chosen(
    trainer: InfluenceTrainer, queries: Dataset, examples: Dataset, k: int | None, count: int
) -> list[dict[str, np.ndarray]]:
    """For each query the rows (count,) of the examples, by kind."""
    drawn = [random_rows(examples, count, (trainer.args.seed, q), "num_examples") for q in range(len(queries))]
    about = {"k": str(k), "count": str(count)}
    parts = open_analysis_results(trainer, "simulatability", influence_manifest(trainer, queries=queries) | about)
    strongest = parts.get("strongest", partial(strongest_rows, trainer, queries, count, k, "num_examples"))
    tops = {direction: strongest[direction].cpu().numpy() for direction in DIRECTIONS}
    return [
        {direction: rows[q] for direction, rows in tops.items()} | {_random(name): rows for name, rows in own.items()}
        for q, own in enumerate(drawn)
    ]


def _losses(
    trainer: InfluenceTrainer,
    simulator: InfluenceTrainer,
    simulated: Dataset,
    examples: Dataset,
    chosen: Sequence[Mapping[str, np.ndarray]],
    learning_rates: Sequence[float],
) -> np.ndarray:
    """The losses (Q, kinds, examples, learning rates); the queries are dealt to the processes."""
    rows = np.array([list(own.values()) for own in chosen])
    with simulator.session() as session:
        objective = session.objective
        about = {"rows": hexdigest([torch.from_numpy(rows)]), "learning_rates": str(list(learning_rates))}
        about |= {"simulator": model_fingerprint(objective.model), "bf16": str(simulator.args.influence_bf16)}
        about |= digests(simulator, simulated=simulated, examples=examples)
        parts = open_analysis_results(trainer, "simulated", about)
        asked, train = session.pool("simulated", simulated), session.examples("examples", without_indexes(examples))

        def work(q: int) -> Tensors:
            query = asked.take([q])
            steps = [losses_after_step(objective, train.take([z]), query, learning_rates) for z in rows[q].ravel()]
            return {"losses": torch.stack(steps).double()}

        names = [f"query-{q}" for q in range(len(rows))]
        parts.compute_missing({name: partial(work, q) for q, name in enumerate(names)}, "Fine-tuning the simulator")
        found = [parts.get(name, partial(work, q))["losses"].cpu().numpy() for q, name in enumerate(names)]
    losses = np.stack(found).reshape(*rows.shape, len(learning_rates))
    if not np.isfinite(losses).all():
        raise InfluenceError(
            f"learning_rates: after a step with up to {max(learning_rates):g} a loss is not finite; give smaller ones."
        )
    return losses
