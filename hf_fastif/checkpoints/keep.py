"""Keeps light checkpoints while a `Trainer` trains."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState

from hf_fastif.checkpoints.checkpoint import Checkpoint, save_checkpoint
from hf_fastif.checkpoints.find import FOLDER, count_of, steps_of
from hf_fastif.config import InfluenceConfig


class KeepCheckpoints(TrainerCallback):
    """Writes the trained parameters, and nothing else, at the moments that `args.checkpoints` names.

    Args:
        digest (`Callable`): Gives the digest of the training set, if it has one.
    """

    def __init__(self, digest: Callable[[], str | None]):
        self.digest = digest
        self.steps: list[int] = []
        self.epochs = False
        self.train_dataset: str | None = None

    def on_train_begin(
        self, args: InfluenceConfig, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Forgets the checkpoints of an earlier run."""
        self.steps = [] if count_of(args.checkpoints) is None else steps_of(args.checkpoints, state.max_steps)
        self.epochs = args.checkpoints in (["auto"], ["epochs"])
        if not state.is_world_process_zero:
            return
        self.train_dataset = self.digest() if self.epochs or self.steps else None
        if state.global_step == 0:
            shutil.rmtree(Path(args.output_dir) / FOLDER, ignore_errors=True)

    def on_step_end(self, args: InfluenceConfig, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Keeps the steps that are wanted."""
        if state.global_step in self.steps:
            self._keep(args, state, kwargs["model"], kwargs["lr_scheduler"])

    def on_epoch_end(self, args: InfluenceConfig, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Keeps the end of an epoch."""
        if self.epochs:
            self._keep(args, state, kwargs["model"], kwargs["lr_scheduler"])

    def _keep(self, args: InfluenceConfig, state: TrainerState, model: nn.Module, scheduler: Any) -> None:
        if not state.is_world_process_zero:
            return
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        rate = scheduler.get_last_lr()[0]
        about = Checkpoint(None, state.global_step, state.epoch, rate, self.train_dataset)
        save_checkpoint(Path(args.output_dir) / FOLDER, trained, about)
