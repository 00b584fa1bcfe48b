"""A second definition of GGUF's blocks: one number at a time, in Python integers.

Element i of a block is written out from the bits that it consists of; the products are NumPy
float32 scalars, in the order of the format's description.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np

F = np.float32
T = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113]


def f16(b: Sequence[int], at: int) -> np.float32:
    return F(np.frombuffer(bytes(b[at : at + 2]), "<f2")[0])


def i8(x: int) -> int:
    return x - 256 if x > 127 else x


def nibble(byte: int, high: bool) -> int:
    return byte >> 4 if high else byte & 15


def q8_0(b: Sequence[int], i: int) -> np.float32:
    return f16(b, 0) * F(i8(b[2 + i]))


def q4_0(b: Sequence[int], i: int) -> np.float32:
    return f16(b, 0) * F(nibble(b[2 + i % 16], i >= 16) - 8)


def q4_1(b: Sequence[int], i: int) -> np.float32:
    return f16(b, 0) * F(nibble(b[4 + i % 16], i >= 16)) + f16(b, 2)


def q5_0(b: Sequence[int], i: int) -> np.float32:
    (qh,) = struct.unpack_from("<I", bytes(b), 2)
    return f16(b, 0) * F((nibble(b[6 + i % 16], i >= 16) | (qh >> i & 1) << 4) - 16)


def q5_1(b: Sequence[int], i: int) -> np.float32:
    (qh,) = struct.unpack_from("<I", bytes(b), 4)
    return f16(b, 0) * F(nibble(b[8 + i % 16], i >= 16) | (qh >> i & 1) << 4) + f16(b, 2)


def iq4_nl(b: Sequence[int], i: int) -> np.float32:
    return f16(b, 0) * F(T[nibble(b[2 + i % 16], i >= 16)])


def place(i: int) -> tuple[int, int, int]:
    """i = 128 n + 32 j + l"""
    return i // 128, i // 32 % 4, i % 32


def q2_k(b: Sequence[int], i: int) -> np.float32:
    n, j, l = place(i)  # noqa: E741
    q = b[16 + 32 * n + l] >> 2 * j & 3
    s = b[i // 16]
    return f16(b, 80) * F(s & 15) * F(q) - f16(b, 82) * F(s >> 4)


def q3_k(b: Sequence[int], i: int) -> np.float32:
    n, j, l = place(i)  # noqa: E741
    q = (b[32 + 32 * n + l] >> 2 * j & 3) - (0 if b[l] >> (4 * n + j) & 1 else 4)
    k = i // 16
    low, high = b[96 + k % 8] >> 4 * (k // 8) & 15, b[104 + k % 4] >> 2 * (k // 4) & 3
    return f16(b, 108) * F((low | high << 4) - 32) * F(q)


def scale_and_minimum(s: Sequence[int], k: int) -> tuple[int, int]:
    if k < 4:
        return s[k] & 63, s[k + 4] & 63
    return s[k + 4] & 15 | s[k - 4] >> 6 << 4, s[k + 4] >> 4 | s[k] >> 6 << 4


def q4_k(b: Sequence[int], i: int) -> np.float32:
    k, l = i // 32, i % 32  # noqa: E741
    s, m = scale_and_minimum(b[4:16], k)
    q = b[16 + 32 * (k // 2) + l] >> 4 * (k % 2) & 15
    return f16(b, 0) * F(s) * F(q) - f16(b, 2) * F(m)


def q5_k(b: Sequence[int], i: int) -> np.float32:
    k, l = i // 32, i % 32  # noqa: E741
    s, m = scale_and_minimum(b[4:16], k)
    q = b[48 + 32 * (k // 2) + l] >> 4 * (k % 2) & 15 | (b[16 + l] >> k & 1) << 4
    return f16(b, 0) * F(s) * F(q) - f16(b, 2) * F(m)


def q6_k(b: Sequence[int], i: int) -> np.float32:
    n, j, l = place(i)  # noqa: E741
    low = b[64 * n + 32 * (j % 2) + l] >> 4 * (j // 2) & 15
    q = (low | (b[128 + 32 * n + l] >> 2 * j & 3) << 4) - 32
    return f16(b, 208) * F(i8(b[192 + i // 16])) * F(q)


def iq4_xs(b: Sequence[int], i: int) -> np.float32:
    k, l = i // 32, i % 32  # noqa: E741
    (high,) = struct.unpack_from("<H", bytes(b), 2)
    s = (b[4 + k // 2] >> 4 * (k % 2) & 15 | (high >> 2 * k & 3) << 4) - 32
    return f16(b, 0) * F(s) * F(T[b[8 + 16 * k + l % 16] >> 4 * (l // 16) & 15])


BLOCKS = {
    f.__name__.upper(): f
    for f in (
        q8_0, q4_0, q4_1, q5_0, q5_1, iq4_nl, q2_k, q3_k, q4_k, q5_k, q6_k, iq4_xs
    )
}  # fmt: skip
