"""Long work over the rows of a dataset, dealt to the processes batch by batch."""

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


PIECE = 64  # batches between two writes


@dataclass(frozen=True)
class DatasetSweep:
    """How work over many examples is cut up.

    Attributes:
        batch_size (`int`): Examples in one pass.
        accelerator (`Accelerator`): The processes.
        show_progress (`bool`): Whether the main process shows a bar.
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
        """Some numbers for every row, from batches of similar length.

        Args:
            examples (`ExampleBatches`): The dataset.
            rows (`np.ndarray` of shape `(k,)`): Which of its rows.
            width (`int`): How many numbers for each.
            compute (`Callable`): From a batch of B rows to their numbers, (B, width).
            title (`str`): Of the progress bar.
            pieces (`PartialResults`, *optional*): Keeps what is finished.
            name (`str`, *optional*): Of its pieces, if not the title.

        Returns:
            `np.ndarray` of shape `(k, width)`, float32, in the order of `rows`; the same on every process.
        """
        batches = examples.places_by_length(rows, self.batch_size)
        found = np.empty((len(rows), width), dtype=np.float32)
        with tqdm(total=len(batches), desc=title, disable=not self.show_progress, leave=False) as bar:
            for start in range(0, len(batches), PIECE):
                part = batches[start : start + PIECE]
                work = partial(self._piece, examples, rows, part, width, compute, bar)
                values = work() if partials is None else partials.get(f"{name or title}-{start // PIECE}", work)
                found[np.concatenate(part)] = values["values"].cpu().numpy()
                bar.n = start + len(part)
                bar.refresh()
        return found

    def _piece(
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
