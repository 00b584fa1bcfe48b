"""A port of llama2.c's run for tests: plain Python, float64 throughout, no library.

python port.py model.bin [-z tokenizer.bin] [-t 1.0] [-p 0.9] [-s SEED] [-n 256] [-i TEXT]
"""

from __future__ import annotations

import math
import os
import re
import struct
import sys
import time
from array import array
from itertools import pairwise
from pathlib import Path
from typing import Any

BOS = 1
MASK = 2**64 - 1


def read_model(path: str) -> tuple[list[int], dict[str, Any]]:
    data = Path(path).read_bytes()
    C, F, L, NH, NKV, V, S = config = list(struct.unpack_from("<7i", data))
    shared, config[5] = V > 0, abs(V)
    hs, V = C // NH, abs(V)
    floats = array("f", data[28 : len(data) // 4 * 4])
    at = 0

    def rows(count: int, width: int) -> list[list[float]]:
        nonlocal at
        found = [floats[at + i * width : at + (i + 1) * width].tolist() for i in range(count)]
        at += count * width
        if len(found[-1]) != width:
            raise SystemExit("the model is too short")
        return found

    def layers(count: int, width: int) -> list[Any]:
        return [rows(count, width) for _ in range(L)]

    w: dict[str, Any] = {"embedding": rows(V, C), "attention_norm": rows(L, C)}
    w |= {"wq": layers(C, C), "wk": layers(NKV * hs, C), "wv": layers(NKV * hs, C)}
    w |= {"wo": layers(C, C), "ffn_norm": rows(L, C)}
    w |= {"w1": layers(F, C), "w2": layers(C, F), "w3": layers(F, C), "norm": rows(1, C)[0]}
    at += S * (hs // 2) * 2
    w["classifier"] = w["embedding"] if shared else rows(V, C)
    return config, w


def dot(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def product(matrix: list[list[float]], x: list[float]) -> list[float]:
    return [dot(row, x) for row in matrix]


def rmsnorm(x: list[float], weight: list[float]) -> list[float]:
    r = 1 / math.sqrt(dot(x, x) / len(x) + 1e-5)
    return [w * r * v for w, v in zip(weight, x, strict=True)]


def softmax(x: list[float]) -> list[float]:
    most = max(x)
    e = [math.exp(v - most) for v in x]
    total = sum(e)
    return [v / total for v in e]


def rotated(x: list[float], pos: int, hs: int) -> list[float]:
    out = list(x)
    for i in range(0, len(x), 2):
        angle = pos / 10000 ** ((i % hs) / hs)
        c, s = math.cos(angle), math.sin(angle)
        out[i], out[i + 1] = x[i] * c - x[i + 1] * s, x[i] * s + x[i + 1] * c
    return out


def silu(v: float) -> float:
    return v / (1 + math.exp(-v)) if v > -700 else 0.0


def forward(config: list[int], w: dict[str, Any], cache: Any, token: int, pos: int) -> list[float]:
    C, _, L, NH, NKV, _, _ = config
    hs = C // NH
    x = list(w["embedding"][token])
    for layer in range(L):
        y = rmsnorm(x, w["attention_norm"][layer])
        q = rotated(product(w["wq"][layer], y), pos, hs)
        k = rotated(product(w["wk"][layer], y), pos, hs)
        cache[layer].append((k, product(w["wv"][layer], y)))
        out: list[float] = []
        for h in range(NH):
            at = h // (NH // NKV) * hs
            query = q[h * hs : (h + 1) * hs]
            a = softmax([dot(query, k[at : at + hs]) / math.sqrt(hs) for k, _ in cache[layer]])
            values = [v[at : at + hs] for _, v in cache[layer]]
            out += [sum(p * v[i] for p, v in zip(a, values, strict=True)) for i in range(hs)]
        x = [a + b for a, b in zip(x, product(w["wo"][layer], out), strict=True)]
        y = rmsnorm(x, w["ffn_norm"][layer])
        gate, up = product(w["w1"][layer], y), product(w["w3"][layer], y)
        hidden = [silu(g) * u for g, u in zip(gate, up, strict=True)]
        x = [a + b for a, b in zip(x, product(w["w2"][layer], hidden), strict=True)]
    return product(w["classifier"], rmsnorm(x, w["norm"]))


def read_vocabulary(path: str, V: int) -> tuple[list[bytes], list[float]]:
    data, at = Path(path).read_bytes(), 4
    pieces, scores = [], []
    for _ in range(V):
        score, length = struct.unpack_from("<fi", data, at)
        pieces.append(data[at + 8 : at + 8 + length])
        scores.append(score)
        at += 8 + length
    return pieces, scores


def encode(text: bytes, pieces: list[bytes], scores: list[float]) -> list[int]:
    ids, id_of = [BOS], {piece: i for i, piece in reversed(list(enumerate(pieces)))}
    if text:
        ids.append(id_of[b" "])
    for unit in re.findall(rb"(?s)[^\x80-\xbf][\x80-\xbf]{0,3}|[\x80-\xbf]{1,4}", text):
        ids += [id_of[unit]] if unit in id_of else [byte + 3 for byte in unit]
    while True:
        pairs = [pieces[a] + pieces[b] for a, b in pairwise(ids)]
        found = [(-scores[id_of[pair]], i) for i, pair in enumerate(pairs) if pair in id_of]
        if not found:
            return ids
        best = min(found)[1]
        ids[best : best + 2] = [id_of[pairs[best]]]


def printed(piece: bytes, previous: int) -> bytes:
    piece = piece[1:] if previous == BOS and piece[:1] == b" " else piece
    match = re.match(rb"<0x([0-9A-Fa-f]{2})>", piece)
    piece = bytes([int(match[1], 16)]) if match else piece
    return b"" if len(piece) == 1 and not (32 <= piece[0] < 127 or 9 <= piece[0] <= 13) else piece


class Sampler:
    def __init__(self, temperature: float, topp: float, seed: int) -> None:
        self.temperature, self.topp, self.state = temperature, topp, seed & MASK

    def coin(self) -> float:
        x = self.state
        x ^= x >> 12
        x ^= x << 25 & MASK
        x ^= x >> 27
        self.state = x
        return ((x * 0x2545F4914F6CDD1D & MASK) >> 40) / 2**24

    def __call__(self, logits: list[float]) -> int:
        if self.temperature == 0:
            return logits.index(max(logits))
        p = softmax([v / self.temperature for v in logits])
        coin, order = self.coin(), range(len(p))
        if 0 < self.topp < 1:
            order, total = sorted(order, key=lambda i: -p[i]), 0.0
            for n, i in enumerate(order, 1):
                total += p[i]
                if total > self.topp:
                    order = order[:n]
                    break
            coin *= total
        total = 0.0
        for i in order:
            total += p[i]
            if coin < total:
                return i
        return order[-1]


def main(argv: list[str]) -> int:
    flags = dict(zip(argv[1::2], argv[2::2], strict=True))
    config, w = read_model(argv[0])
    V, S = config[5], config[6]
    pieces, scores = read_vocabulary(flags.get("-z", "tokenizer.bin"), V)
    topp, steps = float(flags.get("-p", "0.9")), int(flags.get("-n", "256"))
    seed = int(flags.get("-s", "0")) or int(time.time())
    topp = topp if 0 <= topp <= 1 else 0.9
    sampler = Sampler(max(0.0, float(flags.get("-t", "1.0"))), topp, seed)
    ids = encode(os.fsencode(flags.get("-i", "")), pieces, scores)
    cache: list[Any] = [[] for _ in range(config[2])]
    token = ids[0]
    for pos in range(steps if 0 < steps <= S else S):
        logits = forward(config, w, cache, token, pos)
        following = ids[pos + 1] if pos + 1 < len(ids) else sampler(logits)
        if following == BOS:
            break
        sys.stdout.buffer.write(printed(pieces[following], token))
        token = following
    sys.stdout.buffer.write(b"\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
