"""Curvature of the mean training loss: products with vectors, spectrum, Kronecker factors."""

from hf_fastif.curvature.captures import Capture, capture_layers, loss_captures
from hf_fastif.curvature.directions import LossAndCurvature
from hf_fastif.curvature.factor_files import fetch_factors
from hf_fastif.curvature.gram import jacobian_gram
from hf_fastif.curvature.kronecker import Damping, KroneckerBlock, KroneckerFactors
from hf_fastif.curvature.kronecker_fit import KroneckerFit, blocked_layers, share_of_curvature
from hf_fastif.curvature.layers import (
    Layer,
    captured_layers,
    covered_names,
    layers_from_json,
    layers_to_json,
    share_of,
)
from hf_fastif.curvature.moments import SecondMoment
from hf_fastif.curvature.products import Curvature, GaussNewton, Hessian, mean_product
from hf_fastif.curvature.publish import push_factors
from hf_fastif.curvature.sample import CurvatureSample, squared_residual
from hf_fastif.curvature.sketch import PART_TENSORS, DirectionEntries, Entries, Part, Sketch, leading_entries, left_out
from hf_fastif.curvature.spectrum import RECOMMENDED_DAMPING, Spectrum


__all__ = [
    "Capture",
    "Curvature",
    "CurvatureSample",
    "Damping",
    "DirectionEntries",
    "Entries",
    "GaussNewton",
    "Hessian",
    "KroneckerBlock",
    "KroneckerFactors",
    "KroneckerFit",
    "Layer",
    "LossAndCurvature",
    "PART_TENSORS",
    "Part",
    "RECOMMENDED_DAMPING",
    "SecondMoment",
    "Sketch",
    "Spectrum",
    "blocked_layers",
    "capture_layers",
    "captured_layers",
    "covered_names",
    "fetch_factors",
    "jacobian_gram",
    "layers_from_json",
    "layers_to_json",
    "leading_entries",
    "left_out",
    "loss_captures",
    "mean_product",
    "push_factors",
    "share_of",
    "share_of_curvature",
    "squared_residual",
]
