"""Save what influence needs during training: checkpoints, and the run that produced the model."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from torch import nn
from transformers.trainer_utils import TrainOutput
from transformers.utils import logging

from hf_fastif.checkpoints import KeepCheckpoints, write_run_end
from hf_fastif.execution import same_random_state
from hf_fastif.model import sharded_by


logger = logging.get_logger(__name__)


class RunMixin:
    """The methods of [`InfluenceTrainer`] that save checkpoints during training."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._keeper = KeepCheckpoints(self._training_facts, self._unwrapped)
        self.add_callback(self._keeper)

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        """Train like `Trainer.train`, and record which run produced the model, even if training fails.

        Example:
            ```python
            trainer.train()
            result = trainer.find_influential(dev)
            ```
        """
        try:
            output = super().train(*args, **kwargs)
        except BaseException:
            with suppress(Exception):  # the error that stopped training must reach the user
                self._note_run_end()
            raise
        self._note_run_end()
        self.accelerator.wait_for_everyone()
        return output

    def _note_run_end(self) -> None:
        # A sharded model cannot be identified by its weights, and influence refuses it anyway.
        if self._keeper.run is not None and sharded_by(self.model) is None:
            write_run_end(self.args.output_dir, self._keeper.end(self.state, self.model))

    def _training_facts(self) -> dict[str, str] | None:
        """Return what checkpoints store about this run; None for sharded models, which get no checkpoints."""
        if sharded_by(self.model) is not None:
            return None
        with same_random_state():
            try:
                with self.session() as session:
                    return session.training_facts()
            except Exception as error:  # models that influence does not support can still be trained
                logger.info(f"Checkpoints for influence will not record what they were trained on: {error}")
                return {}

    def _unwrapped(self, model: nn.Module) -> nn.Module:
        return self.accelerator.unwrap_model(model, keep_torch_compile=False)
