"""The number formats of GGUF: a tensor is a row of blocks, each with its own scale.

`dequantize_*` is one function per format. It takes blocks as bytes, (n, bytes of a block), and
returns numbers, (n, numbers of a block) float32. Products and sums are rounded to float32 in the
order written, which gives the bits of llama.cpp. A layout is the parts of a block in order with
their bytes; f16 is an IEEE half, d is a scale and m a minimum.

The formats in K have 256 numbers, in 8 or 16 groups with small integer scales of their own. Bits
of one number lie in several parts: `unpack` puts each part in the order of the numbers.

Source: the files that llama.cpp writes. Only Q8_0 and Q4_0 are written here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[Any]  # uint8
Array = NDArray[np.float32]

# The 16 values of IQ4: denser around zero than 16 equal steps.
IQ4_VALUES = np.array(
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32
)
CHUNK = 2**18  # numbers at once, so that temporary arrays stay small

# ---- parts of a block ------------------------------------------------------------------------


def unpack(packed: Bytes, bits: int, run: int) -> Bytes:
    """Small integers of `bits` bits, several in a byte.

    A run of bytes has the lowest bits of all its bytes first, then the next ones of all, and so on.

    packed: (n, bytes)   ->   (n, bytes · 8 / bits)
    Example: unpack([[0x21, 0x43]], 4, 2) -> [[1, 3, 2, 4]]
    """
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]  # (8 / bits, 1)
    runs = packed.reshape(len(packed), -1, 1, run)
    return (runs >> shifts & np.uint8(2**bits - 1)).reshape(len(packed), -1)


def halves(blocks: Bytes, byte: int) -> Array:
    """The f16 at this byte of every block, as float32: (n, 1)"""
    return blocks[:, byte : byte + 2].copy().view("<f2").astype(np.float32)


def groups(x: NDArray[Any], n: int) -> NDArray[Any]:
    """x split into n groups per block: (blocks, n, numbers of a group)"""
    return x.reshape(len(x), n, -1)


# ---- 32 numbers per block --------------------------------------------------------------------


def dequantize_q8_0(blocks: Bytes) -> Array:
    """y = d · q.   Layout: d f16, q int8[32]"""
    return halves(blocks, 0) * blocks[:, 2:].view(np.int8)


def dequantize_q4_0(blocks: Bytes) -> Array:
    """y = d · (q - 8), q of 4 bits.   Layout: d f16, q[16]"""
    q = unpack(blocks[:, 2:], 4, 16).astype(np.int8)
    return halves(blocks, 0) * (q - np.int8(8))


def dequantize_q4_1(blocks: Bytes) -> Array:
    """y = d · q + m, q of 4 bits.   Layout: d f16, m f16, q[16]"""
    return halves(blocks, 0) * unpack(blocks[:, 4:], 4, 16) + halves(blocks, 2)


def dequantize_q5_0(blocks: Bytes) -> Array:
    """y = d · (q - 16), q of 5 bits.   Layout: d f16, highest bits [4], lower bits [16]"""
    q = unpack(blocks[:, 6:], 4, 16) | unpack(blocks[:, 2:6], 1, 1) << 4
    return halves(blocks, 0) * (q.astype(np.int8) - np.int8(16))


def dequantize_q5_1(blocks: Bytes) -> Array:
    """y = d · q + m, q of 5 bits.   Layout: d f16, m f16, highest bits [4], lower bits [16]"""
    q = unpack(blocks[:, 8:], 4, 16) | unpack(blocks[:, 4:8], 1, 1) << 4
    return halves(blocks, 0) * q + halves(blocks, 2)


def dequantize_iq4_nl(blocks: Bytes) -> Array:
    """y = d · IQ4_VALUES[q], q of 4 bits.   Layout: d f16, q[16]"""
    return halves(blocks, 0) * IQ4_VALUES[unpack(blocks[:, 2:], 4, 16)]


# ---- 256 numbers per block -------------------------------------------------------------------


def dequantize_q2_k(blocks: Bytes) -> Array:
    """y = (d · s) · q - dmin · m, q of 2 bits; s and m of 4 bits for each 16 numbers.

    Layout: s and m [16], q[64], d f16, dmin f16
    """
    s, m = blocks[:, :16] & 15, blocks[:, :16] >> 4
    q = groups(unpack(blocks[:, 16:80], 2, 32), 16)
    scale, minimum = halves(blocks, 80) * s, halves(blocks, 82) * m  # (n, 16) each
    return (scale[..., None] * q - minimum[..., None]).reshape(-1, 256)


def dequantize_q3_k(blocks: Bytes) -> Array:
    """y = (d · (s - 32)) · (q - 4), q of 3 bits; s of 6 bits for each 16 numbers.

    Layout: highest bits of q [32], lower bits [64], s[12], d f16
    s: the lower 4 bits of all are in 8 bytes, the upper 2 in 4.
    """
    s = unpack(blocks[:, 96:104], 4, 8) | unpack(blocks[:, 104:108], 2, 4) << 4
    q = unpack(blocks[:, 32:96], 2, 32) | unpack(blocks[:, :32], 1, 32) << 2
    scale = halves(blocks, 108) * (s.astype(np.int8) - np.int8(32))  # (n, 16)
    centred = groups(q.astype(np.int8) - np.int8(4), 16)
    return (scale[..., None] * centred).reshape(-1, 256)


def dequantize_q4_k(blocks: Bytes) -> Array:
    """y = (d · s) · q - dmin · m, q of 4 bits; s and m of 6 bits for each 32 numbers.

    Layout: d f16, dmin f16, s and m [12], q[128]
    """
    return _with_minimum(blocks, unpack(blocks[:, 16:], 4, 32))


def dequantize_q5_k(blocks: Bytes) -> Array:
    """As Q4_K, with q of 5 bits.

    Layout: d f16, dmin f16, s and m [12], highest bits of q [32], lower bits [128]
    """
    return _with_minimum(
        blocks, unpack(blocks[:, 48:], 4, 32) | unpack(blocks[:, 16:48], 1, 32) << 4
    )


def _with_minimum(blocks: Bytes, q: Bytes) -> Array:
    """What Q4_K and Q5_K have in common: d, dmin, and six bits each of s and m in 12 bytes.

    The first four s and m are the lower bits of bytes 0-3 and 4-7. Of the last four, bytes 8-11
    have the lower four bits, s in the lower half; the upper two are those left over in 0-3 and 4-7.
    """
    first, last = blocks[:, 4:12], unpack(blocks[:, 12:16], 4, 4)  # (n, 8) each: s, then m
    last = last | first >> 6 << 4
    s = np.concatenate([first[:, :4] & 63, last[:, :4]], axis=1)  # (n, 8)
    m = np.concatenate([first[:, 4:] & 63, last[:, 4:]], axis=1)
    scale, minimum = halves(blocks, 0) * s, halves(blocks, 2) * m
    return (scale[..., None] * groups(q, 8) - minimum[..., None]).reshape(-1, 256)


def dequantize_q6_k(blocks: Bytes) -> Array:
    """y = (d · s) · (q - 32), q of 6 bits; s int8 for each 16 numbers.

    Layout: lower 4 bits of q [128], upper 2 bits [64], s int8[16], d f16
    """
    q = unpack(blocks[:, :128], 4, 64) | unpack(blocks[:, 128:192], 2, 32) << 4
    scale = halves(blocks, 208) * blocks[:, 192:208].view(np.int8)  # (n, 16)
    centred = groups(q.astype(np.int8) - np.int8(32), 16)
    return (scale[..., None] * centred).reshape(-1, 256)


def dequantize_iq4_xs(blocks: Bytes) -> Array:
    """y = (d · (s - 32)) · IQ4_VALUES[q], q of 4 bits; s of 6 bits for each 32 numbers.

    Layout: d f16, upper 2 bits of s [2], lower 4 bits [4], q[128]
    """
    s = unpack(blocks[:, 4:8], 4, 1) | unpack(blocks[:, 2:4], 2, 1) << 4
    scale = halves(blocks, 0) * (s.astype(np.int8) - np.int8(32))  # (n, 8)
    values = groups(IQ4_VALUES[unpack(blocks[:, 8:], 4, 16)], 8)
    return (scale[..., None] * values).reshape(-1, 256)


# ---- no blocks -------------------------------------------------------------------------------


def dequantize_f32(blocks: Bytes) -> Array:
    """y as stored, little-endian."""
    return blocks.view("<f4")


def dequantize_f16(blocks: Bytes) -> Array:
    """y, an IEEE half."""
    return halves(blocks, 0)


def dequantize_bf16(blocks: Bytes) -> Array:
    """y, the upper half of a float32."""
    return (blocks.view("<u2").astype(np.uint32) << np.uint32(16)).view(np.float32)


# ---- writing ---------------------------------------------------------------------------------


LEAST = np.float32(3e-39)  # 1 / d overflows below; as an IEEE half, d is 0 there


def quantize_q8_0(x: Array) -> Bytes:
    """d = max|x| / 127 and q = x / d, rounded half away from zero, in each 32 numbers.

    x: (n, 32)   ->   (n, 34)
    """
    d = np.abs(x).max(axis=1, keepdims=True) / np.float32(127)
    inverse = np.divide(np.float32(1), d, out=np.zeros_like(d), where=np.abs(d) > LEAST)
    magnitude = np.abs(x * inverse)
    whole = np.floor(magnitude)
    rounded = whole + np.floor(2 * (magnitude - whole))  # exact, unlike floor(magnitude + 1/2)
    return _blocks(d.astype("<f2"), np.copysign(rounded, x).astype(np.int8))


def quantize_q4_0(x: Array) -> Bytes:
    """d = (the x of the largest |x|) / -8 and q = x / d + 8, in each 32 numbers.

    x: (n, 32)   ->   (n, 18)
    """
    largest = np.take_along_axis(x, np.abs(x).argmax(axis=1)[:, None], axis=1)
    d = largest / np.float32(-8)
    inverse = np.divide(np.float32(1), d, out=np.zeros_like(d), where=np.abs(d) > LEAST)
    q = np.trunc(x * inverse + np.float32(8.5)).clip(0, 15).astype(np.uint8)
    return _blocks(d.astype("<f2"), q[:, :16] | q[:, 16:] << 4)


def to_f32(x: Array) -> Bytes:
    return _blocks(x.astype("<f4"))


def to_f16(x: Array) -> Bytes:
    return _blocks(x.astype("<f2"))


def to_bf16(x: Array) -> Bytes:
    """Rounded to the nearest, ties to even; NaN stays NaN."""
    bits = x.astype("<f4").view("<u4")
    rounded = bits + (np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1)))
    rounded = np.where(np.isnan(x), bits | np.uint32(0x400000), rounded)
    return _blocks((rounded >> np.uint32(16)).astype("<u2"))


def _blocks(*parts: NDArray[Any]) -> Bytes:
    """The parts of every block one after the other, as bytes."""
    return np.concatenate([np.ascontiguousarray(part).view(np.uint8) for part in parts], axis=1)


# ---- the table -------------------------------------------------------------------------------


@dataclass(frozen=True)
class BlockType:
    """A number format: its name and id in files, numbers and bytes of a block."""

    name: str
    id: int
    numbers: int
    nbytes: int
    dequantize: Callable[[Bytes], Array]
    quantize: Callable[[Array], Bytes] | None = None  # None: only read

    def size(self, numbers: int) -> int:
        """Bytes of so many numbers, a multiple of a block."""
        return numbers // self.numbers * self.nbytes

    def expand(self, data: Bytes, out: Array) -> None:
        """Write the numbers of `data` into `out`, (numbers,), piece by piece."""
        blocks = data.reshape(-1, self.nbytes)
        rows = out.reshape(-1, self.numbers)
        with np.errstate(all="ignore"):  # a scale may be infinite or NaN: the caller finds that
            step = CHUNK // self.numbers
            for start in range(0, len(blocks), step):
                piece = slice(start, start + step)
                rows[piece] = self.dequantize(blocks[piece])


TYPES = {
    kind.id: kind
    for kind in (
        BlockType("F32", 0, 1, 4, dequantize_f32, to_f32),
        BlockType("F16", 1, 1, 2, dequantize_f16, to_f16),
        BlockType("Q4_0", 2, 32, 18, dequantize_q4_0, quantize_q4_0),
        BlockType("Q4_1", 3, 32, 20, dequantize_q4_1),
        BlockType("Q5_0", 6, 32, 22, dequantize_q5_0),
        BlockType("Q5_1", 7, 32, 24, dequantize_q5_1),
        BlockType("Q8_0", 8, 32, 34, dequantize_q8_0, quantize_q8_0),
        BlockType("Q2_K", 10, 256, 84, dequantize_q2_k),
        BlockType("Q3_K", 11, 256, 110, dequantize_q3_k),
        BlockType("Q4_K", 12, 256, 144, dequantize_q4_k),
        BlockType("Q5_K", 13, 256, 176, dequantize_q5_k),
        BlockType("Q6_K", 14, 256, 210, dequantize_q6_k),
        BlockType("IQ4_NL", 20, 32, 18, dequantize_iq4_nl),
        BlockType("IQ4_XS", 23, 256, 136, dequantize_iq4_xs),
        BlockType("BF16", 30, 1, 2, dequantize_bf16, to_bf16),
    )
}
BY_NAME = {kind.name: kind for kind in TYPES.values()}
# What every backend multiplies with as it is; matrices of other types are dequantised first.
PACKED = tuple(BY_NAME[n].id for n in "Q8_0 Q4_0 Q4_1 Q5_0 Q5_1 Q4_K Q5_K Q6_K".split())
# Bytes of a block at which an f16 begins.
HALVES: dict[str, tuple[int, ...]] = dict.fromkeys(("Q8_0", "Q4_0", "Q5_0"), (0,))
HALVES |= dict.fromkeys(("Q4_1", "Q5_1", "Q4_K", "Q5_K"), (0, 2)) | {"Q6_K": (208,)}
# Formats that occur in files and are not read; an error names them.
UNSUPPORTED = {9: "Q8_1", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S"}
UNSUPPORTED |= {21: "IQ3_S", 22: "IQ2_S", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64"}
UNSUPPORTED |= {29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4", 40: "NVFP4", 41: "Q1_0"}
