"""What `InfluenceTrainer` publishes and loads."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Unpack

import pyarrow.parquet as pq
from datasets import Dataset
from huggingface_hub import CommitInfo, ModelCard
from transformers.utils import logging

from hf_fastif.artifacts import CardSection, PushOptions, atomic_write, model_name, sources, versions
from hf_fastif.curvature import KroneckerFactors, fetch_factors, push_factors
from hf_fastif.errors import InfluenceError
from hf_fastif.index import MANIFEST, InfluenceIndex, check_index
from hf_fastif.influence import folder_of
from hf_fastif.results import NUMBERS, SUMMARY, InfluenceResult
from hf_fastif.trainer.card import model_card


logger = logging.get_logger(__name__)


class HubMixin:
    """Publishing and loading, for [`InfluenceTrainer`]."""

    def load_index(
        self, repo_id_or_path: str | Path, dataset: Dataset | None = None, revision: str | None = None
    ) -> InfluenceIndex:
        """Reads an index from a folder or from the Hub, and attaches it to its dataset, in place.

        Args:
            repo_id_or_path (`str` or `Path`): What `build_index` wrote, or where `push_index_to_hub` put it.
            dataset (`datasets.Dataset`, *optional*): `trainer.train_dataset` unless given.
            revision (`str`, *optional*): A branch, tag or commit of the repository.

        Raises:
            FileNotFoundError: If there is no such folder or repository, or no index in it.
            ValueError: If a file is not what the manifest says, or the index was made with another model, other rows,
                or another order of rows.
        """
        token, place = self.args.hub_token, self._index_place()
        with self.args.main_process_first(desc="the index"):  # downloads it for the others on its machine
            index = InfluenceIndex.from_pretrained(repo_id_or_path, revision, token, **place)
        with self.session() as session:
            name, dataset = session.named(dataset, "dataset")
            index.check(session.belongs(session.examples(name, dataset)))
        return self._attach(index, dataset)

    def push_index_to_hub(
        self,
        repo_id: str,
        dataset: Dataset | None = None,
        include_text: bool = False,
        recall: CardSection | None = None,
        **options: Unpack[PushOptions],
    ) -> CommitInfo | None:
        """Publishes the index of a dataset: see [`InfluenceIndex.push_to_hub`] for the arguments.

        `dataset` is `trainer.train_dataset` unless given. `load_index(repo_id)` reads the index back.

        Returns:
            `huggingface_hub.CommitInfo`: The commit, or the pull request; None except on the main process.

        Raises:
            PermissionError: If the token may not write there.
            ValueError: If the dataset has no index, or the model or the rows changed since it was built.
        """
        with self.session() as session:
            name, dataset = session.named(dataset, "dataset")
            belongs = session.belongs(session.examples(name, dataset))
            index = check_index(name, dataset, self._cache.indexes, belongs)
        if self.is_world_process_zero():
            return index.push_to_hub(repo_id, dataset, include_text, recall, **self._with_defaults(options))

    def push_factors_to_hub(self, repo_id: str, **options: Unpack[PushOptions]) -> CommitInfo | None:
        """Publishes the EK-FAC factors of the model, which are fitted unless they are in `output_dir/influence`.

        They are those of the first of `args.checkpoints`.

        The factors stay in `output_dir/influence`, also if the push fails.

        Args:
            repo_id (`str`): Where to. The repository is created if it is not there.
            **options: `private`, `revision` (a branch, created if needed), `create_pr`, `token` and `commit_message`,
                as in `huggingface_hub`.

        Returns:
            `huggingface_hub.CommitInfo`: The commit, or the pull request; None except on the main process.

        Raises:
            PermissionError: If the token may not write there.
        """
        with self.session() as session, session.checkpoints.at(0):
            setup = session.setup()
            factors = setup.factors()
            about = {"model_name": model_name(self.model), **sources(self.model, self.train_dataset)}
            manifest = setup.factors_manifest | about | {"versions": versions()}
        if self.is_world_process_zero():
            return push_factors(factors, setup.factors_file, manifest, repo_id, **self._with_defaults(options))

    def load_factors(self, repo_id_or_path: str | Path, revision: str | None = None) -> KroneckerFactors:
        """Takes over EK-FAC factors from the Hub, so that they need not be fitted.

        Args:
            repo_id_or_path (`str` or `Path`): Where `push_factors_to_hub` put them, or a download of it.
            revision (`str`, *optional*): A branch, tag or commit of the repository.

        Raises:
            FileNotFoundError: If there is no such repository, or no factors in it.
            ValueError: If a file is not what the manifest says, or the factors were fitted to another model or
                training set, or with other settings.
        """
        with self.args.main_process_first(desc="the factors"):
            path, found = fetch_factors(repo_id_or_path, revision, self.args.hub_token)
        with self.session() as session, session.checkpoints.at(0):
            return session.setup().adopt_factors(path, found)

    def push_to_hub(self, *args: Any, include_text: bool = False, **kwargs: Any) -> Any:
        """Publishes the model as `Trainer.push_to_hub` does, and with it what lies in `output_dir/influence`.

        Args:
            *args: Those of `Trainer.push_to_hub`.
            include_text (`bool`, *optional*, defaults to `False`): Whether results with texts of training examples
                may be among it.
            **kwargs: Those of `Trainer.push_to_hub`.

        Raises:
            ValueError: If there are texts and they were not asked for.
        """
        texts = self._files_with_text()
        if texts and not include_text:
            raise InfluenceError(
                f"include_text=False: {', '.join(path.name for path in texts)} in {self._influence_folder} hold texts "
                "of training examples. Give include_text=True to publish them with the model; or take them out first, "
                "as result.without_text().save_to_disk(folder) does."
            )
        return super().push_to_hub(*args, **kwargs)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Writes the card of `Trainer.create_model_card`, with a section about `output_dir/influence`."""
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
        # Pushes all of output_dir, too, and nobody has been asked about texts.
        if self._files_with_text():
            logger.warning_once(
                f"The checkpoint is not pushed, since {self._influence_folder} holds texts of training examples; "
                "trainer.push_to_hub(include_text=True) publishes both."
            )
            return
        super()._push_from_checkpoint(checkpoint_folder)

    def _index_place(self) -> dict[str, bool | int | None]:
        """Where this process has its indexes. Only the main process searches; the others leave them on disk."""
        main = self.is_world_process_zero()
        return {"on_disk": self.args.index_on_disk or not main, "device": self.args.index_device if main else None}

    @property
    def _influence_folder(self) -> Path:
        return folder_of(self.args)

    def _files_with_text(self) -> list[Path]:
        """Files of the influence folder that hold columns of examples, or show them."""
        tables = [path for path in sorted(self._influence_folder.rglob("*.parquet")) if _holds_text(path)]
        return tables + sorted(self._influence_folder.rglob("*.html"))

    def _with_defaults(self, options: PushOptions) -> PushOptions:
        return {"token": self.args.hub_token, "private": self.args.hub_private_repo} | options


def _holds_text(path: Path) -> bool:
    return not set(pq.read_schema(path).names) <= set(NUMBERS.get(path.name, ()))


def _describe(folder: Path) -> list[tuple[str, str]]:
    """The artifacts in `output_dir/influence`: paths, and what they are."""
    known = {
        SUMMARY: "settings of the result, and the digests of its tables",
        "influences.parquet": "the strongest training examples of each query, helpful and harmful",
        "queries.parquet": "the queries, with prediction, loss and the quality of s_test",
        "report.html": "the result to read",
        "ekfac.safetensors": "EK-FAC factors; used where they lie in `output_dir/influence`",
        "diagnosis.txt": "curvature, damping and solver, looked at",
        "checkpoints": "the trained parameters at moments of training",
    }
    indexes = sorted(path.parent.relative_to(folder).as_posix() for path in folder.glob(f"indexes/*/{MANIFEST}"))
    found = [(name, "a FAISS index; `trainer.load_index(folder)` reads it") for name in indexes]
    return found + [(name, what) for name, what in known.items() if (folder / name).exists()]
