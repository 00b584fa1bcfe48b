"""csrc/run.c and bad input: one line, exit code 1, no access outside the input.

Row numbers are those of tests/hostile/README.md.
"""

from __future__ import annotations

import os
import struct

import numpy as np
import pytest

from tests.csrc.program import CSRC, refused, run
from tests.csrc.run_parts import decode, encode
from tests.csrc.tiny import (
    SHAPE,
    checkpoint_v0,
    checkpoint_v1,
    checkpoint_v2,
    vocabulary,
    with_field,
)

# ---- the build ------------------------------------------------------------------------------


def test_compiles_without_a_warning(program):
    """-Wall -Wextra -pedantic print nothing."""
    assert program.with_suffix(".txt").read_text() == ""


# ---- checkpoints ----------------------------------------------------------------------------

V0, V1, V2, TOK = checkpoint_v0(), checkpoint_v1(), checkpoint_v2(), vocabulary()
WEIGHTS_END = len(V0) - 4 * 2 * 16 * 2


def with_group_size(value):
    return V2[:37] + struct.pack("<i", value) + V2[41:]


def with_scale(value, which):
    """V2 with its first (0) or last (-1) scale replaced."""
    at = 256 + 4 * 8 * 5 + 270 * 8 if which == 0 else len(V2) - 4
    return V2[:at] + struct.pack("<f", value) + V2[at + 4 :]


BAD_MODELS = {
    "1 empty": (b"", ["0 bytes", "28"]),
    "1 short header": (V0[:20], ["20 bytes", "28", "vocab_size"]),
    "1 short v1 header": (V1[:100], ["100 bytes", "256"]),
    "2 header only": (V0[:28], ["28 bytes", "missing", "incomplete"]),
    "2 truncated weights": (V0[: WEIGHTS_END - 1], ["missing", "final_norm"]),
    "2 truncated v1": (V1[:-1], ["1 missing", "w3"]),
    "2 own classifier, one byte short": (checkpoint_v0(shared=False)[:-1], ["classifier"]),
    "2 truncated v2": (V2[:-1], ["1 missing", "w3"]),
    "2 truncated int8 values": (V2[:1000], ["missing", "token_embedding"]),
    "2 own int8 classifier, one byte short": (
        checkpoint_v2(shared=False)[:-1],
        ["1 missing", "classifier"],
    ),
    "5 version 3": (V1[:4] + struct.pack("<i", 3) + V1[8:], ["version = 3 (byte 4)"]),
    "5 version 2 of a v1 file": (
        V1[:4] + struct.pack("<i", 2) + V1[8:],
        ["group_size = 0 (byte 37): must be at least 1"],
    ),
    "5 version 3 of a v2 file": (
        V2[:4] + struct.pack("<i", 3) + V2[8:],
        ["version = 3 (byte 4): must be 1 or 2"],
    ),
    "5 version 1 of a v2 file": (V2[:4] + struct.pack("<i", 1) + V2[8:], ["missing"]),
    "6 big-endian": (b"ak42" + V1[4:], ["magic", "big-endian"]),
    "7 n_heads 0": (with_field(V0, "n_heads", 0), ["n_heads = 0 (byte 12)", "at least 1"]),
    "7 n_kv_heads 0": (with_field(V0, "n_kv_heads", 0), ["n_kv_heads = 0 (byte 16)"]),
    "8 dim negative": (with_field(V0, "dim", -8), ["dim = -8 (byte 0)", "at least 1"]),
    "8 layers 0": (with_field(V0, "n_layers", 0), ["n_layers = 0 (byte 8)"]),
    "8 seq_len 0": (with_field(V0, "seq_len", 0), ["seq_len = 0 (byte 24)"]),
    "8 hidden_dim 0 in v1": (with_field(V1, "hidden_dim", 0, 8), ["hidden_dim = 0 (byte 12)"]),
    "8 negative vocabulary in v1": (with_field(V1, "vocab_size", -270, 8), ["vocab_size = -270"]),
    "9 vocab_size -2^31": (
        with_field(V0, "vocab_size", -(2**31)),
        ["vocab_size = -2147483648 (byte 20)", "magnitude"],
    ),
    "9 vocab_size 0": (with_field(V0, "vocab_size", 0), ["vocab_size = 0 (byte 20)"]),
    "9 vocab_size 1": (with_field(V0, "vocab_size", 1), ["vocab_size = 1 (byte 20)"]),
    "10 product past 2^32": (with_field(V0, "vocab_size", 2**29), ["needs 1717"]),
    "10 product past 2^64": (
        struct.pack("<7i", 2**31 - 2, 2**31 - 1, 2**31 - 1, 1, 1, 2**31 - 1, 2**31 - 1) + V0[28:],
        ["needs over 2^63"],
    ),
    "11 dim no multiple": (with_field(V0, "n_heads", 3), ["dim = 8 (byte 0)", "n_heads = 3"]),
    "12 n_kv_heads too many": (
        with_field(V0, "n_kv_heads", 4),
        ["n_kv_heads = 4 (byte 16)", "n_heads = 2"],
    ),
    "13 odd head size": (with_field(V0, "n_heads", 8), ["head size = 1", "even"]),
    "13 odd head size in v2": (with_field(V2, "n_heads", 8, 8), ["head size = 1", "even"]),
    "14 group size 0": (with_group_size(0), ["group_size = 0 (byte 37): must be at least 1"]),
    "14 group size negative": (with_group_size(-4), ["group_size = -4 (byte 37)", "at least 1"]),
    "14 group size -2^31": (with_group_size(-(2**31)), ["group_size = -2147483648 (byte 37)"]),
    "14 no divisor": (with_group_size(7), ["group_size = 7 (byte 37): must divide dim = 8"]),
    "14 above dim": (with_group_size(16), ["group_size = 16 (byte 37): must divide dim = 8"]),
    "14 another divisor": (with_group_size(2), ["missing"]),
    "14 past 32 bits": (
        with_field(with_group_size(2**20), "dim", 2**20, 8),
        ["group_size = 1048576 (byte 37): must be at most 131072"],
    ),
    "15 NaN scale": (
        with_scale(float("nan"), 0),
        ["token_embedding, layer 0, group 0: scale = nan", "must be finite"],
    ),
    "15 infinite scale": (
        with_scale(float("-inf"), -1),
        ["w3, layer 1, group 23: scale = -inf", f"(byte {len(V2) - 4})"],
    ),
    "16 shared flag 7 in v2": (V2[:36] + b"\7" + V2[37:], ["shared_classifier = 7 (byte 36)"]),
    "16 own classifier denied": (V2[:36] + b"\0" + V2[37:], ["missing", "classifier"]),
    "16 shared flag 7": (V1[:36] + b"\7" + V1[37:], ["shared_classifier = 7 (byte 36)"]),
    "18 HTML": (b"<!DOCTYPE html><html><body>404</body></html>", ["HTML"]),
    "18 LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", ["Git LFS"]),
    "18 gzip": (b"\x1f\x8b\x08\0" + bytes(40), ["gzip"]),
    "18 zip": (b"PK\3\4" + bytes(40), ["zip"]),
    "18 pickle": (b"\x80\x04\x95" + bytes(40), ["pickle"]),
}


@pytest.mark.parametrize("row", BAD_MODELS)
def test_bad_checkpoints_are_refused(program, files, row):
    """The error is one line that names the file, the field and the value."""
    content, words = BAD_MODELS[row]
    (files / "m.bin").write_bytes(content)
    assert refused(run(program, "m.bin", "-z", "t.bin", cwd=files), "m.bin: ", *words)


def test_files_of_every_layout_play(program, files):
    """The files that the bad ones are made from are valid, with two group sizes."""
    own, eight = checkpoint_v2(shared=False), checkpoint_v2({**SHAPE, "hidden_dim": 16}, True, 0, 8)
    for content in (V0, V1, V2, own, eight):
        (files / "m.bin").write_bytes(content)
        done = run(program, "m.bin", "-z", "t.bin", "-s", "3", "-n", "9", cwd=files)
        assert done.returncode == 0
        assert b"warning" not in done.stderr


def test_groups_that_straddle_rows_play_with_one_warning(program, files):
    """Row 14: a group size that divides dim and not hidden_dim, as the original exporter makes."""
    (files / "m.bin").write_bytes(checkpoint_v2(group_size=8))  # hidden_dim is 12
    done = run(program, "m.bin", "-z", "t.bin", "-s", "3", "-n", "9", cwd=files)
    assert done.returncode == 0
    warned, *_ = lines = done.stderr.decode().splitlines()
    assert "m.bin: group_size = 8 (byte 37) does not divide hidden_dim = 12" in warned
    assert sum("warning" in line for line in lines) == 1


def test_bytes_after_the_last_int8_array_are_ignored_with_a_warning(program, files):
    """Row 3, for the int8 layout."""
    (files / "m.bin").write_bytes(V2 + b"more")
    done = run(program, "m.bin", "-z", "t.bin", "-s", "3", "-n", "5", cwd=files)
    assert done.returncode == 0
    assert b"4 bytes after the last array are ignored" in done.stderr


def record(index):
    """The offset of a token's record in TOK."""
    at = 4
    for _ in range(index):
        at += 8 + struct.unpack_from("<i", TOK, at + 4)[0]
    return at


def with_length(index, length):
    at = record(index) + 4
    return TOK[:at] + struct.pack("<i", length) + TOK[at + 4 :]


BAD_VOCABULARIES = {
    "20 empty": (b"", ["0 bytes"]),
    "20 cut in a piece": (
        TOK[: record(269) + 9],
        ["token 269 of 270", "length = 2", "1 bytes left"],
    ),
    "20 cut in a record": (TOK[: record(41) + 3], ["token 41 of 270", "3 bytes left"]),
    "21 length negative": (with_length(5, -5), ["token 5: length = -5", "at least 1"]),
    "21 length zero": (with_length(5, 0), ["token 5: length = 0", "at least 1"]),
    "21 length past the file": (with_length(5, 2**31 - 1), ["token 5", "2147483647", "left"]),
    "23 too few tokens": (vocabulary(265), ["265 tokens", "m.bin expects 270"]),
    "26 NaN score": (
        TOK[: record(9)] + struct.pack("<f", np.nan) + TOK[record(9) + 4 :],
        ["token 9: score = nan"],
    ),
}


@pytest.mark.parametrize("row", BAD_VOCABULARIES)
def test_bad_vocabularies_are_refused(program, files, row):
    """The error is one line that names the file, the token and the value."""
    content, words = BAD_VOCABULARIES[row]
    (files / "t.bin").write_bytes(content)
    assert refused(run(program, "m.bin", "-z", "t.bin", cwd=files), "t.bin: ", *words)


@pytest.mark.parametrize("good", ["m.bin", "t.bin"])
def test_only_regular_files_are_opened(program, files, good):
    """Row 19: a folder, a FIFO or a missing file is an error, and nothing hangs."""
    (files / "folder").mkdir()
    os.mkfifo(files / "fifo")
    for bad, word in (("folder", "folder"), ("fifo", "regular"), ("none", "No such file")):
        names = ["m.bin", "-z", "t.bin"]
        names[names.index(good)] = bad
        assert refused(run(program, *names, cwd=files), bad + ": ", word)


def test_unreadable_file_is_refused(program, files):
    """Row 19: a file without read permission is refused with the system's reason."""
    (files / "m.bin").chmod(0)
    if os.access(files / "m.bin", os.R_OK):
        pytest.skip("this user may read everything")
    assert refused(run(program, "m.bin", "-z", "t.bin", cwd=files), "Permission denied")


def test_trailing_bytes_get_one_warning(program, files):
    """Row 3: bytes after the last array give one warning and change nothing."""
    plain = run(program, "m.bin", "-z", "t.bin", "-s", "4", cwd=files)
    (files / "m.bin").write_bytes(V0 + b"xyz")
    more = run(program, "m.bin", "-z", "t.bin", "-s", "4", cwd=files)
    assert more.returncode == 0
    assert more.stdout == plain.stdout
    assert more.stderr.count(b"warning: m.bin: 3 bytes after the last array") == 1


@pytest.mark.parametrize("cut", [1, 100, 4 * 2 * 16 * 2])
def test_missing_rope_tables_get_one_warning(program, files, cut):
    """With a shared classifier the tables at the end are not needed."""
    plain = run(program, "m.bin", "-z", "t.bin", "-s", "4", cwd=files)
    (files / "m.bin").write_bytes(V0[:-cut])
    less = run(program, "m.bin", "-z", "t.bin", "-s", "4", cwd=files)
    assert less.returncode == 0
    assert less.stdout == plain.stdout
    assert b"warning: m.bin: %d bytes of the RoPE tables" % cut in less.stderr


@pytest.mark.parametrize("shared", [True, False])
def test_v0_and_v1_tell_the_same_story(program, files, shared):
    """The two float32 layouts of one model give the same bytes, shared classifier or not."""
    (files / "m.bin").write_bytes(checkpoint_v0(shared=shared))
    (files / "m1.bin").write_bytes(checkpoint_v1(shared=shared))
    v0, v1 = (run(program, m, "-z", "t.bin", "-s", "4", cwd=files) for m in ("m.bin", "m1.bin"))
    assert v0.returncode == v1.returncode == 0
    assert v0.stdout == v1.stdout
    assert len(v0.stdout) > 1


@pytest.fixture(scope="module")
def fast_program(build):
    """The program with every fast flag that does not assume that NaN cannot occur."""
    flags = ["-O3", "-march=native", "-fopenmp", "-ffp-contract=fast"]
    flags += ["-fassociative-math", "-fno-signed-zeros", "-fno-trapping-math"]
    try:
        return build(CSRC / "run.c", *flags)
    except AssertionError:
        pytest.skip("this compiler lacks one of the flags")


@pytest.mark.parametrize("built", ["program", "fast_program"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("flags", [["-t", "0"], ["-t", "1"], ["-p", "1"]])
def test_non_finite_weights_are_named_by_position(request, files, built, value, flags):
    """Row 17: non-finite logits are an error that names the position, in a fast build too."""
    weights = np.frombuffer(V0[28:], "<f4").copy()
    weights[270 * 8 : 270 * 8 + 8] = value
    (files / "m.bin").write_bytes(V0[:28] + weights.tobytes())
    program = request.getfixturevalue(built)
    done = run(program, "m.bin", "-z", "t.bin", *flags, cwd=files)
    assert refused(done, "m.bin: non-finite logits at position 0")


def test_non_finite_flags_are_refused_or_defined(program, files):
    """-t nan and -p nan are refused, except where the original's answer is defined."""
    both = [program, "m.bin", "-z", "t.bin", "-s", "1", "-n", "4"]
    assert refused(run(*both, "-t", "nan", cwd=files), "-t = nan")
    assert refused(run(*both, "-p", "nan", cwd=files), "-p = nan")
    assert refused(run(*both, "-t", "1e-40", cwd=files), "position 0", "temperature")
    for temperature in ("nan", "1e-40"):  # every p is NaN, so the last id, which is "cc"
        for topp in ("0", "1"):
            done = run(*both, "-t", temperature, "-p", topp, cwd=files)
            assert done.stdout == b"cc" * 4 + b"\n"
    assert run(*both, "-t", "0", "-p", "nan", cwd=files).returncode == 0


def test_max_token_length_is_not_trusted(program, files):
    """Row 22: a wrong longest length gives a warning and changes nothing."""
    flags = ["-i", "abcabc", "-s", "4"]
    plain = run(program, "m.bin", "-z", "t.bin", *flags, cwd=files)
    for lie in (0, 1, -1, 2**31 - 1):
        (files / "t.bin").write_bytes(struct.pack("<i", lie) + TOK[4:])
        lied = run(program, "m.bin", "-z", "t.bin", *flags, cwd=files)
        assert lied.returncode == 0
        assert lied.stdout == plain.stdout
        assert b"max_token_length = %d (byte 0)" % lie in lied.stderr


def test_tokens_beyond_the_model_are_ignored(program, files):
    """Row 23: a larger vocabulary works with its first V tokens, with a warning."""
    (files / "t.bin").write_bytes(TOK + struct.pack("<fi", 0, 3) + b"abc")
    done = run(program, "m.bin", "-z", "t.bin", "-s", "4", cwd=files)
    assert done.returncode == 0
    assert b"warning: t.bin: 11 bytes after token 269" in done.stderr


def test_prompt_needs_its_tokens(program, files):
    """Rows 24 and 25: the error names the token that the prompt needs and the vocabulary lacks."""
    pieces = [b"<unk>", b"\n<s>\n", b"\n</s>\n", b"x", b"y"]
    shape = {**SHAPE, "vocab_size": 5}
    (files / "m.bin").write_bytes(checkpoint_v0(shape))
    (files / "t.bin").write_bytes(vocabulary(pieces=pieces))
    flags = ["-z", "t.bin", "-n", "3"]
    assert refused(run(program, "m.bin", *flags, "-i", "x", cwd=files), "t.bin", "space token")
    assert run(program, "m.bin", *flags, "-i", "", cwd=files).returncode == 0
    (files / "t.bin").write_bytes(vocabulary(pieces=[*pieces[:4], b" "]))
    assert run(program, "m.bin", *flags, "-i", "x", cwd=files).returncode == 0
    assert refused(run(program, "m.bin", *flags, "-i", b"\xc3", cwd=files), "t.bin", "0xC3")


def test_lowest_of_equal_tokens_wins(library, tmp_path):
    """Row 26: of several tokens with one text the encoder uses the lowest id."""
    pieces = [b"<unk>", b"\n<s>\n", b"\n</s>\n", b"x", b" ", b"x", b" "]
    (tmp_path / "t.bin").write_bytes(vocabulary(pieces=pieces))
    library.load(str(tmp_path / "t.bin").encode(), 7)
    assert encode(library, b"x x") == [1, 4, 3, 4, 3]


def test_a_piece_may_be_shown_as_nothing(library, tmp_path):
    """A space right after BOS prints nothing, even where it is the last byte of the file."""
    pieces = [b"<unk>", b"\n<s>\n", b"\n</s>\n", b" "]
    (tmp_path / "t.bin").write_bytes(vocabulary(pieces=pieces))
    library.load(str(tmp_path / "t.bin").encode(), 4)
    assert decode(library, 1, 3) == (b"", False)


def test_nul_inside_a_token_is_kept(library, tmp_path):
    """Row 26: tokens are bytes, and zero is one of them."""
    pieces = [b"<unk>", b"\n<s>\n", b"\n</s>\n", b"x\0y"]
    (tmp_path / "t.bin").write_bytes(vocabulary(pieces=pieces))
    library.load(str(tmp_path / "t.bin").encode(), 4)
    assert decode(library, 0, 3) == (b"x\0y", True)


def test_chat_ends_cleanly_without_input(program, files):
    """End of input before any user text ends the chat with exit code 0."""
    done = run(program, "m.bin", "-z", "t.bin", "-m", "chat", cwd=files)
    assert done.returncode == 0
    assert done.stdout == b"Enter system prompt (optional): User: \n"


def test_eos_inside_a_prompt_ends_the_turn(program, files):
    """A prompt that contains id 2 ends there, and the user is asked again."""
    pieces = [b"<unk>", b"\n<s>\n", b"x", *(b"<0x%02X>" % b for b in range(256)), b" "]
    (files / "m.bin").write_bytes(checkpoint_v0({**SHAPE, "vocab_size": 260}))
    (files / "t.bin").write_bytes(vocabulary(pieces=pieces))
    flags = ["-m", "chat", "-i", "axb", "-y", "", "-t", "0", "-n", "16"]
    done = run(program, "m.bin", "-z", "t.bin", *flags, cwd=files)
    assert done.returncode == 0
    assert done.stdout.count(b"Assistant: ") == 2


def test_chat_texts_may_have_any_length(program, files):
    """Flags -i and -y have no maximum length."""
    (files / "m.bin").write_bytes(checkpoint_v0({**SHAPE, "seq_len": 4000}))
    done = run(
        program,
        "m.bin",
        "-z",
        "t.bin",
        "-m",
        "chat",
        "-n",
        "0",
        "-s",
        "1",
        "-i",
        "a b" * 1000,
        "-y",
        "x" * 700,
        cwd=files,
    )
    assert done.returncode == 0
    assert done.stdout.startswith(b"Assistant: ")


def test_a_file_name_cannot_break_the_line(program, files):
    """Control bytes of a path are replaced."""
    assert refused(run(program, "no\nsuch\nfile", "-z", "t.bin", cwd=files), "no?such?file")


def test_a_huge_context_costs_only_the_steps_taken(program, files):
    """The cache is sized by the steps: a context of 2^31 - 1 positions runs five."""
    (files / "m.bin").write_bytes(with_field(V1, "seq_len", 2**31 - 1, 8))
    done = run(program, "m.bin", "-z", "t.bin", "-n", "5", "-s", "4", cwd=files)
    assert done.returncode == 0
