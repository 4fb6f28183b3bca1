"""Declare the settings of the search for candidates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from transformers import TrainingArguments

from hf_fastif.errors import InfluenceError
from hf_fastif.settings.fields import check_at_least_one, check_choice, is_whole_number, setting


FeatureName = Literal["pooled", "mean_pooled", "last_layer_gradient", "gradient_sketch"]


@dataclass
class IndexSettings(TrainingArguments):
    """Add the number of candidates, and the index that finds them, to `TrainingArguments`."""

    num_neighbors: int | None = setting(
        None,
        "Number k of nearest neighbors to score per query, from the index that `build_index()` made. None scores "
        "every candidate: it needs no index, costs about two forward passes over the candidates, and misses nothing.",
    )
    index_features: FeatureName = setting(
        "gradient_sketch",
        "Features that `build_index()` stores for each example. 'pooled' (used in the paper): the pooled hidden "
        "state, or the last state of the last token of a language model, compared by L2 distance. 'mean_pooled': the "
        "mean of the last states of all tokens. 'last_layer_gradient': the gradient of the output layer. "
        "'gradient_sketch': the entries of the gradient with the most curvature in EK-FAC's eigenbasis, over all "
        "linear layers and norms. The two gradients are compared with s_test by inner product, and both the largest "
        "and the smallest are candidates.",
    )
    index_size: int = setting(4096, "Features per example in a 'gradient_sketch'.")
    index_factory: str = setting(
        "Flat",
        "Factory string of the FAISS index, such as 'SQfp16' (half the memory), 'IVF256,Flat', 'HNSW32' or "
        "'IVF256,PQ32'.",
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
        check_at_least_one(index_size=self.index_size, index_shard_size=self.index_shard_size)
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
