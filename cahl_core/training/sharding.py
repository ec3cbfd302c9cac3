"""The backbone sharded over the processes, layer by layer (on accelerate's launch).

Each process holds its part of every decoder layer; a layer's whole matrices exist while it computes.
Embeddings, head and adapters are whole on every process: the head is used outside the decoder, and
adapters are small. FSDP2 does it here, DeepSpeed in `zero3`. Gradients of sharded matrices (FSDP2
only) are summed in the backward pass, never averaged.

All processes must run the same number of passes, since a layer is gathered by all of them at once:
`in_step` adds passes of weight zero where a process has fewer rows than another.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import nn

from cahl_core.errors import ModelError
from cahl_core.policy.backbone import Policy
from cahl_core.policy.shards import idle
from cahl_core.training.distributed import Workers
from cahl_core.training.zero3 import partition

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

    from cahl_core.policy.team import Team


def shard_team(team: Team, workers: Workers, *, decodes: bool) -> None:
    """Shards every backbone of the team, references included; nothing where the launch is plain.

    To be called before optimizers are made: trained parameters of whole models are replaced.

    Args:
        decodes: whether this process samples from the team itself, and not from servers.
    """
    if workers.sharded:
        if decodes:
            team.prepare()
        references = (m.reference[0] for m in team.members.values() if m.reference)
        policies = [m.policy for m in team.members.values()]
        for policy in {id(p): p for p in (*policies, *references)}.values():
            shard(policy, workers, decodes=decodes and team.decodes(policy))


def shard(policy: Policy, workers: Workers, *, decodes: bool = False) -> None:
    """Shards one backbone in place; nothing where the launch is plain.

    Args:
        decodes: whether this process also samples from it, from a whole copy (``policy.whole``).

    Raises:
        ModelError: the decoder has no list of layers.
        ConfigError: DeepSpeed is to do it, and is not installed or the layers train.
    """
    if not workers.sharded:
        return
    layers = getattr(policy.decoder, "layers", None)
    if not isinstance(layers, nn.ModuleList):
        raise ModelError(
            f"{type(policy.decoder).__name__} has no list of layers to shard",
            "train it unsharded: launch with configs/accelerate/ddp.yaml",
        )
    _ = policy.fingerprint  # which adapters are saved with, and only whole weights have
    replicated = set(_replicated(policy))
    if decodes:
        policy.whole = {
            # what decoding shares memory with is updated in place; what it only merges adapters into
            # waits in host memory
            name: p.data if p.requires_grad else p.data.cpu()
            for name, p in policy.causal.named_parameters()
            if p not in replicated
        }
    if workers.launch.zero3 is not None:
        partition(policy, replicated, workers.launch.zero3)
    else:
        _fully_shard(policy, replicated, workers)


def _fully_shard(policy: Policy, replicated: set[nn.Parameter], workers: Workers) -> None:
    from torch.distributed.fsdp import FSDPModule, fully_shard

    options: dict[str, Any] = {
        "mesh": _mesh(workers),
        "reshard_after_forward": workers.launch.reshard,
        "ignored_params": replicated,
    }
    for layer in policy.decoder.layers:
        fully_shard(layer, **options)
    fully_shard(policy.decoder, **options)
    for module in policy.decoder.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)


def _mesh(workers: Workers) -> DeviceMesh:
    from torch.distributed.device_mesh import init_device_mesh

    return init_device_mesh(workers.device.type, (workers.count,))


def _replicated(policy: Policy) -> Iterator[nn.Parameter]:
    for module in (policy.causal.get_input_embeddings(), policy.causal.get_output_embeddings()):
        yield from module.parameters()
    for name in policy.adapters:
        yield from policy.parameters(name)


@contextmanager
def in_step(policy: Policy, workers: Workers, passes: int) -> Iterator[None]:
    """The body runs ``passes`` passes; then this process runs those that others have more.

    Where weights are not sharded nothing is added. How many passes there are has to be known before
    the first one: while a process is still gathering layers, another cannot ask it for a number.
    """
    behind = workers.most(passes) - passes if workers.sharded else 0
    yield
    for _ in range(behind):
        idle(policy)
