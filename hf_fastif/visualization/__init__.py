"""Results to look at: the page, the graph of queries and training examples, its figure and its tables."""

from hf_fastif.visualization.figure import plot_graph
from hf_fastif.visualization.graph import InfluenceGraph, influence_graph
from hf_fastif.visualization.tables import correlation_table, edge_table, save_tables


__all__ = ["InfluenceGraph", "correlation_table", "edge_table", "influence_graph", "plot_graph", "save_tables"]
