"""Score texts with BM25, which weighs shared words by their rarity and is the usual baseline of retrieval."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from datasets import Dataset

from hf_fastif.errors import needs_extra
from hf_fastif.trainer import InfluenceTrainer


WORD = re.compile(r"\w+")


def bm25_scores(queries: Sequence[str], texts: Sequence[str], k1: float = 1.5, b: float = 0.75) -> np.ndarray:
    """Compute the BM25 score of every text for every query, over words in lower case.

    A word that occurs in n of N texts has the weight log(1 + (N - n + 1/2) / (n + 1/2)) as in Lucene, which is never
    negative. With f occurrences in a text of length l, it adds f (k1 + 1) / (f + k1 (1 - b + b l / mean l)) times this
    weight (Robertson and Zaragoza, 2009, equation 3.15). A word that occurs twice in a query counts twice.

    Args:
        queries (`Sequence[str]`): Q texts.
        texts (`Sequence[str]`): N texts.
        k1 (`float`, *optional*, defaults to 1.5): How late repetitions of a word saturate; 0 ignores repetitions.
        b (`float`, *optional*, defaults to 0.75): Strength of the length normalization, from 0 to 1.

    Returns:
        `np.ndarray` of shape `(Q, N)`, float32: The scores, larger for more similar texts.

    Raises:
        MissingExtraError: If bm25s is not installed.

    Example:
        ```python
        scores = bm25_scores(["Where was Ada born?"], ["Ada was born in London.", "Paris is large."])
        ```
    """
    with needs_extra("experiments"):
        from bm25s import BM25
    # In the terms of bm25s, word counts are those of ATIRE and weights those of Lucene.
    index = BM25(k1=k1, b=b, method="atire", idf_method="lucene")
    index.index([_words(text) for text in texts], show_progress=False)
    return np.stack([index.get_scores_from_ids(index.get_tokens_ids(_words(query))) for query in queries])


def _words(text: str) -> list[str]:
    return WORD.findall(text.lower())


def text_overlap(trainer: InfluenceTrainer, queries: Dataset, columns: Sequence[str]) -> np.ndarray:
    """Compute - BM25 (Q, N) between queries and training examples, over the joined texts of the given columns."""

    def joined(rows: Dataset) -> list[str]:
        return [" ".join(row[name] or "" for name in columns) for row in rows.select_columns(list(columns))]

    return -bm25_scores(joined(queries), joined(trainer.train_dataset))
