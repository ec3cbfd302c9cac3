"""Tensors of which each process holds a part (``DTensor``), and the whole ones they stand for."""

from __future__ import annotations

import torch
from torch import Tensor

from cahl_core.policy.backbone import Policy
from cahl_core.policy.packing import pack


def is_sharded(tensor: Tensor) -> bool:
    """Whether this process holds only its part of the tensor."""
    return hasattr(tensor, "full_tensor")


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor; of a sharded one all processes have to ask."""
    if not is_sharded(tensor):
        return tensor
    found: Tensor = tensor.full_tensor()  # type: ignore[attr-defined]
    return found


def part_like(tensor: Tensor, like: Tensor) -> Tensor:
    """This process's part of a whole tensor, distributed as ``like``; nothing is sent."""
    if not is_sharded(like):
        return tensor.to(like.device)
    from torch.distributed.tensor import distribute_tensor

    part: Tensor = distribute_tensor(
        tensor.to(like.device),
        like.device_mesh,  # type: ignore[attr-defined]
        like.placements,  # type: ignore[attr-defined]
        src_data_rank=None,
    )
    return part


@torch.no_grad()
def refresh_whole(policy: Policy) -> None:
    """Brings the whole weights that decoding reads up to date with the shards that trained.

    Frozen matrices never change; of what trains, one matrix after another is gathered. All processes
    have to call it together; nothing where weights are not sharded.
    """
    for name, parameter in policy.causal.named_parameters() if policy.whole else ():
        if is_sharded(parameter) and parameter.requires_grad:
            policy.whole[name].copy_(whole(parameter))


def idle(policy: Policy) -> None:
    """One pass over a single token; where gradients are enabled, a backward that adds zero."""
    (row,) = pack([[0]], 1)
    hidden = policy.hidden_states(row)
    if hidden.requires_grad:
        (hidden.sum() * 0.0).backward()  # type: ignore[no-untyped-call]
