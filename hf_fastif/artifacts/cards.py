"""Fill cards from templates, which are in `model_cards/` of the repository."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from huggingface_hub import DatasetCard, DatasetCardData


TEMPLATES = Path(__file__).parent / "templates"
LIBRARY = "hf_fastif"
TAGS = [LIBRARY, "influence-functions", "training-data-attribution"]
NOT_MEASURED = "Recall was not measured (`hf_fastif.analysis.recall` measures it)."


class CardSection(Protocol):
    """Anything that fills a section of a card and of a report, such as a diagnosis or a measurement of recall."""

    def plot(self, path: str | Path) -> Path:
        """Draw the section's figure into a file, in the format that the suffix names."""

    def __str__(self) -> str:
        """Return the section as lines of text."""


def dataset_card(
    template: str, known: dict[str, Any], configs: Sequence[str], tags: Sequence[str] = (), **values: Any
) -> DatasetCard:
    """Fill the card of a dataset repository.

    Args:
        template (`str`): File name of the template.
        known (`dict`): `base_model` and `datasets`, where these are on the Hub.
        configs (`Sequence[str]`): Names of the tables. `load_dataset` loads the first by default.
        tags (`Sequence[str]`): Tags in addition to those of every card.
        **values: The variables of the template.
    """
    data = DatasetCardData(
        pretty_name=values["repo_id"].split("/")[-1],
        library_name=LIBRARY,
        tags=[*TAGS, *tags],
        base_model=known.get("base_model"),
        datasets=known.get("datasets") or None,
        configs=[
            {"config_name": name, "data_files": [{"split": "train", "path": f"{name}.parquet"}]}
            | ({"default": True} if name == configs[0] else {})
            for name in configs
        ],
    )
    values |= {"limits": card_part("limits"), "citation": card_part("citation")}
    return DatasetCard.from_template(data, template_path=str(TEMPLATES / template), **values)


def card_part(name: str) -> str:
    """Read a part that cards share, such as `"limits"`."""
    return (TEMPLATES / f"_{name}.md").read_text("utf-8")


def about_recall(recall: CardSection) -> str:
    """Return the card section on measured recall."""
    return f"Recall, the share of the top m of a full scan that is among the k nearest:\n\n```text\n{recall}\n```"


def digest_cells(manifest: dict[str, Any]) -> dict[str, str]:
    """Return the table cells for the model, dataset and versions that an artifact belongs to."""
    return {
        "model_digest": manifest["model"],
        "dataset_digest": manifest["dataset"],
        "datasets": ", ".join(manifest["datasets"]) or "a dataset that is not on the Hub",
        "versions": ", ".join(f"{name} {number}" for name, number in manifest["versions"].items()),
    }


def cells(rows: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Escape texts so that each stays in its cell of a Markdown table, and shows as it is."""
    return [(name, re.sub(r"([\\|<*`])", r"\\\1", value).replace("\n", " ")) for name, value in rows]
