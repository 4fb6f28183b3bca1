"""Find candidates by nearest neighbours: features of examples, and a FAISS index attached to a dataset."""

from hf_fastif.index.build import Vectors, write_index
from hf_fastif.index.checks import check_index, check_num_neighbors
from hf_fastif.index.features import choose_features
from hf_fastif.index.gradients import GradientFeatures, last_layer_parts, leading_parts
from hf_fastif.index.influence_index import InfluenceIndex
from hf_fastif.index.pooled import PooledFeatures, output_layer
from hf_fastif.index.publish import MANIFEST
from hf_fastif.index.search import IndexSearch, Search, query_features_of


__all__ = [
    "GradientFeatures",
    "IndexSearch",
    "InfluenceIndex",
    "MANIFEST",
    "PooledFeatures",
    "Search",
    "Vectors",
    "check_index",
    "check_num_neighbors",
    "choose_features",
    "last_layer_parts",
    "leading_parts",
    "output_layer",
    "query_features_of",
    "write_index",
]
