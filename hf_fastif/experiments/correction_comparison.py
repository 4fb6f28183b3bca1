"""Is a model corrected better by what helps its anchors than by random examples, or by the anchors themselves?

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
    """What a model is like after each step of several ways to correct it, slice by slice.

    Attributes:
        runs (`list[dict]`): `slice`, `system` (see [`Correction`]), `repeat`, `loss` and `accuracy` (of "anchors",
            "test" and "guard", each a list of numbers: before the first step and after each; a run that ended early
            stays where it ended), `learning_rate` of each step (0 for steps that were not made), and `labels`, how
            many of the examples that were trained on had which label.
        settings (`dict`): Steps, examples in each, learning rate, candidates, and how far the guard might fall.
    """

    runs: list[dict[str, Any]]
    settings: dict[str, Any]

    @property
    def slices(self) -> list[str]:
        """Their names."""
        return list(dict.fromkeys(run["slice"] for run in self.runs))

    @property
    def systems(self) -> list[str]:
        """Their names."""
        return list(dict.fromkeys(run["system"] for run in self.runs))

    def curves(self, measure: str, examples: str, system: str, slices: Sequence[str] | None = None) -> np.ndarray:
        """A measure (repeats, steps + 1), as a mean over some slices, or over all.

        Args:
            measure (`str`): "loss" or "accuracy".
            examples (`str`): "anchors", "test" or "guard".
            system (`str`): One of `systems`.
            slices (`Sequence[str]`, *optional*): Some of `slices`.
        """
        wanted = self.slices if slices is None else slices
        runs = [run for run in self.runs if run["system"] == system]
        own = [[run[measure][examples] for run in runs if run["slice"] == name] for name in wanted]
        return np.array(own).mean(axis=0)

    def summary(self) -> list[dict[str, Any]]:
        """Changes from before the first step to after the last: `slice` ("mean" is that of all), `system`,
        `examples`, `measure`, `change`, and the ends `low` and `high` of its 95 % interval.

        The interval is Student's, over the repeats: NaN for a single one. The examples that are measured are the same
        in all repeats, so that it says nothing about others.
        """
        found = []
        for name, slices in ({one: [one] for one in self.slices} | {"mean": None}).items():
            for system in self.systems:
                for examples in (TEST, GUARD, ANCHORS):
                    for measure in MEASURES:
                        curves = self.curves(measure, examples, system, slices)
                        about = {"slice": name, "system": system, "examples": examples, "measure": measure}
                        found.append(about | _interval(curves[:, -1] - curves[:, 0]))
        return found

    def differences(self, system: str = "helpful") -> list[dict[str, Any]]:
        """What one system does better on the test examples than each other one, as a mean over slices.

        Returns:
            Rows with `system` (the other one), `measure`, `change` (of the one minus that of the other, in the same
            repeat), `low` and `high`, as in `summary`.
        """
        found = []
        for other in (name for name in self.systems if name != system):
            for measure in MEASURES:
                both = (self.curves(measure, TEST, name)[:, -1] for name in (system, other))
                found.append({"system": other, "measure": measure} | _interval(np.subtract(*both)))
        return found

    def __str__(self) -> str:
        settings = self.settings
        lines = [
            f"Change after {settings['steps']} steps on {settings['num_examples']} of {settings['candidates']:,} "
            f"candidates at learning rate {settings['learning_rate']:g}, with 95 % intervals over the repeats"
        ]
        rows = {(r["slice"], r["system"], r["examples"], r["measure"]): r for r in self.summary()}
        names = [*self.slices, "mean"]
        width = max(map(len, names))
        for name in names:
            for system in self.systems:
                accuracy, loss = (rows[name, system, TEST, measure] for measure in MEASURES)
                guard = rows[name, system, GUARD, "accuracy"]
                lines.append(
                    f"  {name:{width}} {system:9} accuracy {_said(accuracy, 100)} points, loss {_said(loss)}; "
                    f"guard {_said(guard, 100)} points"
                )
        for first in (name for name in ("helpful", "balanced") if name in self.systems):
            for row in self.differences(first):
                unit = (100, " points") if row["measure"] == "accuracy" else (1, "")
                lines.append(f"  {first} - {row['system']}: {row['measure']} {_said(row, unit[0])}{unit[1]}")
        return "\n".join(lines)

    def figure(self) -> Figure:
        """Draws accuracy and loss on the test examples of each slice, and on the guard (figures 6 and 7)."""
        return self._draw(TEST, with_guard=True)

    def validation_figure(self) -> Figure:
        """Draws the same on the anchors of each slice (figures 12 and 13)."""
        return self._draw(ANCHORS, with_guard=False)

    def figures(self, name: str) -> dict[str, Figure]:
        """Both, the second one as `NAME-validation`."""
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
            f"After {self.settings['steps']} steps '{best['system']}' has changed accuracy on the test examples most "
            f"for the better: {_said(best, 100)} points"
        )


def _interval(values: np.ndarray) -> dict[str, float]:
    """Compute the mean of repeats (R,), and its 95 % interval by Student's t; NaN for a single one."""
    low = high = np.nan
    if len(values) > 1:
        with warnings.catch_warnings(action="ignore", category=RuntimeWarning):  # repeats that are all alike
            low, high = ttest_1samp(values, 0).confidence_interval(0.95)
    return {"change": float(values.mean()), "low": float(low), "high": float(high)}


def _said(row: Mapping[str, float], factor: float = 1) -> str:
    digits = 1 if factor > 1 else 3
    change, low, high = (f"{factor * row[name]:+.{digits}f}" for name in ("change", "low", "high"))
    return f"{change} ({low} to {high})"


def corrections(
    trainer: InfluenceTrainer,
    slices: Mapping[str, tuple[Dataset, Dataset]],
    guard: Dataset,
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
    """Corrects the model on each slice in several ways, again and again from the same model, which is left as it was.

    Args:
        trainer ([`InfluenceTrainer`]): Whose model is corrected. With `args.num_neighbors` see [`correct`].
        slices (`Mapping[str, tuple]`): By their names, the examples that anchors are drawn from (the validation
            examples of the slice), and those to test with.
        guard (`datasets.Dataset`): Held-out examples of the task that the model was trained for.
        candidates (`datasets.Dataset`, *optional*): `trainer.train_dataset` unless given.
        systems (`Sequence[str]`, *optional*): See `system` of [`correct`].
        num_repeats (`int`, *optional*, defaults to 3): They differ in the anchors (and candidates) that are drawn.
        steps, num_examples, learning_rate, num_anchors, num_candidates: See [`correct`].
        max_guard_drop (`float`, *optional*): See [`correct`]; None, as in the paper, measures the guard and no more.

    Returns:
        [`Corrections`]: What is finished is kept in `output_dir/corrections`.
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
            others = {TEST: test, GUARD: guard}
            corrector = Corrector(trainer, anchors, candidates, others, num_anchors, num_candidates)
            for (system, repeat), plan in plans.items():
                log = _kept_run(corrector, plan, digests(trainer, **others))
                runs.append({"slice": name, "system": system, "repeat": repeat} | _curves_of(log, steps))
                bar.update()
    settings = asdict(plans[systems[0], 0]) | {"candidates": len(pool), "num_anchors": num_anchors}
    return Corrections(runs, settings | {"num_candidates": num_candidates, "systems": list(systems)})


def _kept_run(corrector: Corrector, plan: Plan, measured: Mapping[str, str]) -> Log:
    """The log of a correction, which is undone; it is kept as the bytes of its JSON."""

    def run() -> Tensors:
        correction = Correction(plan.system, *corrector.correct(plan))
        correction.roll_back(corrector.trainer)
        return {"log": torch.frombuffer(bytearray(json.dumps(correction.log).encode()), dtype=torch.uint8)}

    about = (plan, corrector.num_anchors, corrector.num_candidates, sorted(measured.items()))
    kept = corrector.parts.get(f"run-{plan.system}-{hexdigest([str(about)])}", run)
    return json.loads(kept["log"].cpu().numpy().tobytes())


def _curves_of(log: Log, steps: int) -> dict[str, Any]:
    """What is kept of a log: numbers by steps; where it ended early the last ones stay."""
    padded = log + [log[-1] | {"learning_rate": 0.0, "labels": {}}] * (steps + 1 - len(log))
    measures = {
        measure: {name: [row[measure][name] for row in padded] for name in (ANCHORS, TEST, GUARD)}
        for measure in MEASURES
    }
    labels = sum((Counter(row["labels"]) for row in padded), Counter())
    return measures | {"learning_rate": [row["learning_rate"] for row in padded[1:]], "labels": dict(labels)}
