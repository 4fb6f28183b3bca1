"""`InfluenceConfig`: `TrainingArguments` with the settings of influence."""

from __future__ import annotations

from dataclasses import MISSING, dataclass, fields
from textwrap import fill, indent
from typing import TYPE_CHECKING, Any

from transformers import TrainingArguments

from hf_fastif.errors import InfluenceError
from hf_fastif.settings import CheckpointSettings, IndexSettings, LossSettings, PassSettings, SolverSettings, setting
from hf_fastif.solvers import check_solvers, registered_solvers, solver_flags


if TYPE_CHECKING:
    SolverFlags = SolverSettings
else:  # with the flags of each solver, such as lissa_depth
    SolverFlags = solver_flags()

GROUPS = (CheckpointSettings, IndexSettings, LossSettings, PassSettings, SolverSettings)
# The authors' settings for MultiNLI. Their recursion h <- v + (1 - damp) h - H h / scale with damp = 5e-3 and scale =
# 1e4 solves (H + damp * scale I) x = v.
FASTIF = {
    "checkpoints": ["final"],
    "solver": "lissa",
    "curvature": "hessian",
    "damping": 50.0,
    "lissa_scale": 1e4,
    "lissa_depth": 1000,
    "lissa_batch_size": 1,
    "num_repeats": 1,
    "loss_weight_decay": 0.005,
    "num_neighbors": 1000,
    "index_features": "pooled",
}


SOLVERS = " ".join(f"{solver.name!r}: {solver.help}." for solver in registered_solvers())


@dataclass
class InfluenceConfig(CheckpointSettings, IndexSettings, LossSettings, SolverFlags):
    """Settings of [`InfluenceTrainer`]: those of `transformers.TrainingArguments`, and the following."""

    solver: str = setting(
        "auto",
        f"Solver of s_test = (C + lambda I)^-1 grad L. {SOLVERS} 'auto' is 'sdca' for the Gauss-Newton matrix "
        "if the Jacobian rows of several examples fit into memory, else 'lissa'.",
    )

    @classmethod
    def fastif(cls, output_dir: str | None = None, **changes: Any) -> InfluenceConfig:
        """Make the setting of the FastIF authors for MultiNLI: LiSSA, lambda = 50, weight decay in every loss.

        Args:
            output_dir (`str`, *optional*): As in `TrainingArguments`.
            **changes: Other settings, or other values. For HANS and ANLI the authors' scale was 1e6, so that lambda
                was 5000: `damping=5000.0, lissa_scale=1e6, lissa_depth=2000`.
        """
        return cls(output_dir, **FASTIF | changes)

    def influence_settings(self) -> dict[str, Any]:
        """Return the settings that `TrainingArguments` does not have and that results depend on."""
        general = {f.name for f in fields(TrainingArguments)} | {"overwrite"}
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in general}

    def __getstate__(self) -> dict[str, Any]:
        # A trainer saves its arguments beside the model and pushes them with it; a token is nobody else's.
        return self.__dict__ | {"hub_token": None}

    def __copy__(self) -> InfluenceConfig:
        made = object.__new__(type(self))
        made.__dict__.update(self.__dict__)
        return made

    def __post_init__(self):
        super().__post_init__()
        self.check()

    def check(self) -> None:
        """Check the settings of influence, and turn numbers that were given as text into numbers.

        Raises:
            InfluenceError: Naming the setting, its value and what to give instead.
        """
        for group in GROUPS:
            group.check(self)
        check_solvers(self)


def _described(kind: type[InfluenceConfig]) -> str:
    """Return the docstring of the settings of influence, from the help of their flags."""
    lines = [f"{kind.__doc__}\n\n    Args:"]
    general = {f.name for f in fields(TrainingArguments)}
    for f in fields(kind):
        if f.name not in general:
            default = f.default_factory() if f.default is MISSING else f.default
            lines.append(f"        {f.name} (*optional*, defaults to `{default!r}`):")
            lines.append(indent(fill(f.metadata["help"].replace("%%", "%"), width=107), " " * 12))
    return "\n".join([*lines, "    "])


InfluenceConfig.__doc__ = _described(InfluenceConfig)


def with_influence(args: TrainingArguments | None) -> InfluenceConfig:
    """Return the arguments of a trainer with the settings of influence.

    Raises:
        InfluenceError: If they are those of another trainer, without the settings of influence.
    """
    if args is None:
        return InfluenceConfig()
    if isinstance(args, InfluenceConfig):
        return args
    kind = type(args).__name__
    if type(args) is not TrainingArguments:
        raise InfluenceError(
            f"args is a {kind}, which has no settings of influence; give one that has both, of a class such as "
            f"`@dataclass class Influence{kind}(InfluenceConfig, {kind}): ...`."
        )
    return InfluenceConfig(**{f.name: getattr(args, f.name) for f in fields(args) if f.init})
