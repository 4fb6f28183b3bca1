"""Compute the influence of the tokens of training examples, and decode their texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn.functional import pad

from hf_fastif.checkpoints import CheckpointSet
from hf_fastif.data import ExampleBatches
from hf_fastif.execution import DatasetSweep
from hf_fastif.model import Batch, Objective, TokenHead
from hf_fastif.scoring.scores import QueryScores
from hf_fastif.scoring.token_scores import check_token_losses, token_scores


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, ProcessorMixin


def influence_of_tokens(
    objective: Objective,
    checkpoints: CheckpointSet,
    pool: ExampleBatches,
    vectors: torch.Tensor,
    rows: np.ndarray,
    sweep: DatasetSweep,
) -> list[np.ndarray]:
    """Compute the influence of predicting each token of some candidates, summed over the checkpoints.

    Args:
        objective (`Objective`): The loss, for a head with one label per token.
        checkpoints ([`CheckpointSet`]): The checkpoints to sum over.
        pool (`ExampleBatches`): The candidates.
        vectors (`torch.Tensor` of shape `(Q, C * P)`): s_test of Q queries, concatenated over C checkpoints.
        rows (`np.ndarray` of shape `(k,)`): The positions of the candidates.
        sweep (`DatasetSweep`): Divides the pass over the candidates into batches and processes.

    Returns:
        `list` over rows of `np.ndarray` of shape `(Q, T)`, float32, where T is the length of the row's labels.

    Raises:
        InfluenceError: If examples have a single label, or the loss is the user's.
    """
    check_token_losses(objective)
    labels = [pool.take([row])["labels"][0] for row in rows]
    lengths = [len(tokens) for tokens in labels]
    longest = max(lengths, default=0)
    pads_right = not labels or _pads_right(pool, rows, labels)
    totals = np.zeros((len(rows), len(vectors), longest), dtype=np.float32)
    for number, part in enumerate(vectors.split(objective.space.size, dim=1)):

        def compute(batch: Batch, part: torch.Tensor = part) -> torch.Tensor:
            scores = token_scores(objective, batch, part).transpose(0, 1)
            missing = longest - scores.shape[2]  # the longest example may be in another batch
            return pad(scores, (0, missing) if pads_right else (missing, 0)).flatten(1)

        with checkpoints.at(number):  # Solution has multiplied the vectors by the checkpoint's weight
            width = totals.shape[1] * longest
            totals += sweep.over(pool, rows, width, compute, "Tokens").reshape(totals.shape)
    return [
        scores[:, :size] if pads_right else scores[:, longest - size :]
        for scores, size in zip(totals, lengths, strict=True)
    ]


def _pads_right(pool: ExampleBatches, rows: np.ndarray, labels: list[torch.Tensor]) -> bool:
    """Tell whether a batch pads the labels of its shorter examples on the right, given the labels of each row."""
    lengths = [len(tokens) for tokens in labels]
    short, long = int(np.argmin(lengths)), int(np.argmax(lengths))
    padded = pool.take([rows[short], rows[long]])["labels"][0]
    return torch.equal(padded[: lengths[short]], labels[short])


def texts_of_tokens(
    objective: Objective,
    pool: ExampleBatches,
    outcomes: Sequence[QueryScores],
    processor: PreTrainedTokenizerBase | ProcessorMixin | None,
) -> dict[int, list[str]] | None:
    """Return the texts of the tokens of all candidates whose tokens were scored, by row; None if none were.

    A text includes the space that precedes the token. Without a tokenizer it is the number of the token. For
    sequence-to-sequence models the tokens are those of the answer, otherwise those of the input.
    """
    if any(outcome.tokens is None for outcome in outcomes):
        return None
    head = objective.head
    name = "labels" if isinstance(head, TokenHead) and head.prepare is not None else "input_ids"
    tokenizer = getattr(processor, "tokenizer", processor)
    rows = sorted({row for outcome in outcomes for row in outcome.tokens})
    return {row: _texts(pool.take([row])[name][0].tolist(), tokenizer) for row in rows}


def _texts(ids: list[int], tokenizer: PreTrainedTokenizerBase | None) -> list[str]:
    if tokenizer is None:
        return [str(number) for number in ids]

    def decoded(numbers: list[int]) -> str:
        return tokenizer.decode([i for i in numbers if i >= 0], clean_up_tokenization_spaces=False)

    texts = []
    for place in range(len(ids)):
        before, both = decoded(ids[max(0, place - 1) : place]), decoded(ids[max(0, place - 1) : place + 1])
        # Decoded alone, a token may lose the space or the continuation mark that it has after another one.
        texts.append(both.removeprefix(before) if both.startswith(before) else decoded(ids[place : place + 1]))
    return texts
