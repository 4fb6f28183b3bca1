"""Sweep over the rows of a dataset in batches that are divided among the processes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import tqdm

from hf_fastif.data import ExampleBatches
from hf_fastif.execution.partial_results import PartialResults, Tensors
from hf_fastif.execution.processes import shard_for_rank
from hf_fastif.model import Batch


PIECE = 64  # batches in a part: what a killed run repeats at most, against the cost of writing


@dataclass(frozen=True)
class DatasetSweep:
    """A pass over many examples, divided into batches and among processes.

    Attributes:
        batch_size (`int`): Examples in a batch.
        accelerator (`Accelerator`): The processes.
        show_progress (`bool`): Whether to show a progress bar.

    Example:

    ```python
    sweep = DatasetSweep(batch_size=32, accelerator=trainer.accelerator)
    lengths = sweep.over(examples, np.arange(len(examples)), 1, count_tokens, "Counting")  # (n, 1)
    ```
    """

    batch_size: int
    accelerator: Accelerator
    show_progress: bool = False

    def over(
        self,
        examples: ExampleBatches,
        rows: np.ndarray,
        width: int,
        compute: Callable[[Batch], torch.Tensor],
        title: str,
        partials: PartialResults | None = None,
        name: str | None = None,
    ) -> np.ndarray:
        """Compute `width` numbers for every row, in batches of similar length.

        Args:
            examples (`ExampleBatches`): The dataset.
            rows (`np.ndarray` of shape `(k,)`): Numbers of its rows, which may repeat.
            width (`int`): Numbers for each row.
            compute (`Callable`): Takes a batch of B rows and returns a tensor of shape `(B, width)`.
            title (`str`): Title of the progress bar.
            partials (`PartialResults`, *optional*): Store for finished parts.
            name (`str`, *optional*): Name of the parts. By default the title.

        Returns:
            `np.ndarray` of shape `(k, width)`: float32, in the order of `rows`, equal on every process.
        """
        batches = examples.places_by_length(rows, self.batch_size)
        results = np.empty((len(rows), width), dtype=np.float32)
        with tqdm(total=len(batches), desc=title, disable=not self.show_progress, leave=False) as bar:
            for start in range(0, len(batches), PIECE):
                part = batches[start : start + PIECE]
                work = partial(self._compute_part, examples, rows, part, width, compute, bar)
                values = work() if partials is None else partials.get(f"{name or title}-{start // PIECE}", work)
                results[np.concatenate(part)] = values["values"].cpu().numpy()
                bar.n = start + len(part)
                bar.refresh()
        return results

    def _compute_part(
        self,
        examples: ExampleBatches,
        rows: np.ndarray,
        batches: list[np.ndarray],
        width: int,
        compute: Callable[[Batch], torch.Tensor],
        bar: tqdm,
    ) -> Tensors:
        ends = np.cumsum([len(places) for places in batches])
        values = torch.zeros(ends[-1], width, device=self.accelerator.device)
        for end, places in shard_for_rank(list(zip(ends, batches, strict=True)), self.accelerator):
            values[end - len(places) : end] = compute(examples.take(rows[places])).float()
            bar.update(self.accelerator.num_processes)
        return {"values": self.accelerator.reduce(values, "sum")}
