"""Tensor parallelism of transformers' Llama, Qwen2 and Mistral, ladder or not, on one overlapped stack."""

from __future__ import annotations

from functools import partial
from types import MethodType
from typing import Any

import torch.distributed as dist
from torch import nn

from .comm import Communicator
from .comm import communicator as communicator_of
from .llama import inner_model, wire
from .saving import save_pretrained
from .sharded import ColumnParallelLinear, Placer, ReplicatedRMSNorm, RowParallelLinear, SharedHeadLinear
from .vocabulary import (
    VocabularyParallelEmbedding,
    VocabularyParallelHead,
    complete_logits,
    vocabulary_parallel_loss,
)

if dist.is_available():
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor


def tensor_parallel(model: Any, mesh: Any, *, communicator: Communicator | None = None) -> Any:
    """Shard a transformers model over the ranks of ``mesh``, in place, and return it.

    Attention is cut by heads and the MLP by its inner features, so that each of the two needs one all-reduce, which the model's
    LadderStack launches and waits for: behind the next module in ladder layers, at once in standard ones. Embedding and head
    are cut by vocabulary, in parts as :func:`torch.chunk` makes them. With fewer key and value heads than ranks every rank
    keeps those projections whole and uses its queries' head.

    Every parameter becomes a DTensor of ``mesh`` with the values of the mesh's first rank; ``state_dict`` keys stay.
    ``fully_shard`` over another dimension of the same mesh comes afterwards: of each ``self_attn`` and ``mlp``, then of the
    model. All ranks must call the model with the same inputs (seeded alike where ``generate`` samples), and
    ``save_pretrained``, which then writes the files of a whole model. Logits are whole, except for a model in training mode
    that was given labels: they are a DTensor sharded over the vocabulary, and ``.full_tensor()`` gathers them.

    Args:
        model: a Llama, Qwen2 or Mistral model of transformers with its language model head, before or after ``to_ladder``.
        mesh: a DeviceMesh of one dimension, or one named dimension of a larger mesh, as ``mesh["tp"]``.
        communicator: what sums over the mesh's ranks in the stack, by default what a :class:`LadderStack` takes for
            their group.

    Raises:
        TypeError: another model or mesh, or a projection that is no plain ``nn.Linear``.
        ValueError: no initialised process group, a mesh of more dimensions, parameters on several devices or not on the
            mesh's, a model that is sharded already, heads or features that the ranks cannot share evenly, torch's IntraNodeComm
            asked for. All of them come before any communication, with the model as it was.

    Source: Shoeybi et al. 2019 (arXiv 1909.08053).
    """
    inner = inner_model(model)
    _check_mesh(mesh)
    _check_model(model, mesh)
    _check_shapes(inner, mesh.size())
    sums = communicator_of(mesh.get_group() if communicator is None else communicator)
    place = Placer(mesh)
    for layer in inner.layers:
        _shard_attention(layer.self_attn, place)
        for name in ("gate_proj", "up_proj", "down_proj"):
            kind = RowParallelLinear if name == "down_proj" else ColumnParallelLinear
            setattr(layer.mlp, name, kind(getattr(layer.mlp, name), place))
        for name in ("input_layernorm", "post_attention_layernorm"):
            setattr(layer, name, ReplicatedRMSNorm(getattr(layer, name), place))
    inner.norm = ReplicatedRMSNorm(inner.norm, place)
    inner.embed_tokens = VocabularyParallelEmbedding(inner.embed_tokens, place)
    model.lm_head = VocabularyParallelHead(model.lm_head, place)
    model.loss_function = partial(vocabulary_parallel_loss, mesh=mesh)
    model.save_pretrained = MethodType(save_pretrained, model)
    model.register_forward_hook(complete_logits)
    wire(model, sums)
    return model


def _shard_attention(attention: Any, place: Placer) -> None:
    ranks, heads = place.mesh.size(), attention.config.num_key_value_heads
    attention.q_proj = ColumnParallelLinear(attention.q_proj, place)
    for name in ("k_proj", "v_proj"):
        linear = getattr(attention, name)
        shared = SharedHeadLinear(linear, place, heads) if heads < ranks else ColumnParallelLinear(linear, place)
        setattr(attention, name, shared)
    attention.o_proj = RowParallelLinear(attention.o_proj, place)
    attention.num_key_value_groups = attention.config.num_attention_heads // max(heads, ranks)


def _check_mesh(mesh: Any) -> None:
    if not dist.is_available() or not dist.is_initialized():
        raise ValueError("the process group must be initialised before tensor_parallel: torch.distributed.init_process_group()")
    if not isinstance(mesh, DeviceMesh):
        raise TypeError(f"mesh must be a torch.distributed DeviceMesh, got {type(mesh).__name__}")
    if mesh.ndim != 1:
        names = "" if mesh.mesh_dim_names is None else f" {mesh.mesh_dim_names}"
        raise ValueError(f"mesh must have one dimension, got {mesh.ndim}{names}; pass one of them by name, as mesh['tp']")
    if mesh.get_coordinate() is None:
        raise ValueError(f"mesh must hold this rank, {dist.get_rank()}, got {mesh}")


def _check_model(model: Any, mesh: Any) -> None:
    if not isinstance(getattr(model, "lm_head", None), nn.Module):
        raise TypeError(f"model must have a language model head, got {type(model).__name__}")
    parameters = list(model.parameters())
    if any(isinstance(p, DTensor) for p in parameters):
        raise ValueError("the parameters of model must not be sharded already; tensor_parallel comes before fully_shard")
    devices = {p.device for p in parameters}
    if len(devices) > 1:
        raise ValueError(f"the parameters of model must be on one device, got {', '.join(sorted(map(str, devices)))}")
    if not {device.type for device in devices} <= {"meta", mesh.device_type}:
        raise ValueError(f"the parameters of model must be on the mesh's {mesh.device_type}, got {devices.pop()}")


def _check_shapes(inner: Any, ranks: int) -> None:
    config = inner.config
    for layer in inner.layers:
        for linear in (*_linears(layer.self_attn, "qkvo"), *_linears(layer.mlp, ("gate", "up", "down"))):
            if type(linear) is not nn.Linear:
                raise TypeError(f"the projections of model must be plain nn.Linear, got {type(linear).__name__}")
    for name in ("num_attention_heads", "intermediate_size"):
        if getattr(config, name) % ranks:
            raise ValueError(f"{name} must be a multiple of the {ranks} ranks of mesh, got {getattr(config, name)}")
    heads = config.num_key_value_heads
    if heads % ranks and ranks % heads:
        raise ValueError(f"num_key_value_heads must divide the {ranks} ranks of mesh or be a multiple of them, got {heads}")


def _linears(module: Any, names: Any) -> list[Any]:
    return [getattr(module, f"{name}_proj") for name in names]
