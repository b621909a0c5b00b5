"""BLOOM with fused attention and activation, and with several examples in a row: equal but for rounding.

transformers has BLOOM with eager attention alone, which ignores `position_ids`. Here its modules change their
class in place, so that names, weights and LoRA targets stay as they are.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers.models.bloom.modeling_bloom import (
    BloomAttention,
    BloomMLP,
    BloomModel,
    build_alibi_tensor,
    dropout_add,
)

from sft.command import tell_once

if TYPE_CHECKING:
    from transformers import PreTrainedModel


# A weight of 0 beside any other score. The mask's own, the lowest float32, is -inf in bfloat16, and in
# kernels that compute in powers of two; and a row that is all -inf, as padding's on the left, has no softmax.
MASKED = -1e9
SHORT = 128  # queries; from there to 512 the fused kernel overtakes


def prefers_steps(query: torch.Tensor) -> bool:
    """Say whether this query (batch, heads, queries, size) is faster without the fused kernel."""
    return query.is_cpu and (torch.is_grad_enabled() or query.shape[2] <= SHORT)


class SharedBias:
    """The sum of ALiBi and mask, made once a forward pass instead of once a layer."""

    def __init__(self) -> None:
        self.parts: tuple[torch.Tensor, torch.Tensor | None] | None = None
        self.bias = torch.empty(0)

    def add(self, alibi: torch.Tensor, mask: torch.Tensor | None, query: torch.Tensor) -> torch.Tensor:
        """Return their sum, (batch, heads, queries or 1, keys).

        ALiBi is (batch * heads, 1, keys), the mask (batch, 1, queries, keys).
        """
        if (
            self.parts is None
            or self.parts[0] is not alibi
            or self.parts[1] is not mask
            or self.bias.dtype != query.dtype
        ):
            bias = alibi.view(query.shape[0], query.shape[1], 1, -1)
            bias = bias if mask is None else bias + mask
            self.bias = bias.clamp(min=max(MASKED, torch.finfo(query.dtype).min)).to(query.dtype)
            self.parts = alibi, mask
        return self.bias


class FusedBloomAttention(BloomAttention):
    """BLOOM's attention through `scaled_dot_product_attention`, with ALiBi (Press et al., 2022) as bias."""

    shared: SharedBias

    def forward(  # noqa: PLR0913 (transformers' signature)
        self,
        hidden_states: torch.Tensor,
        residual: torch.Tensor,
        alibi: torch.Tensor,
        attention_mask: torch.Tensor | None,
        layer_past: Any = None,
        use_cache: bool = False,
        output_attentions: bool = False,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """See BloomAttention.forward: hidden states and residual are (batch, queries, hidden size)."""
        if output_attentions:  # which a fused kernel never has
            options = {"layer_past": layer_past, "use_cache": use_cache, "output_attentions": True} | kwargs
            return super().forward(hidden_states, residual, alibi, attention_mask, **options)
        query, key, value = self._reshape(self.query_key_value(hidden_states))
        if layer_past is not None:
            key, value = layer_past.update(key, value, self.layer_idx)
        bias = self.shared.add(alibi, attention_mask, query)
        if prefers_steps(query):
            context = self.attend_in_steps(query, key, value, bias)
        else:
            dropout = self.attention_dropout.p if self.training else 0.0
            context = nn.functional.scaled_dot_product_attention(
                query, key, value, bias, dropout, scale=self.inv_norm_factor
            )
        output = self.dense(context.transpose(1, 2).flatten(2))
        return dropout_add(output, residual, self.hidden_dropout, self.training), None

    def attend_in_steps(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bias: torch.Tensor
    ) -> torch.Tensor:
        """Attend without the fused kernel.

        On a CPU its backward pass is three to seven times slower than this, and for few queries, as in
        generation, its forward pass is one and a half to four times slower.
        """
        bias = bias.expand(*query.shape[:3], -1).flatten(0, 1)
        scores = bias.baddbmm(query.flatten(0, 1), key.flatten(0, 1).mT, alpha=self.inv_norm_factor)
        weights = scores.softmax(-1, dtype=torch.float32).to(
            value.dtype
        )  # on a CPU faster than within bfloat16
        context = self.attention_dropout(weights) @ value.flatten(0, 1)
        return context.unflatten(0, query.shape[:2])


class PackedBloomModel(BloomModel):
    """BLOOM that reads `position_ids`: a token sees its own example alone, and ALiBi counts from its start.

    Each 0 in the position_ids (batch, tokens) begins an example; padding is all zeros, and sees itself.
    """

    positions: torch.Tensor | None = None

    def build_alibi_tensor(
        self, attention_mask: torch.Tensor, num_heads: int, dtype: torch.dtype
    ) -> torch.Tensor:
        if self.positions is None:
            return super().build_alibi_tensor(attention_mask, num_heads, dtype)
        slopes = build_alibi_tensor(self.positions.new_ones(1, 2), num_heads, torch.float32)[:, 0, 1]
        alibi = slopes[None, :, None] * self.positions[:, None, :]
        return alibi.reshape(-1, 1, self.positions.shape[1]).to(dtype)

    def forward(self, *args: Any, position_ids: torch.Tensor | None = None, **kwargs: Any) -> Any:
        """See BloomModel.forward."""
        if position_ids is None:
            return super().forward(*args, **kwargs)
        example = (position_ids == 0).cumsum(-1)
        same = example[:, None, :, None] == example[:, None, None, :]
        mask = torch.zeros(same.shape, device=same.device).masked_fill_(
            ~same.tril(), torch.finfo(torch.float32).min
        )
        self.positions = position_ids
        try:
            return super().forward(*args, **kwargs | {"attention_mask": mask})
        finally:
            self.positions = None


class QuickDropout(nn.Dropout):
    """Dropout from 16 random bits an element: PyTorch's own took a quarter of a step on a CPU.

    The probability is rounded to 1/65,536, and the scale is of the rounded one, so that the mean stays.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return a tensor of the same shape."""
        if not self.training or self.p == 0:
            return input
        dropped = round(self.p * 2**16)
        draws = (
            torch.empty(-(-input.numel() // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
        )
        kept = (draws[: input.numel()] >= dropped - 2**15).to(input.dtype).mul_(2**16 / (2**16 - dropped))
        return input * kept.view(input.shape)


def quicken_dropout(model: nn.Module) -> None:
    """Give a model on a CPU a faster dropout, in place."""
    for module in model.modules():
        if type(module) is nn.Dropout and module.p < 1:
            module.__class__ = QuickDropout


def fuse(model: "PreTrainedModel") -> bool:
    """Give a BLOOM fused attention and activation, in place; return whether it could be done.

    It can't for `slow_but_exact`, which computes in slices as the first training of BLOOM did; a line says
    so.
    """
    if model.config.model_type != "bloom":
        return False
    if model.config.slow_but_exact:
        tell_once("slow_but_exact in the base's config: eager attention in place of the fused one")
        return False
    shared = SharedBias()
    for module in model.modules():
        if isinstance(module, BloomAttention):
            module.__class__ = FusedBloomAttention
            module.shared = shared
        elif isinstance(module, BloomMLP):
            module.gelu_impl = nn.GELU(approximate="tanh")
    return True


def read_positions(model: "PreTrainedModel") -> None:
    """Have a BLOOM keep the examples of a packed row apart, in place."""
    model.base_model.__class__ = PackedBloomModel
