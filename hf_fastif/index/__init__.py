"""Candidates by nearest neighbours: features of examples, and a FAISS index of them attached to a dataset."""

from hf_fastif.index.attach import attach_index, search_index, without_indexes
from hf_fastif.index.features import pooled_features


__all__ = ["attach_index", "pooled_features", "search_index", "without_indexes"]
