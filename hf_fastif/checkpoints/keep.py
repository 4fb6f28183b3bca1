"""Save light checkpoints while a `Trainer` trains, with the name of their run."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState
from transformers.utils import logging

from hf_fastif.checkpoints.checkpoint import RUN, Checkpoint, log_digest, pace_of, run_name, save_checkpoint
from hf_fastif.checkpoints.find import shares_of, steps_of
from hf_fastif.checkpoints.runs import FOLDER, RECORD, RunEnd, light_checkpoints
from hf_fastif.model import trained_state, weights_digest
from hf_fastif.settings import CheckpointSettings


logger = logging.get_logger(__name__)


class KeepCheckpoints(TrainerCallback):
    """Callback that saves trained parameters and buffers at the moments that `args.checkpoints` names.

    Optimizer, scheduler and frozen parameters are not saved, which keeps the files small.

    Args:
        describe (`Callable`): Returns `train_dataset`, `loss` and `frozen` of a [`Checkpoint`], or None if no
            checkpoint can be saved.
        unwrap (`Callable`): Returns the model without the wrappers of training.
    """

    def __init__(self, describe: Callable[[], Mapping[str, str] | None], unwrap: Callable[[nn.Module], nn.Module]):
        self.describe = describe
        self.unwrap = unwrap
        self.run: str | None = None
        self.facts: Mapping[str, str] | None = None
        self.steps: list[int] = []
        self.at_epochs = False

    def on_train_begin(
        self, args: CheckpointSettings, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Delete light checkpoints of other runs or later steps, and announce what will be saved."""
        self.at_epochs = args.checkpoints == ["epochs"]
        self.steps = [] if shares_of(args.checkpoints) is None else steps_of(args.checkpoints, state.max_steps)
        self.facts = self.describe() if self.steps or self.at_epochs else None  # on every process: it may communicate
        if not state.is_world_process_zero:
            return
        resumed = run_name(vars(state)) if state.global_step else None
        self.run = resumed or uuid.uuid4().hex[:12]
        state.stateful_callbacks[RUN] = {"args": {}, "attributes": {"run": self.run}}
        for light in light_checkpoints(args.output_dir):
            if light.run != resumed or light.step > state.global_step:
                light.path.unlink()
        (Path(args.output_dir) / FOLDER / RECORD).unlink(missing_ok=True)
        if self.facts is not None:
            self._announce(args, kwargs["model"])

    def on_step_end(
        self, args: CheckpointSettings, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Save a checkpoint after a step that `args.checkpoints` names."""
        if state.global_step in self.steps:
            self._keep(args, state, kwargs["model"], kwargs["lr_scheduler"])

    def on_epoch_end(
        self, args: CheckpointSettings, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Save a checkpoint after each epoch if `args.checkpoints` says so."""
        if self.at_epochs and Checkpoint(step=state.global_step, epoch=state.epoch).ends_epoch is not None:
            self._keep(args, state, kwargs["model"], kwargs["lr_scheduler"])

    def end(self, state: TrainerState, model: nn.Module) -> RunEnd:
        """Return where the run ended, completed or interrupted."""
        weights = weights_digest(self.unwrap(model))
        pace = pace_of(vars(state))
        return RunEnd(state.global_step, state.epoch or 0.0, state.log_history, 0.0, self.run, weights, pace)

    def _announce(self, args: CheckpointSettings, model: nn.Module) -> None:
        size = sum(tensor.nbytes for tensor in self._tensors(model).values()) / 1e6
        moments = "the end of every epoch" if self.at_epochs else f"{len(self.steps)} steps"
        if len(self.steps) == 1:
            moments = f"step {self.steps[0]}"
        limit = f" (at most {args.save_total_limit})" if args.save_total_limit else ""
        logger.warning(
            f"Saving the trained parameters at {moments}{limit} to {Path(args.output_dir) / FOLDER} for influence "
            f"({size:,.1f} MB each); checkpoints='final' saves none."
        )

    def _keep(self, args: CheckpointSettings, state: TrainerState, model: nn.Module, scheduler: Any) -> None:
        if self.facts is None or not state.is_world_process_zero:
            return
        checkpoint = Checkpoint(
            step=state.global_step,
            epoch=state.epoch,
            learning_rate=scheduler.get_last_lr()[0],
            run=self.run,
            log_size=len(state.log_history),
            log=log_digest(state.log_history),
            pace=pace_of(vars(state)),
            **self.facts,
        )
        save_checkpoint(Path(args.output_dir) / FOLDER, self._tensors(model), checkpoint)
        if args.save_total_limit:
            for oldest in light_checkpoints(args.output_dir)[: -args.save_total_limit]:
                oldest.path.unlink()

    def _tensors(self, model: nn.Module) -> dict[str, torch.Tensor]:
        return trained_state(self.unwrap(model))
