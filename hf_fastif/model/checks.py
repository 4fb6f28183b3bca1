"""Refuse models without exact derivatives."""

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
    """Refuse a sharded model, since each process computes derivatives of single examples with all parameters."""
    sharded = sharded_by(model)
    if sharded is not None:
        raise InfluenceError(
            f"model: its parameters are sharded over the processes by {sharded}, but each process needs all of them. "
            "Save the model in one piece (trainer.save_model(), with FULL_STATE_DICT for FSDP and "
            "stage3_gather_16bit_weights_on_model_save for DeepSpeed), and load it with from_pretrained in a run that "
            "is launched without sharding. hf_fastif.freeze reduces the memory of that run, since influence is "
            "computed over parameters with requires_grad only."
        )


def sharded_by(model: nn.Module) -> str | None:
    """Return the name of what shards the parameters of a model; None if each process holds all of them."""
    if any(isinstance(module, FullyShardedDataParallel) for module in model.modules()):
        return "FSDP"
    for name, parameter in model.named_parameters():
        if isinstance(parameter, DTensor):
            return f"FSDP2 or tensor parallelism ({name} is a DTensor)"
        if hasattr(parameter, "ds_id"):  # the mark of DeepSpeed's ZeRO, stage 3
            return "DeepSpeed ZeRO, stage 3"
    return None


def check_adapters(model: nn.Module) -> None:
    """Refuse merged PEFT adapters, which the loss no longer depends on."""
    merged = [name for name, module in model.named_modules() if getattr(module, "merged", False)]
    if merged:
        raise InfluenceError(
            f"model: its adapters are merged into the weights ({merged[0]} and {len(merged) - 1} more), so that the "
            "loss does not depend on them; call model.unmerge_adapter() first."
        )


def check_no_inference_tensors(model: nn.Module) -> None:
    """Refuse parameters that were created in `torch.inference_mode()`, which have no gradients."""
    for name, parameter in model.named_parameters():
        if parameter.is_inference():
            raise InfluenceError(
                f"model: {name} was created inside torch.inference_mode(), and such parameters have no gradients; "
                "load the model outside it."
            )


def warn_of_half_precision(objective: Objective) -> None:
    """Warn that gradients of parameters in half precision have only its digits."""
    half = [name for name, p in objective.theta.items() if p.dtype in (torch.bfloat16, torch.float16)]
    if half:
        logger.warning_once(
            f"{half[0]} and {len(half) - 1} more parameters are {objective.theta[half[0]].dtype}, so their gradients "
            "and s_test have only two or three digits; load the model with dtype=torch.float32 for more "
            "(influence_bf16=True still runs it in bfloat16)."
        )
