"""Numbers on the command line, read as llama2.c's run reads them: the drop-in `run` only."""

from __future__ import annotations

import math
import re

import numpy as np

_SPACE = r"[ \t\n\v\f\r]*"
_FLOAT = re.compile(
    _SPACE + r"(?P<number>[+-]?(?:"
    r"(?P<hex>0[xX](?:[0-9a-fA-F]+\.?[0-9a-fA-F]*|\.[0-9a-fA-F]+)(?:[pP][+-]?[0-9]+)?)"
    r"|(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?"
    r"|inf(?:inity)?|nan))",
    re.IGNORECASE | re.ASCII,  # ASCII: or a dotless i would match an i
)
_INT = re.compile(_SPACE + r"([+-]?)0*([0-9]*)")


def atof(text: str) -> float:
    """The longest valid prefix as C's atof reads it, else 0.

    Example: "0.0abc" -> 0.0, "0x1p-1" -> 0.5, "warm" -> 0.0, "1e999" -> inf
    """
    match = _FLOAT.match(text)
    if match is None:
        return 0.0
    number = match["number"]
    if match["hex"]:
        try:
            return float.fromhex(number)
        except OverflowError:
            return -math.inf if number.startswith("-") else math.inf
    return float(number)


def atoi(text: str) -> int:
    """The longest valid prefix as glibc's atoi reads it, else 0.

    It saturates at 64 bits and keeps the low 32 bits as a signed number.

    Example: "7.9" -> 7, "4294967297" -> 1, "99999999999999999999" -> -1
    """
    match = _INT.match(text)
    value = int(match[1] + (match[2][:30] or "0")) if match else 0  # 30 digits saturate
    value = max(-(2**63), min(2**63 - 1, value))
    return (value + 2**31) % 2**32 - 2**31


def float32(value: float) -> float:
    """The nearest float32, as the original stores it: 1.00000001 is 1, and so within [0, 1]."""
    with np.errstate(over="ignore"):
        return float(np.float32(value))
