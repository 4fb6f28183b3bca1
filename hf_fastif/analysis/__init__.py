"""What can be asked of a trainer beyond influence itself: functions from a trainer to a result."""

from hf_fastif.analysis.lds import Lds, SubsetLosses, lds, plot_lds, query_losses, retrain_on_subsets
from hf_fastif.analysis.recall import Recall, recall


__all__ = ["Lds", "Recall", "SubsetLosses", "lds", "plot_lds", "query_losses", "recall", "retrain_on_subsets"]
