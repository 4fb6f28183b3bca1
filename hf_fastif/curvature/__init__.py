"""Curvature of the mean training loss: products of it with vectors, and its extreme eigenvalues."""

from hf_fastif.curvature.products import Curvature, GaussNewton, Hessian, mean_product
from hf_fastif.curvature.sample import CurvatureSample, Spectrum


__all__ = ["Curvature", "CurvatureSample", "GaussNewton", "Hessian", "Spectrum", "mean_product"]
