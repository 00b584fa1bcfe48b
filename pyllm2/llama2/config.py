"""The hyperparameters of a Llama-2, and what must hold between them."""

from __future__ import annotations

from dataclasses import dataclass, fields

from pyllm2.errors import ConfigError


@dataclass(frozen=True)
class Llama2Config:
    """Seven numbers that say the shape of everything. Upstream's words, our letters beside them.

    Raises ConfigError (name, value, what must hold) if the model cannot exist. Two constants
    belong to every model and are in no file: norm epsilon 1e-5 and RoPE base 10000.
    """

    dim: int  # C    channels
    hidden_dim: int  # F    feed-forward width
    n_layers: int  # L
    n_heads: int  # NH   query heads
    n_kv_heads: int  # NKV  key/value heads; NH / NKV query heads share one
    vocab_size: int  # V
    seq_len: int  # S    context length

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value < 1:
                raise ConfigError(field.name, value, "must be at least 1")
        if self.dim % self.n_heads:
            raise ConfigError("dim", self.dim, f"must be a multiple of n_heads = {self.n_heads}")
        if self.n_heads % self.n_kv_heads:
            raise ConfigError(
                "n_kv_heads", self.n_kv_heads, f"must divide n_heads = {self.n_heads}"
            )
        if self.head_size % 2:
            raise ConfigError(
                "dim",
                self.dim,
                f"gives head size {self.head_size} with n_heads = {self.n_heads}: "
                "RoPE needs an even size",
            )

    @property
    def head_size(self) -> int:
        """hs = C / NH."""
        return self.dim // self.n_heads

    @property
    def kv_dim(self) -> int:
        """Width of a row of keys or values, NKV · hs."""
        return self.n_kv_heads * self.head_size

    def parameters(self, shared_classifier: bool = True) -> int:
        """How many numbers are learned; a shared classifier is counted once."""
        C, F, L, V = self.dim, self.hidden_dim, self.n_layers, self.vocab_size
        per_layer = 2 * C + 2 * C * C + 2 * self.kv_dim * C + 3 * C * F
        return V * C * (1 if shared_classifier else 2) + L * per_layer + C
