"""Declare the settings that all solvers share; each solver declares further ones in its own file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from hf_fastif.errors import InfluenceError
from hf_fastif.settings.fields import (
    AutoFloat,
    check_at_least_one,
    check_choice,
    is_number,
    positive_or_auto,
    setting,
)
from hf_fastif.settings.passes import PassSettings


CurvatureName = Literal["gauss_newton", "hessian"]
PreconditionerName = Literal["ekfac"]


@dataclass
class SolverSettings(PassSettings):
    """Add solver, curvature and damping to the settings of passes."""

    solver: str = setting("auto", "Name of a registered solver, or 'auto'.")
    curvature: CurvatureName = setting(
        "gauss_newton",
        "Matrix C of the mean training loss. The Hessian, which the paper uses, may be indefinite.",
    )
    damping: AutoFloat = setting(
        "auto",
        "Damping lambda, in units of the curvature of the mean training loss. 'auto' is 0.3 % of the largest "
        "eigenvalue (enough to outweigh a negative one), with solver='ekfac' 10 % of each layer's mean eigenvalue.",
    )
    weight_decay_in_damping: bool = setting(False, "Add the `weight_decay` of training to lambda.")
    preconditioner: PreconditionerName | None = setting(
        None, "Preconditioner of LiSSA and CG: EK-FAC divides the residual by an approximate curvature."
    )
    solver_tolerance: float | None = setting(
        None, "Stop when the residual of every query has fallen to this. None takes all steps (CG stops at 0.01)."
    )
    num_repeats: int = setting(
        1,
        "Number T of independent runs of SDCA or LiSSA to average. They are divided among the processes; two or more "
        "give a standard error.",
    )
    curvature_samples: int = setting(128, "Training examples for eigenvalues and the residual.")
    ekfac_samples: int = setting(
        4096,
        "Training examples to fit EK-FAC to. An index chooses its entries by at most 1,024 of them.",
    )

    def check(self) -> None:
        """Check values that do not depend on the solver, and turn text into numbers.

        Raises:
            InfluenceError: Naming the setting, its value and what to give instead.
        """
        check_choice("curvature", self.curvature, get_args(CurvatureName))
        check_choice("preconditioner", self.preconditioner, get_args(PreconditionerName), optional=True)
        self.damping = positive_or_auto("damping", self.damping, "Otherwise C + damping I is singular or indefinite.")
        check_at_least_one(
            num_repeats=self.num_repeats, curvature_samples=self.curvature_samples, ekfac_samples=self.ekfac_samples
        )
        tolerance = self.solver_tolerance
        if tolerance is not None and not (is_number(tolerance) and 0 < tolerance < 1):
            raise InfluenceError(f"solver_tolerance={tolerance!r}: give a number between 0 and 1, or None.")
