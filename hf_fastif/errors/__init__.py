"""Errors that name argument, value and fix."""

from hf_fastif.errors.classes import (
    DiskFullError,
    InfluenceError,
    MissingExtraError,
    NoSuchQueryError,
    NotAllowedError,
    NotFoundError,
)
from hf_fastif.errors.extras import needs_extra
from hf_fastif.errors.suggestions import check_path, did_you_mean


__all__ = [
    "DiskFullError",
    "InfluenceError",
    "MissingExtraError",
    "NoSuchQueryError",
    "NotAllowedError",
    "NotFoundError",
    "check_path",
    "did_you_mean",
    "needs_extra",
]
