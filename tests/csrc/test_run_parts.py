"""Functions of csrc/run.c against the same in Python, on random vocabularies and distributions."""

from __future__ import annotations

import re
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyllm2.inference.sampling import Sampler
from pyllm2.testing import strategies
from pyllm2.tokenizers.sentencepiece import SentencePieceTokenizer
from tests.csrc.program import refused, run
from tests.csrc.run_parts import decode, encode, generator, sample
from tests.csrc.tiny import SHAPE, checkpoint_v0, checkpoint_v2, vocabulary
from tests.support import llama2_files
from tests.support.profiles import few

SPECIAL = [b"<unk>", b"\n<s>\n", b"\n</s>\n", *(b"<0x%02X>" % b for b in range(256)), b" "]


def load(library, folder, pieces, scores=None):
    path = folder / "t.bin"
    path.write_bytes(llama2_files.vocabulary(pieces, scores))
    library.load(str(path).encode(), len(pieces))


def test_texts_get_the_ids_of_python(library, tmp_path):
    """Whatever the vocabulary; long texts fill the heap of pairs."""

    @few(40)
    @given(strategies.vocabularies(), st.integers(0, 2**32 - 1), st.integers(0, 200))
    def agree(table, seed, n):
        load(library, tmp_path, *table)
        plain = [piece for piece in table[0][259:] if b"<" not in piece] + [b"\xff", b"~"]
        rng = np.random.default_rng(seed)
        text = b"".join(plain[i] for i in rng.integers(0, len(plain), n))
        assert encode(library, text) == SentencePieceTokenizer(*table).encode(text or b"")

    agree()


def test_a_pair_longer_than_any_piece_is_not_joined(library, tmp_path):
    """Two of the longest pieces would not fit into the memory for a joined text."""
    doubled = [b"a" * 2**k for k in range(16)]
    load(library, tmp_path, [*SPECIAL, *doubled], [0.0] * (len(SPECIAL) + len(doubled)))
    last = len(SPECIAL) + len(doubled) - 1
    assert encode(library, b"a" * 2**17)[2:] == [last] * 4


@pytest.mark.parametrize("sign", ["", "+", "-", " ", "\t+"])
@pytest.mark.parametrize("digits", ["0", "9", "A", "f", "41", "fF", "123", "g", "", "*1"])
def test_a_raw_byte_is_what_sscanf_reads(sign, digits, library, tmp_path):
    """`<0x%02hhX>` of C: blanks, then a sign that counts as a digit, then at most two digits."""
    load(library, tmp_path, [*SPECIAL, f"<0x{sign}{digits}>".encode()])
    match = re.fullmatch(r"\s*([+-]?)([0-9a-fA-F]+).*", sign + digits)
    text, _ = decode(library, 5, len(SPECIAL))
    if match is None:
        assert text == f"<0x{sign}{digits}>".encode()
        return
    value = int(match[2][: 1 if match[1] else 2], 16) * (-1 if match[1] == "-" else 1) % 256
    assert text == (bytes([value]) if value else b"")


@few(60)
@given(st.integers(0, 2**32 - 1), st.integers(1, 60), st.floats(0.05, 3), st.floats(0, 1))
def test_draws_are_those_of_python(library, seed, n, temperature, top_p):
    """Logits with ties; as many random numbers are taken."""
    rng = np.random.default_rng(seed)
    logits = rng.choice(rng.normal(0, 2, n).astype(np.float32), n)
    state, sampler = generator(seed + 1), Sampler(temperature, top_p, seed + 1)
    found = [sample(library, logits, temperature, top_p, state) for _ in range(20)]
    assert found == [sampler(logits.copy()) for _ in range(20)]


def test_a_group_may_be_one_value(program, files):
    """Groups of 1 and of 4 are read; 0 is refused by name."""
    for group_size in (1, 4):
        (files / "m.bin").write_bytes(checkpoint_v2(group_size=group_size))
        done = run(program, "m.bin", "-z", "t.bin", "-n", "4", cwd=files)
        assert done.returncode == 0, done.stderr
    content = bytearray(checkpoint_v2())
    content[37:41] = bytes(4)
    (files / "m.bin").write_bytes(content)
    assert refused(run(program, "m.bin", "-z", "t.bin", cwd=files), "group_size = 0 (byte 37)")


def test_a_prompt_that_does_not_fit_is_cut_with_a_note(program, files):
    """One line says how many ids and steps there are."""
    done = run(program, "m.bin", "-z", "t.bin", "-n", "3", "-i", "a z a z a z", cwd=files)
    assert done.returncode == 0
    assert re.search(rb"the prompt has \d+ ids and there are 3 steps: it is cut", done.stderr)


def test_the_speed_is_in_tokens_per_second(program, files):
    """The program cannot have taken longer than the whole process."""
    (files / "m.bin").write_bytes(checkpoint_v0({**SHAPE, "seq_len": 400}))
    (files / "t.bin").write_bytes(vocabulary())
    shown = []
    for seed in range(1, 4):
        began = time.monotonic()
        done = run(
            program, "m.bin", "-z", "t.bin", "-t", "9", "-p", "0", "-s", str(seed), cwd=files
        )
        seconds = time.monotonic() - began
        rate = re.search(rb"achieved tok/s: (\S+)\n", done.stderr)
        shown += [float(rate[1]) * seconds] if rate else []
    assert shown
    assert all(1 <= tokens < float("inf") for tokens in shown)
