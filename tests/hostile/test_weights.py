"""Row 17: the position that the error names, and the text printed before it."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from tests.hostile.case import GENERATE, RUN, Case
from tests.support.command import in_process
from tests.support.llama2_files import (
    BOS,
    PIECES,
    SHAPE,
    byte_id,
    lay_out,
    poisoned,
    tensors,
    to_bytes,
)


@pytest.mark.parametrize("argv", [(*GENERATE, "--prompt", "a cab"), RUN], ids=["generate", "run"])
def test_the_first_bad_position_of_a_prompt_is_named(argv: tuple[str, ...], tmp_path: Path) -> None:
    """A NaN that affects every position is reported for position 0."""
    error = "m.bin: non-finite logits at position 0 (layer 0, attention), backend numpy"
    case = Case(17, "prompt", error, {"m.bin": poisoned("wq", math.nan)}, argv)
    case.prepare(tmp_path)
    case.check(in_process(argv, tmp_path))


def test_the_position_of_a_bad_embedding_is_named(tmp_path: Path) -> None:
    """The third token has a bad embedding; BOS and the space before it have not."""
    weights = tensors(SHAPE, shared=False)
    weights["token_embedding"][byte_id(ord("x"))] = math.inf
    case = Case(
        17,
        "embedding",
        "m.bin: non-finite logits at position 2 (embedding), backend numpy",
        {"m.bin": to_bytes(SHAPE, weights, 0)},
        (*GENERATE, "--prompt", "xaa"),
    )
    case.prepare(tmp_path)
    case.check(in_process(case.argv, tmp_path))


def test_text_before_a_bad_position_is_kept(tmp_path: Path) -> None:
    """Text generated before the bad position stays on stdout and ends with a newline."""
    a, b = PIECES.index(b"a"), PIECES.index(b"b")
    weights = {
        name: array * (1 if name.endswith("norm") else 0)
        for name, array in tensors(SHAPE, shared=False).items()
    }
    weights["token_embedding"][BOS, 0] = weights["classifier"][a, 0] = 1
    weights["token_embedding"][a, 1] = weights["classifier"][b, 1] = 1
    weights["token_embedding"][b, 2] = math.nan
    lay_out(tmp_path, {"m.bin": to_bytes(SHAPE, weights, 0)})
    outcome = in_process(GENERATE, tmp_path)
    assert (outcome.code, outcome.out) == (1, b"ab\n")
    assert outcome.err == (
        b"pyllm2: error: m.bin: non-finite logits at position 2 (embedding), backend numpy\n"
    )
