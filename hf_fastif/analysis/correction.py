"""Mends a model with gradient steps on the examples that help most with anchors which it fails on.

Section 6.3 and appendix C.3 of the paper.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
from datasets import Dataset

from hf_fastif.analysis.corrector import GUARD, Corrector, Log, Plan, System
from hf_fastif.analysis.result import AnalysisResult
from hf_fastif.artifacts.plots import add_legend, colors_of, count_steps, draw_curve, new_figure
from hf_fastif.errors import InfluenceError
from hf_fastif.execution import Tensors
from hf_fastif.model import load_parameters_
from hf_fastif.trainer import InfluenceTrainer


if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Correction(AnalysisResult):
    """What was done to a model, and what that did to it.

    Attributes:
        system (`str`): What it was trained on: the most "helpful" candidates, the most helpful ones of each label
            equally many ("balanced"), the most "harmful", "random" ones, or the "anchors" themselves.
        log (`list[dict]`): The model before the first step and after each: `step` (0 is before), `loss` and `accuracy`
            (each a `dict`: of all "anchors", of the "guard", and of the other examples that were to be measured),
            `learning_rate`, `examples` (the rows of the candidates, or of the anchors, that the step was made on),
            `influences` (of these on the anchors, or None), `labels` (how many of them have which), and `anchors` (the
            rows of the anchors that were asked about).
        before (`dict`, *optional*): The trained parameters before the first step. They are not saved.
    """

    system: str
    log: Log
    before: Tensors | None = field(default=None, repr=False, compare=False)

    def roll_back(self, trainer: InfluenceTrainer) -> None:
        """Gives the model the parameters that it had before the first step, bit for bit.

        Raises:
            ValueError: If this was read from a file, or is of a model with other parameters.
        """
        if self.before is None:
            raise InfluenceError(
                "This correction was read from a file, which has no parameters; load the model again."
            )
        with trainer.session() as session:
            theta = session.objective.theta
            if {name: p.shape for name, p in theta.items()} != {n: p.shape for n, p in self.before.items()}:
                raise InfluenceError("trainer: this correction is of a model with other trained parameters.")
            load_parameters_(theta, self.before)

    def save(self, path: str | Path) -> Path:
        """Writes a JSON file: everything but the parameters."""
        return super(Correction, replace(self, before=None)).save(path)

    def __str__(self) -> str:
        first, last = self.log[0], self.log[-1]
        rates = "" if len(self.log) == 1 else f", learning rate {self.log[1]['learning_rate']:.3g}"
        if len(self.log) > 1 and last["learning_rate"] != self.log[1]["learning_rate"]:
            rates += f" to {last['learning_rate']:.3g}"
        lines = [f"Correction: {last['step']} steps, {self.system}{rates}"]
        for name in first["loss"]:
            loss, accuracy = ([row[what][name] for row in (first, last)] for what in ("loss", "accuracy"))
            lines.append(
                f"  {name:12} loss {loss[0]:.3f} -> {loss[1]:.3f}, accuracy {accuracy[0]:.1%} -> {accuracy[1]:.1%}"
            )
        return "\n".join(lines)

    def figure(self) -> Figure:
        """Draws loss and accuracy against the steps."""
        log, first, last = pd.DataFrame(self.log), self.log[0], self.log[-1]
        changes = (
            f"{name} {first['accuracy'][name]:.1%} to {last['accuracy'][name]:.1%}" for name in first["accuracy"]
        )
        title = f"Accuracy after {last['step']} steps ({self.system}): {', '.join(changes)}"
        figure, panels = new_figure(9, 3.8, columns=2, title=title)
        colors = colors_of(first["loss"])
        for axes, measure in zip(panels[0], ("loss", "accuracy"), strict=True):
            for name, values in pd.json_normalize(log[measure]).items():
                draw_curve(axes, log["step"], values, color=colors[name], label=name)
            axes.set_ylabel(measure)
            count_steps(axes)
        add_legend(figure, axes)
        return figure


def correct(
    trainer: InfluenceTrainer,
    anchors: Dataset,
    candidates: Dataset | None = None,
    steps: int = 10,
    num_examples: int = 10,
    learning_rate: float = 1e-3,
    guard: Dataset | None = None,
    max_guard_drop: float | None = 0.01,
    system: System = "helpful",
    num_anchors: int | None = None,
    num_candidates: int | None = None,
    measured: Mapping[str, Dataset] | None = None,
) -> Correction:
    """Corrects the trainer's model on what some anchors stand for, in place.

    Each step looks for the candidates that help most with the mean loss of the anchors, at the model as it is by then,
    and is one plain gradient step (no momentum, dropout off) on their mean loss. With `trainer.args.num_neighbors`
    only that many candidates can be chosen, which an index of the model before the first step holds to be the most
    influential ones on the anchors; it is built if it is not there.

    `trainer.save_model()` and `trainer.push_to_hub()` save and publish the corrected model;
    `correction.roll_back(trainer)` gives the old one back. If this call fails or is interrupted, the model is as it
    was; the influence scores of finished steps are kept in `output_dir/corrections`, and the same call goes on from
    them.

    Args:
        trainer ([`InfluenceTrainer`]): Whose model is corrected.
        anchors (`datasets.Dataset`): Examples of what the model fails on, with their right labels, tokenized as the
            training set is. Do not test with them.
        candidates (`datasets.Dataset`, *optional*): What the model may be trained on: `trainer.train_dataset` unless
            given. Others need not have been trained on before, which makes this data augmentation.
        steps (`int`, *optional*, defaults to 10): Gradient steps.
        num_examples (`int`, *optional*, defaults to 10): Candidates in each.
        learning_rate (`float`, *optional*, defaults to 1e-3): What the gradient is multiplied with.
        guard (`datasets.Dataset`, *optional*): Held-out examples of what the model does well and should go on doing.
        max_guard_drop (`float`, *optional*, defaults to 0.01): How far the accuracy on the guard may fall below what
            it was before the first step. A step that lets it fall further is undone and tried with half the learning
            rate, which stays; after six halvings of `learning_rate` the correction ends. None lets it fall.
        system (`str`, *optional*, defaults to `"helpful"`): What the model is trained on; `"balanced"` are the most
            helpful candidates of each label, equally many. To compare with: `"harmful"`, `"random"`, and `"anchors"`,
            the anchors themselves.
        num_anchors (`int`, *optional*): How many anchors to draw anew for each step; all unless given.
        num_candidates (`int`, *optional*): How many candidates to draw anew for each step and score; all unless given.
        measured (`Mapping[str, Dataset]`, *optional*): Other examples by their names, such as a test set, whose loss
            and accuracy are logged. They decide nothing.

    Returns:
        [`Correction`]: What every step was made on, and loss and accuracy before and after.

    Raises:
        ValueError: If a setting makes no sense, or the labels are not classes.
    """
    plan = Plan(system, steps, num_examples, learning_rate, max_guard_drop, trainer.args.seed)
    others = dict(measured or {})
    if guard is not None:
        if GUARD in others:
            raise InfluenceError(f"measured: the name {GUARD!r} is taken by the guard; give another one.")
        others[GUARD] = guard
    corrector = Corrector(trainer, anchors, candidates, others, num_anchors, num_candidates)
    return Correction(system, *corrector.correct(plan))
