"""Correct a model with gradient steps on the training examples that are most helpful for anchors it fails on.

Section 6.3 and appendix C.3 of the paper. This module holds the public function `correct` and its result;
`corrector.py` chooses the examples and takes the steps.
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
    """The steps that corrected a model, and its loss and accuracy after each of them.

    Attributes:
        system (`str`): The examples of the steps: the most "helpful" candidates, the most helpful ones in equal
            numbers for each label ("balanced"), the most "harmful" ones, "random" ones, or the "anchors" themselves.
        log (`list[dict]`): One row before the first step and one after each step: `step` (0 before the first), `loss`
            and `accuracy` (each a `dict` with the keys "anchors", "guard" and those of `measured`), `learning_rate`,
            `examples` (the rows of the candidates or anchors in the step), `influences` (of these on the anchors, or
            None), `labels` (the number of these by label), and `anchors` (the rows of the anchors that the examples
            were chosen for).
        before (`dict`, *optional*): The trained parameters before the first step. They are not saved.
    """

    system: str
    log: Log
    before: Tensors | None = field(default=None, repr=False, compare=False)

    def roll_back(self, trainer: InfluenceTrainer) -> None:
        """Restore the parameters that the model had before the first step, bit for bit.

        Args:
            trainer ([`InfluenceTrainer`]): The trainer of the corrected model.

        Raises:
            InfluenceError: If the correction was read from a file, or the model has other trained parameters.

        Example:
            ```python
            correction = correct(trainer, anchors)
            correction.roll_back(trainer)
            ```
        """
        if self.before is None:
            raise InfluenceError(
                "before=None: this correction was read from a file, which has no parameters; load the model again."
            )
        with trainer.session() as session:
            theta = session.objective.theta
            if {name: p.shape for name, p in theta.items()} != {n: p.shape for n, p in self.before.items()}:
                raise InfluenceError(
                    "trainer: this correction belongs to a model with other trained parameters; give its trainer."
                )
            load_parameters_(theta, self.before)

    def save(self, path: str | Path) -> Path:
        """Write a JSON file of everything except the parameters, and return its path.

        Example:
            ```python
            path = correction.save("correction.json")
            ```
        """
        return super(Correction, replace(self, before=None)).save(path)

    def __str__(self) -> str:
        first, last = self.log[0], self.log[-1]
        rates = "" if len(self.log) == 1 else f", learning rate {self.log[1]['learning_rate']:.3g}"
        if len(self.log) > 1 and last["learning_rate"] != self.log[1]["learning_rate"]:
            rates += f" to {last['learning_rate']:.3g}"
        lines = [f"Correction: {last['step']} steps, {self.system}{rates}"]
        for name in first["loss"]:
            loss, accuracy = ([row[measure][name] for row in (first, last)] for measure in ("loss", "accuracy"))
            lines.append(
                f"  {name:12} loss {loss[0]:.3f} -> {loss[1]:.3f}, accuracy {accuracy[0]:.1%} -> {accuracy[1]:.1%}"
            )
        return "\n".join(lines)

    def figure(self) -> Figure:
        """Draw loss and accuracy against the number of steps."""
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
    *,
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
    """Correct the trainer's model, in place, on the kind of examples that the anchors represent.

    Each step finds the candidates that help most with the mean loss of the anchors under the current model, and takes
    one plain gradient step on their mean loss, without momentum or dropout. With `trainer.args.num_neighbors`, the
    choice is limited to that many candidates: the nearest neighbors of the anchors in an index of the model before the
    first step. A missing index is built.

    `trainer.save_model()` and `trainer.push_to_hub()` save and publish the corrected model, and
    `correction.roll_back(trainer)` restores the original. If the call fails or is interrupted, the model keeps its
    original parameters. The influence scores of finished steps are saved in `output_dir/corrections`, and the same
    call resumes from them.

    Args:
        trainer ([`InfluenceTrainer`]): The trainer of the model to correct.
        anchors (`datasets.Dataset`): Examples that the model fails on, with their right labels, tokenized like the
            training set. Do not evaluate on them.
        candidates (`datasets.Dataset`, *optional*): Examples that steps may be taken on, by default
            `trainer.train_dataset`. New examples are allowed, which makes this data augmentation.
        steps (`int`, *optional*, defaults to 10): Number of gradient steps.
        num_examples (`int`, *optional*, defaults to 10): Number of examples in each step.
        learning_rate (`float`, *optional*, defaults to 1e-3): Factor of the gradient in the first step.
        guard (`datasets.Dataset`, *optional*): Held-out examples on which the model must keep its accuracy.
        max_guard_drop (`float`, *optional*, defaults to 0.01): The accepted drop of the accuracy on the guard below
            its value before the first step, as a fraction from 0 to 1. A step that exceeds it is undone and repeated
            with half the learning rate, which later steps keep. After six halvings of `learning_rate`, the correction
            stops. None accepts any drop.
        system (`str`, *optional*, defaults to `"helpful"`): The examples of each step: `"helpful"` candidates, or
            `"balanced"`, the most helpful ones in equal numbers for each label. Baselines are `"harmful"`, `"random"`,
            and `"anchors"`, which trains on the anchors themselves.
        num_anchors (`int`, *optional*): Number of anchors to draw for each step, by default all.
        num_candidates (`int`, *optional*): Number of candidates to draw and score for each step, by default all.
        measured (`Mapping[str, Dataset]`, *optional*): Other examples by name, such as a test set. Their loss and
            accuracy are logged, but have no effect on the steps.

    Returns:
        [`Correction`]: The examples of every step, and loss and accuracy before and after it.

    Raises:
        InfluenceError: If a setting is out of range, or the labels are not classes.

    Example:
        ```python
        correction = correct(trainer, anchors, guard=dev, measured={"test": test})
        print(correction)
        trainer.save_model()
        ```
    """
    plan = Plan(system, steps, num_examples, learning_rate, max_guard_drop, trainer.args.seed)
    measured = dict(measured or {})
    if guard is not None:
        if GUARD in measured:
            raise InfluenceError(f"measured: the name {GUARD!r} is taken by the guard; give another one.")
        measured[GUARD] = guard
    corrector = Corrector(
        trainer, anchors, candidates, measured, num_anchors=num_anchors, num_candidates=num_candidates
    )
    return Correction(system, *corrector.correct(plan))
