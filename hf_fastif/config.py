"""`InfluenceConfig`: `TrainingArguments` with the settings of influence."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal, get_args

from transformers import TrainingArguments

from hf_fastif.errors import InfluenceError, did_you_mean


if TYPE_CHECKING:
    AutoFloat = float | Literal["auto"]
    Names = str | int | list[str]
    Weights = str | list[float]
else:  # HfArgumentParser takes one type for a flag; __post_init__ turns the others into it
    AutoFloat = str
    Names = list[str]
    Weights = list[str]

Reduction = Literal["sum", "mean"]
FeatureName = Literal["pooled", "mean_pooled", "last_layer_gradient", "gradient_sketch"]
ScoringName = Literal["auto", "forward_mode", "gradients"]
SolverName = Literal["auto", "sdca", "lissa", "cg", "ekfac", "identity", "exact"]
CHOICES = {
    "curvature": ("gauss_newton", "hessian"),
    "solver": get_args(SolverName),
    "index_features": get_args(FeatureName),
    "loss_reduction": get_args(Reduction),
    "scoring": get_args(ScoringName),
}
POSITIVE = (
    "influence_batch_size",
    "query_batch_size",
    "index_size",
    "index_shard_size",
    "curvature_samples",
    "sdca_visits",
    "lissa_depth",
    "lissa_batch_size",
    "num_repeats",
    "cg_samples",
    "cg_steps",
    "ekfac_samples",
)
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


@dataclass
class InfluenceConfig(TrainingArguments):
    r"""Settings of [`InfluenceTrainer`]: those of `transformers.TrainingArguments`, and the following.

    > At which moments of training

    Args:
        checkpoints (`str`, `int` or list of `str`, *optional*, defaults to `"auto"`):
            The checkpoints that influence is summed over. `"final"` is the model as it is, and `"auto"` the end of
            the first epoch, if the run that led to the model left one, else the model. `"epochs"` are the ends of all
            epochs, a number such as 3 is that many evenly spaced steps, and `"early-3"` a quarter, a half and the
            whole of training. `train()` keeps what is asked for and no more (trained parameters and buffers; at most
            `save_total_limit` of them), and folders `checkpoint-*` of the run that led to the model serve too. A list
            names files, folders, output folders of other runs (seeds), or models on the Hub
            (`"user/model@revision"`).
        checkpoint_weights (`str` or list of `float`, *optional*, defaults to `"uniform"`):
            Their weights in the sum: `"uniform"`, `"learning_rate"`, or a number each.

    > Which candidates

        num_neighbors (`int`, *optional*):
            k: score only the k nearest neighbours of a query, found in the index that `build_index()` made. None
            scores every candidate, which needs no index, costs about two forward passes over them, and misses
            nothing.
        index_features (`str`, *optional*, defaults to `"gradient_sketch"`):
            What `build_index()` keeps of an example. `"pooled"`: the pooled state, of a language model the last state
            of the last token, compared by L2 distance (the paper's). `"mean_pooled"`: the mean of the states of all
            tokens in its place. `"last_layer_gradient"`: the gradient of the output layer. `"gradient_sketch"`: the
            entries of the gradient that carry most curvature in EK-FAC's eigenbasis, over all linear layers and
            norms. The latter two are compared by inner product with s_test, at both ends.
        index_size (`int`, *optional*, defaults to 4096):
            Numbers an example in `"gradient_sketch"`.
        index_factory (`str`, *optional*, defaults to `"Flat"`):
            FAISS's factory string, such as `"SQfp16"` (half the memory), `"IVF256,Flat"`, `"HNSW32"`, `"IVF256,PQ32"`.
        index_search (`str`, *optional*):
            Search parameters of that index, such as `"nprobe=16"` or `"efSearch=64"`; saved with it.
        index_shard_size (`int`, *optional*, defaults to 1000000):
            Examples in one file of the index.
        index_on_disk (`bool`, *optional*, defaults to `False`):
            Leaves the vectors in the files and maps them, for indexes that do not fit into memory.
        index_device (`int`, *optional*):
            GPU to search on.
        influence_batch_size (`int`, *optional*, defaults to 32):
            Examples in one pass, and in one step of SDCA.
        query_batch_size (`int`, *optional*, defaults to 8):
            Queries that are solved and scored together. They share passes; each costs memory for its own vectors.
        scoring (`str`, *optional*, defaults to `"auto"`):
            How candidates are scored; all ways are exact. `"forward_mode"`: one forward pass with a tangent for each
            query. `"gradients"`: one forward and one backward pass, and a matrix product for each query. `"auto"`
            takes the first for one query and the second for several, where it can.
        frozen_states_gb (`float`, *optional*, defaults to 0.25):
            Memory (of the CPU, for the dataset at hand, and as much again for others) in which the hidden states
            behind the frozen first layers are kept, so that these layers run once on a batch and not in every pass
            over it. 0 keeps nothing.

    > s_test = (C + lambda I)^-1 grad L

        solver (`str`, *optional*, defaults to `"auto"`):
            `"sdca"` (dual coordinate ascent: exact in the limit, no step size), `"lissa"` (the paper's), `"cg"`
            (conjugate gradient on a sample), `"ekfac"` (Kronecker factors, fitted once, then a few matrix products a
            query), `"identity"` (no curvature: the product of gradients), `"exact"` (a few thousand examples), or
            `"auto"`: SDCA where it can (Gauss-Newton, and Jacobian rows of several examples fit into memory), else
            LiSSA.
        curvature (`"gauss_newton"` or `"hessian"`, *optional*, defaults to `"gauss_newton"`):
            C. The Hessian, which the paper uses, may be indefinite.
        loss_reduction (`"sum"` or `"mean"`, *optional*, defaults to `"sum"`):
            The loss of an example with several labelled tokens (language models, sequence to sequence, token
            classification): their sum, as `Trainer` gives every labelled token of a batch the same weight, or their
            mean, so that long examples count no more than short ones.
        damping (`float` or `"auto"`, *optional*, defaults to `"auto"`):
            lambda, in units of the curvature of the mean training loss. `"auto"` is 1 % of its largest eigenvalue
            (and enough to outweigh a negative one); with `solver="ekfac"` a tenth of the mean eigenvalue of each
            layer.
        weight_decay_in_damping (`bool`, *optional*, defaults to `False`):
            Whether `weight_decay`, a curvature that training had, is added to lambda.
        loss_weight_decay (`float`, *optional*, defaults to 0):
            w of a term w ||theta||^2 in every loss, as the authors of FastIF have it (0.005). It gives all influences
            one common offset; it is there to repeat their numbers. It is not part of the Gauss-Newton matrix.
        preconditioner (`"ekfac"`, *optional*):
            Lets LiSSA and CG work with the residual that EK-FAC has divided by the curvature.
        solver_tolerance (`float`, *optional*):
            Stop when the residual of every query has fallen to this. None takes all steps (CG stops at 0.01).
        num_repeats (`int`, *optional*, defaults to 1):
            T: independent runs of SDCA or LiSSA that are averaged. They are dealt to the processes, and from two on
            they tell the standard error.
        curvature_samples (`int`, *optional*, defaults to 128):
            Training examples on which eigenvalues and the residual are estimated.
        influence_bf16 (`bool`, *optional*, defaults to `False`):
            Runs the model in bfloat16 autocast for solving and scoring.

    > Work that was interrupted

        overwrite (`bool`, *optional*, defaults to `False`):
            Forgets what earlier runs left in `output_dir/influence` to go on from, which are finished pieces of calls
            that were interrupted, and fitted EK-FAC factors, and starts afresh. It does so once, at the first call. A
            recipe with this flag also does again what it has finished, such as training.

    > SDCA, LiSSA, CG, EK-FAC

        sdca_visits (`int`, *optional*, defaults to 4096):
            Training examples that SDCA visits; in a smaller training set that many passes are made.
        lissa_depth (`int`, *optional*, defaults to 200):
            J: steps of the recursion. The authors took 1000 to 2000 with a batch size of 1.
        lissa_batch_size (`int`, *optional*, defaults to 32):
            B: training examples drawn for each step.
        lissa_scale (`float` or `"auto"`, *optional*, defaults to `"auto"`):
            The step size is 1 / scale. It sets how fast the recursion converges and never what it converges to.
            `"auto"` takes the largest eigenvalue of some batches, and begins again with twice as much where that
            turns out to be too little.
        cg_samples (`int`, *optional*, defaults to 1024):
            Training examples whose mean curvature CG solves for.
        cg_steps (`int`, *optional*, defaults to 30):
            Steps of CG at most.
        ekfac_samples (`int`, *optional*, defaults to 1024):
            Training examples that EK-FAC is fitted to.
    """

    checkpoints: Names = field(
        default_factory=lambda: ["auto"], metadata={"help": "Moments of training that influence is summed over."}
    )
    checkpoint_weights: Weights = field(
        default_factory=lambda: ["uniform"], metadata={"help": "'uniform', 'learning_rate', or a number each."}
    )
    num_neighbors: int | None = field(
        default=None, metadata={"help": "k: score only the k nearest neighbours of a query; None scores everything."}
    )
    index_features: FeatureName = field(
        default="gradient_sketch", metadata={"help": "What the index keeps of an example."}
    )
    index_size: int = field(default=4096, metadata={"help": "Numbers an example in 'gradient_sketch'."})
    index_factory: str = field(default="Flat", metadata={"help": "FAISS's factory string."})
    index_search: str | None = field(default=None, metadata={"help": "Search parameters, such as 'nprobe=16'."})
    index_shard_size: int = field(default=1_000_000, metadata={"help": "Examples in one file of the index."})
    index_on_disk: bool = field(default=False, metadata={"help": "Leave the vectors in the files."})
    index_device: int | None = field(default=None, metadata={"help": "GPU to search on."})
    influence_batch_size: int = field(default=32, metadata={"help": "Examples in one pass, and in a step of SDCA."})
    query_batch_size: int = field(default=8, metadata={"help": "Queries that are solved and scored together."})
    scoring: ScoringName = field(default="auto", metadata={"help": "How candidates are scored."})
    frozen_states_gb: float = field(
        default=0.25, metadata={"help": "Memory for the hidden states behind the frozen first layers."}
    )
    solver: SolverName = field(default="auto", metadata={"help": "How s_test is computed."})
    curvature: Literal["gauss_newton", "hessian"] = field(
        default="gauss_newton", metadata={"help": "Curvature of the mean training loss. The paper's is the Hessian."}
    )
    loss_reduction: Reduction = field(
        default="sum", metadata={"help": "Of the losses of an example's labelled tokens: 'sum' or 'mean'."}
    )
    damping: AutoFloat = field(
        default="auto",
        metadata={"help": "lambda; 'auto' is 1 %% of the largest eigenvalue (EK-FAC: 10 %% of each layer's mean)."},
    )
    weight_decay_in_damping: bool = field(default=False, metadata={"help": "Add weight_decay to lambda."})
    loss_weight_decay: float = field(
        default=0.0, metadata={"help": "w of a term w ||theta||^2 in every loss, as the authors of FastIF have it."}
    )
    preconditioner: Literal["ekfac"] | None = field(default=None, metadata={"help": "For LiSSA and CG."})
    solver_tolerance: float | None = field(
        default=None, metadata={"help": "Stop when all residuals have fallen to this; None takes all steps."}
    )
    num_repeats: int = field(default=1, metadata={"help": "T: independent runs of SDCA or LiSSA that are averaged."})
    curvature_samples: int = field(
        default=128, metadata={"help": "Training examples for eigenvalues and the residual."}
    )
    influence_bf16: bool = field(default=False, metadata={"help": "bfloat16 autocast for solving and scoring."})
    overwrite: bool = field(
        default=False, metadata={"help": "Forget what earlier runs left to go on from, and start afresh."}
    )
    sdca_visits: int = field(default=4096, metadata={"help": "Training examples that SDCA visits."})
    lissa_depth: int = field(default=200, metadata={"help": "J: steps of the recursion."})
    lissa_batch_size: int = field(default=32, metadata={"help": "B: training examples drawn for each step."})
    lissa_scale: AutoFloat = field(
        default="auto",
        metadata={"help": "The step size is 1 / scale; 'auto' takes the largest eigenvalue of batches."},
    )
    cg_samples: int = field(default=1024, metadata={"help": "Training examples whose mean curvature CG solves for."})
    cg_steps: int = field(default=30, metadata={"help": "Steps of CG at most."})
    ekfac_samples: int = field(default=1024, metadata={"help": "Training examples that EK-FAC is fitted to."})

    @classmethod
    def fastif(cls, output_dir: str | None = None, **changes: Any) -> InfluenceConfig:
        """The setting of the FastIF authors for MultiNLI: their recursion, lambda = 50, weight decay in every loss.

        Args:
            output_dir (`str`, *optional*): As in `TrainingArguments`.
            **changes: Other settings, or other values. For HANS and ANLI the authors' scale was 1e6, so that lambda
                was 5000: `damping=5000.0, lissa_scale=1e6, lissa_depth=2000`.
        """
        return cls(output_dir, **FASTIF | changes)

    def influence_settings(self) -> dict[str, Any]:
        """The settings that `TrainingArguments` does not have and that answers depend on."""
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
        """Refuses settings of influence that make no sense, and turns numbers that were given as text into numbers.

        Raises:
            ValueError: Naming the setting, its value and what to give instead.
        """
        for name, values in CHOICES.items():
            value = getattr(self, name)
            if value not in values:
                raise InfluenceError(
                    f"{name}={value!r}: give one of {', '.join(values)}{did_you_mean(str(value), values) or '.'}"
                )
        if self.frozen_states_gb < 0:
            raise InfluenceError(f"frozen_states_gb={self.frozen_states_gb}: give a number of gigabytes, 0 for none.")
        self._set_checkpoints()
        self.damping = self._positive_or_auto("damping", self.damping)
        self.lissa_scale = self._positive_or_auto("lissa_scale", self.lissa_scale)
        for name in POSITIVE:
            if getattr(self, name) < 1:
                raise InfluenceError(f"{name}={getattr(self, name)}: give a whole number of at least 1.")
        if self.num_neighbors is not None and self.num_neighbors < 1:
            raise InfluenceError(
                f"num_neighbors={self.num_neighbors}: give at least 1, or None to score every candidate."
            )
        if self.solver_tolerance is not None and not 0 < self.solver_tolerance < 1:
            raise InfluenceError(f"solver_tolerance={self.solver_tolerance}: give a number between 0 and 1, or None.")
        self._check_combinations()

    def _set_checkpoints(self) -> None:
        for name in ("checkpoints", "checkpoint_weights"):
            value = getattr(self, name)
            value = [value] if isinstance(value, str | int) else value
            if not value:
                raise InfluenceError(f"{name}={value}: give at least one.")
            setattr(self, name, [str(entry) for entry in value])
        if self.checkpoints[0].removeprefix("early-") == "0":
            raise InfluenceError(f"checkpoints={self.checkpoints[0]!r}: give a number of at least 1.")
        if self.checkpoint_weights not in (["uniform"], ["learning_rate"]):
            for weight in self.checkpoint_weights:
                self._positive_or_auto("checkpoint_weights", weight)

    def _check_combinations(self) -> None:
        if self.curvature == "hessian" and (self.solver in ("sdca", "ekfac") or self.preconditioner is not None):
            raise InfluenceError(
                f"curvature='hessian': solver={self.solver!r} with preconditioner={self.preconditioner!r} needs the "
                "Gauss-Newton matrix; give curvature='gauss_newton', or solver='lissa', 'cg' or 'exact'."
            )
        if self.preconditioner is not None and self.solver not in ("lissa", "cg"):
            raise InfluenceError(f"preconditioner={self.preconditioner!r}: only solver='lissa' and 'cg' take one.")
        if self.solver == "lissa" and self.solver_tolerance is not None and self.lissa_batch_size < 16:
            raise InfluenceError(
                f"solver_tolerance={self.solver_tolerance}: the residual cannot be watched with "
                f"lissa_batch_size={self.lissa_batch_size}; give at least 16, or solver_tolerance=None."
            )

    @staticmethod
    def _positive_or_auto(name: str, value: float | str) -> float | str:
        if value == "auto":
            return "auto"
        try:
            number = float(value)
        except ValueError:
            number = float("nan")
        if not 0 < number < float("inf"):
            why = " C + damping I has no inverse otherwise, or none that a solver finds." if name == "damping" else ""
            raise InfluenceError(f"{name}={value!r}: give a number above 0, or 'auto'.{why}")
        return number


def with_influence(args: TrainingArguments | None) -> InfluenceConfig:
    """The arguments of a trainer with those of influence.

    Raises:
        ValueError: If they are those of another trainer, without the settings of influence.
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
