"""The hyperparameters of a Llama-2 and the rules that they obey."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass, fields
from typing import Any

from pyllm2.errors import ConfigError
from pyllm2.llama2.rope_scaling import RopeScaling

SIZES = tuple("dim hidden_dim n_layers n_heads n_kv_heads vocab_size seq_len".split())


@dataclass(frozen=True)
class Llama2Config:
    """Seven sizes that determine the shape of every array. Names as in llama2.c.

    The fields after them are those of later models (Llama-3, Mistral, Qwen): llama2.c's files do
    not contain them, and their defaults are what run.c computes.

    Raises ConfigError (name, value, rule) for values that do not go together.
    """

    dim: int  # C    channels
    hidden_dim: int  # F    feed-forward width
    n_layers: int  # L
    n_heads: int  # NH   query heads
    n_kv_heads: int  # NKV  key/value heads; NH / NKV query heads share one
    vocab_size: int  # V
    seq_len: int  # S    context length

    norm_epsilon: float = 1e-5
    rope_base: float = 10000.0
    rope_scaling: RopeScaling | None = None
    head_size: int = 0  # hs   of queries, keys and values; 0: C / NH
    qkv_bias: bool = False  # of wq, wk, wv
    output_bias: bool = False  # of wo
    ffn_bias: bool = False  # of w1, w2, w3
    head_norm: bool = False  # each head of queries and keys is normalised (Qwen3)
    windows: tuple[int, ...] = ()  # per layer: positions that a token attends to, 0: all

    def __post_init__(self) -> None:
        for name in SIZES:
            value = getattr(self, name)
            if value < 1:
                raise ConfigError(name, value, "must be at least 1")
        if not self.head_size and self.dim % self.n_heads:
            raise ConfigError("dim", self.dim, f"must be a multiple of n_heads = {self.n_heads}")
        if self.n_heads % self.n_kv_heads:
            raise ConfigError(
                "n_kv_heads", self.n_kv_heads, f"must divide n_heads = {self.n_heads}"
            )
        self._complete_head_size()
        if not 0 < self.norm_epsilon <= 1:
            raise ConfigError(
                "norm_epsilon", self.norm_epsilon, "must be finite, above 0, at most 1"
            )
        if not 1 < self.rope_base <= 1e30:
            raise ConfigError("rope_base", self.rope_base, "must be above 1 and at most 1e30")
        if self.rope_scaling is not None and self.rope_scaling.kind == "divisors":
            found, pairs = len(self.rope_scaling.divisors), self.head_size // 2
            if found != pairs:
                raise ConfigError("rope divisors", found, f"must be one per pair: {pairs}")
        self._check_windows()

    def _complete_head_size(self) -> None:
        """C / NH where none is given. Raises ConfigError."""
        C, NH, hs = self.dim, self.n_heads, self.head_size
        if not hs:
            object.__setattr__(self, "head_size", C // NH)
            if self.head_size % 2:
                words = f"gives head size {self.head_size} with n_heads = {NH}"
                raise ConfigError("dim", C, f"{words}: RoPE needs an even size")
        elif hs < 0 or hs % 2:
            raise ConfigError("head_size", hs, "must be even: RoPE turns pairs")

    def _check_windows(self) -> None:
        """A tuple, () if there is no window. Raises ConfigError."""
        windows = tuple(self.windows) if any(self.windows) else ()
        object.__setattr__(self, "windows", windows)
        if windows and len(windows) != self.n_layers:
            raise ConfigError("windows", len(windows), f"must be one per layer: {self.n_layers}")
        if min(windows, default=0) < 0:
            raise ConfigError("windows", min(windows), "must be at least 0")

    @property
    def kv_dim(self) -> int:
        """Width of a row of keys or values, NKV · hs."""
        return self.n_kv_heads * self.head_size

    @property
    def query_dim(self) -> int:
        """Width of a row of queries, NH · hs; C in llama2.c."""
        return self.n_heads * self.head_size

    def window(self, layer: int) -> int:
        """Positions that a token attends to in a layer, its own included; 0: all."""
        return self.windows[layer] if self.windows else 0

    @property
    def beyond_run_c(self) -> dict[str, Any]:
        """Name and value of the fields that run.c cannot compute; {} for a model of llama2.c."""
        plain = {field.name: field.default for field in fields(self) if field.name not in SIZES}
        plain |= {"norm_epsilon": _single(1e-5), "head_size": self.dim / self.n_heads}
        found = {name: getattr(self, name) for name in plain}
        found["norm_epsilon"] = _single(self.norm_epsilon)
        return {name: getattr(self, name) for name in plain if found[name] != plain[name]}

    def shapes(self, shared_classifier: bool = True) -> dict[str, tuple[int, ...]]:
        """Name and shape of every learned array; a classifier of its own comes last."""
        C, F, L, KV, Q = self.dim, self.hidden_dim, self.n_layers, self.kv_dim, self.query_dim
        hs, V = self.head_size, self.vocab_size
        return {
            "token_embedding": (V, C),
            "attention_norm": (L, C),
            "wq": (L, Q, C),
            "wk": (L, KV, C),
            "wv": (L, KV, C),
            "wo": (L, C, Q),
            "ffn_norm": (L, C),
            "w1": (L, F, C),
            "w2": (L, C, F),
            "w3": (L, F, C),
            "final_norm": (C,),
            **({"bq": (L, Q), "bk": (L, KV), "bv": (L, KV)} if self.qkv_bias else {}),
            **({"bo": (L, C)} if self.output_bias else {}),
            **({"b1": (L, F), "b2": (L, C), "b3": (L, F)} if self.ffn_bias else {}),
            **({"q_norm": (L, hs), "k_norm": (L, hs)} if self.head_norm else {}),
            **({} if shared_classifier else {"classifier": (V, C)}),
        }

    def parameters(self, shared_classifier: bool = True) -> int:
        """Number of parameters; a shared classifier is counted once."""
        return sum(math.prod(shape) for shape in self.shapes(shared_classifier).values())


def _single(x: float) -> float:
    """The float32 next to x, which is what every engine computes with."""
    (rounded,) = struct.unpack("f", struct.pack("f", x))
    return float(rounded)
