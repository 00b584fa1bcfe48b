"""Llama-2 and AdamW in PyTorch, with its fastest calls on a CPU: a rival for bench_train."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.nn import functional as F  # noqa: N812  (its usual name)

from pyllm2.llama2.config import Llama2Config
from pyllm2.llama2.ops import EPS, rope_tables
from pyllm2.llama2.training import MATRICES
from pyllm2.parameters import Parameters


class TorchTraining:
    """Training steps on weights that start as `params`."""

    def __init__(
        self, config: Llama2Config, params: Parameters, threads: int, **adamw: Any
    ) -> None:
        torch.set_num_threads(threads)
        self.config = config
        self.params = {name: torch.tensor(array) for name, array in params.items()}
        for tensor in self.params.values():
            tensor.requires_grad_(True)
        decay = adamw.pop("weight_decay")
        matrices = [p for name, p in self.params.items() if name in MATRICES]
        others = [p for name, p in self.params.items() if name not in MATRICES]
        groups = [
            {"params": matrices, "weight_decay": decay},
            {"params": others, "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, fused=True, **adamw)
        cos, sin = rope_tables(config.seq_len, config.head_size)
        self.cos, self.sin = torch.from_numpy(cos), torch.from_numpy(sin)

    def loss(self, tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The mean loss of the targets that are not -1. tokens, targets: (B, T)"""
        p, config = self.params, self.config
        (B, T), C, NH, NKV = tokens.shape, config.dim, config.n_heads, config.n_kv_heads
        x = F.embedding(tokens, p["token_embedding"])
        # One unbind per tensor: indexing by layer would give each layer a full-size gradient.
        layers = zip(*(p[n].unbind(0) for n in BLOCK), strict=True)
        for attention_norm, wq, wk, wv, wo, ffn_norm, w1, w2, w3 in layers:
            y = F.rms_norm(x, (C,), attention_norm, float(EPS))
            q = self.rope(F.linear(y, wq).view(B, T, NH, -1)).transpose(1, 2)
            k = self.rope(F.linear(y, wk).view(B, T, NKV, -1)).transpose(1, 2)
            v = F.linear(y, wv).view(B, T, NKV, -1).transpose(1, 2)
            k, v = (a.repeat_interleave(NH // NKV, dim=1) for a in (k, v))
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + F.linear(y.transpose(1, 2).reshape(B, T, C), wo)
            y = F.rms_norm(x, (C,), ffn_norm, float(EPS))
            x = x + F.linear(F.silu(F.linear(y, w1)) * F.linear(y, w3), w2)
        x = F.rms_norm(x, (C,), p["final_norm"], float(EPS))
        logits = F.linear(x, p["token_embedding"]).view(B * T, -1)
        return F.cross_entropy(logits, targets.reshape(-1), ignore_index=-1)

    def rope(self, x: torch.Tensor) -> torch.Tensor:
        """x: (B, T, heads, hs)"""
        T = x.shape[1]
        a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
        cos, sin = self.cos[:T, None], self.sin[:T, None]
        return torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1).flatten(-2)

    def step(self, tokens: np.ndarray, targets: np.ndarray) -> float:
        """One training step; returns the loss before it."""
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss(torch.from_numpy(tokens), torch.from_numpy(targets))
        loss.backward()
        self.optimizer.step()
        return loss.item()


BLOCK = ("attention_norm", "wq", "wk", "wv", "wo", "ffn_norm", "w1", "w2", "w3")
