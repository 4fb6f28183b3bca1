"""Tell what curvature, damping, solver and checkpoints of a model are like before influence is computed."""

from hf_fastif.diagnosis.diagnosis import Diagnosis, diagnose
from hf_fastif.diagnosis.label_noise import class_posterior
from hf_fastif.diagnosis.signals import CheckpointSignal, measure_checkpoint_signal


__all__ = ["CheckpointSignal", "Diagnosis", "class_posterior", "diagnose", "measure_checkpoint_signal"]
