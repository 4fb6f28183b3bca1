"""The face of the library: a `Trainer` that computes influence."""

from hf_fastif.trainer.trainer import InfluenceMixin, InfluenceTrainer


__all__ = ["InfluenceMixin", "InfluenceTrainer"]
