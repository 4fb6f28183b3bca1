"""Find the training run that led to a model, and the checkpoints of that run."""

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
RECORD = "run.json"  # next to them: where the last run of InfluenceTrainer ended
CLOCK = 2.0  # seconds by which files of a run may seem to be in the wrong order: some file systems round times


@dataclass(frozen=True)
class RunEnd:
    """The state of a run when it saved a model. Facts that were not recorded are None.

    Attributes:
        step (`int`): Optimizer steps taken.
        epoch (`float`): Epochs trained, which may be fractional.
        log (`list[dict]`, *optional*): The entries of its log.
        saved_at (`float`): When it was written, in seconds since 1970.
        run (`str`, *optional*): Name of the run, if `InfluenceTrainer` started it.
        weights (`str`, *optional*): Digest of the model's weights, if `InfluenceTrainer` wrote it.
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
        """Tell whether a checkpoint is an earlier moment of this run, or the same moment.

        Runs of `InfluenceTrainer` have names, which other trainers keep when they resume them. Both moments must have
        the same number of steps per epoch. The earlier log must be the start of the later one, and the earlier file
        must be older. If the checkpoint has no name, the other settings must agree too.
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
    """Write where a run of `InfluenceTrainer` ended."""
    folder = Path(output_dir) / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    facts = {name: value for name, value in asdict(end).items() if name != "saved_at"}
    text = json.dumps(facts, default=str)
    atomic_write(folder / RECORD, lambda file: file.write_text(text, encoding="utf-8"))


def read_run_end(output_dir: str) -> RunEnd | None:
    """Read where the last run of `InfluenceTrainer` ended, or return None if there was none."""
    path = Path(output_dir) / FOLDER / RECORD
    return RunEnd(**read_json(path), saved_at=path.stat().st_mtime) if path.exists() else None


def end_of_folder(folder: Path) -> RunEnd:
    """Read the state of a run when it saved a folder `checkpoint-*`."""
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
    """List the light checkpoints in an output folder, by step."""
    files = sorted((Path(output_dir) / FOLDER).glob("step-*.safetensors"))
    return sorted((open_checkpoint(path) for path in files), key=lambda member: member.step)


def saved_folders(output_dir: str) -> list[Checkpoint]:
    """List the folders `checkpoint-*` in an output folder, by step."""
    folders = [path.parent for path in Path(output_dir).glob(f"checkpoint-*/{STATE}")]
    return sorted((open_checkpoint(path) for path in folders), key=lambda member: member.step)


def run_that_led_to(output_dir: str, model: nn.Module) -> RunEnd | None:
    """Find the run and its moment that has the weights of a model.

    Args:
        output_dir (`str`): The output folder of the runs.
        model (`torch.nn.Module`): The model.

    Returns:
        [`RunEnd`] or None: None if no run in this folder saved these weights.
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
    """Return the last saved state of the latest run in an output folder, or None if there is no run."""
    ends = [end_of_folder(folder.path) for folder in saved_folders(output_dir)]
    ends += [_end_at(light) for light in light_checkpoints(output_dir)]
    record = read_run_end(output_dir)
    return max([*ends, *([record] if record else [])], key=lambda end: (end.saved_at, end.step), default=None)


def _end_at(light: Checkpoint) -> RunEnd:
    # A light file has no log to compare, but it has the name of its run.
    return RunEnd(light.step, light.epoch, None, light.saved_at, light.run)


def checkpoints_of(output_dir: str, end: RunEnd | None) -> list[Checkpoint]:
    """List the checkpoints of a run up to a moment, by step.

    If a step has a folder and a light checkpoint, the light one is listed. If another trainer resumed the run from an
    earlier moment than its record, only the log tells which checkpoints precede that moment.
    """
    if end is None:
        return []
    every, record = [*saved_folders(output_dir), *light_checkpoints(output_dir)], read_run_end(output_dir)
    if record is not None and record.run == end.run and end.step <= record.step and end.saved_at > record.saved_at:
        every = [member for member in every if end.log or member.saved_at > record.saved_at]
    members = {member.step: member for member in every if end.led_from(member)}
    return [members[step] for step in sorted(members)]
