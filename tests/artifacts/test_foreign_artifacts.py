"""What somebody else wrote is looked at before it is opened, and refused when it is not what it says."""

from __future__ import annotations

import json
import struct

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hub_tools import make_result

from hf_fastif import InfluenceIndex, InfluenceResult
from hf_fastif.artifacts.manifests import describe_files, read_manifest
from hf_fastif.curvature import KroneckerFactors


VECTORS = np.random.default_rng(0).standard_normal((6, 4), np.float32)
MANIFEST = {
    "model": "0123",
    "dataset": "4567",
    "model_name": "me/tiny",
    "base_model": None,
    "datasets": [],
    "versions": {},
    "inner_product": False,
    "factory": "Flat",
    "search": None,
    "rows": 6,
    "shard_size": 4,
}


@pytest.fixture
def folder(tmp_path):
    InfluenceIndex.write(tmp_path / "index", "pooled", faiss.IndexFlatL2(4), [VECTORS], MANIFEST, None)
    return tmp_path / "index"


@pytest.fixture
def saved(tmp_path):
    return make_result().save_to_disk(tmp_path / "result")


def rewrite(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def describe_anew(folder, manifest):
    """Makes the manifest fit what the files now are, as somebody with ill intent would."""
    files = json.loads((folder / manifest).read_text())["files"]
    rewrite(folder / manifest, files={n: files[n] | file for n, file in describe_files(folder, files).items()})


def test_an_index_is_what_was_written(folder):
    index = InfluenceIndex.load(folder)
    assert index.search(VECTORS, 1)[:, 0].tolist() == [0, 1, 2, 3, 4, 5]
    assert set(index.manifest["files"]) == {"shard-00000.faiss", "shard-00001.faiss"}
    assert index.manifest["files"]["shard-00000.faiss"]["size"] == (folder / "shard-00000.faiss").stat().st_size


@pytest.mark.parametrize("on_disk", [False, True])
@pytest.mark.parametrize("name", ["shard-00000.faiss", "shard-00001.faiss"])
def test_truncated_and_tampered_indexes_are_refused(folder, name, on_disk):
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole[:-3])
    with pytest.raises(ValueError, match=f"{name} has {len(whole) - 3} bytes; its manifest says {len(whole)} bytes"):
        InfluenceIndex.load(folder, on_disk)
    (folder / name).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ValueError, match=f"{name} is not the file that its manifest describes"):
        InfluenceIndex.load(folder, on_disk)
    (folder / name).unlink()
    with pytest.raises(ValueError, match="does not list the shards that are there"):
        InfluenceIndex.load(folder, on_disk)


@pytest.mark.parametrize("on_disk", [False, True])
def test_lengths_beyond_the_file_are_not_allocated(folder, on_disk):
    path = folder / "shard-00000.faiss"
    data = bytearray(path.read_bytes())
    assert struct.unpack_from("<q", data, 8) == (4,) and struct.unpack_from("<Q", data, 37) == (16,)
    struct.pack_into("<q", data, 8, 1 << 35)  # vectors
    struct.pack_into("<Q", data, 37, 1 << 37)  # numbers in them
    path.write_bytes(data)
    describe_anew(folder, "manifest.json")
    limit = faiss.get_deserialization_vector_byte_limit()
    with pytest.raises(ValueError, match=r"shard-00000.faiss cannot be read"):
        InfluenceIndex.load(folder, on_disk)
    assert faiss.get_deserialization_vector_byte_limit() == limit


def test_lists_on_disk_are_looked_for_beside_the_index_alone(folder, tmp_path):
    secret = tmp_path / "elsewhere" / "secret.bin"
    secret.parent.mkdir()
    index = faiss.index_factory(4, "IVF1,Flat")
    index.train(VECTORS)
    lists = faiss.OnDiskInvertedLists(1, index.code_size, str(secret))
    index.replace_invlists(lists)
    index.add(VECTORS[:4])
    faiss.write_index(index, str(folder / "shard-00000.faiss"))
    assert secret.stat().st_size and str(secret).encode() in (folder / "shard-00000.faiss").read_bytes()
    describe_anew(folder, "manifest.json")
    with pytest.raises(ValueError, match=rf"{folder}/secret.bin.*No such file"):
        InfluenceIndex.load(folder)


def test_manifests_that_lie_are_refused(folder, tmp_path):
    described = json.loads((folder / "manifest.json").read_text())["files"]
    for name in ("../secret", "/etc/hosts", "a/b", "..", "C:\\x", ".hidden", ""):
        rewrite(folder / "manifest.json", files=described | {name: {"size": 1, "sha256": "0" * 64}})
        with pytest.raises(ValueError, match="names the file .* are next to its manifest"):
            InfluenceIndex.load(folder)
    for entry in (
        None,
        {"size": "1", "sha256": "0" * 64},
        {"size": -1, "sha256": "0" * 64},
        {"size": 1, "sha256": ""},
    ):
        rewrite(folder / "manifest.json", files=described | {"sketches.safetensors": entry})
        with pytest.raises(ValueError, match="does not give size and sha256 of the file 'sketches.safetensors'"):
            InfluenceIndex.load(folder)
    rewrite(folder / "manifest.json", files=described, rows=7)
    with pytest.raises(ValueError, match="holds 6 vectors; its manifest says 7"):
        InfluenceIndex.load(folder)
    rewrite(folder / "manifest.json", rows="6", search=None)
    with pytest.raises(ValueError, match="of the wrong type: rows"):
        InfluenceIndex.load(folder)
    (folder / "manifest.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match="is not JSON"):
        read_manifest(folder / "manifest.json")


def test_a_shard_that_nobody_listed_is_refused(folder):
    (folder / "shard-00002.faiss").write_bytes((folder / "shard-00001.faiss").read_bytes())
    with pytest.raises(ValueError, match="does not list the shards that are there"):
        InfluenceIndex.load(folder)


def test_sketches_that_are_none_are_refused(folder):
    (folder / "sketches.safetensors").write_bytes(struct.pack("<Q", 1 << 40) + b"{}")
    rewrite(
        folder / "manifest.json",
        files=describe_files(folder, [p.name for p in folder.iterdir() if p.suffix != ".json"]),
    )
    with pytest.raises(ValueError, match=r"sketches.safetensors cannot be read \(.*\); it is damaged"):
        InfluenceIndex.load(folder)


@pytest.mark.parametrize("name", ["influences.parquet", "queries.parquet"])
def test_truncated_and_tampered_tables_are_refused(saved, name):
    whole = (saved / name).read_bytes()
    (saved / name).write_bytes(whole[:-9])
    with pytest.raises(
        ValueError, match=f"{name} has {len(whole) - 9:,} bytes; its manifest says {len(whole):,} bytes"
    ):
        InfluenceResult.load_from_disk(saved)
    (saved / name).write_bytes(whole.replace(b"training", b"TRAINING").replace(b"query", b"QUERY"))
    with pytest.raises(ValueError, match=f"{name} is not the file that its manifest describes"):
        InfluenceResult.load_from_disk(saved)
    (saved / name).write_bytes(b"no parquet")
    describe_anew(saved, "summary.json")
    with pytest.raises(ValueError, match=f"{name} cannot be read"):
        InfluenceResult.load_from_disk(saved)


def test_tables_of_another_kind_are_refused(saved):
    path = saved / "queries.parquet"
    whole = pq.read_table(path)
    image = {"info": {"features": {"picture": {"_type": "Image"}}}}
    table = pa.table({"picture": [{"bytes": None, "path": "/etc/hosts"}]})
    for strange, why in (
        (table.replace_schema_metadata({"huggingface": json.dumps(image)}), r"\['picture'\]"),
        (whole.drop_columns("loss"), r"the columns \['loss'\] are missing"),
        (pa.concat_tables([whole, whole]), "has 4 rows instead of 2,"),
    ):
        pq.write_table(strange, path)
        describe_anew(saved, "summary.json")
        with pytest.raises(ValueError, match=f"queries.parquet is not a table of a result: .*{why}"):
            InfluenceResult.load_from_disk(saved)
    rewrite(saved / "summary.json", files=describe_files(saved, ["queries.parquet"]))
    with pytest.raises(ValueError, match="summary.json lists the files queries.parquet instead of"):
        InfluenceResult.load_from_disk(saved)


def test_files_of_another_size_are_not_downloaded(hub):
    make_result().push_to_hub("me/influences")
    sizes = {name: len(data) for name, data in hub.files("me/influences").items()}
    hub.replace("me/influences", **{"queries.parquet": b"PAR1" * 1000})
    with pytest.raises(
        ValueError, match=f"queries.parquet has 4,000 bytes; the manifest says {sizes['queries.parquet']:,}"
    ):
        InfluenceResult.from_hub("me/influences")
    tampered = bytearray(hub.repositories["dataset", "me/influences"].files()["influences.parquet"])
    tampered[50] ^= 1
    make_result().push_to_hub("me/influences")
    hub.replace("me/influences", **{"influences.parquet": bytes(tampered)})
    with pytest.raises(ValueError, match="influences.parquet is not the file that its manifest describes"):
        InfluenceResult.from_hub("me/influences")
    summary = json.loads(hub.files("me/influences")["summary.json"])
    summary["files"]["../../README.md"] = {"size": 3, "sha256": "0" * 64}
    hub.replace("me/influences", **{"summary.json": json.dumps(summary).encode()})
    with pytest.raises(ValueError, match=r"names the file '../../README.md'"):
        InfluenceResult.from_hub("me/influences")
    hub.replace("me/influences", **{"summary.json": b" " * (17 << 20)})
    with pytest.raises(ValueError, match="summary.json has 17,825,792 bytes; a manifest has at most 16,777,216"):
        InfluenceResult.from_hub("me/influences")


def test_a_result_is_no_index_and_no_factors(hub, tmp_path):
    make_result().push_to_hub("me/influences")
    for load in (InfluenceIndex.from_pretrained, KroneckerFactors.from_pretrained):
        with pytest.raises(FileNotFoundError, match="'me/influences': the dataset repository does not have"):
            load("me/influences")
        with pytest.raises(FileNotFoundError, match="holds no"):
            load(tmp_path / "nowhere")
