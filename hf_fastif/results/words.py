"""Numbers and words for the scores of a result: predicted changes of what is measured, or raw influences."""

from __future__ import annotations

import math
from dataclasses import dataclass

from hf_fastif.model import LOSS
from hf_fastif.results.summary import ResultSummary
from hf_fastif.scoring import ADDED, REMOVED, less_is_better, verbs_of


MINUS, ARROW = "\N{MINUS SIGN}", "\N{RIGHTWARDS ARROW}"
OPPOSITE = {"raise": "lower", "lower": "raise"}
ACTIONS = {REMOVED: "removing {}", ADDED: "adding {}", None: "giving {} more weight"}


@dataclass(frozen=True)
class ScoreWords:
    """How to show the scores of a result.

    Attributes:
        summary ([`ResultSummary`]): The summary of the result.
        minus (`str`): The minus sign.
        arrow (`str`): The arrow from a number to another.
    """

    summary: ResultSummary
    minus: str = "-"
    arrow: str = "->"

    @property
    def predicts(self) -> bool:
        """Whether scores are shown as predicted changes; otherwise they are raw influences."""
        return self.summary.change is not None

    @property
    def factor(self) -> float:
        """The number to show for an influence of 1."""
        return self.summary.change_per_influence or 1.0

    @property
    def subject(self) -> str:
        """What is measured, such as "the loss" or "Margin()"."""
        measure = self.summary.measure
        return f"the {measure}" if less_is_better(measure) else measure

    @property
    def short_subject(self) -> str:
        """What is measured, in words that fit into a figure whatever the measure."""
        return "the loss" if self.summary.measure == LOSS else "the measure"

    @property
    def verbs(self) -> dict[str, str]:
        """What `action` does to what is measured, by the direction of the example: "raise" or "lower" it."""
        verbs = verbs_of(self.summary.measure)
        return {name: OPPOSITE[verb] for name, verb in verbs.items()} if self.summary.change == REMOVED else verbs

    @property
    def signs(self) -> dict[str, str]:
        """The sign of the numbers of each direction."""
        if not self.predicts:
            return {"helpful": self.minus, "harmful": "+"}
        return {name: "+" if verb == "raise" else self.minus for name, verb in self.verbs.items()}

    @property
    def action(self) -> str:
        """What is done to a training example, such as "removing the training example"."""
        return ACTIONS[self.summary.change].format("the training example")

    @property
    def effects(self) -> dict[str, str]:
        """What examples do, by direction, for a heading: "removing one raises the loss", or "lower the loss"."""
        if not self.predicts:
            return {name: f"{verb} {self.subject}" for name, verb in self.verbs.items()}
        action = ACTIONS[self.summary.change].format("one")
        return {name: f"{action} {verb}s {self.subject}" for name, verb in self.verbs.items()}

    @property
    def noun(self) -> str:
        """What a number is, in a few words."""
        return f"predicted change of {self.short_subject} if {self.summary.change}" if self.predicts else "influence"

    @property
    def caption(self) -> str:
        """A sentence that says what a number is; for raw influences what their sign means."""
        if not self.predicts:
            return self.summary.sign
        done = f"{self.summary.change} {'from' if self.summary.change == REMOVED else 'to'}"
        return (
            f"A number is the predicted change of {self.subject} of the query if the example were {done} the "
            f"{self.summary.num_train:,} training examples and the model trained again."
        )

    def number(self, influence: float) -> str:
        """Format the number of an influence, with its sign."""
        return signed(self.factor * influence, self.minus)

    def consequence(self, before: float | None, influence: float) -> str | None:
        """Describe what is measured before and after the change, such as "without it: loss 2.68 -> 2.96".

        Args:
            before (`float`, *optional*): What is measured where influence was taken; None if unknown.
            influence (`float`): The influence of the example.

        Returns:
            `str`, *optional*: The words; None if there is no prediction, or no difference in four digits.
        """
        if not self.predicts or before is None:
            return None
        after = before + self.factor * influence
        below_zero = (
            self.summary.measure == LOSS and after < 0 <= before
        )  # no loss goes there; the prediction is linear
        both = ([plain(value, self.minus, digits) for value in (before, after)] for digits in (3, 4))
        first, second = next((texts for texts in both if texts[0] != texts[1]), (None, None))
        if first is None:
            return None
        preposition = "without" if self.summary.change == REMOVED else "with"
        return f"{preposition} it: {self.summary.measure} {first} {self.arrow} {'below 0' if below_zero else second}"

    def strength(self, percentile: float | None) -> str | None:
        """Describe a percentile, such as "stronger than 99.9 % of the training set"; None if it is unknown."""
        if percentile is None:
            return None
        summary = self.summary
        everything = summary.change == REMOVED and summary.num_candidates == summary.num_train
        return f"stronger than {_rounded_down(percentile)} % of the {'training set' if everything else 'candidates'}"


def signed(value: float, minus: str = "-", digits: int = 3) -> str:
    """Format a number with its sign and three (or so many) digits; two if it is tiny."""
    text = f"{abs(value):#.{digits}g}"
    return (minus if value < 0 else "+") + (f"{abs(value):.2g}" if "e-" in text else text.rstrip("."))


def plain(value: float, minus: str = "-", digits: int = 3) -> str:
    """Format a number like `signed`, without a plus."""
    return signed(value, minus, digits).removeprefix("+")


def _rounded_down(percentile: float) -> str:
    """Format a percentage, rounded down so that it never becomes 100."""
    digits = 2 if percentile > 99.905 else 1
    return f"{math.floor(percentile * 10**digits + 1e-3) / 10**digits:.{digits}f}"
