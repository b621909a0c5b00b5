"""The loss on a CPU: labelled positions alone, their logits computed once forward and once backward."""

from typing import Any

import torch
import trl.trainer.utils
from torch.autograd.function import once_differentiable
from trl.kernels import ChunkedLogProbFunction
from trl.kernels.chunked_logprob import _use_triton as use_triton

from sft.command import tell_once

LOGITS_BYTES = 2**26  # at most this much for the logits of a block of tokens, in float32


class FrozenHeadLogProbs(torch.autograd.Function):
    """Log-probabilities of targets under a frozen LM head, entropies, and whether a target is the likeliest.

    TRL's ChunkedLogProbFunction computes the logits again in the backward pass and multiplies there in
    float32. Here the gradient with respect to the hidden states, which needs no more than the logits, is
    taken while they are there, as Liger-Kernel (Hsu et al., 2024) does, and scaled in the backward pass.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return log-probabilities (nats), entropies (nats) and hits, each (tokens,).

        `hidden` is (tokens, hidden size), `weight` (vocabulary, hidden size), `targets` (tokens,).
        """
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else hidden.dtype
        weight = weight.to(dtype)
        log_probs, entropies = hidden.new_empty(2, len(hidden), dtype=torch.float32)
        hits = torch.empty(len(hidden), dtype=torch.bool)
        slopes = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        block = max(1, LOGITS_BYTES // (4 * len(weight)))
        for start in range(0, len(hidden), block):
            at = slice(start, start + block)
            target = targets[at, None]
            log_p = (hidden[at].to(dtype) @ weight.mT).float()
            hits[at] = log_p.argmax(-1) == target[:, 0]
            log_p -= log_p.logsumexp(-1, keepdim=True)
            log_probs[at] = log_p.gather(-1, target)[:, 0]
            p = log_p.exp()
            entropies[at] = -torch.linalg.vecdot(p, log_p)
            if slopes is not None:  # d log p[target] / d logits = onehot(target) - p
                slopes[at] = (
                    p.neg_().scatter_add_(-1, target, torch.ones_like(target, dtype=p.dtype)).to(dtype)
                    @ weight
                )
        ctx.mark_non_differentiable(entropies, hits)
        ctx.save_for_backward(slopes)
        return log_probs, entropies, hits

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor, *_: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (slopes,) = ctx.saved_tensors
        return (slopes * grad[:, None]).to(slopes.dtype), None, None


class LogProbs:
    """In place of TRL's function: ours where it does the same, else TRL's."""

    @staticmethod
    def apply(  # noqa: PLR0913 (TRL's signature)
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        temperature: float,
        chunk_size: int,
        softcap: float | None,
        scale: float,
        outputs: tuple[str, ...],
    ) -> tuple[torch.Tensor | None, ...]:
        """See ChunkedLogProbFunction.forward."""
        plain = bias is None and not weight.requires_grad and temperature == scale == 1 and softcap is None
        if not (hidden.is_cpu and plain and {"entropy", "log_probs", "is_top1"}.issuperset(outputs)):
            if hidden.is_cpu:
                tell_once(
                    "loss: the LM head has a bias, a scale or weights that train: "
                    "TRL's own function, not the faster one"
                )
            return ChunkedLogProbFunction.apply(
                hidden, weight, bias, targets, temperature, chunk_size, softcap, scale, outputs
            )
        log_probs, entropies, hits = FrozenHeadLogProbs.apply(hidden, weight, targets)
        return (
            log_probs,
            entropies if "entropy" in outputs else None,
            None,
            None,
            hits if "is_top1" in outputs else None,
        )


def choose_loss(plain: bool) -> None:
    """Have TRL's loss pass labelled positions alone through the LM head on a CPU too; with `plain`, undo it.

    This replaces two private functions of TRL 1.16 for the whole process: its fused head scores every
    position where Triton does not run, for devices that compile each new shape. Loss and gradient are the
    same but for rounding.
    """
    trl.trainer.utils._use_triton = (
        use_triton if plain else lambda device: device.type == "cpu" or use_triton(device)
    )
    trl.trainer.utils._ChunkedLogProbFunction = ChunkedLogProbFunction if plain else LogProbs
