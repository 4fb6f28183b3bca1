"""Write an index: fill FAISS with the features of a dataset, block by block."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from hf_fastif.artifacts import versions
from hf_fastif.config import InfluenceConfig
from hf_fastif.data import hexdigest
from hf_fastif.execution import from_main
from hf_fastif.index.influence_index import InfluenceIndex
from hf_fastif.index.store import made_index, train_index
from hf_fastif.index.vectors import Vectors, training_sample


def index_manifest(
    args: InfluenceConfig, kind: str, rows: int, train_dataset: str, given: Any, belongs: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what an index depends on, besides its own numbers.

    Args:
        args ([`InfluenceConfig`]): The settings.
        kind (`str`): The kind of features.
        rows (`int`): Number of examples.
        train_dataset (`str`): The digest of the training set, to which sketches are fitted.
        given (`np.ndarray`, *optional*): The features that the user supplied.
        belongs (`Mapping`): Digests of the model, dataset and loss that the index is valid for, and their provenance.
    """
    fit = None
    if kind == "gradient_sketch":
        fit = (
            f"directions={args.index_size} entries={args.sketch_size} blocks=linear,embeddings,tied,norms "
            f"ekfac_samples={args.ekfac_samples} seed={args.seed} bf16={args.influence_bf16} "
            f"train_dataset={train_dataset}"
        )
    return {
        **belongs,
        "inner_product": kind == "gradient_sketch",
        "factory": args.index_factory,
        "search": args.index_search,
        "shard_size": args.index_shard_size,
        "rows": rows,
        "fit": fit if given is None else hexdigest([given]),
        "versions": versions(),
    }


def write_index(
    folder: Path,
    name: str,
    vectors: Vectors,
    manifest: Mapping[str, Any],
    accelerator: Accelerator,
    seed: int,
    add_to: InfluenceIndex | None = None,
) -> None:
    """Compute the features of all examples and write their index; only the main process writes.

    Args:
        folder (`Path`): The folder of the index.
        name (`str`): The kind of features.
        vectors ([`Vectors`]): The features.
        manifest (`Mapping`): The return value of `index_manifest`.
        accelerator (`Accelerator`): The processes.
        seed (`int`): The seed of the sample that FAISS is trained on.
        add_to ([`InfluenceIndex`], *optional*): An index of the first rows, whose vectors are reused.

    Raises:
        InfluenceError: If FAISS rejects the factory or search string, or needs more vectors for training.
    """
    first = 0 if add_to is None else len(add_to)
    if add_to is None:
        factory = manifest["factory"]
        empty = made_index(vectors.width, factory, vectors.inner_product, manifest["search"])
        if not empty.is_trained:
            sample = training_sample(vectors, seed)
            from_main(lambda: train_index(empty, factory, sample), accelerator)
    else:
        empty = add_to.emptied() if accelerator.is_main_process else None
        manifest = dict(manifest) | {setting: add_to.manifest[setting] for setting in ("factory", "search")}
    blocks = vectors.blocks(first)
    if accelerator.is_main_process:
        InfluenceIndex.write(folder, name, empty, blocks, manifest, vectors.sketches, add_to)
    else:
        for _ in blocks:
            pass
    accelerator.wait_for_everyone()


def vectors_place(args: InfluenceConfig, is_main: bool) -> dict[str, bool | int | None]:
    """Return where a process keeps vectors: on disk, except for the main process, which searches."""
    return {"on_disk": args.index_on_disk or not is_main, "device": args.index_device if is_main else None}
