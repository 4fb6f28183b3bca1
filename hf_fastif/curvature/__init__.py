"""Curvature of the mean training loss: products of it with vectors, and its extreme eigenvalues."""

from hf_fastif.curvature.products import Curvature, GaussNewton, Hessian
from hf_fastif.curvature.sample import CurvatureSample, Spectrum


__all__ = ["Curvature", "CurvatureSample", "GaussNewton", "Hessian", "Spectrum"]
