"""What a result says about how it was made."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from types import UnionType
from typing import Any, Self, Union, get_args, get_origin, get_type_hints

from hf_fastif.errors import InfluenceError
from hf_fastif.model import LOSS
from hf_fastif.results.trained_without import TrainedWithout
from hf_fastif.scoring import ADDED, REMOVED, less_is_better


@dataclass
class ResultSummary:
    """Settings and sizes of a result.

    Attributes:
        model (`str`): Name of the model.
        num_queries (`int`): Queries; 1 for anchors, which are one query.
        num_candidates (`int`): Examples that could be scored.
        num_neighbors (`int`, *optional*): k, the candidates that were scored for each query; None for all.
        num_examples (`int`, *optional*): Examples of each direction that are listed; None for all that were scored.
        num_parameters (`int`): Parameters that were attributed.
        solver (`str`): How s_test was computed.
        curvature (`str`): `"gauss_newton"` or `"hessian"`.
        damping (`float`): lambda; the mean where each layer has one of its own.
        damping_by_layer (`bool`): Whether each layer has a lambda of its own.
        scale (`float`, *optional*): The step size of LiSSA was 1 / scale.
        largest_eigenvalue (`float`, *optional*): Of the curvature, as a mean over checkpoints; None if unknown.
        measure (`str`): What was attributed: `"loss"`, or the measure in its place.
        sign (`str`): What the sign of an influence means.
        num_train (`int`, *optional*): N, the number of training examples.
        change (`str`, *optional*): What `predicted_loss_change` predicts: the change if the example were `"removed"`
            from the training set, or if it were `"added"`, for candidates that were never trained on. None if there is
            no such prediction, because the solver uses no curvature.
        scoring (`str`): How candidates were scored.
        by_index (`bool`): Whether the index answered, so that a residual is what it leaves out of the gradient.
        cautions (`list[str]`): What to know before trusting the scores.
        checkpoints (`list[dict]`): Name, step, epoch and weight of each.
        text_columns, label_column: The columns that hold texts and labels.
        seed (`int`): The seed of everything random.
        versions (`dict[str, str]`): Versions of the libraries.
        base_model, datasets: What the model and its data are called on the Hub.
        slices (`dict[str, int]`, *optional*): Names and numbers of queries of the results that were joined.
        query_rows (`list[int]`, *optional*): Rows of the queries in the dataset that they were taken from.
        accuracy (`float`, *optional*): Share of validation examples that the model predicts right.
        seconds (`dict[str, float]`): What each stage of a recipe took.
        retrieval (`list[dict]`, *optional*): How well facts were retrieved.
        trained_without (`list[dict]`, *optional*): What models predict that were trained without some examples: the
            attributes of [`TrainedWithout`] of each, first of the explained model, then of the model without the most
            harmful examples.
    """

    model: str
    num_queries: int
    num_candidates: int
    damping: float
    text_columns: list[str]
    label_column: str | None
    num_neighbors: int | None = None
    num_examples: int | None = None
    num_parameters: int = 0
    solver: str = ""
    curvature: str = "gauss_newton"
    damping_by_layer: bool = False
    scale: float | None = None
    largest_eigenvalue: float | None = None
    measure: str = LOSS
    sign: str = ""
    num_train: int | None = None
    change: str | None = None
    scoring: str = ""
    by_index: bool = False
    cautions: list[str] = field(default_factory=list)
    checkpoints: list[dict[str, Any]] = field(default_factory=list)
    seed: int = 0
    versions: dict[str, str] = field(default_factory=dict)
    base_model: str | None = None
    datasets: list[str] = field(default_factory=list)
    slices: dict[str, int] | None = None
    query_rows: list[int] | None = None
    accuracy: float | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    retrieval: list[dict[str, Any]] | None = None
    trained_without: list[dict[str, Any]] | None = None

    def __getitem__(self, name: str) -> Any:
        """Return an entry by its name in `summary.json`, as in `result.summary["damping"]`.

        Raises:
            KeyError: If there is no such entry.
        """
        if name not in self.__dataclass_fields__:
            raise KeyError(name)
        return getattr(self, name)

    @property
    def models_without(self) -> list[TrainedWithout]:
        """The models of `trained_without`; none if the result was not checked by training again."""
        return [TrainedWithout(**entries) for entries in self.trained_without or []]

    @property
    def change_per_influence(self) -> float | None:
        """The factor from an influence to the predicted change of what is measured; None if there is no prediction.

        Removing an example takes a weight of 1/N from it, and adding one gives it this weight. For a measure, the
        engine differentiates the negated measure.
        """
        if self.change is None:
            return None
        sign = 1 if (self.change == ADDED) == less_is_better(self.measure) else -1
        return sign / self.num_train

    def to_json(self) -> dict[str, Any]:
        """Return the entries of `summary.json`.

        Raises:
            InfluenceError: If an entry is of another type than its attribute, or not a finite number.
        """
        entries = asdict(self)
        if wrong := self._wrong_entries(entries):
            raise InfluenceError(
                f"summary: {', '.join(f'{name}={entries[name]!r}' for name in wrong)} cannot be saved."
            )
        return entries

    @classmethod
    def _wrong_entries(cls, entries: Mapping[str, Any]) -> list[str]:
        """Return the names of the entries that are not of the type of their attribute."""
        hints = get_type_hints(cls)
        wrong = [name for name in hints if name in entries and not _fits(entries[name], hints[name])]
        if (
            entries.get("change") not in (None, REMOVED, ADDED)
            or entries.get("change")
            and not entries.get("num_train")
        ):
            wrong.append("change")
        incomplete = [each for each in entries.get("checkpoints", []) if not {"name", "epoch"} <= {*each}]
        if incomplete and "checkpoints" not in wrong:
            wrong.append("checkpoints")
        if "trained_without" not in wrong and not all(map(_fits_model, entries.get("trained_without") or [])):
            wrong.append("trained_without")
        return wrong

    @classmethod
    def from_json(cls, entries: Mapping[str, Any], source: object) -> Self:
        """Return the summary with these entries; entries that it does not know are left out.

        Args:
            entries (`Mapping`): What `to_json` returned.
            source: Where they come from, for the message.

        Raises:
            InfluenceError: If an entry is missing or of another type.
        """
        hints = get_type_hints(cls)
        required = [each.name for each in fields(cls) if each.default is MISSING and each.default_factory is MISSING]
        wrong = [name for name in required if name not in entries]
        wrong += cls._wrong_entries(entries)
        if wrong:
            raise InfluenceError(
                f"{source} is not the summary of a result (entries missing or of another type: {', '.join(wrong)}); "
                "recreate the result."
            )
        return cls(**{name: entries[name] for name in hints if name in entries})


def _fits_model(entry: Any) -> bool:
    """Tell whether an entry holds the attributes of a `TrainedWithout`, and no others."""
    hints = get_type_hints(TrainedWithout)
    return isinstance(entry, dict) and {*entry} == {*hints} and all(_fits(entry[name], hints[name]) for name in hints)


def _fits(value: Any, hint: Any) -> bool:
    """Tell whether a value from JSON is of a type."""
    kind, inner = get_origin(hint), get_args(hint)
    if kind in (Union, UnionType):
        return any(_fits(value, each) for each in inner)
    if kind is list:
        return isinstance(value, list) and all(_fits(each, inner[0]) for each in value)
    if kind is dict:
        return isinstance(value, dict) and all(_fits(each, inner[1]) for each in value.values())
    if hint in (int, float):
        return isinstance(value, int | hint) and not isinstance(value, bool) and math.isfinite(value)
    return hint is Any or isinstance(value, hint)
