"""The tokens of training examples: which of them carry an influence, and what they read."""

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
    """The influence of predicting each token of some candidates, summed over the checkpoints.

    Args:
        objective (`Objective`): Of a head with a label for each token.
        checkpoints ([`CheckpointSet`]): The moments of training that are summed over.
        pool (`ExampleBatches`): The candidates.
        vectors (`torch.Tensor` of shape `(Q, P)`): s_test of Q queries; of several checkpoints one behind the other.
        rows (`np.ndarray` of shape `(k,)`): Which candidates.
        passes (`DatasetSweep`): How the work is cut up.

    Returns:
        `list` over rows of `np.ndarray` of shape `(Q, T)`, float32, T being the length of the row's own labels.

    Raises:
        ValueError: If examples have one label each, or the loss is one of the user's.
    """
    check_token_losses(objective)
    own = [pool.take([row])["labels"][0] for row in rows]
    lengths = [len(labels) for labels in own]
    longest = max(lengths, default=0)
    padded_behind = not own or _padded_behind(pool, rows, own, lengths)
    found = np.zeros((len(rows), len(vectors), longest), dtype=np.float32)
    for number, part in enumerate(vectors.split(objective.space.size, dim=1)):

        def compute(batch: Batch, part: torch.Tensor = part) -> torch.Tensor:
            scores = token_scores(objective, batch, part).transpose(0, 1)
            missing = longest - scores.shape[2]  # the batch may lack the longest example
            return pad(scores, (0, missing) if padded_behind else (missing, 0)).flatten(1)

        with checkpoints.at(number):  # the weights are in the vectors
            width = found.shape[1] * longest
            found += sweep.over(pool, rows, width, compute, "Tokens").reshape(found.shape)
    return [
        scores[:, :size] if padded_behind else scores[:, longest - size :]
        for scores, size in zip(found, lengths, strict=True)
    ]


def _padded_behind(pool: ExampleBatches, rows: np.ndarray, own: list[torch.Tensor], lengths: list[int]) -> bool:
    """Whether labels are padded behind in a batch, and not in front."""
    short, long = int(np.argmin(lengths)), int(np.argmax(lengths))
    together = pool.take([rows[short], rows[long]])["labels"][0]
    return torch.equal(together[: lengths[short]], own[short])


def texts_of_tokens(
    objective: Objective,
    pool: ExampleBatches,
    outcomes: Sequence[QueryScores],
    processor: PreTrainedTokenizerBase | ProcessorMixin | None,
) -> dict[int, list[str]] | None:
    """What each token reads of the candidates whose tokens were scored, by their rows; None if none were.

    A text has the space before it, and where there is no tokenizer it is a number. The tokens are those that are read,
    or of sequence to sequence those of the answer.
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
        # A token by itself may lack the space or the joint that it has behind another.
        texts.append(both.removeprefix(before) if both.startswith(before) else decoded(ids[place : place + 1]))
    return texts
