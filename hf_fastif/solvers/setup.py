"""Set up the chosen solver, and what all solvers share: curvature, damping, Kronecker factors."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Hashable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from transformers.utils import logging

from hf_fastif.artifacts import atomic_write, differences
from hf_fastif.curvature import (
    CurvatureSample,
    GaussNewton,
    Hessian,
    KroneckerBlock,
    KroneckerFactors,
    KroneckerFit,
    Layer,
    Sketch,
    Spectrum,
    blocked_layers,
    share_of,
)
from hf_fastif.data import ExampleBatches
from hf_fastif.errors import InfluenceError
from hf_fastif.execution import from_main
from hf_fastif.model import Objective, trained_part
from hf_fastif.settings import SolverSettings
from hf_fastif.solvers.base import Precondition, Solver
from hf_fastif.solvers.registry import AUTO, RegisteredSolver, find_solver
from hf_fastif.solvers.system import DampedSystem, rows_fit


logger = logging.get_logger(__name__)
INDEX_SAMPLES = 1024  # enough for the choice of entries, whose curvature is then that of all training examples
LAYER_DAMPING = 0.1  # of a layer's mean eigenvalue
LEAST_DAMPING = 1e-3  # of the mean eigenvalue over all parameters, since a layer may have no curvature at all
FEW_THRESHOLD = 0.5  # share of the parameters in Kronecker blocks below which a warning is logged
LEAST_SKETCHED = 0.1  # share of the parameters below which gradients are not sketched by default


class SolverSetup:
    """Curvature, damping and solver for one model and one training set.

    Eigenvalues, Kronecker factors and similar fits are computed when first needed, and stay in `fitted` while weights,
    training set and settings are unchanged. Kronecker factors are also cached in a file.

    Args:
        args ([`InfluenceConfig`]): The settings.
        objective (`Objective`): The loss.
        examples (`ExampleBatches`): The training set.
        loss (`str`): The identity of the loss.
        accelerator (`Accelerator`): The processes.
        fitted (`dict`): The fits of earlier setups; new fits are added.
        factors_file (`Path`): The file of the Kronecker factors.
        sketch (`Callable`): Returns the sketch of the index of the training set.
    """

    def __init__(
        self,
        args: SolverSettings,
        objective: Objective,
        examples: ExampleBatches,
        loss: str,
        accelerator: Accelerator,
        fitted: dict[tuple[Hashable, ...], Any],
        factors_file: Path,
        sketch: Callable[[], Sketch],
    ):
        self.args = args
        self.objective = objective
        self.examples = examples
        self.loss = loss
        self.accelerator = accelerator
        self.fitted = fitted
        self.factors_file = factors_file
        self.sketch = sketch
        self.curvature = GaussNewton(objective) if args.curvature == "gauss_newton" else Hessian(objective)
        self.sample = self.draw_sample(args.curvature_samples, args.seed)

    @cached_property
    def name(self) -> str:
        """Return the name of the solver, with "auto" resolved."""
        return self._automatic() if self.args.solver == AUTO else self.args.solver

    def _automatic(self) -> str:
        """Return "sketch" if the model's gradients can be sketched, else an iterative solver."""
        return "sketch" if self.can_sketch else self.iterative

    @cached_property
    def can_sketch(self) -> bool:
        """Whether the gradients of most parameters can be captured, and the curvature is a Gauss-Newton matrix."""
        objective = self.objective
        if not isinstance(self.curvature, GaussNewton) or objective.weight_decay:
            return False
        if objective.custom_loss is not None and objective.head.has_token_outputs:
            return False
        return share_of(self.layers, objective) > LEAST_SKETCHED

    @property
    def layers(self) -> list[Layer]:
        """The layers with a block of the Kronecker-factored curvature, from which gradients are sketched."""
        return self.fit_once(("layers",), lambda: blocked_layers(self.objective, self.examples.take([0])))

    @property
    def iterative(self) -> str:
        """The name of the iterative solver that suits the model: "sdca" where Jacobian rows fit into memory."""
        return "sdca" if rows_fit(self.curvature, self.examples) else "lissa"

    def solver(self) -> Solver:
        """Build the solver.

        Raises:
            InfluenceError: If it does not work for this model or training set, naming one that does.
        """
        return self._registered.build(self, self._registered.read_settings(self.args))

    def describe(self) -> str:
        """Describe the solver and its settings in a line."""
        return self._registered.describe(self, self._registered.read_settings(self.args))

    @property
    def _registered(self) -> RegisteredSolver:
        return find_solver(self.name)

    @cached_property
    def system(self) -> DampedSystem:
        """Return the system that iterative solvers solve."""
        return self.system_damped_by(self.damping)

    def system_damped_by(self, damping: float) -> DampedSystem:
        """Return the system with a given lambda."""
        show, seed = not self.args.disable_tqdm, self.args.seed
        return DampedSystem(self.curvature, self.examples, self.sample, damping, self.accelerator, seed, show)

    @cached_property
    def spectrum(self) -> Spectrum:
        """Return the eigenvalues: in the sketch, for the solver that uses it, or on a sample of the training set."""
        if self.name == "sketch":
            return _spectrum_of(self.sketch())
        return self.fit_once(("spectrum", self.args.curvature_samples), self.sample.spectrum)

    @cached_property
    def damping(self) -> float:
        """Return lambda, in units of the curvature of the mean training loss."""
        return self.spectrum.damping(self.args.damping) + self._decay

    def damping_in(self, sketch: Sketch) -> float:
        """Return lambda for the solver that uses a sketch, at any checkpoint."""
        return _spectrum_of(sketch).damping(self.args.damping) + self._decay

    @cached_property
    def ekfac_damping(self) -> dict[str, float]:
        """Return lambda for each parameter, by name, when EK-FAC replaces C.

        "auto" is a tenth of the mean eigenvalue of the parameter's layer. EK-FAC spreads the curvature over far more
        directions than the examples span, and 1 % of the largest eigenvalue of C would dominate nearly all of them.
        """
        if self.args.damping != "auto":
            return dict.fromkeys(self.objective.theta, self.damping)
        means = self.factors().mean_eigenvalues()
        sizes = dict(zip(self.objective.theta, self.objective.space.sizes, strict=True))
        least = LEAST_DAMPING * sum(sizes[name] * mean for name, mean in means.items()) / self.objective.space.size
        if not least:
            self.spectrum.damping("auto")  # raises an error: there is no curvature
        return {name: LAYER_DAMPING * max(means[name], least) + self._decay for name in sizes}

    @property
    def damps_by_layer(self) -> bool:
        """Return whether the solver uses a separate lambda for each layer."""
        return self._registered.damps_by_layer and self.args.damping == "auto"

    @property
    def has_one_damping(self) -> bool:
        """Return whether the solver adds one lambda to C, which compares with its largest eigenvalue."""
        return self._registered.uses_curvature and not self.damps_by_layer

    @property
    def _decay(self) -> float:
        return self.args.weight_decay if self.args.weight_decay_in_damping else 0.0

    def preconditioner(self) -> Precondition | None:
        """Return the approximate inverse of C + lambda I that `args.preconditioner` names, if it names one."""
        if self.args.preconditioner is None:
            return None
        factors, damping = self.factors(), self.damping
        return lambda vectors: factors.solve(self.objective.space, vectors, damping)

    @property
    def preconditioned_by(self) -> str:
        """Return a phrase that names the preconditioner, for the end of a description."""
        return ", preconditioned by EK-FAC" if self.args.preconditioner else ""

    def draw_sample(self, count: int, seed: int) -> CurvatureSample:
        """Return a sample of the training set of `count` examples, or all of them if there are fewer."""
        size = self.args.influence_batch_size
        return CurvatureSample(self.curvature, self.examples, count, size, seed, self.accelerator)

    def at_most(self, count: int) -> int:
        """Return `count`, or the number of training examples if that is smaller."""
        return min(count, len(self.examples))

    def fit_once(self, key: tuple[Hashable, ...], fit: Callable[[], Any]) -> Any:
        """Return what `fit` returns, computed once for the same key, weights, training set, loss, curvature, seed."""
        key = (*key, self.objective.fingerprint, self.examples.digest, self.loss, self.args.curvature, self.args.seed)
        if key not in self.fitted:
            self.fitted[key] = fit()
        return self.fitted[key]

    def factors(self) -> KroneckerFactors:
        """Return EK-FAC of the training loss, read from the file if it fits, else fitted."""
        return self.fit_once(("ekfac", self.args.ekfac_samples), self._load_or_fit_factors)

    def kronecker_bases(self) -> list[KroneckerBlock]:
        """Return bases for an index, with the eigenvalues of Kronecker products, which take half the passes."""
        return self._kronecker_fit(self.index_samples).bases()

    @property
    def index_samples(self) -> int:
        """The number of training examples by which an index chooses its entries."""
        return self.at_most(min(self.args.ekfac_samples, INDEX_SAMPLES))

    def _kronecker_fit(self, count: int) -> KroneckerFit:
        args = self.args
        batches = self.draw_sample(count, args.seed).batches
        curvature, show = GaussNewton(self.objective), not args.disable_tqdm
        return KroneckerFit(curvature, self.examples, batches, args.seed, self.accelerator, show)

    @cached_property
    def factors_manifest(self) -> dict[str, str]:
        """Return what must be the same for saved Kronecker factors to be used."""
        args, seed = self.args, self.args.seed
        return {
            "trained": trained_part(self.objective.model),
            "model": self.objective.fingerprint,
            "dataset": self.examples.digest,
            "loss": self.loss,
            "settings": f"blocks=linear,embeddings,tied,norms samples={args.ekfac_samples} seed={seed} "
            f"bf16={args.influence_bf16}",
        }

    def adopt_factors(self, path: Path, manifest: Mapping[str, Any]) -> KroneckerFactors:
        """Adopt factors that were fitted elsewhere.

        Args:
            path (`Path`): The file of the factors.
            manifest (`Mapping`): Its manifest.

        Raises:
            InfluenceError: If they were fitted to another model or training set, or with other settings; the message
                names both.
        """
        for what in differences(manifest, self.factors_manifest):
            raise InfluenceError(
                f"The EK-FAC factors were fitted with the {what} {manifest.get(what)}, and this is "
                f"{self.factors_manifest[what]}; if they are not loaded, EK-FAC is fitted when it is needed."
            )
        if self.accelerator.is_main_process:
            self.factors_file.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(self.factors_file, lambda file: shutil.copyfile(path, file))
        self.accelerator.wait_for_everyone()
        for key in [key for key in self.fitted if key[0] == "ekfac"]:
            del self.fitted[key]
        return self.factors()

    def _load_or_fit_factors(self) -> KroneckerFactors:
        path, manifest = self.factors_file, self.factors_manifest
        if from_main(self._factors_fit, self.accelerator):
            return KroneckerFactors.load(path, manifest, self.accelerator.device)
        fit = self._kronecker_fit(self.args.ekfac_samples)
        factors = fit.factors(fit.bases())
        share = share_of([block.layer for block in factors.blocks], self.objective)
        (logger.info if share > FEW_THRESHOLD else logger.warning)(
            f"EK-FAC has Kronecker blocks for {share:.1%} of the trained parameters (linear layers, embeddings and "
            "norms), and a diagonal for the others."
        )
        if self.accelerator.is_main_process:
            factors.save(path, manifest)
        return factors

    def _factors_fit(self) -> bool:
        """Return whether the file of factors exists, is intact and matches the manifest."""
        if not self.factors_file.exists():
            return False
        try:
            factors = KroneckerFactors.load(self.factors_file, self.factors_manifest, torch.device("cpu"))
        except ValueError as error:
            logger.warning(f"{error} EK-FAC is fitted again.")
            return False
        if factors is None:
            logger.warning(
                f"{self.factors_file} was fitted to another model, training set or setting; EK-FAC is fitted again."
            )
        return factors is not None


def _spectrum_of(sketch: Sketch) -> Spectrum:
    return Spectrum(sketch.eigenvalues.double().cpu().numpy(), whole=False)
