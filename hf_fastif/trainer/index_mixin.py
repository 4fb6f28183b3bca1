"""Build, search, load and publish indexes, for `InfluenceTrainer`."""

from __future__ import annotations

from pathlib import Path
from typing import Unpack

import numpy as np
from datasets import Dataset
from huggingface_hub import CommitInfo

from hf_fastif.artifacts import CardSection, PushOptions
from hf_fastif.data import without_indexes
from hf_fastif.index import InfluenceIndex, vectors_place
from hf_fastif.influence import QuerySet
from hf_fastif.model import Measure
from hf_fastif.solvers import Solution


class IndexMixin:
    """The methods of [`InfluenceTrainer`] that concern the index."""

    def build_index(
        self,
        dataset: Dataset | None = None,
        features: np.ndarray | str | None = None,
        add_to: InfluenceIndex | None = None,
    ) -> InfluenceIndex:
        """Build a FAISS index of `args.index_features`, write it to disk, and attach it to the dataset, in place.

        `find_influential` builds the same index by itself, without attaching it. `load_index` reads it back from
        `output_dir/influence/indexes`. If the same index is already there, it is reused unless `args.overwrite` is
        set. Some operations of `datasets` drop an index (`map`, `cast`,
        `add_column`) and others refuse datasets with one (`select`, `shuffle`, `filter`, `push_to_hub`); for these,
        `hf_fastif.data.without_indexes(dataset)` returns the same rows without it.

        Args:
            dataset (`datasets.Dataset`, *optional*): The candidates, by default `trainer.train_dataset`.
            features (`np.ndarray` of shape `(N, d)` or `str`, *optional*): Custom features, or the column that holds
                them, compared by L2 distance. `find_influential` then needs `query_features`.
            add_to ([`InfluenceIndex`], *optional*): An index of the first rows of the dataset. Only features of the
                remaining rows are computed.

        Returns:
            [`InfluenceIndex`]: The index.

        Raises:
            InfluenceError: If FAISS rejects `args.index_factory` or `args.index_search`, or `add_to` was built with
                another model or other rows.

        Example:
            ```python
            index = trainer.build_index()
            result = trainer.find_influential(dev.select([0]), num_neighbors=100)
            ```
        """
        with self.session() as session:
            pool = session.candidates(dataset, "dataset")
            if add_to is not None:
                rows = without_indexes(pool.dataset).select(range(min(len(add_to), len(pool.dataset))))
                add_to.check(session.belongs(session.examples(pool.name, rows)))
            index = session.indexes.build(pool, self.args.index_features, features, add_to)
        return self._attach(index, pool.dataset)

    def find_candidates(
        self,
        examples: Dataset | QuerySet,
        num_neighbors: int,
        candidates: Dataset | None = None,
        s_test: Solution | None = None,
        query_features: np.ndarray | None = None,
        measure: Measure | None = None,
    ) -> np.ndarray:
        """Return the rows (queries, k) that the index ranks highest for each query, best first.

        An index is built if there is none. Indexes of gradients alternate between helpful and harmful rows.
        `find_influential`, which takes the same arguments, scores the rows that this method returns.

        Raises:
            InfluenceError: If the attached index belongs to another model, loss or dataset.

        Example:
            ```python
            rows = trainer.find_candidates(dev.select([0]), num_neighbors=100)[0]
            ```
        """
        with self.session() as session:
            queries, pool = session.queries(examples, measure), session.candidates(candidates, k=num_neighbors)
            session.check_s_test(s_test, queries)
            search = session.search(queries, pool, num_neighbors, query_features)
            if search.query_features is not None:  # s_test is not needed
                return search(range(len(queries)), None)
            if s_test is None and search.index.sketches is not None and session.setup().name == "sketch":
                return session.sketched(queries, pool).search(range(len(queries)), num_neighbors)
            solution = self.compute_s_test(examples, measure) if s_test is None else s_test
            return search(range(len(queries)), solution.vectors)

    def load_index(
        self, repo_id_or_path: str | Path, dataset: Dataset | None = None, revision: str | None = None
    ) -> InfluenceIndex:
        """Load a saved index, and attach it to its dataset, in place.

        Args:
            repo_id_or_path (`str` or `Path`): A folder that `build_index` wrote, or the id of a repository that
                `push_index_to_hub` created.
            dataset (`datasets.Dataset`, *optional*): The indexed dataset, by default `trainer.train_dataset`.
            revision (`str`, *optional*): A branch, tag or commit of the repository.

        Returns:
            [`InfluenceIndex`]: The index.

        Raises:
            NotFoundError: If there is no such folder or repository, or no index in it.
            InfluenceError: If a file differs from its entry in the manifest, or the index belongs to another model,
                dataset or row order.

        Example:
            ```python
            index = trainer.load_index("me/demo-index")
            ```
        """
        token, place = self.args.hub_token, vectors_place(self.args, self.is_world_process_zero())
        with self.args.main_process_first(desc="the index"):  # one download per machine
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
        """Publish the index of a dataset; `load_index(repo_id)` loads it.

        Args:
            repo_id (`str`): The repository, as in `"me/mnli-index"`; created if it does not exist.
            dataset (`datasets.Dataset`, *optional*): The indexed dataset, by default `trainer.train_dataset`.
            include_text (`bool`, *optional*, defaults to `False`): Whether to publish the texts, labels and other
                plain columns of the dataset along with the row numbers.
            recall ([`Recall`], *optional*): The return value of `hf_fastif.analysis.recall`, for the card.
            **options: See [`InfluenceIndex.push_to_hub`].

        Returns:
            `huggingface_hub.CommitInfo`: The commit or pull request; None on all but the main process.

        Raises:
            NotAllowedError: If the token has no write access to the repository.
            InfluenceError: If model or rows changed after the attached index was built.

        Example:
            ```python
            trainer.push_index_to_hub("me/mnli-index", private=True)
            ```
        """
        with self.session() as session:
            pool = session.candidates(dataset, "dataset")
            index, dataset = session.index(pool, any_kind=True), pool.dataset
        if self.is_world_process_zero():
            return index.push_to_hub(repo_id, dataset, include_text, recall, **self._with_defaults(options))

    def _attach(self, index: InfluenceIndex, dataset: Dataset) -> InfluenceIndex:
        index.attach(dataset)
        self._cache.indexes[dataset._fingerprint] = index
        return index

    def _remove_unused_columns(self, dataset: Dataset, description: str | None = None) -> Dataset:
        # Every dataloader calls this, and operations of `datasets` fail on datasets with an index.
        if isinstance(dataset, Dataset):
            dataset = without_indexes(dataset)
        return super()._remove_unused_columns(dataset, description)
