"""Find candidates by nearest neighbours: features of examples, and a FAISS index attached to a dataset."""

from hf_fastif.index.build import index_manifest, vectors_place, write_index
from hf_fastif.index.checks import check_index, check_num_neighbors
from hf_fastif.index.features import custom_features, features_of
from hf_fastif.index.influence_index import InfluenceIndex
from hf_fastif.index.pooled import PooledFeatures, output_layer
from hf_fastif.index.publish import MANIFEST
from hf_fastif.index.search import IndexSearch, Search, query_features_of
from hf_fastif.index.sketches import SketchFeatures, SketchFit
from hf_fastif.index.store import made_index
from hf_fastif.index.vectors import ComputedVectors, CustomVectors, FittedVectors, Vectors


__all__ = [
    "ComputedVectors",
    "CustomVectors",
    "FittedVectors",
    "IndexSearch",
    "InfluenceIndex",
    "MANIFEST",
    "PooledFeatures",
    "Search",
    "SketchFeatures",
    "SketchFit",
    "Vectors",
    "check_index",
    "check_num_neighbors",
    "custom_features",
    "features_of",
    "index_manifest",
    "made_index",
    "output_layer",
    "query_features_of",
    "vectors_place",
    "write_index",
]
