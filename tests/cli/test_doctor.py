"""`pyllm2 doctor`: fine, broken, not supported."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from tests.support.command import in_process
from tests.support.llama2_files import checkpoint, lay_out, poisoned


def test_files_that_fit_are_fine(tmp_path: Path) -> None:
    """Model and tokenizer; each with the command that takes it."""
    lay_out(tmp_path)
    outcome = in_process(("doctor", "m.bin", "t.bin"), tmp_path)
    assert (outcome.code, outcome.err) == (0, b"")
    assert b"try: pyllm2 generate m.bin\n" in outcome.out
    assert b"t.bin: fine: a tokenizer\n" in outcome.out


def test_faults_are_named(tmp_path: Path) -> None:
    """Cut, NaN, an LFS pointer, a web page: 1; an executable: 3."""
    files = {
        "cut.bin": checkpoint()[:-9],
        "nan.bin": poisoned("w1", np.nan),
        "lfs.bin": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        "web.bin": b"<!DOCTYPE html><html></html>",
        "elf.bin": b"\x7fELF" + bytes(600),
    }
    lay_out(tmp_path, files)
    expected = {"cut.bin": 1, "nan.bin": 1, "lfs.bin": 1, "web.bin": 1, "elf.bin": 3, "no.bin": 1}
    for name, code in expected.items():
        outcome = in_process(("doctor", name, "--json"), tmp_path)
        (found,) = json.loads(outcome.out)
        assert (outcome.code, found["code"], outcome.err) == (code, code, b""), outcome
        assert found["lines"]
