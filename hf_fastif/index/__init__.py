"""Find candidates by nearest neighbours: features of examples, and a FAISS index attached to a dataset."""

from hf_fastif.index.build import Vectors, write_index
from hf_fastif.index.checks import check_index, check_num_neighbors
from hf_fastif.index.features import custom_features, features_of, index_features
from hf_fastif.index.gradients import GradientFeatures, last_layer_parts, leading_parts
from hf_fastif.index.influence_index import InfluenceIndex
from hf_fastif.index.pooled import PooledFeatures, output_layer
from hf_fastif.index.publish import MANIFEST
from hf_fastif.index.search import Search, candidate_search


__all__ = [
    "GradientFeatures",
    "InfluenceIndex",
    "MANIFEST",
    "PooledFeatures",
    "Search",
    "Vectors",
    "candidate_search",
    "check_index",
    "check_num_neighbors",
    "custom_features",
    "features_of",
    "index_features",
    "last_layer_parts",
    "leading_parts",
    "output_layer",
    "write_index",
]
