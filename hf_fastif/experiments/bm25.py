"""BM25: how much two texts speak of the same rare words, the usual baseline of retrieval."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from datasets import Dataset
from scipy.sparse import csr_array

from hf_fastif.trainer import InfluenceTrainer


WORD = re.compile(r"\w+")


def bm25_scores(queries: Sequence[str], texts: Sequence[str], k1: float = 1.5, b: float = 0.75) -> np.ndarray:
    """The BM25 score of every text for every query, over words in lower case.

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
    """
    vocabulary: dict[str, int] = {}
    counts = _counts(texts, vocabulary)
    size = len(vocabulary)
    asked = _counts(queries, vocabulary)[:, :size]  # the others are in no text
    counts = counts.tocoo()
    weights = np.bincount(counts.col, minlength=size)
    weights = np.log1p((len(texts) - weights + 0.5) / (weights + 0.5))
    lengths = np.bincount(counts.row, counts.data, len(texts))
    penalties = k1 * (1 - b + b * lengths / lengths.mean())
    values = weights[counts.col] * counts.data * (k1 + 1) / (counts.data + penalties[counts.row])
    return (
        (asked @ csr_array((values, (counts.col, counts.row)), shape=(size, len(texts)))).toarray().astype("float32")
    )


def _counts(texts: Sequence[str], vocabulary: dict[str, int]) -> csr_array:
    """How often each text has each word, (texts, words); words that are new are added to the vocabulary."""
    words = [[vocabulary.setdefault(word, len(vocabulary)) for word in WORD.findall(text.lower())] for text in texts]
    rows = np.repeat(np.arange(len(texts)), [len(own) for own in words])
    places = (rows, np.concatenate([*words, []]).astype(np.int64))
    return csr_array((np.ones(len(rows)), places), shape=(len(texts), max(1, len(vocabulary))))


def text_overlap(trainer: InfluenceTrainer, queries: Dataset, columns: Sequence[str]) -> np.ndarray:
    """- BM25 (Q, N) of the training examples for the queries, of the texts in some columns."""

    def joined(rows: Dataset) -> list[str]:
        return [" ".join(row[name] or "" for name in columns) for row in rows.select_columns(list(columns))]

    return -bm25_scores(joined(queries), joined(trainer.train_dataset))
