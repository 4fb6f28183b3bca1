"""Measures: numbers of a query that are attributed in place of its loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

import torch
from torch import nn

from hf_fastif.data import hexdigest
from hf_fastif.errors import InfluenceError, did_you_mean
from hf_fastif.model.heads import IGNORED, Head, SpanHead, TokenHead
from hf_fastif.model.parameters import without_adapters


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LOSS = "loss"  # what is measured unless a measure is given
PROBED_EXAMPLES, PROBED_PLACES = 3, 4


@dataclass(frozen=True)
class Measure(ABC):
    """A number of a query, computed from the model's outputs.

    The larger the number, the better: helpful training examples raise it and harmful ones lower it. To attribute a
    number of your own, write a frozen dataclass with the method `values`.

    Example:
        ```python
        @dataclass(frozen=True)
        class Confidence(Measure):
            def values(self, logits, labels):
                return logits.softmax(dim=-1).amax(dim=-1)

        trainer.find_influential(queries, measure=Confidence())
        ```
    """

    @abstractmethod
    def values(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Compute the measure of each example of a batch.

        Args:
            logits (`torch.Tensor` of shape `(B, C)` or `(B, L, C)`): Outputs; of heads that predict tokens those of
                L places.
            labels (`torch.Tensor` of shape `(B,)` or `(B, L)`): Labels, -100 where a place has none.

        Returns:
            `torch.Tensor` of shape `(B,)`: The measure, a differentiable function of `logits`.
        """

    def bound_to(self, model: nn.Module, head: Head, size: int, tokenizer: PreTrainedTokenizerBase | None) -> Self:
        """Return the measure with the names of classes replaced by their numbers.

        Args:
            model (`torch.nn.Module`): The model.
            head (`Head`): Its head.
            size (`int`): Outputs at a place: classes, choices or tokens of the vocabulary.
            tokenizer (`PreTrainedTokenizerBase`, *optional*): Knows the ids of tokens.

        Raises:
            InfluenceError: If the model has no such class, or the measure does not suit the head.
        """
        return self


@dataclass(frozen=True)
class _ClassMeasure(Measure):
    """A measure of heads that choose one of several classes, at one place or at several."""

    def bound_to(self, model: nn.Module, head: Head, size: int, tokenizer: PreTrainedTokenizerBase | None) -> Self:
        config = without_adapters(model).config
        regression = config.problem_type in ("regression", "multi_label_classification") or config.num_labels == 1
        if regression and not (head.has_token_outputs or head.choices):
            raise InfluenceError(
                f"measure={self!r}: it is about one of several classes, and {type(model).__name__} does not choose "
                "among classes; give measure=None, which attributes the loss."
            )
        return self


@dataclass(frozen=True)
class Margin(_ClassMeasure):
    """log(p / (1 - p)), p being the probability of the label (Park et al., 2023, section 3.3).

    Where a query has several labels (tokens), it is the sum over them.
    """

    def values(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Compute the margin (B,) of each example."""
        logits, labels, labelled = _places(logits, labels)
        others = logits.scatter(-1, labels[..., None], -torch.inf).logsumexp(dim=-1)
        return ((_chosen(logits, labels) - others) * labelled).sum(dim=1)


@dataclass(frozen=True)
class _LabelMeasure(_ClassMeasure):
    """A measure of one class, or of the label of the query."""

    label: str | int | None = None

    def bound_to(self, model: nn.Module, head: Head, size: int, tokenizer: PreTrainedTokenizerBase | None) -> Self:
        super().bound_to(model, head, size, tokenizer)
        if self.label is None:
            return self
        return replace(self, label=_class_number(self, self.label, model, head, size, tokenizer))


@dataclass(frozen=True)
class Logit(_LabelMeasure):
    """The output of a class.

    Attributes:
        label (`str` or `int`, *optional*): The class, by its name in `model.config.label2id` or its number (for
            language models a token or its id). Unless given, it is the label of the query.

    Example:
        ```python
        trainer.find_influential(queries, measure=Logit("entailment"))
        ```
    """

    def values(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Compute the output (B,) of the class; the sum over places where an example has several labels."""
        logits, labels, labelled = _places(logits, labels)
        return (_chosen(logits, _instead(labels, self.label)) * labelled).sum(dim=1)


@dataclass(frozen=True)
class LogProbability(_LabelMeasure):
    """The log-probability of a class; for language models that of the whole completion.

    Attributes:
        label (`str` or `int`, *optional*): The class, by its name in `model.config.label2id` or its number (for
            language models a token or its id). Unless given, it is the label of the query.
    """

    def values(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Compute the log-probability (B,); the sum over places where an example has several labels."""
        logits, labels, labelled = _places(logits, labels)
        return (_chosen(logits.log_softmax(dim=-1), _instead(labels, self.label)) * labelled).sum(dim=1)


@dataclass(frozen=True)
class Contrast(_ClassMeasure):
    """Why this class rather than that one: the difference of their outputs, which is log(p / p').

    Attributes:
        label (`str` or `int`): The class, by its name or number (for language models a token or its id).
        rather_than (`str` or `int`): The class that it is compared with.

    Example:
        ```python
        trainer.find_influential(queries, measure=Contrast("entailment", "neutral"))
        ```
    """

    label: str | int
    rather_than: str | int

    def values(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Compute the difference (B,); the sum over places where an example has several labels."""
        logits, _, labelled = _places(logits, labels)
        return ((logits[..., self.label] - logits[..., self.rather_than]) * labelled).sum(dim=1)

    def bound_to(self, model: nn.Module, head: Head, size: int, tokenizer: PreTrainedTokenizerBase | None) -> Self:
        super().bound_to(model, head, size, tokenizer)
        first, second = (
            _class_number(self, label, model, head, size, tokenizer) for label in (self.label, self.rather_than)
        )
        if first == second:
            raise InfluenceError(f"measure={self!r}: both are the same class; give two different ones.")
        return replace(self, label=first, rather_than=second)


def _places(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return outputs (B, L, C), labels (B, L) and which places are labelled (B, L); L is 1 for one label."""
    if logits.ndim == 2:
        logits, labels = logits[:, None], labels.view(-1, 1)
    labelled = labels != IGNORED
    return logits, labels.masked_fill(~labelled, 0).long(), labelled


def _chosen(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the outputs (B, L) of the labels (B, L)."""
    return outputs.gather(-1, labels[..., None])[..., 0]


def _instead(labels: torch.Tensor, label: str | int | None) -> torch.Tensor:
    """Return the labels (B, L), or a class at every place."""
    return labels if label is None else torch.full_like(labels, label)


def _class_number(
    measure: Measure,
    label: str | int,
    model: nn.Module,
    head: Head,
    size: int,
    tokenizer: PreTrainedTokenizerBase | None,
) -> int:
    """Return the number of a class, by its name or number; for language models the id of a token, by its text.

    Raises:
        InfluenceError: If the model has no such class.
    """
    plain = without_adapters(model)
    if isinstance(head, SpanHead):
        raise InfluenceError(
            f"measure={measure!r}: {type(plain).__name__} chooses among the tokens of a text, and has no classes; "
            "give Margin(), Logit() or LogProbability(), which take the labels of the query."
        )
    if isinstance(label, str) and not head.choices:
        if isinstance(head, TokenHead) and not type(plain).__name__.endswith("ForTokenClassification"):
            return _token_id(measure, label, tokenizer)
        numbers = {str(name): number for name, number in (plain.config.label2id or {}).items()}
        if label not in numbers:
            raise InfluenceError(
                f"measure={measure!r}: the model's classes are {', '.join(numbers)}{did_you_mean(label, numbers)}."
            )
        return numbers[label]
    if not isinstance(label, int) or isinstance(label, bool) or not 0 <= label < size:
        raise InfluenceError(
            f"measure={measure!r}: the model's classes are 0 to {size - 1}; {label!r} is none of them."
        )
    return label


def _token_id(measure: Measure, text: str, tokenizer: PreTrainedTokenizerBase | None) -> int:
    """Return the id of the one token that a text consists of.

    Raises:
        InfluenceError: If there is no tokenizer, or the text is not one token.
    """
    if tokenizer is None:
        raise InfluenceError(f"measure={measure!r}: the trainer has no tokenizer to look {text!r} up; give token ids.")
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    if len(ids) != 1 or ids[0] == tokenizer.unk_token_id:
        raise InfluenceError(
            f"measure={measure!r}: {text!r} is {tokenizer.convert_ids_to_tokens(ids)} to the tokenizer, and must be "
            "one token of its vocabulary. Whole completions are contrasted by QuerySet(dataset, rather_than=other)."
        )
    return ids[0]


def measured_loss(measure: Measure, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Compute the stand-in for the loss (B,): the negated measure, of which less is better.

    Raises:
        InfluenceError: If the measure does not give one number an example.
    """
    values = measure.values(logits, labels)
    if values.shape != logits.shape[:1]:
        raise InfluenceError(
            f"measure={measure!r}: its values have the shape {tuple(values.shape)}; give one number an example, "
            f"({len(logits)},)."
        )
    return -values


def probe(measure: Measure, head: Head, size: int) -> str:
    """Return a digest of a measure's values on fixed outputs, which tells measures apart that are named alike.

    Args:
        measure (`Measure`): The measure, bound to the model.
        head (`Head`): The head whose outputs it takes.
        size (`int`): Outputs at a place.

    Raises:
        InfluenceError: If the measure is not a differentiable function of the outputs.
    """
    places = {TokenHead: (PROBED_PLACES,), SpanHead: (2,)}.get(type(head), ())
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(PROBED_EXAMPLES, *places, size, generator=random, dtype=torch.float64).requires_grad_()
    labels = torch.randint(size, (PROBED_EXAMPLES, *places), generator=random)
    values = measured_loss(measure, logits, labels)
    if not values.requires_grad:
        raise InfluenceError(
            f"measure={measure!r}: its values do not depend on the outputs by a differentiable function, so that no "
            "training example can have changed them; do without argmax, detach and comparisons."
        )
    return hexdigest(f"{value:.6g}" for value in values.tolist())
