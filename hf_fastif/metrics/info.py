"""What the `evaluate` modules of this folder tell about themselves.

A function and not a base class: `evaluate.load(path)` takes the first metric class that it finds in the module.
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
    """About a metric whose predictions and references are a list of numbers for each query.

    Args:
        description (`str`): What it measures.
        inputs (`str`): Its arguments and what it returns.
        citation (`str`): BibTeX.
        kind (`str`): Of the numbers, such as `"float64"`.
    """
    numbers = datasets.List(datasets.Value(kind))
    return evaluate.MetricInfo(
        description=description,
        citation=citation,
        inputs_description=inputs,
        features=datasets.Features({"predictions": numbers, "references": numbers}),
    )
