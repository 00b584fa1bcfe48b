"""The hyperparameters of a Llama-2 and the rules that they obey."""

from __future__ import annotations

from dataclasses import dataclass, fields

from pyllm2.errors import ConfigError


@dataclass(frozen=True)
class Llama2Config:
    """Seven sizes that determine the shape of every array. Names as in llama2.c.

    Every model also has norm epsilon 1e-5 and RoPE base 10000, which no file contains.

    Raises ConfigError (name, value, rule) for sizes that do not go together.
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

    def shapes(self, shared_classifier: bool = True) -> dict[str, tuple[int, ...]]:
        """Name and shape of every learned array; a classifier of its own comes last."""
        C, F, L, KV = self.dim, self.hidden_dim, self.n_layers, self.kv_dim
        return {
            "token_embedding": (self.vocab_size, C),
            "attention_norm": (L, C),
            "wq": (L, C, C),
            "wk": (L, KV, C),
            "wv": (L, KV, C),
            "wo": (L, C, C),
            "ffn_norm": (L, C),
            "w1": (L, F, C),
            "w2": (L, C, F),
            "w3": (L, F, C),
            "final_norm": (C,),
            **({} if shared_classifier else {"classifier": (self.vocab_size, C)}),
        }

    def parameters(self, shared_classifier: bool = True) -> int:
        """Number of parameters; a shared classifier is counted once."""
        C, F, L, V = self.dim, self.hidden_dim, self.n_layers, self.vocab_size
        per_layer = 2 * C + 2 * C * C + 2 * self.kv_dim * C + 3 * C * F
        return V * C * (1 if shared_classifier else 2) + L * per_layer + C
