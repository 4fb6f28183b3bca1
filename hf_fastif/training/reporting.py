"""Print, write and publish the result of a recipe."""

from __future__ import annotations

from dataclasses import dataclass, field

from huggingface_hub.utils import HFValidationError, validate_repo_id

from hf_fastif.analysis import AnalysisResult
from hf_fastif.config import InfluenceConfig
from hf_fastif.errors import InfluenceError
from hf_fastif.trainer import InfluenceTrainer


@dataclass
class ResultArguments:
    """Repository that a recipe publishes its result in."""

    result_repo_id: str | None = field(
        default=None,
        metadata={"help": "Dataset repository on the Hub to publish the result in, with figure and card."},
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
    result: AnalysisResult, name: str, trainer: InfluenceTrainer, config: InfluenceConfig, arguments: ResultArguments
) -> None:
    """Print a result, write it into `config.output_dir`, and publish it if `arguments` name a repository.

    Only the main process does so.

    Args:
        result ([`AnalysisResult`]): The result.
        name (`str`): The name of its files.
        trainer ([`InfluenceTrainer`]): The trainer that computed it, for the card.
        config ([`InfluenceConfig`]): The settings of the recipe; `hub_token` and `hub_private_repo` serve the push.
        arguments ([`ResultArguments`]): Where to publish.
    """
    if not trainer.is_world_process_zero():
        return
    print(result)
    print(f"Result: {result.write(config.output_dir, name)}")
    if arguments.result_repo_id is not None:
        options = {"token": config.hub_token, "private": config.hub_private_repo}
        pushed = result.push_to_hub(arguments.result_repo_id, name, trainer, **options)
        print(f"Published: {pushed.commit_url}")
