"""The solver that a configuration asks for, with what has to be fitted for it once."""

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
from hf_fastif.config import InfluenceConfig
from hf_fastif.curvature import (
    CurvatureSample,
    GaussNewton,
    Hessian,
    KroneckerFactors,
    Spectrum,
    fit_kronecker_factors,
    share_of,
)
from hf_fastif.data import ExampleBatches
from hf_fastif.errors import InfluenceError
from hf_fastif.execution import from_main
from hf_fastif.model import Objective, trained_part
from hf_fastif.solvers.base import Precondition, Solver
from hf_fastif.solvers.conjugate_gradient import ConjugateGradient
from hf_fastif.solvers.direct import Ekfac, Identity
from hf_fastif.solvers.exact import Exact, decompose
from hf_fastif.solvers.lissa import Lissa, batch_scale
from hf_fastif.solvers.sdca import DualAscent


logger = logging.get_logger(__name__)
LAYER_DAMPING = 0.1  # of a layer's mean eigenvalue
LEAST_DAMPING = 1e-3  # of what the mean over all parameters asks for: a layer may have no curvature at all
FEW_THRESHOLD = 0.5  # of the parameters in Kronecker blocks: less is worth a warning


class SolverSetup:
    """Curvature, damping and solver for one model and one training set.

    Eigenvalues, Kronecker factors and the like are fitted when they are first needed and stay in `kept` for as long
    as weights, training set and settings are the same. Kronecker factors are also written to a file and read from it.

    Args:
        args ([`InfluenceConfig`]): What is asked for.
        objective (`Objective`): The loss.
        examples (`ExampleBatches`): The training set.
        loss (`str`): What stands for the loss.
        accelerator (`Accelerator`): The processes.
        kept (`dict`): What earlier setups have fitted.
        factors_file (`Path`): For Kronecker factors.
    """

    def __init__(
        self,
        args: InfluenceConfig,
        objective: Objective,
        examples: ExampleBatches,
        loss: str,
        accelerator: Accelerator,
        kept: dict[tuple[Hashable, ...], Any],
        factors_file: Path,
    ):
        self.args = args
        self.objective = objective
        self.examples = examples
        self.loss = loss
        self.accelerator = accelerator
        self.kept = kept
        self.factors_file = factors_file
        self.curvature = GaussNewton(objective) if args.curvature == "gauss_newton" else Hessian(objective)
        self.sample = self._sample(args.curvature_samples, args.seed)

    @cached_property
    def name(self) -> str:
        """The solver, "auto" resolved."""
        if self.args.solver != "auto":
            return self.args.solver
        return "sdca" if self._rows_fit() else "lissa"

    @cached_property
    def spectrum(self) -> Spectrum:
        """Eigenvalues on a sample of the training set."""
        return self._once(("spectrum", self.args.curvature_samples), self.sample.spectrum)

    @cached_property
    def damping(self) -> float:
        """lambda."""
        return self.spectrum.damping(self.args.damping) + self._decay

    @cached_property
    def ekfac_damping(self) -> dict[str, float]:
        """lambda of each parameter where EK-FAC stands for C; "auto" is a tenth of its layer's mean eigenvalue.

        In EK-FAC's basis the curvature lies along far more directions than examples have, and a lambda of 1 % of the
        largest eigenvalue of C would swamp nearly all of them.
        """
        if self.args.damping != "auto":
            return dict.fromkeys(self.objective.theta, self.damping)
        means = self.factors().mean_eigenvalues()
        sizes = dict(zip(self.objective.theta, self.objective.space.sizes, strict=True))
        least = LEAST_DAMPING * sum(sizes[name] * mean for name, mean in means.items()) / self.objective.space.size
        if not least:
            self.spectrum.damping("auto")  # says that there is no curvature
        return {name: LAYER_DAMPING * max(means[name], least) + self._decay for name in sizes}

    @property
    def damps_by_layer(self) -> bool:
        """Whether each layer has a lambda of its own in the answer of the solver."""
        return self.name == "ekfac" and self.args.damping == "auto"

    @property
    def _decay(self) -> float:
        return self.args.weight_decay if self.args.weight_decay_in_damping else 0.0

    @property
    def lissa_batch_size(self) -> int:
        """B, at most the training set."""
        return min(self.args.lissa_batch_size, len(self.examples))

    @property
    def lissa_scale(self) -> float:
        """A step size at which LiSSA converges, unless one is given."""
        args, precondition = self.args, self._precondition()
        if args.lissa_scale != "auto":
            return args.lissa_scale
        size = self.lissa_batch_size
        return self._once(
            ("scale", size, self.damping, args.preconditioner),
            lambda: batch_scale(
                self.curvature, self.examples, size, args.seed, self.damping, self.accelerator, precondition
            ),
        )

    def solver(self) -> Solver:
        """The solver, ready.

        Raises:
            ValueError: If it does not work for this model or training set, naming one that does.
        """
        makers = {
            "sdca": self._sdca,
            "lissa": self._lissa,
            "cg": self._cg,
            "ekfac": self._ekfac,
            "identity": self._identity,
            "exact": self._exact,
        }
        return makers[self.name]()

    def describe(self) -> str:
        """The solver and its settings in a line."""
        args = self.args
        repeats = f", mean of T = {args.num_repeats} runs" if args.num_repeats > 1 else ""
        preconditioned = ", preconditioned by EK-FAC" if args.preconditioner else ""
        by_layer = ", each layer damped by a tenth of its mean eigenvalue" if self.damps_by_layer else ""
        return {
            "sdca": f"SDCA, at most {args.sdca_visits:,} examples visited{repeats}",
            "lissa": f"LiSSA, J = {args.lissa_depth:,} steps, B = {args.lissa_batch_size} examples a step, "
            f"T = {args.num_repeats} repeats{preconditioned}",
            "cg": f"conjugate gradient on {self._count(args.cg_samples):,} examples{preconditioned}",
            "ekfac": f"EK-FAC fitted to {self._count(args.ekfac_samples):,} examples{by_layer}",
            "identity": "none (product of gradients)",
            "exact": f"exact inverse for {len(self.examples):,} examples",
        }[self.name]

    def _identity(self) -> Solver:
        return Identity()

    def _ekfac(self) -> Solver:
        return Ekfac(self.factors(), self.objective.space, self.sample, self.ekfac_damping)

    def _exact(self) -> Solver:
        whole = self._sample(len(self.examples), self.args.seed)
        show = not self.args.disable_tqdm
        return Exact(self._once(("exact",), lambda: decompose(self.curvature, whole, show)), whole, self.damping)

    def _cg(self) -> Solver:
        args = self.args
        matrix = self._sample(args.cg_samples, args.seed + 1)  # not the sample that judges the answer
        return ConjugateGradient(
            matrix=matrix,
            sample=self.sample,
            damping=self.damping,
            max_steps=args.cg_steps,
            tolerance=0.01 if args.solver_tolerance is None else args.solver_tolerance,
            precondition=self._precondition(),
            show_progress=not args.disable_tqdm,
        )

    def _sdca(self) -> Solver:
        args = self.args
        if not self._rows_fit():
            raise InfluenceError(
                "solver='sdca': it holds the Jacobian rows of several examples, which takes trained parameters that "
                "are few enough and all in linear layers and norms (freeze embeddings with hf_fastif.freeze), and one "
                "prediction an example, not one a token; give solver='lissa' or 'cg'."
            )
        return DualAscent(
            curvature=self.curvature,
            examples=self.examples,
            sample=self.sample,
            damping=self.damping,
            visits=args.sdca_visits,
            batch_size=args.influence_batch_size,
            repeats=args.num_repeats,
            seed=args.seed,
            tolerance=args.solver_tolerance,
            accelerator=self.accelerator,
            show_progress=not args.disable_tqdm,
        )

    def _lissa(self) -> Solver:
        args = self.args
        return Lissa(
            curvature=self.curvature,
            examples=self.examples,
            sample=self.sample,
            damping=self.damping,
            scale=self.lissa_scale,
            adapts=args.lissa_scale == "auto",
            depth=args.lissa_depth,
            batch_size=self.lissa_batch_size,
            repeats=args.num_repeats,
            seed=args.seed,
            accelerator=self.accelerator,
            tolerance=args.solver_tolerance,
            precondition=self._precondition(),
            show_progress=not args.disable_tqdm,
        )

    def _rows_fit(self) -> bool:
        return isinstance(self.curvature, GaussNewton) and self.curvature.holds_rows(self.examples.take([0]))

    def _precondition(self) -> Precondition | None:
        if self.args.preconditioner is None:
            return None
        factors, damping = self.factors(), self.damping
        return lambda vectors: factors.solve(self.objective.space, vectors, damping)

    def factors(self) -> KroneckerFactors:
        """EK-FAC of the training loss, fitted or read."""
        return self._once(("ekfac", self.args.ekfac_samples), self._load_or_fit_factors)

    @cached_property
    def factors_manifest(self) -> dict[str, str]:
        """What Kronecker factors will not be used without."""
        args, seed = self.args, self.args.seed
        return {
            "trained": trained_part(self.objective.model),
            "model": self.objective.fingerprint,
            "dataset": self.examples.digest,
            "loss": self.loss,
            "settings": f"blocks=linear,norms samples={args.ekfac_samples} seed={seed} bf16={args.influence_bf16} "
            f"batch={args.influence_batch_size}",
        }

    def adopt_factors(self, path: Path, found: Mapping[str, Any]) -> KroneckerFactors:
        """Takes over factors that were fitted elsewhere.

        Args:
            path (`Path`): Their file.
            found (`Mapping`): Its manifest.

        Raises:
            ValueError: If they were fitted to another model or training set, or otherwise, naming both.
        """
        for what in differences(found, self.factors_manifest):
            raise InfluenceError(
                f"The EK-FAC factors were fitted with the {what} {found.get(what)}, and this is "
                f"{self.factors_manifest[what]}; do not load them, and EK-FAC is fitted here when it is needed."
            )
        if self.accelerator.is_main_process:
            self.factors_file.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(self.factors_file, lambda file: shutil.copyfile(path, file))
        self.accelerator.wait_for_everyone()
        for key in [key for key in self.kept if key[0] == "ekfac"]:
            del self.kept[key]
        return self.factors()

    def _load_or_fit_factors(self) -> KroneckerFactors:
        args, path, manifest = self.args, self.factors_file, self.factors_manifest
        if from_main(self._factors_fit, self.accelerator):
            return KroneckerFactors.load(path, manifest, self.accelerator.device)
        sample = self._sample(args.ekfac_samples, args.seed)
        show = not args.disable_tqdm
        factors = fit_kronecker_factors(
            GaussNewton(self.objective), self.examples, sample.batches, args.seed, self.accelerator, show
        )
        share = share_of([block.layer for block in factors.blocks], self.objective)
        (logger.info if share > FEW_THRESHOLD else logger.warning)(
            f"EK-FAC holds {share:.1%} of the trained parameters in blocks of linear layers and norms, and of the "
            "others a diagonal."
        )
        if self.accelerator.is_main_process:
            factors.save(path, manifest)
        return factors

    def _factors_fit(self) -> bool:
        """Whether there is a file of factors, and it is whole and belongs here."""
        if not self.factors_file.exists():
            return False
        try:
            found = KroneckerFactors.load(self.factors_file, self.factors_manifest, torch.device("cpu"))
        except ValueError as error:
            logger.warning(f"{error} EK-FAC is fitted anew.")
            return False
        if found is None:
            logger.warning(
                f"{self.factors_file} was fitted to another model, training set or setting; EK-FAC is fitted anew."
            )
        return found is not None

    def _sample(self, count: int, seed: int) -> CurvatureSample:
        size = self.args.influence_batch_size
        return CurvatureSample(self.curvature, self.examples, count, size, seed, self.accelerator)

    def _count(self, wanted: int) -> int:
        return min(wanted, len(self.examples))

    def _once(self, what: tuple[Hashable, ...], fit: Callable[[], Any]) -> Any:
        key = (*what, self.objective.fingerprint, self.examples.digest, self.loss, self.args.curvature, self.args.seed)
        if key not in self.kept:
            self.kept[key] = fit()
        return self.kept[key]
