"""Store the scores of queries, explain their sign, and rank them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from hf_fastif.model import LOSS
from hf_fastif.solvers import Solution


SIGN = (
    "A positive influence is harmful: giving the training example more weight raises the loss of the query. "
    "A negative one is helpful: more weight lowers the loss."
)
DIRECTIONS = ("helpful", "harmful")
REMOVED, ADDED = "removed", "added"  # what a score predicts: that the candidate is taken away, or trained on as well
SCORE_TENSORS = ("scores", "candidates", "tokens", "token_rows", "token_lengths", "token_counts")


def sign_of(measured: str) -> str:
    """Return a sentence that explains the sign of an influence; `measured` names what is attributed."""
    if measured == LOSS:
        return SIGN
    verbs = verbs_of(measured)
    return (
        f"A positive influence is harmful: giving the training example more weight {verbs['harmful']}s {measured} of "
        f"the query. A negative one is helpful: more weight {verbs['helpful']}s it."
    )


def verbs_of(measured: str) -> dict[str, str]:
    """Return what training examples of each direction do to what is measured: "lower" or "raise" it.

    Args:
        measured (`str`): `"loss"`, the contrast of two losses, or a measure, of which more is better.
    """
    return dict(zip(DIRECTIONS, ("lower", "raise") if less_is_better(measured) else ("raise", "lower"), strict=True))


def less_is_better(measured: str) -> bool:
    """Tell whether less of what is measured is better: of a loss and of a contrast of losses, not of a measure."""
    return measured == LOSS or measured.startswith(f"{LOSS} minus")


@dataclass(frozen=True)
class QueryScores:
    """Scores of one query.

    Attributes:
        rows (`np.ndarray` of shape `(k,)`): Positions of the candidates that were scored.
        scores (`np.ndarray` of shape `(k,)`): Their influence.
        quality (`dict`): `residual`, `std_err`, `damping` and `scale` of the query's s_test.
        tokens (`dict`, *optional*): The influence (T,) of the tokens of the strongest candidates, by row.
    """

    rows: np.ndarray
    scores: np.ndarray
    quality: dict[str, float]
    tokens: Mapping[int, np.ndarray] | None = None


TokenInfluence = Mapping[int, np.ndarray]  # the influence (T,) of the tokens of a candidate, by row


@dataclass(frozen=True)
class GroupScores:
    """Scores of Q queries that were solved and scored together.

    Attributes:
        scores (`np.ndarray` of shape `(Q, k)`, float32): The influence of each candidate.
        solution (`Solution`): The quality of the queries' s_test, without vectors.
        candidates (`np.ndarray` of shape `(Q, k)`, *optional*): The candidates of each query; None if every example
            is a candidate.
        tokens (`list[TokenInfluence]`, *optional*): For each query, the influence of the tokens of its strongest
            candidates.
    """

    scores: np.ndarray
    solution: Solution
    candidates: np.ndarray | None = None
    tokens: Sequence[TokenInfluence] | None = None

    def __iter__(self) -> Iterator[QueryScores]:
        """Yield the scores of each query."""
        for query, scores in enumerate(self.scores):
            rows = np.arange(len(scores)) if self.candidates is None else self.candidates[query]
            tokens = None if self.tokens is None else self.tokens[query]
            yield QueryScores(rows, scores, self.solution[query : query + 1].quality(), tokens)

    def to_tensors(self) -> dict[str, torch.Tensor]:
        """Return all attributes as named tensors, to write them to a file."""
        tensors = {"scores": torch.from_numpy(self.scores), **self.solution.to_tensors()}
        if self.candidates is not None:
            tensors["candidates"] = torch.from_numpy(self.candidates)
        if self.tokens is not None:
            by_row = [item for tokens in self.tokens for item in tokens.items()]
            tensors["tokens"] = torch.from_numpy(
                np.concatenate([np.zeros(0, np.float32), *(values for _, values in by_row)])
            )
            tensors["token_rows"] = torch.tensor([row for row, _ in by_row], dtype=torch.int64)
            tensors["token_lengths"] = torch.tensor([len(values) for _, values in by_row], dtype=torch.int64)
            tensors["token_counts"] = torch.tensor([len(tokens) for tokens in self.tokens], dtype=torch.int64)
        return tensors

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, torch.Tensor]) -> GroupScores:
        """Return the scores that `to_tensors` converted."""
        arrays = {name: tensors[name].cpu().numpy() for name in SCORE_TENSORS if name in tensors}
        tokens = None
        if "tokens" in arrays:
            values = np.split(arrays["tokens"], np.cumsum(arrays["token_lengths"])[:-1])
            by_row = list(zip(arrays["token_rows"].tolist(), values, strict=False))
            ends = np.cumsum(arrays["token_counts"]).tolist()
            tokens = [dict(by_row[start:end]) for start, end in zip([0, *ends[:-1]], ends, strict=True)]
        return cls(arrays["scores"], Solution.from_tensors(tensors), arrays.get("candidates"), tokens)


def strongest(rows: np.ndarray, scores: np.ndarray, count: int | None) -> dict[str, np.ndarray]:
    """Return the positions of the strongest scores in each direction, strongest first.

    Args:
        rows (`np.ndarray` of shape `(k,)`): The rows that were scored; of equal scores the smaller row comes first.
        scores (`np.ndarray` of shape `(k,)`): Their scores.
        count (`int`, *optional*): The maximum number per direction; None for all.
    """
    positions = {}
    for direction, chosen in zip(DIRECTIONS, (scores < 0, scores > 0), strict=True):
        places = np.flatnonzero(chosen)
        positions[direction] = places[np.lexsort((rows[places], -np.abs(scores[places])))][:count]
    return positions


def percentiles(scores: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Return the percentage of scores that are weaker in absolute value than the score at each place.

    Args:
        scores (`np.ndarray` of shape `(k,)`): The scores of all candidates.
        places (`np.ndarray` of shape `(n,)`): Positions in `scores`.

    Returns:
        `np.ndarray` of shape `(n,)`: Percentages from 0 up to, but without, 100.
    """
    sizes = np.abs(scores)
    return 100 * np.searchsorted(np.sort(sizes), sizes[places]) / len(scores)
