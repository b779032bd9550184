"""LoRA: adapters on every linear layer of the body, the head trained in full, and the merge that is checked."""

from collections.abc import Sequence
from typing import Any

import torch
from peft import LoraConfig, get_peft_model

from llmos.errors import LlmosError

RANK = 16
ALPHA = 32
DROPOUT = 0.05
MERGE_TOLERANCE = 1e-3  # of the largest logit; seen: 1e-6


def attach(model: Any, fresh: Sequence[str], seed: int) -> Any:
    """Wrap `model`: its linear layers get adapters (Hu et al. 2021), its `fresh` modules are trained in full.

    The rest is frozen.
    """
    torch.manual_seed(seed)
    layers = [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and not any(name == at or name.startswith(f"{at}.") for at in fresh)
    ]
    settings = LoraConfig(
        r=RANK, lora_alpha=ALPHA, lora_dropout=DROPOUT, target_modules=layers, modules_to_save=list(fresh)
    )
    return get_peft_model(model, settings)


@torch.no_grad()
def merge(model: Any, probe: dict[str, torch.Tensor]) -> Any:
    """The plain model with the adapters added into its weights.

    Raises `LlmosError` when its logits on the batch `probe` are not those of the adapted model.
    """
    model.eval()
    before = model(**probe).logits
    merged = model.merge_and_unload(safe_merge=True)
    merged.eval()
    after = merged(**probe).logits
    difference = float((after - before).abs().max())
    if not difference <= MERGE_TOLERANCE * max(1.0, float(before.abs().max())):
        raise LlmosError(
            f"merging the adapter changed the logits by {difference:.2g}",
            remedy="Train with train.method full.",
            code="merge_failed",
        )
    return merged
