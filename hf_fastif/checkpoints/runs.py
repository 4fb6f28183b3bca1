"""Runs of training: which one led to the model, and which checkpoints are of it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from hf_fastif.artifacts import atomic_write
from hf_fastif.checkpoints.checkpoint import (
    STATE,
    Checkpoint,
    has_same_parameters,
    log_digest,
    open_checkpoint,
    pace_of,
    read_json,
    run_name,
)
from hf_fastif.model import trained_state, weights_digest


FOLDER = Path("influence", "checkpoints")  # of the light checkpoints, under output_dir
RECORD = "run.json"  # beside them: where the last run of our trainer ended
CLOCK = 2.0  # seconds that two files of a run may lie in the wrong order, as some file systems round times


@dataclass(frozen=True)
class RunEnd:
    """Where a run stood when it left a model.

    Attributes:
        step (`int`): Optimizer steps taken.
        epoch (`float`): DatasetSweep over the training set.
        log (`list[dict]`, *optional*): What it had logged, where that is known.
        saved_at (`float`): When that was written, in seconds.
        run (`str`, *optional*): Its name, where our trainer gave it one.
        weights (`str`, *optional*): Digest of the model's weights, where our trainer wrote it down.
        pace (`str`, *optional*): Settings of the run, as in [`Checkpoint`].
    """

    step: int
    epoch: float
    log: list[dict[str, Any]] | None
    saved_at: float
    run: str | None = None
    weights: str | None = None
    pace: str | None = None

    def led_from(self, earlier: Checkpoint) -> bool:
        """Tell whether a checkpoint is an earlier moment of this run, or the same.

        Names tell runs of our trainer apart, and a run that another trainer resumes keeps its name. Both must have as
        many steps an epoch and the same log, as far as the earlier one goes, and the earlier one must have been
        written before. Of checkpoints without a name the other settings must be the same too.
        """
        if earlier.step is None or not earlier.epoch or earlier.step > self.step:
            return False
        if earlier.run is not None and earlier.run != self.run:
            return False
        as_fast = abs(earlier.step / earlier.epoch - self.step / self.epoch) < 1
        logged_alike = self.log is None or earlier.log == log_digest(self.log[: earlier.log_size])
        set_alike = earlier.run is not None or self.pace is None or _same_pace(earlier.pace, self.pace)
        return as_fast and logged_alike and set_alike and earlier.saved_at <= self.saved_at + CLOCK


def _same_pace(one: str | None, other: str) -> bool:
    """Tell whether settings are the same; learning rates may be unknown on one side."""
    return one is not None and (one == other or one.startswith(other[:-1]) or other.startswith(one[:-1]))


def write_run_end(output_dir: str, end: RunEnd) -> None:
    """Write down where a run of our trainer ended."""
    folder = Path(output_dir) / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    facts = {name: value for name, value in asdict(end).items() if name != "saved_at"}
    text = json.dumps(facts, default=str)
    atomic_write(folder / RECORD, lambda file: file.write_text(text, encoding="utf-8"))


def read_run_end(output_dir: str) -> RunEnd | None:
    """Read where the last run of our trainer ended."""
    path = Path(output_dir) / FOLDER / RECORD
    return RunEnd(**read_json(path), saved_at=path.stat().st_mtime) if path.exists() else None


def end_of_folder(folder: Path) -> RunEnd:
    """Where a run stood when it saved a folder `checkpoint-*`."""
    state = read_json(folder / STATE)
    return RunEnd(
        step=state["global_step"],
        epoch=state["epoch"] or 0.0,
        log=state["log_history"],
        saved_at=(folder / STATE).stat().st_mtime,
        run=run_name(state),
        pace=pace_of(state, folder),
    )


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
        if has_same_parameters(folder, state):
            return end_of_folder(folder.path)
    return next((_end_at(light) for light in light_checkpoints(output_dir) if has_same_parameters(light, state)), None)


def latest_run(output_dir: str) -> RunEnd | None:
    """The run that wrote last into a folder of runs, and where it stood then."""
    ends = [end_of_folder(folder.path) for folder in saved_folders(output_dir)]
    ends += [_end_at(light) for light in light_checkpoints(output_dir)]
    record = read_run_end(output_dir)
    return max([*ends, *([record] if record else [])], key=lambda end: (end.saved_at, end.step), default=None)


def _end_at(light: Checkpoint) -> RunEnd:
    # Its log is not kept, but the name of its run is.
    return RunEnd(light.step, light.epoch, None, light.saved_at, light.run)


def checkpoints_of(output_dir: str, end: RunEnd | None) -> list[Checkpoint]:
    """The checkpoints that a run left up to some moment, by step; light ones where there are two of a step.

    Where a run was written down as further on, and another trainer went on from some earlier moment of it, only the
    log tells which checkpoints were before that.
    """
    if end is None:
        return []
    every, record = [*saved_folders(output_dir), *light_checkpoints(output_dir)], read_run_end(output_dir)
    if record is not None and record.run == end.run and end.step <= record.step and end.saved_at > record.saved_at:
        every = [member for member in every if end.log or member.saved_at > record.saved_at]
    members = {member.step: member for member in every if end.led_from(member)}
    return [members[step] for step in sorted(members)]
