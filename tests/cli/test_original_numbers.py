"""Numbers on `run`'s command line are read as the C library reads them."""

from __future__ import annotations

import ctypes
import math
import platform

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pyllm2.cli.original import atof, atoi

glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs the GNU C library")
# mostly what numbers are made of, so that prefixes of them are common
NUMERIC = st.text("0123456789+-.eExXpPaAfFiInNtTyY_ \t\n", max_size=30)
TEXT = st.one_of(
    NUMERIC,
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12),
    st.floats().map(repr),
    st.floats(allow_nan=False, allow_infinity=False).map(float.hex),
    st.integers(-(2**70), 2**70).map(str),
    st.builds(str.__add__, st.sampled_from(["", " ", "-", "+", "\t-"]), NUMERIC),
)
MANY = settings(max_examples=max(500, settings().max_examples))


def c_atof(text: str) -> float:
    function = ctypes.CDLL(None).atof
    function.restype, function.argtypes = ctypes.c_double, [ctypes.c_char_p]
    return float(function(text.encode()))


def c_atoi(text: str) -> int:
    function = ctypes.CDLL(None).atoi
    function.restype, function.argtypes = ctypes.c_int, [ctypes.c_char_p]
    return int(function(text.encode()))


def same(a: float, b: float) -> bool:
    """Whether two numbers are equal, including the sign of zero; NaN equals NaN."""
    if math.isnan(a) or math.isnan(b):
        return math.isnan(a) and math.isnan(b)
    return a == b and math.copysign(1, a) == math.copysign(1, b)


@glibc
@MANY
@given(TEXT)
@example("0x")
@example("0x.p1")
@example("-0x1.8p-1075")
@example("0x1p99999999999999999999")
@example("0x1p-99999999999999999999")
@example("0x0p99999999999999999999")
@example("1e")
@example("1_0")
@example("-infinit")
@example("nan(1)")
@example("9" * 400)
@example("\u0131nf")  # the dotless i, which ignoring case takes for an i
@example("\u0663")  # an Arabic digit
@example("\u00a01")  # a space, but not C's
def test_atof_is_the_c_librarys(text: str) -> None:
    """The longest valid prefix, else 0."""
    assert same(atof(text), c_atof(text))


@glibc
@MANY
@given(TEXT)
@example("99999999999999999999")
@example("-99999999999999999999")
@example("4294967297")
@example("2147483648")
@example("7.9")
@example("1_0")
@example("+-1")
@example("0" * 500 + "7")
@example("\u0663")
@example("\u00a01")
def test_atoi_is_the_c_librarys(text: str) -> None:
    """White space, a sign, digits; saturated to 64 bits, cut to 32."""
    assert atoi(text) == c_atoi(text)
