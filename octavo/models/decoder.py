"""The decoder: one stack of layers, each an attention kind and a feed-forward kind from the config's pattern."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from octavo.config import ModelConfig
from octavo.models.attention import Cache, Rotary, SoftmaxAttention
from octavo.models.layers import DenseMLP, RMSNorm
from octavo.models.moe import MoE, Routing
from octavo.models.packing import Packing
from octavo.ops.precision import at_least_fp32
from octavo.ops.rotary import inverse_frequencies, rotary_table


@dataclass(frozen=True)
class DecoderOutput:
    """hidden: [N, H] after the final norm. routings: one entry a layer, None where the layer is dense."""

    hidden: Tensor
    routings: tuple[Routing | None, ...]


class PreNormBlock(nn.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x)): Llama, Mistral, Mixtral."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        spec = config.layers[layer]
        self.attention_norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.attention = SoftmaxAttention(config, layer)
        self.mlp_norm = RMSNorm(config.hidden_size, config.norm_eps)
        dense = spec.mlp == "dense"
        self.mlp = DenseMLP(config.hidden_size, config.intermediate_size) if dense else MoE(config)

    def forward(
        self, x: Tensor, rotary: Rotary, packing: Packing, cache: Cache | None = None
    ) -> tuple[Tensor, Routing | None]:
        """x: [N, H]; returns [N, H] and the layer's routing, None for a dense layer."""
        x = x + self.attention(self.attention_norm(x), rotary, packing, cache)
        y, routing = self.mlp(self.mlp_norm(x))
        return x + y, routing


class Decoder(nn.Module):
    """Token ids to hidden states and logits, on one device.

    Its parameters mean nothing until `initialise` or a checkpoint fills them. The batch is flat: sequences
    laid end to end, described by a `Packing`.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(PreNormBlock(config, layer) for layer in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, config.norm_eps)
        if not config.tie_embeddings:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def forward(self, ids: Tensor, packing: Packing | None = None, cache: Cache | None = None) -> DecoderOutput:
        """ids: int64 [N]; packing defaults to one sequence of N rows without a cache."""
        if packing is None:
            packing = Packing.from_lengths([ids.shape[0]], device=ids.device)
        x = self.embed(ids)
        rotary = self.rotary(packing.positions, x.dtype)
        routings = []
        for layer in self.layers:
            x, routing = layer(x, rotary, packing, cache)
            routings.append(routing)
        return DecoderOutput(self.norm(x), tuple(routings))

    def rotary(self, positions: Tensor, dtype: torch.dtype) -> Rotary:
        """cos and sin [N, dim/2] for int64 positions [N].

        Computed anew at every step: a buffer would be left unfilled when a model built on the meta device is
        materialised.
        """
        return rotary_table(positions, inverse_frequencies(self.config.rope, positions.device), dtype)

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden: [N, H] to logits [N, vocab], in fp32 whatever the model's dtype."""
        head = self.embed.weight if self.config.tie_embeddings else self.lm_head.weight
        return F.linear(at_least_fp32(hidden), at_least_fp32(head))

    @torch.no_grad()
    def initialise(self, seed: int = 0) -> "Decoder":
        """Fill every matrix from N(0, initializer_range), norms with ones; returns self."""
        generator = torch.Generator(device=self.embed.weight.device).manual_seed(seed)
        for parameter in self.parameters():
            if parameter.ndim == 1:
                parameter.fill_(1.0)
            else:
                parameter.normal_(0.0, self.config.initializer_range, generator=generator)
        return self
