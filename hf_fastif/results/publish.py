"""Publish a result, and its report as a Space."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Unpack

from huggingface_hub import CommitInfo, DatasetCard, RepoCard

from hf_fastif.artifacts import CardSection, PushOptions, push
from hf_fastif.artifacts.plots import try_to_draw
from hf_fastif.artifacts.upload import files_in
from hf_fastif.results.card import result_card, space_card
from hf_fastif.results.figures import plot_influences
from hf_fastif.results.report.page import write_report
from hf_fastif.results.tables import NUMBERS, SUMMARY, ResultTables


def push_result(
    result: ResultTables,
    repo_id: str,
    include_text: bool,
    diagnosis: CardSection | None,
    recall: CardSection | None,
    **options: Unpack[PushOptions],
) -> CommitInfo:
    """Publish a result; see `InfluenceResult.push_to_hub`."""
    shared = result if include_text else result.without_text()

    def stage(folder: Path, repo_id: str) -> tuple[DatasetCard, dict[str, Path]]:
        shared.save_to_disk(folder)
        write_report(shared, folder / "report.html", diagnosis=diagnosis)
        (folder / "figures").mkdir()
        plots = {"influences": partial(plot_influences, shared)}
        plots |= {name: it.plot for name, it in (("diagnosis", diagnosis), ("recall", recall)) if it is not None}
        figures = [
            name for name, plot in plots.items() if try_to_draw(partial(plot, folder / "figures" / f"{name}.png"))
        ]
        return result_card(shared, repo_id, include_text, diagnosis, recall, figures), files_in(folder)

    return push(repo_id, "dataset", stage, [SUMMARY, *NUMBERS, "report.html", "figures/*"], **options)


def push_report(
    result: ResultTables, repo_id: str, include_text: bool, title: str, **options: Unpack[PushOptions]
) -> CommitInfo:
    """Publish a report as a static Space; see `InfluenceResult.push_report_to_hub`."""
    shared = result if include_text else result.without_text()

    def stage(folder: Path, repo_id: str) -> tuple[RepoCard, dict[str, Path]]:
        return space_card(shared, title, include_text), {
            "index.html": write_report(shared, folder / "index.html", title)
        }

    return push(repo_id, "space", stage, ["index.html"], **options)
