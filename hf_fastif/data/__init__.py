"""Data sets and encoders that need no Hub, and reading those that are there."""

from hf_fastif.data.encoder import default_encoder
from hf_fastif.data.examples import DataArguments, load_examples, read_splits, shuffled, tokenize
from hf_fastif.data.facts import generate_facts
from hf_fastif.data.nli import WRONG_LABEL_CONSTRUCTIONS, generate_nli
from hf_fastif.data.planted import plant_wrong_labels, planted_share, relabelled
from hf_fastif.data.slices import SlicedArguments, sliced_data, slices_of


__all__ = [
    "WRONG_LABEL_CONSTRUCTIONS",
    "DataArguments",
    "SlicedArguments",
    "default_encoder",
    "generate_facts",
    "generate_nli",
    "load_examples",
    "plant_wrong_labels",
    "planted_share",
    "read_splits",
    "relabelled",
    "shuffled",
    "sliced_data",
    "slices_of",
    "tokenize",
]
