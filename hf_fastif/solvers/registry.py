"""Register solvers by name; each module of this folder with a solver registers it here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, make_dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any, get_type_hints

from transformers import TrainingArguments

from hf_fastif.errors import InfluenceError, did_you_mean
from hf_fastif.settings import SolverSettings
from hf_fastif.solvers.base import Solver


AUTO = "auto"
_REGISTERED: dict[str, RegisteredSolver] = {}


@dataclass(frozen=True)
class NoSettings:
    """Settings of a solver that has only those that all solvers share."""


@dataclass(frozen=True)
class RegisteredSolver:
    """A solver that `InfluenceConfig(solver=name)` chooses.

    Attributes:
        name (`str`): Its name.
        help (`str`): A description in a few words.
        settings (`type`): A frozen dataclass of the settings that only this solver has, each a `setting(default,
            help)`. Its `__post_init__` checks them. The field `depth` of the solver "lissa" is the flag `lissa_depth`.
        build (`Callable`): Makes the solver from a `SolverSetup` and its settings.
        describe (`Callable`): Describes the solver in a line, given the same arguments.
        check (`Callable`, *optional*): Checks the shared settings against those of the solver, if it is chosen.
        needs_gauss_newton (`bool`): Whether it works for the Gauss-Newton matrix only.
        takes_preconditioner (`bool`): Whether it uses `SolverSetup.preconditioner`.
        uses_curvature (`bool`): Whether lambda and C have a part in it.
        damps_by_layer (`bool`): Whether each layer has a separate lambda if damping="auto".
    """

    name: str
    help: str
    settings: type
    build: Callable[..., Solver]
    describe: Callable[..., str]
    check: Callable[..., None] | None = None
    needs_gauss_newton: bool = False
    takes_preconditioner: bool = False
    uses_curvature: bool = True
    damps_by_layer: bool = False

    @property
    def flags(self) -> dict[str, str]:
        """Return the flag of each setting, by the name of the setting."""
        return {each.name: f"{self.name}_{each.name}" for each in fields(self.settings)}

    def read_settings(self, args: TrainingArguments) -> Any:
        """Read the settings of the solver from the flags in `args`; missing ones keep their defaults.

        Raises:
            InfluenceError: If a value is invalid.
        """
        given = {name: getattr(args, flag) for name, flag in self.flags.items() if hasattr(args, flag)}
        return self.settings(**given)


def register(
    name: str,
    *,
    help: str,
    build: Callable[..., Solver],
    describe: Callable[..., str],
    settings: type = NoSettings,
    **traits: Any,
) -> None:
    """Make a solver known by a name; see `RegisteredSolver` for the arguments.

    A file of this folder that calls this function adds a solver and its flags, such as `--descent_steps` below. A
    solver that is registered elsewhere has flags only if a subclass of `InfluenceConfig` declares them; otherwise it
    has its default settings. The same `build` function, told by its module and name, replaces the earlier solver, as
    when the cell of a notebook is run again.

    Raises:
        InfluenceError: If the name is taken by another solver.

    Example:

    ```python
    @dataclass(frozen=True)
    class DescentSettings:
        steps: int = setting(100, "Steps of gradient descent.")

    @dataclass
    class Descent:
        system: DampedSystem
        settings: DescentSettings

        def solve(self, vectors: torch.Tensor) -> Solution: ...

    def _build(setup: SolverSetup, settings: DescentSettings) -> Descent:
        return Descent(setup.system, settings)

    def _describe(setup: SolverSetup, settings: DescentSettings) -> str:
        return f"{settings.steps} steps of gradient descent"

    register("descent", help="gradient descent", settings=DescentSettings, build=_build, describe=_describe)
    ```
    """
    if name == AUTO:
        raise InfluenceError(f"name={name!r}: it lets the library choose the solver; give another name.")
    if name in _REGISTERED and _origin(build) != _origin(_REGISTERED[name].build):
        raise InfluenceError(
            f"name={name!r}: a solver of this name exists; give another name, or call unregister({name!r}) first."
        )
    _REGISTERED[name] = RegisteredSolver(name, help, settings, build, describe, **traits)


def _origin(build: Callable[..., Solver]) -> Any:
    """Return module and name of a function, which stay when its definition runs again, or any other object itself."""
    name = getattr(build, "__qualname__", None)
    return build if name is None else (build.__module__, name)


def unregister(name: str) -> None:
    """Forget a solver."""
    del _REGISTERED[name]


def registered_solvers() -> list[RegisteredSolver]:
    """Return all solvers, by name."""
    _import_modules()
    return [_REGISTERED[name] for name in sorted(_REGISTERED)]


def find_solver(name: str) -> RegisteredSolver:
    """Return the solver with this name.

    Raises:
        InfluenceError: If there is none; the message lists the names.
    """
    names = [solver.name for solver in registered_solvers()]
    if name not in names:
        near = did_you_mean(str(name), [AUTO, *names]) or "."
        raise InfluenceError(f"solver={name!r}: give one of {', '.join([AUTO, *names])}{near}")
    return _REGISTERED[name]


def solver_flags() -> type[SolverSettings]:
    """Return a dataclass of the shared settings and a field for each setting of each solver, such as `lissa_depth`."""
    flags = []
    for solver in registered_solvers():
        types = get_type_hints(solver.settings)
        for each in fields(solver.settings):
            declared = field(default=each.default, default_factory=each.default_factory, metadata=each.metadata)
            flags.append((solver.flags[each.name], types[each.name], declared))
    return make_dataclass("SolverFlags", flags, bases=(SolverSettings,))


def check_solvers(args: SolverSettings) -> None:
    """Check the settings of every solver and the requirements of the chosen one, and convert text to numbers.

    Raises:
        InfluenceError: Naming the setting, its value and what to give instead.
    """
    for solver in registered_solvers():
        settings = solver.read_settings(args)
        for name, flag in solver.flags.items():
            if hasattr(args, flag):
                setattr(args, flag, getattr(settings, name))
    chosen = None if args.solver == AUTO else find_solver(args.solver)
    needs = args.preconditioner is not None or chosen is not None and chosen.needs_gauss_newton
    if args.curvature == "hessian" and needs:
        raise InfluenceError(
            f"curvature='hessian': solver={args.solver!r} with preconditioner={args.preconditioner!r} needs the "
            "Gauss-Newton matrix; give curvature='gauss_newton', or solver='lissa', 'cg' or 'exact'."
        )
    if args.preconditioner is not None and not (chosen and chosen.takes_preconditioner):
        raise InfluenceError(f"preconditioner={args.preconditioner!r}: only solver='lissa' and 'cg' take one.")
    if chosen is not None and chosen.check is not None:
        chosen.check(args, chosen.read_settings(args))


@cache
def _import_modules() -> None:
    """Import every module of this folder, so that a new solver is one new file."""
    for module in iter_modules([str(Path(__file__).parent)]):
        import_module(f"{__package__}.{module.name}")
