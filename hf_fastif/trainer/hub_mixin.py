"""Publish and load models and EK-FAC factors, for `InfluenceTrainer`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Unpack

import pyarrow.parquet as pq
from huggingface_hub import CommitInfo, ModelCard
from transformers.utils import logging

from hf_fastif.artifacts import PushOptions, atomic_write, model_name, sources, versions
from hf_fastif.curvature import KroneckerFactors, fetch_factors, push_factors
from hf_fastif.errors import InfluenceError
from hf_fastif.index import MANIFEST
from hf_fastif.influence import folder_of
from hf_fastif.results import NUMBERS, SUMMARY, InfluenceResult
from hf_fastif.trainer.card import model_card


logger = logging.get_logger(__name__)


class HubMixin:
    """The methods of [`InfluenceTrainer`] that exchange models and EK-FAC factors with the Hub."""

    def push_factors_to_hub(self, repo_id: str, **options: Unpack[PushOptions]) -> CommitInfo | None:
        """Publish the EK-FAC factors of the model, at the first of `args.checkpoints`; `load_factors` loads them.

        Factors that are not yet in `output_dir/influence` are fitted first. They stay there, even if the push fails.

        Args:
            repo_id (`str`): The repository; created if it does not exist.
            **options: `private`, `revision` (a branch, created if needed), `create_pr`, `token` and `commit_message`,
                as in `huggingface_hub`.

        Returns:
            `huggingface_hub.CommitInfo`: The commit or pull request; None on all but the main process.

        Raises:
            NotAllowedError: If the token has no write access to the repository.

        Example:
            ```python
            trainer.push_factors_to_hub("me/demo-factors")
            ```
        """
        with self.session() as session, session.checkpoints.at(0):
            setup = session.setup()
            factors = setup.factors()
            provenance = {"model_name": model_name(self.model), **sources(self.model, self.train_dataset)}
            manifest = setup.factors_manifest | provenance | {"versions": versions()}
        if self.is_world_process_zero():
            return push_factors(factors, setup.factors_file, manifest, repo_id, **self._with_defaults(options))

    def load_factors(self, repo_id_or_path: str | Path, revision: str | None = None) -> KroneckerFactors:
        """Load EK-FAC factors from the Hub and use them instead of fitting new ones.

        Args:
            repo_id_or_path (`str` or `Path`): The id of a repository that `push_factors_to_hub` created, or a folder
                with its files.
            revision (`str`, *optional*): A branch, tag or commit of the repository.

        Returns:
            [`KroneckerFactors`]: The factors.

        Raises:
            NotFoundError: If there is no such folder or repository, or no factors in it.
            InfluenceError: If a file differs from its entry in the manifest, or the factors were fitted to another
                model or training set, or with other settings.

        Example:
            ```python
            trainer.load_factors("me/demo-factors")
            ```
        """
        with self.args.main_process_first(desc="the factors"):
            path, manifest = fetch_factors(repo_id_or_path, revision, self.args.hub_token)
        with self.session() as session, session.checkpoints.at(0):
            return session.setup().adopt_factors(path, manifest)

    def push_to_hub(self, *args: Any, include_text: bool = False, **kwargs: Any) -> Any:
        """Publish the model like `Trainer.push_to_hub`, together with the files in `output_dir/influence`.

        Args:
            *args: Arguments of `Trainer.push_to_hub`.
            include_text (`bool`, *optional*, defaults to `False`): Whether to publish files that contain texts of
                training examples.
            **kwargs: Arguments of `Trainer.push_to_hub`.

        Raises:
            InfluenceError: If a file contains texts and `include_text` is not set.

        Example:
            ```python
            trainer.push_to_hub(include_text=True)
            ```
        """
        texts = self._files_with_text()
        if texts and not include_text:
            raise InfluenceError(
                f"include_text=False: {', '.join(path.name for path in texts)} in {self._influence_folder} hold texts "
                "of training examples. Give include_text=True to publish them with the model, or remove them first "
                "with result.without_text().save_to_disk(folder)."
            )
        return super().push_to_hub(*args, **kwargs)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write the card of `Trainer.create_model_card`, with a section on the files in `output_dir/influence`.

        Example:
            ```python
            trainer.create_model_card(model_name="my-classifier")
            ```
        """
        super().create_model_card(*args, **kwargs)
        artifacts = _describe(self._influence_folder)
        if not artifacts or not self.is_world_process_zero():
            return
        folder, path = self._influence_folder, Path(self.args.output_dir) / "README.md"
        indexes = [name for name, _ in artifacts if name.startswith("indexes/")]
        card = model_card(
            ModelCard.load(path),
            repo_id=self.hub_model_id or self.args.hub_model_id or "owner/name",
            datasets=sources(self.model, self.train_dataset)["datasets"],
            artifacts=artifacts,
            index=next(iter(indexes), None),
            result=InfluenceResult.load_from_disk(folder) if (folder / SUMMARY).exists() else None,
            figure=(folder / "diagnosis.png").exists(),
            include_text=bool(self._files_with_text()),
        )
        atomic_write(path, card.save)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        # This also pushes all of output_dir, and there is no argument by which the user could agree to publish texts.
        if self._files_with_text():
            logger.warning_once(
                f"The checkpoint is not pushed because {self._influence_folder} holds texts of training examples; "
                "trainer.push_to_hub(include_text=True) publishes both."
            )
            return
        super()._push_from_checkpoint(checkpoint_folder)

    @property
    def _influence_folder(self) -> Path:
        return folder_of(self.args)

    def _files_with_text(self) -> list[Path]:
        """List the files of the influence folder that hold or display texts of examples."""
        tables = [path for path in sorted(self._influence_folder.rglob("*.parquet")) if _holds_text(path)]
        return tables + sorted(self._influence_folder.rglob("*.html"))

    def _with_defaults(self, options: PushOptions) -> PushOptions:
        return {"token": self.args.hub_token, "private": self.args.hub_private_repo} | options


def _holds_text(path: Path) -> bool:
    return not set(pq.read_schema(path).names) <= set(NUMBERS.get(path.name, ()))


def _describe(folder: Path) -> list[tuple[str, str]]:
    """List the paths and descriptions of the artifacts in `output_dir/influence`."""
    known = {
        SUMMARY: "settings of the result, and digests of its tables",
        "influences.parquet": "the strongest training examples of each query, helpful and harmful",
        "queries.parquet": "the queries, with prediction, loss and quality of s_test",
        "report.html": "an HTML report of the result",
        "ekfac.safetensors": "EK-FAC factors; reused if they are in `output_dir/influence`",
        "diagnosis.txt": "a diagnosis of curvature, damping and solver",
        "checkpoints": "the trained parameters at several steps of training",
    }
    indexes = sorted(path.parent.relative_to(folder).as_posix() for path in folder.glob(f"indexes/*/{MANIFEST}"))
    artifacts = [(name, "a FAISS index; `trainer.load_index(folder)` loads it") for name in indexes]
    return artifacts + [(name, what) for name, what in known.items() if (folder / name).exists()]
