"""What can be asked of a trainer beyond influence itself: functions from a trainer to a result."""

from hf_fastif.analysis.recall import Recall, recall


__all__ = ["Recall", "recall"]
