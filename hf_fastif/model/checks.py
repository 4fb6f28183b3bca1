"""Refuse models of which no exact derivatives can be taken."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.tensor import DTensor
from transformers.utils import logging

from hf_fastif.errors import InfluenceError
from hf_fastif.model.objective import Objective


logger = logging.get_logger(__name__)


def check_model(model: Any) -> None:
    """Refuse the name of a model in place of the model."""
    if isinstance(model, str | os.PathLike):
        raise InfluenceError(
            f"model={str(model)!r} is a name; load the model, as in "
            f"AutoModelForSequenceClassification.from_pretrained({str(model)!r})."
        )


def check_whole(model: nn.Module) -> None:
    """Every process must hold all parameters of the model: derivatives of single examples are taken by each alone."""
    sharded = sharded_by(model)
    if sharded is not None:
        raise InfluenceError(
            f"model: its parameters are dealt to the processes by {sharded}, and influence needs all of them in each. "
            "Save the model in one piece (trainer.save_model(), with FULL_STATE_DICT for FSDP and "
            "stage3_gather_16bit_weights_on_model_save for DeepSpeed), and load it with from_pretrained in a run that "
            "is launched without sharding. hf_fastif.freeze makes that run smaller: only parameters with "
            "requires_grad have vectors."
        )


def sharded_by(model: nn.Module) -> str | None:
    """What deals the parameters of a model to processes; None if each holds all of them."""
    if any(isinstance(module, FullyShardedDataParallel) for module in model.modules()):
        return "FSDP"
    for name, parameter in model.named_parameters():
        if isinstance(parameter, DTensor):
            return f"FSDP2 or tensor parallelism ({name} is a DTensor)"
        if hasattr(parameter, "ds_id"):  # the mark of DeepSpeed's ZeRO, stage 3
            return "DeepSpeed ZeRO, stage 3"
    return None


def check_adapters(model: nn.Module) -> None:
    """Adapters of PEFT must not be merged into the weights: they are no longer used then, and have no gradient."""
    merged = [name for name, module in model.named_modules() if getattr(module, "merged", False)]
    if merged:
        raise InfluenceError(
            f"model: its adapters are merged into the weights ({merged[0]} and {len(merged) - 1} more), so that they "
            "take no part in the loss; call model.unmerge_adapter() first."
        )


def check_no_inference_tensors(model: nn.Module) -> None:
    """Refuse parameters that were made in `torch.inference_mode()`, which have no gradients anywhere."""
    for name, parameter in model.named_parameters():
        if parameter.is_inference():
            raise InfluenceError(
                f"model: {name} was made inside torch.inference_mode(), and such parameters have no gradients; load "
                "the model outside of it."
            )


def warn_of_half_precision(objective: Objective) -> None:
    """Gradients have the precision of the parameters they are of."""
    half = [name for name, p in objective.theta.items() if p.dtype in (torch.bfloat16, torch.float16)]
    if half:
        logger.warning_once(
            f"{half[0]} and {len(half) - 1} more parameters are {objective.theta[half[0]].dtype}, and so are their "
            "gradients and s_test, with two or three digits; load the model with dtype=torch.float32 for more "
            "(influence_bf16=True runs it in bfloat16 nevertheless)."
        )
