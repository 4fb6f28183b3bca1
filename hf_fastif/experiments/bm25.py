"""BM25: how much two texts speak of the same rare words, the usual baseline of retrieval."""

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

    A word that stands in n of N texts weighs log(1 + (N - n + 1/2) / (n + 1/2)), and f of them in a text of length l
    count f (k1 + 1) / (f + k1 (1 - b + b l / mean l)) (Robertson and Zaragoza, 2009, equation 3.15; the weight as in
    Lucene, which is never negative). A word that a query has twice counts twice.

    Args:
        queries (`Sequence[str]`): Q texts.
        texts (`Sequence[str]`): N texts.
        k1 (`float`, *optional*, defaults to 1.5): How soon repetitions of a word stop to count.
        b (`float`, *optional*, defaults to 0.75): How much long texts are made to count less, from 0 to 1.

    Returns:
        `np.ndarray` of shape `(Q, N)`, float32.

    Raises:
        MissingExtraError: If bm25s is not installed.
    """
    with needs_extra("experiments"):
        from bm25s import BM25
    # In the terms of bm25s: word counts as in ATIRE, weights as in Lucene.
    index = BM25(k1=k1, b=b, method="atire", idf_method="lucene")
    index.index([_words(text) for text in texts], show_progress=False)
    return np.stack([index.get_scores_from_ids(index.get_tokens_ids(_words(query))) for query in queries])


def _words(text: str) -> list[str]:
    return WORD.findall(text.lower())


def text_overlap(trainer: InfluenceTrainer, queries: Dataset, columns: Sequence[str]) -> np.ndarray:
    """Compute - BM25 (Q, N) of the training examples for the queries, of the texts in some columns."""

    def joined(rows: Dataset) -> list[str]:
        return [" ".join(row[name] or "" for name in columns) for row in rows.select_columns(list(columns))]

    return -bm25_scores(joined(queries), joined(trainer.train_dataset))
