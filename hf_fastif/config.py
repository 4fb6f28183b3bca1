"""Define `InfluenceConfig`: `TrainingArguments` with the settings of influence."""

from __future__ import annotations

import copy
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
    """Settings of [`InfluenceTrainer`]: those of `transformers.TrainingArguments`, and the following.

    Example:

    ```python
    args = InfluenceConfig("out", checkpoints="final", solver="ekfac", num_neighbors=1000)
    ```
    """

    solver: str = setting(
        "auto",
        f"Solver of s_test = (C + lambda I)^-1 grad L. {SOLVERS} 'auto' is 'sketch' for the Gauss-Newton matrix if "
        "the gradients of most parameters can be captured, else 'sdca' or 'lissa'.",
    )

    @classmethod
    def fastif(cls, output_dir: str | None = None, **changes: Any) -> InfluenceConfig:
        """Make the FastIF authors' settings for MultiNLI: LiSSA, lambda = 50, weight decay in every loss.

        Args:
            output_dir (`str`, *optional*): As in `TrainingArguments`.
            **changes: Further settings, or other values of these. For HANS and ANLI the authors' scale was 1e6 and
                lambda thus 5000: `damping=5000.0, lissa_scale=1e6, lissa_depth=2000`.

        Example:

        ```python
        args = InfluenceConfig.fastif("out", num_neighbors=500)
        ```
        """
        return cls(output_dir, **FASTIF | changes)

    def influence_settings(self) -> dict[str, Any]:
        """Return the settings that `TrainingArguments` does not have and that results depend on."""
        general = {f.name for f in fields(TrainingArguments)} | {"overwrite"}
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in general}

    def __getstate__(self) -> dict[str, Any]:
        # A trainer saves its arguments with the model and pushes them; a token must stay private.
        return self.__dict__ | {"hub_token": None}

    def __copy__(self) -> InfluenceConfig:
        copied = object.__new__(type(self))
        copied.__dict__.update(self.__dict__)
        return copied

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
    summary, _, example = kind.__doc__.partition("\n\n")
    lines = [f"{summary}\n\n    Args:"]
    general = {f.name for f in fields(TrainingArguments)}
    for f in fields(kind):
        if f.name not in general:
            default = f.default_factory() if f.default is MISSING else f.default
            lines.append(f"        {f.name} (*optional*, defaults to `{default!r}`):")
            lines.append(indent(fill(f.metadata["help"].replace("%%", "%"), width=107), " " * 12))
    return "\n".join([*lines, "", example])


InfluenceConfig.__doc__ = _described(InfluenceConfig)


def with_settings(config: InfluenceConfig, **settings: Any) -> InfluenceConfig:
    """Return a copy with some settings changed, without setting up devices again as `dataclasses.replace` would."""
    changed = copy.copy(config)
    vars(changed).update(settings)
    return changed


def with_influence(args: TrainingArguments | None) -> InfluenceConfig:
    """Return the arguments of a trainer, with default settings of influence if they are plain `TrainingArguments`.

    Raises:
        InfluenceError: If they are the arguments of another trainer, which lack the settings of influence.
    """
    if args is None:
        return InfluenceConfig()
    if isinstance(args, InfluenceConfig):
        return args
    kind = type(args).__name__
    if type(args) is not TrainingArguments:
        raise InfluenceError(
            f"args is a {kind}, which has no settings of influence; give one that has both, of a class such as "
            f"`@dataclass class Influence{kind}({kind}, InfluenceConfig): ...`."
        )
    return InfluenceConfig(**{f.name: getattr(args, f.name) for f in fields(args) if f.init})
