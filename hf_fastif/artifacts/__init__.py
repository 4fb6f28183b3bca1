"""Write, read back, push and pull files: manifests, provenance, the Hub, generic card code."""

from hf_fastif.artifacts.cards import NOT_MEASURED, TAGS, TEMPLATES, CardSection
from hf_fastif.artifacts.download import fetch
from hf_fastif.artifacts.files import atomic_folder, atomic_write, is_disk_full, writing
from hf_fastif.artifacts.identity import differences, loss_identity, same_loss
from hf_fastif.artifacts.manifests import check_files, describe_files, read_manifest, reading
from hf_fastif.artifacts.provenance import model_name, sources, versions
from hf_fastif.artifacts.upload import PushOptions, push


__all__ = [
    "CardSection",
    "NOT_MEASURED",
    "PushOptions",
    "TAGS",
    "TEMPLATES",
    "atomic_folder",
    "atomic_write",
    "check_files",
    "describe_files",
    "differences",
    "fetch",
    "is_disk_full",
    "loss_identity",
    "model_name",
    "push",
    "read_manifest",
    "reading",
    "same_loss",
    "sources",
    "versions",
    "writing",
]
