"""What a recipe does with what it found: prints, writes and publishes it."""

from __future__ import annotations

from dataclasses import dataclass, field

from huggingface_hub.utils import HFValidationError, validate_repo_id

from hf_fastif.analysis import AnalysisResult
from hf_fastif.config import InfluenceConfig
from hf_fastif.errors import InfluenceError
from hf_fastif.trainer import InfluenceTrainer


@dataclass
class ResultArguments:
    """Where a recipe publishes what it found."""

    result_repo_id: str | None = field(
        default=None,
        metadata={"help": "Dataset repository on the Hub to publish the result in, with its figure and a card."},
    )

    def __post_init__(self):
        if self.result_repo_id is None:
            return
        try:
            validate_repo_id(self.result_repo_id)
        except HFValidationError as error:
            raise InfluenceError(
                f"result_repo_id={self.result_repo_id!r}: give the id of a repository, such as 'me/recall'."
            ) from error


def report(
    found: AnalysisResult, name: str, trainer: InfluenceTrainer, config: InfluenceConfig, arguments: ResultArguments
) -> None:
    """Prints a result, writes it into `config.output_dir`, and publishes it if that is asked for.

    Only the main process does.

    Args:
        found ([`AnalysisResult`]): The result.
        name (`str`): Of its files.
        trainer ([`InfluenceTrainer`]): With which it was computed, for the card.
        config ([`InfluenceConfig`]): Of the recipe; its `hub_token` and `hub_private_repo` are those of the push.
        arguments ([`ResultArguments`]): Where to publish.
    """
    if not trainer.is_world_process_zero():
        return
    print(found)
    print(f"Result: {found.write(config.output_dir, name)}")
    if arguments.result_repo_id is not None:
        options = {"token": config.hub_token, "private": config.hub_private_repo}
        pushed = found.push_to_hub(arguments.result_repo_id, name, trainer, **options)
        print(f"Published: {pushed.commit_url}")
