"""The hyperparameters of a GPT-2 and the rules that they obey."""

from __future__ import annotations

from dataclasses import dataclass, fields

from pyllm2.errors import ConfigError


@dataclass(frozen=True)
class GPT2Config:
    """Six sizes that determine the shape of every array. Names as in llm.c.

    Raises ConfigError (name, value, rule) for sizes that do not go together.
    """

    max_seq_len: int  # S    rows of the position table
    vocab_size: int  # V
    num_layers: int  # L
    num_heads: int  # NH
    channels: int  # C
    padded_vocab_size: int  # Vp   rows of the token table, rounded up for speed; V ≤ Vp

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value < 1:
                raise ConfigError(field.name, value, "must be at least 1")
        if self.padded_vocab_size < self.vocab_size:
            raise ConfigError(
                "padded_vocab_size",
                self.padded_vocab_size,
                f"must be at least vocab_size = {self.vocab_size}",
            )
        if self.channels % self.num_heads:
            raise ConfigError(
                "channels", self.channels, f"must be a multiple of num_heads = {self.num_heads}"
            )

    @property
    def head_size(self) -> int:
        """hs = C / NH."""
        return self.channels // self.num_heads

    @property
    def seq_len(self) -> int:
        """S, under the name that Llama-2 has for it."""
        return self.max_seq_len

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every learned array, in the order of llm.c's files."""
        C, L, S, Vp = self.channels, self.num_layers, self.max_seq_len, self.padded_vocab_size
        return {
            "wte": (Vp, C),
            "wpe": (S, C),
            "ln1w": (L, C),
            "ln1b": (L, C),
            "qkvw": (L, 3 * C, C),
            "qkvb": (L, 3 * C),
            "attprojw": (L, C, C),
            "attprojb": (L, C),
            "ln2w": (L, C),
            "ln2b": (L, C),
            "fcw": (L, 4 * C, C),
            "fcb": (L, 4 * C),
            "fcprojw": (L, C, 4 * C),
            "fcprojb": (L, C),
            "lnfw": (C,),
            "lnfb": (C,),
        }

    def parameters(self) -> int:
        """Number of parameters, the padding rows of wte included."""
        C, L = self.channels, self.num_layers
        tables = (self.padded_vocab_size + self.max_seq_len) * C
        return tables + L * (12 * C * C + 13 * C) + 2 * C
