"""Decoders of any family as a graph of GroupQueryAttention, through transformers' attention interface.

ONNX Runtime GenAI's builder writes such graphs for the families that it lists. For the others the model is traced with
an attention function of our own, which stands for the one operator `com.microsoft.GroupQueryAttention`: it takes the
keys and values of earlier tokens, adds the new ones, and masks by the length of each row. So every decoder has one
form, and one engine serves them all.
"""

from typing import Any

import torch

from llmos_exporter import graphs

NAME = "llmos_group_query"
UNSET = -1

_SCHEMA = (
    "group_query(Tensor query, Tensor key, Tensor value, Tensor past_key, Tensor past_value, Tensor lengths, "
    "Tensor total, int heads, int shared, float scale, int window, float cap) -> (Tensor, Tensor, Tensor)"
)


class Run:
    """What one pass through the model needs beside its inputs: earlier keys and values in, new ones out."""

    past: dict[str, torch.Tensor]
    present: dict[str, torch.Tensor]
    lengths: torch.Tensor
    total: torch.Tensor


_run = Run()
_kept: list[Any] = []  # what is gone takes its operators along


def logits_and_cache(model: Any, past_key: str, past_value: str, given: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """The logits of the last token, then key and value of every layer, of a model whose attention is `NAME`."""
    tokens, mask = given["input_ids"], given["attention_mask"]
    _run.past = given
    _run.present = {}
    _run.lengths = (mask.sum(1) - 1).to(torch.int32).unsqueeze(1)
    _run.total = torch._shape_as_tensor(mask)[1].to(torch.int32)
    # A row's tokens stand at the end of what its mask covers.
    positions = mask.sum(1, keepdim=True) - tokens.shape[1] + torch.arange(tokens.shape[1]).unsqueeze(0)
    given = {"input_ids": tokens, "position_ids": positions.clamp(min=0)}
    logits = model(**given, use_cache=False, logits_to_keep=1).logits
    layers = range(len(_run.present) // 2)
    return [logits, *(_run.present[name % layer] for layer in layers for name in (past_key, past_value))]


def _attend(
    module: Any, query: Any, key: Any, value: Any, attention_mask: Any, scaling: float | None = None, **rest: Any
) -> tuple[Any, None]:
    """Queries `[batch, heads, length, size]`, keys and values of fewer heads; `[batch, length, heads, size]`."""
    (batch, heads, length, size), layer = query.shape, module.layer_idx
    names = f"past_key_values.{layer}.key", f"past_key_values.{layer}.value"
    flat = (tensor.transpose(1, 2).reshape(batch, length, -1) for tensor in (query, key, value))
    found, *caches = torch.ops.llmos.group_query(
        *flat, *(_run.past[name] for name in names), _run.lengths, _run.total, heads, key.shape[1],
        size**-0.5 if scaling is None else float(scaling), int(rest.get("sliding_window") or UNSET),
        float(rest.get("softcap") or 0.0),
    )  # fmt: skip
    _run.present |= dict(zip(names, caches, strict=True))
    return found.reshape(batch, length, heads, size), None


def _shapes(
    query: Any, key: Any, value: Any, past_key: Any, past_value: Any, lengths: Any, total: Any, heads: int,
    shared: int, scale: float, window: int, cap: float,
) -> tuple[Any, Any, Any]:  # fmt: skip
    """What a tracer needs to go on: tensors of the right shapes, not their values."""

    def grown(past: Any, new: Any) -> Any:
        return torch.cat([past, new.unflatten(2, (shared, -1)).transpose(1, 2)], dim=2)

    return query.clone(), grown(past_key, key), grown(past_value, value)


def _symbol(graph: Any, *given: Any) -> Any:
    from torch.onnx import symbolic_helper

    read: Any = symbolic_helper._get_const
    heads, shared, scale, window, cap = (
        read(value, kind, "group_query") for value, kind in zip(given[7:], "iifif", strict=True)
    )
    return graph.op(
        "com.microsoft::GroupQueryAttention", *given[:7], num_heads_i=heads, kv_num_heads_i=shared, scale_f=scale,
        local_window_size_i=window, softcap_f=cap, outputs=3,
    )  # fmt: skip


def register() -> None:
    """Make the attention known to transformers and to the exporter; again does nothing."""
    from torch.onnx import utils
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    if NAME in ALL_ATTENTION_FUNCTIONS:
        return
    library: Any = torch.library.Library("llmos", "DEF")  # type: ignore[no-untyped-call]
    library.define(_SCHEMA)
    library.impl("group_query", _shapes, "CPU")
    _kept.append(library)
    utils.register_custom_op_symbolic("llmos::group_query", _symbol, graphs.OPSET)
    ALL_ATTENTION_FUNCTIONS.register(NAME, _attend)
    ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, lambda *_, **__: None)  # the operator masks by itself
