"""Curvature of the mean training loss: products of it with vectors, its spectrum, and its Kronecker factors."""

from hf_fastif.curvature.captures import Capture
from hf_fastif.curvature.gram import jacobian_gram
from hf_fastif.curvature.kronecker import KroneckerFactors, fit_kronecker_factors, layers_in_blocks
from hf_fastif.curvature.layers import Layer, captured_layers, covered_names, share_of
from hf_fastif.curvature.products import Curvature, GaussNewton, Hessian, mean_product
from hf_fastif.curvature.sample import CurvatureSample
from hf_fastif.curvature.spectrum import Spectrum


__all__ = [
    "Capture",
    "Curvature",
    "CurvatureSample",
    "GaussNewton",
    "Hessian",
    "KroneckerFactors",
    "Layer",
    "Spectrum",
    "captured_layers",
    "covered_names",
    "fit_kronecker_factors",
    "jacobian_gram",
    "layers_in_blocks",
    "mean_product",
    "share_of",
]
