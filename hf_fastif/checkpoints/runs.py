"""Runs of training: which one led to the model, and which checkpoints are of it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from hf_fastif.checkpoints.checkpoint import (
    STATE,
    Checkpoint,
    holds,
    log_digest,
    open_checkpoint,
    read_json,
    run_name,
)
from hf_fastif.files import write_whole
from hf_fastif.parameters import trained_state, weights_digest


FOLDER = Path("influence", "checkpoints")  # of the light checkpoints, under output_dir
RECORD = "run.json"  # beside them: where the last run of our trainer ended
CLOCK = 2.0  # seconds that two files of a run may lie in the wrong order, as some file systems round times


@dataclass(frozen=True)
class RunEnd:
    """Where a run stood when it left a model.

    Attributes:
        step (`int`): Optimizer steps taken.
        epoch (`float`): Passes over the training set.
        log (`list[dict]`): What it had logged.
        saved_at (`float`): When that was written, in seconds.
        run (`str`, *optional*): Its name, where our trainer gave it one.
        weights (`str`, *optional*): Digest of the model's weights, where our trainer wrote it down.
    """

    step: int
    epoch: float
    log: list[dict[str, Any]]
    saved_at: float
    run: str | None = None
    weights: str | None = None

    def led_from(self, earlier: Checkpoint) -> bool:
        """Tell whether a checkpoint is an earlier moment of this run, or the same.

        Names tell runs of our trainer apart, and a run that another trainer resumes keeps its name. Checkpoints
        without one must have been logged alike, written before, and have as many steps an epoch.
        """
        if earlier.step is None or not earlier.epoch or earlier.step > self.step:
            return False
        if earlier.run is not None:
            return earlier.run == self.run
        as_fast = abs(earlier.step / earlier.epoch - self.step / self.epoch) < 1
        logged_alike = earlier.log == log_digest(self.log[: earlier.log_size])
        return as_fast and logged_alike and earlier.saved_at <= self.saved_at + CLOCK


def write_run_end(output_dir: str, end: RunEnd) -> None:
    """Write down where a run of our trainer ended."""
    folder = Path(output_dir) / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    facts = {"run": end.run, "weights": end.weights, "step": end.step, "epoch": end.epoch, "log": end.log}
    text = json.dumps(facts, default=str)
    write_whole(folder / RECORD, lambda file: file.write_text(text, encoding="utf-8"))


def read_run_end(output_dir: str) -> RunEnd | None:
    """Read where the last run of our trainer ended."""
    path = Path(output_dir) / FOLDER / RECORD
    return RunEnd(**read_json(path), saved_at=path.stat().st_mtime) if path.exists() else None


def end_of_folder(folder: Path) -> RunEnd:
    """Where a run stood when it saved a folder `checkpoint-*`."""
    state = read_json(folder / STATE)
    saved_at = (folder / STATE).stat().st_mtime
    return RunEnd(state["global_step"], state["epoch"] or 0.0, state["log_history"], saved_at, run_name(state))


def light_checkpoints(output_dir: str) -> list[Checkpoint]:
    """The light checkpoints in a folder of runs, by step."""
    files = sorted((Path(output_dir) / FOLDER).glob("step-*.safetensors"))
    return sorted((open_checkpoint(path) for path in files), key=lambda member: member.step)


def saved_folders(output_dir: str) -> list[Checkpoint]:
    """The folders `checkpoint-*` in a folder of runs, by step."""
    folders = [path.parent for path in Path(output_dir).glob(f"checkpoint-*/{STATE}")]
    return sorted((open_checkpoint(path) for path in folders), key=lambda member: member.step)


def run_that_led_to(output_dir: str, model: nn.Module) -> RunEnd | None:
    """Find where the run ended, or stood, that left a model.

    Args:
        output_dir (`str`): Of the runs.
        model (`torch.nn.Module`): The model.

    Returns:
        [`RunEnd`] or None: None if no run in this folder left such a model.
    """
    record = read_run_end(output_dir)
    if record is not None and record.weights == weights_digest(model):
        return record
    state = trained_state(model)
    for folder in reversed(saved_folders(output_dir)):
        if holds(folder, state):
            return end_of_folder(folder.path)
    return next((_end_at(light) for light in light_checkpoints(output_dir) if holds(light, state)), None)


def latest_run(output_dir: str) -> RunEnd | None:
    """The run that wrote last into a folder of runs, and where it stood then."""
    ends = [end_of_folder(folder.path) for folder in saved_folders(output_dir)]
    ends += [_end_at(light) for light in light_checkpoints(output_dir)]
    record = read_run_end(output_dir)
    return max([*ends, *([record] if record else [])], key=lambda end: (end.saved_at, end.step), default=None)


def _end_at(light: Checkpoint) -> RunEnd:
    # Its log is not kept, but the name of its run is.
    return RunEnd(light.step, light.epoch, [], light.saved_at, light.run)


def checkpoints_of(output_dir: str, end: RunEnd | None) -> list[Checkpoint]:
    """The checkpoints that a run left up to some moment, by step; light ones where there are two of a step."""
    if end is None:
        return []
    every = [*saved_folders(output_dir), *light_checkpoints(output_dir)]
    members = {member.step: member for member in every if end.led_from(member)}
    return [members[step] for step in sorted(members)]
