"""Fill the section of a model card about influence."""

from __future__ import annotations

from collections.abc import Sequence

from huggingface_hub import ModelCard

from hf_fastif.artifacts import TAGS, TEMPLATES
from hf_fastif.artifacts.cards import card_part, cells
from hf_fastif.results import (
    InfluenceResult,
    about_damping,
    about_residual,
    settings_table,
)


def model_card(
    card: ModelCard,
    repo_id: str,
    datasets: Sequence[str],
    artifacts: Sequence[tuple[str, str]],
    index: str | None,
    result: InfluenceResult | None,
    figure: bool,
    include_text: bool,
) -> ModelCard:
    """Return the card of a model with a section on the contents of `influence/`.

    Args:
        card (`ModelCard`): As the `Trainer` wrote it.
        repo_id (`str`): Of the model.
        datasets (`Sequence[str]`): The ids of the training sets that are on the Hub.
        artifacts (`Sequence[tuple[str, str]]`): What there is: path and description.
        index (`str`, *optional*): The path of an index.
        result ([`InfluenceResult`], *optional*): The result.
        figure (`bool`): Whether there is a figure of a diagnosis.
        include_text (`bool`): Whether there are texts.
    """
    card.data.datasets = card.data.datasets or list(datasets) or None
    card.data.tags = list(dict.fromkeys([*(card.data.tags or []), *TAGS]))
    return ModelCard.from_template(
        card.data,
        template_path=str(TEMPLATES / "model.md"),
        training=card.text.strip(),
        repo_id=repo_id,
        artifacts=artifacts,
        index=index,
        settings=cells(settings_table(result)) if result else None,
        damping=about_damping(result.summary) if result else None,
        residual=about_residual(result) if result else None,
        figure=figure,
        include_text=include_text,
        limits=card_part("limits"),
        citation=card_part("citation"),
    )
