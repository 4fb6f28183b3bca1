"""Declare the settings of the search for candidates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from transformers import TrainingArguments

from hf_fastif.errors import InfluenceError
from hf_fastif.settings.fields import check_at_least_one, check_choice, is_whole_number, setting


FeatureName = Literal["gradient_sketch", "pooled", "mean_pooled"]


@dataclass
class IndexSettings(TrainingArguments):
    """Add the number of candidates, and the index that finds them, to `TrainingArguments`."""

    num_neighbors: int | None = setting(
        None,
        "Number k of nearest neighbors in the index to score per query, the others not at all (the paper's three "
        "steps). None scores every candidate.",
    )
    rescore: int | None = setting(
        None,
        "Number of candidates per direction, those that the index ranks highest, to score again with the chosen "
        "solver (an iterative one for 'auto') and exact gradients.",
    )
    index_features: FeatureName = setting(
        "gradient_sketch",
        "Features that `build_index()` stores for each example. 'gradient_sketch': the gradient along the "
        "`index_size` directions of most curvature, over all linear layers, embeddings and norms; compared with "
        "s_test by inner product. Both ends are candidates. 'pooled' (used in the paper): the pooled "
        "hidden state, or the last state of the last token of a language model, compared by L2 distance. "
        "'mean_pooled': the mean of the last states of all tokens.",
    )
    index_size: int = setting(1024, "Directions in a gradient sketch, which are the numbers stored per example.")
    sketch_size: int = setting(
        16384,
        "Entries of the gradient that the directions of a sketch combine: those with the most curvature in EK-FAC's "
        "eigenbasis. Time and memory to build the index grow with its square.",
    )
    index_factory: str = setting(
        "SQfp16",
        "Factory string of the FAISS index, such as 'Flat' (twice the memory), 'IVF256,SQfp16', 'HNSW32' or "
        "'IVF256,PQ32' (which also round scores).",
    )
    index_search: str | None = setting(
        None, "Search parameters of the FAISS index, such as 'nprobe=16' or 'efSearch=64'; saved with the index."
    )
    index_shard_size: int = setting(1_000_000, "Examples per file of the index.")
    index_on_disk: bool = setting(
        False, "Leave the vectors in their files and map them, for an index that does not fit into memory."
    )
    index_device: int | None = setting(None, "GPU to search on.")

    def check(self) -> None:
        """Check that the values are possible.

        Raises:
            InfluenceError: Naming the setting, its value and what to give instead.
        """
        check_choice("index_features", self.index_features, get_args(FeatureName))
        check_at_least_one(
            index_size=self.index_size, sketch_size=self.sketch_size, index_shard_size=self.index_shard_size
        )
        if self.rescore is not None and not is_whole_number(self.rescore):
            raise InfluenceError(
                f"rescore={self.rescore!r}: give a whole number of at least 1, or None to use the scores of the index."
            )
        if self.num_neighbors is not None and not is_whole_number(self.num_neighbors):
            raise InfluenceError(
                f"num_neighbors={self.num_neighbors!r}: give a whole number of at least 1, or None to score every "
                "candidate."
            )
        if self.index_device is not None and not is_whole_number(self.index_device, least=0):
            raise InfluenceError(
                f"index_device={self.index_device!r}: give the number of a GPU, such as 0, or None to search on the "
                "CPU."
            )
        if not isinstance(self.index_factory, str) or not self.index_factory:
            raise InfluenceError(f"index_factory={self.index_factory!r}: give a factory string, such as 'Flat'.")
        if self.index_search is not None and not isinstance(self.index_search, str):
            raise InfluenceError(f"index_search={self.index_search!r}: give text, such as 'nprobe=16', or None.")
