"""Read a second dataset whose examples have slices, such as HANS with its heuristics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from datasets import Dataset

from hf_fastif.errors import InfluenceError
from hf_fastif.training.datasets import DataArguments


@dataclass
class SlicedArguments:
    """Second dataset of a recipe, whose examples have slices; labels and text columns are those of the first."""

    sliced_name: str = field(default="HANS", metadata={"help": "Name of the dataset with slices."})
    sliced_dataset_name: str | None = field(
        default=None, metadata={"help": "The dataset with slices: on the Hub, or a local folder."}
    )
    sliced_train_split: str = field(default="train", metadata={"help": "Its split of training examples."})
    sliced_test_split: str = field(default="validation", metadata={"help": "Its split of the queries."})
    sliced_train_file: str | None = field(default=None, metadata={"help": "File of its training examples."})
    sliced_validation_file: str | None = field(default=None, metadata={"help": "File of its queries."})
    sliced_train_where: list[str] | None = field(
        default=None, metadata={"help": "Keep only its training examples with these values, as in train_where."}
    )
    sliced_validation_where: list[str] | None = field(
        default=None, metadata={"help": "Keep only its queries with these values."}
    )
    slice_column: str = field(
        default="heuristic",
        metadata={"help": "Column with the slice of a query; also groups training examples in the graph."},
    )

    @property
    def is_given(self) -> bool:
        """Return whether a second dataset is given."""
        return bool(self.sliced_dataset_name or self.sliced_train_file or self.sliced_validation_file)


def sliced_data(sliced: SlicedArguments, data: DataArguments) -> DataArguments:
    """Return the data arguments of the sliced dataset.

    These are the arguments of the main dataset with the files, splits and filters of the sliced one. Without a second
    dataset they make another selection of the main one. `max_train_examples` is dropped: rows are often sorted by
    slice, so that the first ones would miss some slices.
    """
    data = replace(data, max_train_examples=None)
    where = {"train_where": sliced.sliced_train_where, "validation_where": sliced.sliced_validation_where}
    splits = {"dataset_train_split": sliced.sliced_train_split, "dataset_test_split": sliced.sliced_test_split}
    if not sliced.is_given:
        return replace(data, **splits, **where)
    return replace(
        data,
        dataset_name=sliced.sliced_dataset_name,
        dataset_config=None,
        train_file=sliced.sliced_train_file,
        validation_file=sliced.sliced_validation_file,
        **splits,
        **where,
    )


def slices_of(name: str, examples: Dataset, column: str, wanted: Sequence[str] | None = None) -> dict[str, Dataset]:
    """Split examples into slices by the values of a column.

    Args:
        name (`str`): The name of the dataset, which the names of the slices start with.
        examples (`datasets.Dataset`): The examples. Without the column they form a single slice.
        column (`str`): The column.
        wanted (`Sequence[str]`, *optional*): The values to use; unless given, all.

    Raises:
        InfluenceError: If no example has a wanted value.
    """
    if column not in examples.column_names:
        return {name: examples}
    values = np.array([str(value) for value in examples[column]])
    available = np.unique(values).tolist()
    if unknown := set(wanted or ()) - set(available):
        raise InfluenceError(
            f"slices: {', '.join(sorted(unknown))} is not among the values of {column!r}: {available}."
        )
    return {f"{name}, {value}": examples.select(np.flatnonzero(values == value)) for value in wanted or available}
