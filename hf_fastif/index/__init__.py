"""Candidates by nearest neighbours: features of examples, and a FAISS index of them attached to a dataset."""

from hf_fastif.index.build import Features, Vectors, write_index
from hf_fastif.index.gradients import GradientFeatures, last_layer_parts, leading_parts
from hf_fastif.index.influence_index import InfluenceIndex
from hf_fastif.index.pooled import PooledFeatures, output_layer
from hf_fastif.index.store import made_index
from hf_fastif.index.views import without_indexes


__all__ = [
    "Features",
    "GradientFeatures",
    "InfluenceIndex",
    "PooledFeatures",
    "Vectors",
    "last_layer_parts",
    "leading_parts",
    "made_index",
    "output_layer",
    "without_indexes",
    "write_index",
]
