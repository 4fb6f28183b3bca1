"""Sweep over the rows of a dataset in batches that are divided among the processes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import tqdm

from hf_fastif.data import ExampleBatches
from hf_fastif.execution.partial_results import PartialResults, Tensors
from hf_fastif.execution.processes import shard_for_rank
from hf_fastif.model import Batch


Columns = Mapping[str, tuple[tuple[int, ...], torch.dtype]]
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
        columns = {"values": ((width,), torch.float32)}
        with self.bar(len(batches), title) as bar:
            for start in range(0, len(batches), PIECE):
                part = batches[start : start + PIECE]

                def work(part: list[np.ndarray] = part) -> Tensors:
                    return self.columns_of(
                        examples, rows, part, columns, lambda batch, _rows: {"values": compute(batch)}, bar
                    )

                values = work() if partials is None else partials.get(f"{name or title}-{start // PIECE}", work)
                results[np.concatenate(part)] = values["values"].cpu().numpy()
                bar.n = start + len(part)
                bar.refresh()
        return results

    def bar(self, total: int, title: str) -> tqdm:
        """Return a progress bar for so many batches, to be shown by the main process."""
        return tqdm(total=total, desc=title, disable=not self.show_progress, leave=False)

    def columns_of(
        self,
        examples: ExampleBatches,
        rows: np.ndarray,
        batches: list[np.ndarray],
        columns: Columns,
        compute: Callable[[Batch, np.ndarray], Tensors],
        bar: tqdm,
    ) -> Tensors:
        """Compute several tensors for the rows of some batches, divided among the processes.

        Args:
            examples (`ExampleBatches`): The dataset.
            rows (`np.ndarray`): Numbers of its rows.
            batches (`list[np.ndarray]`): Batches of positions in `rows`.
            columns (`dict`): Shape and dtype of one row of each tensor, by name.
            compute (`Callable`): Takes a batch of B rows and their numbers, and returns tensors of shape `(B, ...)`.
            bar (`tqdm`): Progress bar to advance by one for each batch.

        Returns:
            `dict[str, torch.Tensor]`: Tensors in the order of the batches, equal on every process.
        """
        ends = np.cumsum([len(places) for places in batches])
        device = self.accelerator.device
        totals = {
            name: torch.zeros(int(ends[-1]), *shape, dtype=dtype, device=device)
            for name, (shape, dtype) in columns.items()
        }
        for end, places in shard_for_rank(list(zip(ends, batches, strict=True)), self.accelerator):
            for name, values in compute(examples.take(rows[places]), rows[places]).items():
                totals[name][end - len(places) : end] = values
            bar.update(self.accelerator.num_processes)
        return {name: self.accelerator.reduce(values, "sum") for name, values in totals.items()}
