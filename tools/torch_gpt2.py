"""GPT-2 and AdamW in PyTorch, with its fastest calls on a CPU: a rival for bench_train."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.nn import functional as F  # noqa: N812  (its usual name)

from pyllm2.gpt2.config import GPT2Config
from pyllm2.gpt2.training import MATRICES
from pyllm2.parameters import Parameters


class TorchTraining:
    """Training steps on weights that start as `params`."""

    def __init__(self, config: GPT2Config, params: Parameters, threads: int, **adamw: Any) -> None:
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

    def loss(self, tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The mean loss. tokens, targets: (B, T)"""
        p, config = self.params, self.config
        (B, T), C = tokens.shape, config.channels
        x = F.embedding(tokens, p["wte"]) + p["wpe"][:T]
        # One unbind per tensor: indexing by layer would give each layer a full-size gradient.
        layers = zip(*(p[n].unbind(0) for n in BLOCK), strict=True)
        for ln1w, ln1b, qkvw, qkvb, projw, projb, ln2w, ln2b, fcw, fcb, fcprojw, fcprojb in layers:
            qkv = F.linear(F.layer_norm(x, (C,), ln1w, ln1b), qkvw, qkvb)
            heads = qkv.view(B, T, 3, config.num_heads, config.head_size).permute(2, 0, 3, 1, 4)
            y = F.scaled_dot_product_attention(heads[0], heads[1], heads[2], is_causal=True)
            x = x + F.linear(y.transpose(1, 2).reshape(B, T, C), projw, projb)
            h = F.linear(F.layer_norm(x, (C,), ln2w, ln2b), fcw, fcb)
            x = x + F.linear(F.gelu(h, approximate="tanh"), fcprojw, fcprojb)
        x = F.layer_norm(x, (C,), p["lnfw"], p["lnfb"])
        logits = F.linear(x, p["wte"]).view(B * T, -1)
        return F.cross_entropy(logits[:, : config.vocab_size], targets.reshape(-1))

    def step(self, tokens: np.ndarray, targets: np.ndarray) -> float:
        """One training step; returns the loss before it."""
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss(torch.from_numpy(tokens), torch.from_numpy(targets))
        loss.backward()
        self.optimizer.step()
        return loss.item()


BLOCK = "ln1w ln1b qkvw qkvb attprojw attprojb ln2w ln2b fcw fcb fcprojw fcprojb".split()
