"""Training that leaves behind what influence needs: checkpoints, and which run left the model."""

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
    """Keeping checkpoints while training, for [`InfluenceTrainer`]."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._keeper = KeepCheckpoints(self._training_facts, self._unwrapped)
        self.add_callback(self._keeper)

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        """Trains as `Trainer.train` does, and notes which run left the model, however it ends."""
        try:
            output = super().train(*args, **kwargs)
        except BaseException:
            with suppress(Exception):  # what stopped training is what the user must see
                self._note_run_end()
            raise
        self._note_run_end()
        self.accelerator.wait_for_everyone()
        return output

    def _note_run_end(self) -> None:
        # A model in shards is not known by its weights; influence refuses it.
        if self._keeper.run is not None and sharded_by(self.model) is None:
            write_run_end(self.args.output_dir, self._keeper.end(self.state, self.model))

    def _training_facts(self) -> dict[str, str] | None:
        """What checkpoints say about the run that begins: None where there can be none, since the model is sharded."""
        if sharded_by(self.model) is not None:
            return None
        with same_random_state():
            try:
                with self.session() as session:
                    return session.training_facts()
            except Exception as error:  # a model that influence does not know may be trained all the same
                logger.info(f"Checkpoints for influence will not say what they were trained on: {error}")
                return {}

    def _unwrapped(self, model: nn.Module) -> nn.Module:
        return self.accelerator.unwrap_model(model, keep_torch_compile=False)
