"""Describe the `evaluate` modules of this folder.

This is a function rather than a base class because `evaluate.load(path)` takes the first metric class in a module.
"""

from __future__ import annotations

import datasets
import evaluate


FASTIF = """\
@inproceedings{guo-etal-2021-fastif,
    title = "{FastIF}: Scalable Influence Functions for Efficient Model Interpretation and Debugging",
    author = "Guo, Han and Rajani, Nazneen and Hase, Peter and Bansal, Mohit and Xiong, Caiming",
    booktitle = "Proceedings of EMNLP",
    year = "2021",
}
"""


def metric_info(description: str, inputs: str, citation: str, kind: str) -> evaluate.MetricInfo:
    """Return the description of a metric whose predictions and references are a list of numbers for each query.

    Args:
        description (`str`): What the metric measures.
        inputs (`str`): Its arguments and return values.
        citation (`str`): The BibTeX entry of its source.
        kind (`str`): Data type of the numbers, such as `"float64"`.
    """
    numbers = datasets.List(datasets.Value(kind))
    return evaluate.MetricInfo(
        description=description,
        citation=citation,
        inputs_description=inputs,
        features=datasets.Features({"predictions": numbers, "references": numbers}),
    )
