"""Self-attention over tokens, shared by the encoders that are transformers."""

from torch import nn


def self_attention(width: int, depth: int, heads: int) -> nn.Sequential:
    """Pre-norm transformer layers of GELU units, and a last layer norm: `(B, N, width)` to the same."""
    # One by one, for torch's own stack copies a layer together with its random weights.
    layers = [
        nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        for _ in range(depth)
    ]
    return nn.Sequential(*layers, nn.LayerNorm(width))


__all__ = ["self_attention"]
