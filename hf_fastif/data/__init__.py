"""Rows as the model and as a person see them: batches, digests, columns, labels, checks."""

from hf_fastif.data.batches import ExampleBatches
from hf_fastif.data.checks import check_dataset, check_rows, check_train_dataset
from hf_fastif.data.columns import COMPUTED, plain_columns, prefixed, set_apart, text_columns, with_label_names
from hf_fastif.data.digests import hexdigest
from hf_fastif.data.labels import label_column, label_name, names_of_labels, relabelled
from hf_fastif.data.views import without_indexes


__all__ = [
    "COMPUTED",
    "ExampleBatches",
    "check_dataset",
    "check_rows",
    "check_train_dataset",
    "hexdigest",
    "label_column",
    "label_name",
    "names_of_labels",
    "plain_columns",
    "prefixed",
    "relabelled",
    "set_apart",
    "text_columns",
    "with_label_names",
    "without_indexes",
]
