"""Strategies that damage a valid file: flip, overwrite, cut, insert, remove, extend."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence

from hypothesis import strategies as st

Mutation = Callable[[bytes], bytes]
BOUNDARIES = [0, 1, -1, 2, 3, 7, 255, 256, 2**15, 2**24, 2**30, 2**31 - 1, -(2**31), 1 - 2**31]


def overwrite(at: int, new: bytes) -> Mutation:
    """Replace bytes; a negative `at` counts from the end."""

    def mutate(data: bytes) -> bytes:
        start = at % len(data) if data else 0
        return data[:start] + new + data[start + len(new) :]

    return mutate


def splice(at: int, removed: int, inserted: bytes) -> Mutation:
    """Remove some bytes and insert others."""

    def mutate(data: bytes) -> bytes:
        start = at % (len(data) + 1)
        return data[:start] + inserted + data[start + removed :]

    return mutate


def flip(at: int, bit: int) -> Mutation:
    """Invert one bit."""

    def mutate(data: bytes) -> bytes:
        start = at % len(data) if data else 0
        return (
            data[:start]
            + bytes(byte ^ 1 << bit for byte in data[start : start + 1])
            + (data[start + 1 :])
        )

    return mutate


def cut(keep: int) -> Mutation:
    """Cut the file, as an interrupted download does."""
    return lambda data: data[: keep % (len(data) + 1)]


def mutations(fields: Sequence[int]) -> st.SearchStrategy[Mutation]:
    """One mutation; `fields` are offsets of 32-bit numbers that get boundary values."""
    anywhere = st.integers(-(2**16), 2**16)
    number = st.sampled_from(BOUNDARIES).map(lambda value: struct.pack("<i", value))
    real = st.floats(width=32).map(lambda value: struct.pack("<f", value))
    return st.one_of(
        st.builds(overwrite, st.sampled_from(fields), number),
        st.builds(overwrite, st.sampled_from(fields), st.binary(min_size=1, max_size=8)),
        st.builds(overwrite, anywhere, number | real | st.binary(min_size=1, max_size=9)),
        st.builds(flip, anywhere, st.integers(0, 7)),
        st.builds(cut, anywhere),
        st.builds(splice, anywhere, st.integers(0, 600), st.binary(max_size=20)),
        st.builds(splice, st.just(-1), st.just(0), st.binary(min_size=1, max_size=20)),
    )


def damaged(
    originals: Sequence[tuple[bytes, Sequence[int]]],
) -> st.SearchStrategy[bytes]:
    """One of the originals, each with its fields, after one to three mutations."""

    def of_one(original: tuple[bytes, Sequence[int]]) -> st.SearchStrategy[bytes]:
        data, fields = original
        return st.lists(mutations(fields), min_size=1, max_size=3).map(
            lambda steps: _apply(data, steps)
        )

    return st.sampled_from(list(originals)).flatmap(of_one)


def _apply(data: bytes, steps: Sequence[Mutation]) -> bytes:
    for step in steps:
        data = step(data)
    return data
