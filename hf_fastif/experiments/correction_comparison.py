"""Compare correcting a model on helpful examples with correcting it on random examples or on the anchors themselves.

Section 6.3 and appendix C.3 of the paper, figures 6, 7, 12 and 13.
"""

from __future__ import annotations

import json
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from accelerate.utils import tqdm
from datasets import Dataset
from scipy.stats import ttest_1samp

from hf_fastif.analysis import ANCHORS, GUARD, AnalysisResult, Correction, Corrector, Log, Plan, digests
from hf_fastif.artifacts.plots import add_legend, colors_of, count_steps, draw_curve, name_panel, new_figure
from hf_fastif.data import hexdigest
from hf_fastif.execution import Tensors
from hf_fastif.trainer import InfluenceTrainer


if TYPE_CHECKING:
    from matplotlib.figure import Figure

TEST = "test"
MEASURES = ("accuracy", "loss")


@dataclass(frozen=True)
class Corrections(AnalysisResult):
    """Loss and accuracy of a model after each step of several systems of correction, slice by slice.

    Attributes:
        runs (`list[dict]`): Rows with `slice`, `system` (see [`Correction`]), `repeat`, `loss` and `accuracy` (lists
            by "anchors", "test" and "guard" of the values before the first step and after each step; a correction that
            stopped early repeats its last value), `learning_rate` of each step (0 for steps that were not taken), and
            `labels`, the number of examples in the steps by label.
        settings (`dict`): The settings of [`Plan`], and `candidates` (their number), `num_anchors`, `num_candidates`
            and `systems`.
    """

    runs: list[dict[str, Any]]
    settings: dict[str, Any]

    @property
    def slices(self) -> list[str]:
        """Return the names of the slices."""
        return list(dict.fromkeys(run["slice"] for run in self.runs))

    @property
    def systems(self) -> list[str]:
        """Return the names of the systems."""
        return list(dict.fromkeys(run["system"] for run in self.runs))

    def curves(self, measure: str, examples: str, system: str, slices: Sequence[str] | None = None) -> np.ndarray:
        """Return a measure before the first step and after each step, averaged over slices.

        Args:
            measure (`str`): "loss" or "accuracy".
            examples (`str`): "anchors", "test" or "guard".
            system (`str`): One of `systems`.
            slices (`Sequence[str]`, *optional*): The slices to average over, by default all.

        Returns:
            `np.ndarray` of shape `(repeats, steps + 1)`: The measure.

        Example:
            ```python
            accuracy = result.curves("accuracy", "test", "helpful").mean(axis=0)
            ```
        """
        names = self.slices if slices is None else slices
        runs = [run for run in self.runs if run["system"] == system]
        by_slice = [[run[measure][examples] for run in runs if run["slice"] == name] for name in names]
        return np.array(by_slice).mean(axis=0)

    def summary(self) -> list[dict[str, Any]]:
        """Summarize the changes from before the first step to after the last.

        The 95 % intervals are Student's t over repeats, and NaN for a single repeat. All repeats are measured on the
        same examples, so the intervals do not cover the choice of these examples.

        Returns:
            `list[dict]`: Rows with `slice` (or "mean" over all slices), `system`, `examples`, `measure`, `change`, and
                the ends `low` and `high` of its interval.

        Example:
            ```python
            print(pd.DataFrame(result.summary()))
            ```
        """
        summary = []
        for name, slices in ({one: [one] for one in self.slices} | {"mean": None}).items():
            for system in self.systems:
                for examples in (TEST, GUARD, ANCHORS):
                    for measure in MEASURES:
                        curves = self.curves(measure, examples, system, slices)
                        row = {"slice": name, "system": system, "examples": examples, "measure": measure}
                        summary.append(row | _interval(curves[:, -1] - curves[:, 0]))
        return summary

    def differences(self, system: str = "helpful") -> list[dict[str, Any]]:
        """Compare one system with each other system on the test examples after the last step, averaged over slices.

        Args:
            system (`str`, *optional*, defaults to `"helpful"`): One of `systems`.

        Returns:
            `list[dict]`: Rows with `system` (the other system), `measure`, `change` (the measure of `system` minus
                that of the other system in the same repeat), and the ends `low` and `high` of its interval as in
                `summary`.

        Example:
            ```python
            print(pd.DataFrame(result.differences("helpful")))
            ```
        """
        rows = []
        for other in (name for name in self.systems if name != system):
            for measure in MEASURES:
                both = (self.curves(measure, TEST, name)[:, -1] for name in (system, other))
                rows.append({"system": other, "measure": measure} | _interval(np.subtract(*both)))
        return rows

    def __str__(self) -> str:
        settings = self.settings
        lines = [
            f"Change after {settings['steps']} steps on {settings['num_examples']} of {settings['candidates']:,} "
            f"candidates at learning rate {settings['learning_rate']:g}, with 95 % intervals over repeats"
        ]
        rows = {(r["slice"], r["system"], r["examples"], r["measure"]): r for r in self.summary()}
        names = [*self.slices, "mean"]
        width = max(map(len, names))
        for name in names:
            for system in self.systems:
                accuracy, loss = (rows[name, system, TEST, measure] for measure in MEASURES)
                guard = rows[name, system, GUARD, "accuracy"]
                lines.append(
                    f"  {name:{width}} {system:9} accuracy {_printed(accuracy, 100)} points, loss {_printed(loss)}; "
                    f"guard {_printed(guard, 100)} points"
                )
        for first in (name for name in ("helpful", "balanced") if name in self.systems):
            for row in self.differences(first):
                unit = (100, " points") if row["measure"] == "accuracy" else (1, "")
                lines.append(f"  {first} - {row['system']}: {row['measure']} {_printed(row, unit[0])}{unit[1]}")
        return "\n".join(lines)

    def figure(self) -> Figure:
        """Draw accuracy and loss on the test examples of each slice and on the guard (figures 6 and 7)."""
        return self._draw(TEST, with_guard=True)

    def validation_figure(self) -> Figure:
        """Draw accuracy and loss on the anchors of each slice (figures 12 and 13).

        Example:
            ```python
            result.validation_figure().savefig("validation.pdf")
            ```
        """
        return self._draw(ANCHORS, with_guard=False)

    def figures(self, name: str) -> dict[str, Figure]:
        """Return the figure of `figure` as `NAME`, and that of `validation_figure` as `NAME-validation`."""
        return {name: self.figure(), f"{name}-validation": self.validation_figure()}

    def _draw(self, examples: str, with_guard: bool) -> Figure:
        panels = {name: (examples, [name]) for name in self.slices} | ({GUARD: (GUARD, None)} if with_guard else {})
        size = {"rows": len(MEASURES), "columns": len(panels), "sharex": True}
        figure, lines = new_figure(1.5 + 3.2 * len(panels), 6, **size, title=self._conclusion())
        colors = colors_of(self.systems)
        for line, measure in zip(lines, MEASURES, strict=True):
            for axes, (name, (measured, slices)) in zip(line, panels.items(), strict=True):
                for system in self.systems:
                    curves = self.curves(measure, measured, system, slices)
                    band = curves.mean(axis=0), curves.min(axis=0), curves.max(axis=0)
                    draw_curve(axes, np.arange(curves.shape[1]), *band, color=colors[system], label=system)
                name_panel(axes, name if measure == MEASURES[0] else "")
            line[0].set_ylabel(f"{measure} ({examples})")
        for axes in line:
            count_steps(axes)
        add_legend(figure, axes)
        return figure

    def _conclusion(self) -> str:
        rows = pd.DataFrame(self.summary()).query("slice == 'mean' and examples == @TEST and measure == 'accuracy'")
        best = rows.loc[rows["change"].idxmax()]
        return (
            f"The best change of test accuracy after {self.settings['steps']} steps is that of '{best['system']}': "
            f"{_printed(best, 100)} points"
        )


def _interval(values: np.ndarray) -> dict[str, float]:
    """Compute the mean `change` over repeats (R,), and the ends of its 95 % interval by Student's t.

    The ends are NaN for a single repeat.
    """
    low = high = np.nan
    if len(values) > 1:
        with warnings.catch_warnings(action="ignore", category=RuntimeWarning):  # if all repeats are equal
            low, high = ttest_1samp(values, 0).confidence_interval(0.95)
    return {"change": float(values.mean()), "low": float(low), "high": float(high)}


def _printed(row: Mapping[str, float], factor: float = 1) -> str:
    """Format a change and its interval, multiplied by a factor."""
    digits = 1 if factor > 1 else 3
    change, low, high = (f"{factor * row[name]:+.{digits}f}" for name in ("change", "low", "high"))
    return f"{change} ({low} to {high})"


def corrections(
    trainer: InfluenceTrainer,
    slices: Mapping[str, tuple[Dataset, Dataset]],
    guard: Dataset,
    *,
    candidates: Dataset | None = None,
    systems: Sequence[str] = ("helpful", "harmful", "random", "anchors"),
    num_repeats: int = 3,
    steps: int = 10,
    num_examples: int = 10,
    learning_rate: float = 1e-3,
    max_guard_drop: float | None = None,
    num_anchors: int | None = 10,
    num_candidates: int | None = None,
) -> Corrections:
    """Correct the model on each slice with several systems, each time from the same parameters.

    The model keeps its parameters. Finished corrections are saved in `output_dir/corrections`.

    Args:
        trainer ([`InfluenceTrainer`]): The trainer of the model. For `args.num_neighbors`, see [`correct`].
        slices (`Mapping[str, tuple[Dataset, Dataset]]`): The validation and test examples of each slice by its name.
            Anchors are drawn from the validation examples.
        guard (`datasets.Dataset`): Held-out examples of the task that the model was trained for.
        candidates (`datasets.Dataset`, *optional*): Examples that steps may be taken on, by default
            `trainer.train_dataset`.
        systems (`Sequence[str]`, *optional*): The systems to compare; see `system` of [`correct`].
        num_repeats (`int`, *optional*, defaults to 3): Number of corrections of each system, which differ in the
            random choice of anchors and candidates.
        steps, num_examples, learning_rate, num_anchors, num_candidates: See [`correct`].
        max_guard_drop (`float`, *optional*): See [`correct`]. With None, as in section 6.3 of the paper, the guard is
            only measured.

    Returns:
        [`Corrections`]: Loss and accuracy after every step of every correction.

    Raises:
        InfluenceError: If a setting is out of range, or the labels are not classes.

    Example:
        ```python
        slices = {"lexical overlap": (overlap_dev, overlap_test), "negation": (negation_dev, negation_test)}
        print(corrections(trainer, slices, guard=dev, systems=["helpful", "random"]))
        ```
    """
    seeds = [trainer.args.seed + repeat for repeat in range(num_repeats)]
    plans = {
        (system, repeat): Plan(system, steps, num_examples, learning_rate, max_guard_drop, seed)
        for repeat, seed in enumerate(seeds)
        for system in systems
    }
    pool = trainer.train_dataset if candidates is None else candidates
    runs = []
    with tqdm(total=len(slices) * len(plans), desc="Correcting", disable=trainer.args.disable_tqdm) as bar:
        for name, (anchors, test) in slices.items():
            measured = {TEST: test, GUARD: guard}
            corrector = Corrector(
                trainer, anchors, candidates, measured, num_anchors=num_anchors, num_candidates=num_candidates
            )
            for (system, repeat), plan in plans.items():
                log = _corrected(corrector, plan, digests(trainer, **measured))
                runs.append({"slice": name, "system": system, "repeat": repeat} | _curves_of(log, steps))
                bar.update()
    settings = asdict(plans[systems[0], 0]) | {"candidates": len(pool), "num_anchors": num_anchors}
    return Corrections(runs, settings | {"num_candidates": num_candidates, "systems": list(systems)})


def _corrected(corrector: Corrector, plan: Plan, measured: Mapping[str, str]) -> Log:
    """Read the log of a correction, or correct the model, undo the correction, and save the log.

    Args:
        corrector ([`Corrector`]): The corrector of a slice.
        plan ([`Plan`]): The settings.
        measured (`Mapping[str, str]`): Digests of the measured examples by name, on which the log depends.
    """

    def run() -> Tensors:
        correction = Correction(plan.system, *corrector.correct(plan))
        correction.roll_back(corrector.trainer)
        return {"log": torch.frombuffer(bytearray(json.dumps(correction.log).encode()), dtype=torch.uint8)}

    identity = (plan, corrector.num_anchors, corrector.num_candidates, sorted(measured.items()))
    part = corrector.parts.get(f"run-{plan.system}-{hexdigest([str(identity)])}", run)
    return json.loads(part["log"].cpu().numpy().tobytes())


def _curves_of(log: Log, steps: int) -> dict[str, Any]:
    """Convert a correction log into per-step curves, repeating the last value if the correction stopped early."""
    padded = log + [log[-1] | {"learning_rate": 0.0, "labels": {}}] * (steps + 1 - len(log))
    measures = {
        measure: {name: [row[measure][name] for row in padded] for name in (ANCHORS, TEST, GUARD)}
        for measure in MEASURES
    }
    labels = sum((Counter(row["labels"]) for row in padded), Counter())
    return measures | {"learning_rate": [row["learning_rate"] for row in padded[1:]], "labels": dict(labels)}
