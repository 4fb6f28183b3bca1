"""From flags and files to a trainer: command lines, data sets, models."""

from hf_fastif.training.classifier import ModelArguments
from hf_fastif.training.cli import parse_arguments, run_recipe
from hf_fastif.training.corpora.encoder import default_encoder
from hf_fastif.training.corpora.facts import generate_facts
from hf_fastif.training.corpora.nli import WRONG_LABEL_CONSTRUCTIONS, generate_nli
from hf_fastif.training.corpora.planted import plant_wrong_labels
from hf_fastif.training.datasets import DataArguments, load_examples, read_splits, shuffled, tokenize
from hf_fastif.training.language_model import LanguageArguments
from hf_fastif.training.reporting import ResultArguments, report
from hf_fastif.training.runs import (
    check_training,
    fine_tune,
    make_trainer,
    runs_of,
    train_again,
    trained,
    training_settings,
)
from hf_fastif.training.slices import SlicedArguments, sliced_data, slices_of


__all__ = [
    "DataArguments",
    "LanguageArguments",
    "ModelArguments",
    "ResultArguments",
    "SlicedArguments",
    "WRONG_LABEL_CONSTRUCTIONS",
    "check_training",
    "default_encoder",
    "fine_tune",
    "generate_facts",
    "generate_nli",
    "load_examples",
    "make_trainer",
    "parse_arguments",
    "plant_wrong_labels",
    "read_splits",
    "report",
    "run_recipe",
    "runs_of",
    "shuffled",
    "sliced_data",
    "slices_of",
    "tokenize",
    "train_again",
    "trained",
    "training_settings",
]
