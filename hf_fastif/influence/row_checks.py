"""Check stored rows: texts must not be empty, too long for the model, or hold unknown tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset
from torch import nn

from hf_fastif.data import ExampleBatches
from hf_fastif.errors import InfluenceError
from hf_fastif.model import IGNORED


TABLES = ("position_embeddings", "position_embedding", "wpe", "embed_positions", "positions_embed")
ROTATED = ("rotary", "rope", "alibi")  # these need no table of position embeddings, though a model may have one
HEAD = 1000  # number of first rows from which an example batch is chosen


@dataclass(frozen=True)
class RowCheck:
    """A check of the values of a stored column.

    Attributes:
        column (`str`): The name of the column.
        bad (`Callable`): Returns a mask of the bad rows of a part of the column.
        reaches_model (`Callable`): Tells whether the collated batch of such a row is bad too; collators may repair
            rows.
        message (`Callable`): Returns the error message for the first such row and its value.
    """

    column: str
    bad: Callable[[pa.Array], np.ndarray]
    reaches_model: Callable[[dict[str, Any]], bool]
    message: Callable[[int, Any], str]


def is_seen(examples: ExampleBatches, row: int, reaches_model: Callable[[dict[str, Any]], bool]) -> bool:
    """Tell whether the bad value of a row reaches the model, or makes the collator fail."""
    try:
        batch = examples.collate(examples.dataset.__getitems__([row]))
    except Exception:  # a collator may raise anything
        return True
    return reaches_model(batch)


def check_column(examples: ExampleBatches, column: str, checks: list[RowCheck]) -> None:
    """Apply checks to all rows of a stored column.

    Raises:
        InfluenceError: If a bad row reaches the model; the message names the first.
    """
    start = 0
    for table in examples.dataset.select_columns(column).with_format("arrow").iter(batch_size=10_000):
        part = table[column].combine_chunks()
        for check in list(checks):
            rows = np.flatnonzero(check.bad(part))
            if not len(rows):
                continue
            row = int(rows[0])
            if is_seen(examples, start + row, check.reaches_model):
                raise InfluenceError(check.message(start + row, part[row].as_py()))
            checks.remove(check)  # the collator repairs such rows
        start += len(part)


def text_checks(name: str, model: nn.Module) -> list[RowCheck]:
    """Return the checks that rows have tokens, that the model knows them, and that it has positions for them."""
    limit, vocabulary = most_tokens(model, "input_ids"), vocabulary_of(model)
    checks = [
        RowCheck(
            "input_ids",
            lambda part: token_counts(part, np.minimum.reduceat, 0) == 0,
            _has_no_token,
            lambda row, _: (
                f"{name}: column 'input_ids' holds no token in row {row}, and without tokens there is no prediction; "
                f"remove such rows with {name}.filter(lambda row: len(row['input_ids']) > 0)."
            ),
        )
    ]
    if limit is not None:
        checks.append(
            RowCheck(
                "input_ids",
                lambda part: token_counts(part, np.maximum.reduceat, 0) > limit,
                lambda batch: "input_ids" in batch and batch["input_ids"].shape[-1] > limit,
                lambda row, value: (
                    f"{name}: column 'input_ids' holds {_longest(value)} tokens in row {row}, and the model has "
                    f"positions for {limit}; tokenize with truncation=True, max_length={limit}."
                ),
            )
        )
    if vocabulary is not None:
        checks.append(
            RowCheck(
                "input_ids",
                lambda part: rows_with(part, lambda values: outside(values, vocabulary)),
                lambda batch: "input_ids" in batch and _has_unknown(batch["input_ids"], vocabulary),
                lambda row, value: (
                    f"{name}: column 'input_ids' holds the tokens {span_of(value)} in row {row}, but the model knows "
                    f"0 to {vocabulary - 1} (config.vocab_size={vocabulary}); tokenize with the tokenizer of this "
                    "model."
                ),
            )
        )
    return checks


def lengths_of(dataset: Dataset) -> list[int]:
    """Return the numbers of tokens of the first rows, or an empty list if there are no token ids."""
    if "input_ids" not in dataset.column_names:
        return []
    part = dataset.select_columns("input_ids").with_format("arrow")[:HEAD]["input_ids"].combine_chunks()
    return token_counts(part, np.maximum.reduceat, 0).tolist()


def shortest_and_longest(dataset: Dataset) -> list[int]:
    """Choose the shortest and the longest of the first rows, which need padding if any do; or the only row."""
    lengths = lengths_of(dataset)
    ends = {int(np.argmin(lengths)), int(np.argmax(lengths))} if lengths else {0}
    return sorted(ends) if len(ends) == 2 else list(range(min(2, len(dataset))))


def most_tokens(model: nn.Module, column: str) -> int | None:
    """Return the number of tokens that a model has position embeddings for; None if it has no table of them.

    Args:
        model (`torch.nn.Module`): A transformers model, without adapters.
        column (`str`): `"input_ids"`, or `"labels"` for those that a decoder reads.
    """
    if getattr(model.config, "position_embedding_type", None) in ROTATED:
        return None
    sizes = []
    for path, module in model.named_modules():
        names = path.split(".")
        reads_column = not model.config.is_encoder_decoder or ("decoder" in names) == (column == "labels")
        if names[-1] in TABLES and isinstance(module, nn.Embedding) and reads_column and "vision" not in path:
            # The first rows of the table may be for padding (RoBERTa) or unused (BART, OPT).
            unused = 0 if module.padding_idx is None else module.padding_idx + 1
            sizes.append(module.num_embeddings - getattr(module, "offset", unused))
    return min(sizes, default=None)


def vocabulary_of(model: nn.Module) -> int | None:
    """Return the size of a model's vocabulary; None if it does not read tokens."""
    size = getattr(model.config.get_text_config(), "vocab_size", None)
    try:
        embeddings = model.get_input_embeddings()
    except NotImplementedError:  # speech models, though their configuration has a vocabulary
        return None
    return max(size, embeddings.num_embeddings) if size and isinstance(embeddings, nn.Embedding) else None


def rows_with(part: pa.Array, bad: Callable[[pa.Array], np.ndarray]) -> np.ndarray:
    """Return a mask (n,) of the rows that are bad or hold a bad value in a list or nested lists."""
    if not is_list(part.type):
        return bad(part)
    inner = rows_with(pc.list_flatten(part), bad)
    mask = np.asarray(part.is_null())
    mask[np.asarray(pc.list_parent_indices(part))[inner]] = True
    return mask


def token_counts(part: pa.Array, reduce: Callable, of_none: int) -> np.ndarray:
    """Return the number of tokens (n,) of each row, or `reduce` of those of several texts; `of_none` if missing."""
    if not is_list(part.type):
        return np.ones(len(part), dtype=np.int64)
    lengths = np.asarray(pc.fill_null(pc.list_value_length(part), of_none))
    if not is_list(part.type.value_type):
        return lengths
    inner = token_counts(pc.list_flatten(part), reduce, of_none)
    counts = np.full(len(part), of_none)
    starts = np.cumsum(lengths) - lengths
    counts[lengths > 0] = reduce(inner, starts[lengths > 0]) if len(inner) else of_none
    return counts


def is_list(kind: pa.DataType) -> bool:
    """Tell whether a column holds lists."""
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def outside(values: pa.Array, size: int, ignored: bool = False) -> np.ndarray:
    """Return a mask (n,) of the integers that are no class or token; other types are left to other checks."""
    if not pa.types.is_integer(values.type):
        return np.zeros(len(values), dtype=bool)
    numbers = pc.fill_null(values, 0).to_numpy(zero_copy_only=False)
    return ((numbers < 0) & ~(ignored & (numbers == IGNORED))) | (numbers >= size)


def _has_no_token(batch: dict[str, Any]) -> bool:
    if batch.get("attention_mask") is not None:
        return not bool(batch["attention_mask"].any(dim=-1).all())
    return "input_ids" in batch and batch["input_ids"].shape[-1] == 0


def _has_unknown(ids: Any, vocabulary: int) -> bool:
    return bool(((ids >= vocabulary) | (ids < 0)).any())


def _longest(value: Sequence) -> int:
    return max(map(_longest, value)) if value and isinstance(value[0], list) else len(value)


def flat(value: Any) -> list:
    """Return the values of nested lists; a single value becomes a list of one."""
    return [one for inner in value for one in flat(inner)] if isinstance(value, list) else [value]


def span_of(value: Any) -> str:
    """Return the smallest and the largest number in a value, or the only one, as text."""
    numbers = flat(value)
    return f"{numbers[0]}" if len(numbers) == 1 else f"{min(numbers)} to {max(numbers)}"
