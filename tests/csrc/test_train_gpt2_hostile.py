"""csrc/train_gpt2.c and bad input: one line, exit code 1, before any training.

Row numbers are those of tests/hostile/README.md.
"""

from __future__ import annotations

import os
import struct

import numpy as np
import pytest

from pyllm2.gpt2.config import GPT2Config
from tests.csrc import program
from tests.csrc.program import run
from tests.support.gpt2_files import (
    CONFIG,
    MODEL,
    TOKENS,
    header,
    model_file,
    shard,
    shard_file,
    tokenizer_file,
    with_number,
)

FLAGS = ["-b", "2", "-t", "6", "-x", "2"]
FILES = {"-e": "m.bin", "-z": "t.bin", "-i": "train.bin", "-j": "val.bin"}
TEXTS = [b"%02d" % i for i in range(CONFIG.vocab_size)]
GOOD_MODEL = model_file()
GOOD_TOKENIZER = tokenizer_file(TEXTS, 19)


def train(trainer, folder, *flags):
    files = [part for pair in FILES.items() for part in pair]
    return run(trainer, *files, *FLAGS, *flags, cwd=folder)


def refused(done, *words):
    return program.refused(done, *words, program="train_gpt2")


@pytest.fixture
def files(corpus):
    (corpus / "t.bin").write_bytes(GOOD_TOKENIZER)
    return corpus


def test_the_good_files_train_in_silence(trainer, files):
    """The files that the bad ones are made from are valid."""
    done = train(trainer, files)
    assert done.returncode == 0
    assert done.stderr == b""
    assert done.stdout.count(b"train loss") == 2


# ---- models ---------------------------------------------------------------------------------


def with_float(index, value):
    at = 1024 + 4 * index
    return GOOD_MODEL[:at] + struct.pack("<f", value) + GOOD_MODEL[at + 4 :]


BAD_MODELS = {
    "1 empty": (b"", ["0 bytes: header needs 1024"]),
    "1 three bytes": (GOOD_MODEL[:3], ["3 bytes: header needs 1024"]),
    "1 short header": (GOOD_MODEL[:1023], ["1023 bytes: header needs 1024"]),
    "2 header only": (GOOD_MODEL[:1024], ["missing", "inside wte"]),
    "2 one byte short": (GOOD_MODEL[:-1], ["1 missing", "inside lnfb", "incomplete"]),
    "2 ends before the last tensor": (GOOD_MODEL[:-32], ["32 missing", "inside lnfb"]),
    "2 ends in wpe": (GOOD_MODEL[: 1024 + 4 * 32 * 8], ["inside wpe"]),
    "27 magic": (with_number(GOOD_MODEL, 0, 7), ["magic = 7 (byte 0): must be 20240326"]),
    "27 a shard": (shard_file(600), ["magic = 20240520", "a GPT-2 model, and this is a token"]),
    "27 byte-swapped": (GOOD_MODEL[3::-1] + GOOD_MODEL[4:], ["magic", "must be 20240326"]),
    "27 version 1": (with_number(GOOD_MODEL, 1, 1), ["version = 1 (byte 4): must be 3"]),
    "27 bfloat16": (with_number(GOOD_MODEL, 1, 5), ["version = 5 (byte 4): bfloat16"]),
    "28 max_seq_len 0": (with_number(GOOD_MODEL, 2, 0), ["max_seq_len = 0 (byte 8): must be at"]),
    "28 vocab_size": (with_number(GOOD_MODEL, 3, -20), ["vocab_size = -20 (byte 12): must be at"]),
    "28 num_layers": (with_number(GOOD_MODEL, 4, -1), ["num_layers = -1 (byte 16): must be at"]),
    "28 num_heads": (with_number(GOOD_MODEL, 5, 0), ["num_heads = 0 (byte 20): must be at least"]),
    "28 channels": (with_number(GOOD_MODEL, 6, -768), ["channels = -768 (byte 24): must be at"]),
    "28 padded": (with_number(GOOD_MODEL, 7, -(2**31)), ["padded_vocab_size = -2147483648"]),
    "29 padded below": (
        with_number(GOOD_MODEL, 7, 19),
        ["padded_vocab_size = 19 (byte 28): must be at least vocab_size = 20"],
    ),
    "29 heads": (
        with_number(GOOD_MODEL, 5, 3),
        ["channels = 8 (byte 24): must be a multiple of num_heads = 3"],
    ),
    "3 one byte more": (
        GOOD_MODEL + b"x",
        [f"1 bytes after the last tensor (which ends at byte {len(GOOD_MODEL)})"],
    ),
    "3 a smaller shape": (with_number(GOOD_MODEL, 4, 1), ["after the last tensor", "this shape"]),
    "10 product past 2^32": (with_number(GOOD_MODEL, 7, 2**29), ["needs 1717", "inside wte"]),
    "10 product past 2^63": (
        header(MODEL, 3, *[2**31 - 1] * 6) + bytes(64),
        ["needs over 2^63"],
    ),
    "17 NaN": (with_float(3, np.nan), ["wte, element 3 = nan (byte 1036): must be finite"]),
    "17 infinite": (
        with_float(CONFIG.parameters() - 2, -np.inf),
        ["lnfb, element 6 = -inf", "must be finite"],
    ),
    "18 HTML": (b"<!DOCTYPE html><html><body>404</body></html>", ["HTML"]),
    "18 LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", ["Git LFS"]),
    "18 pickle": (b"\x80\x04\x95" + bytes(1040), ["pickle"]),
    "T beyond the positions": (
        model_file(GPT2Config(**{**CONFIG.__dict__, "max_seq_len": 5})),
        ["max_seq_len = 5 (byte 8): must be at least T = 6 (see -t)"],
    ),
}


@pytest.mark.parametrize("row", BAD_MODELS)
def test_bad_models_are_refused(trainer, files, row):
    """The error is one line that names the file, the field and the value."""
    content, words = BAD_MODELS[row]
    (files / "m.bin").write_bytes(content)
    assert refused(train(trainer, files), "m.bin: ", *words)


# ---- token shards ---------------------------------------------------------------------------

GOOD_SHARD = shard_file(60, seed=2)
BAD_SHARDS = {
    "1 empty": (b"", ["0 bytes: header needs 1024"]),
    "1 short header": (GOOD_SHARD[:900], ["900 bytes: header needs 1024"]),
    "31 magic": (with_number(GOOD_SHARD, 0, 0), ["magic = 0 (byte 0): must be 20240520"]),
    "31 Llama 3": (with_number(GOOD_SHARD, 0, 20240801), ["and this is a token shard for Llama"]),
    "31 version": (with_number(GOOD_SHARD, 1, 7), ["version = 7 (byte 4): must be 1"]),
    "31 count 0": (with_number(GOOD_SHARD, 2, 0), ["tokens = 0 (byte 8): must be at least 1"]),
    "31 count negative": (with_number(GOOD_SHARD, 2, -60), ["tokens = -60 (byte 8)"]),
    "31 count above": (
        with_number(GOOD_SHARD, 2, 2**31 - 1),
        ["tokens = 2147483647 (byte 8): needs 4294968318 bytes, the file has 1144"],
    ),
    "31 one byte short": (GOOD_SHARD[:-1], ["needs 1144 bytes, the file has 1143"]),
    "31 one byte more": (GOOD_SHARD + b"x", ["needs 1144 bytes, the file has 1145"]),
    "32 id": (shard([20] * 60), ["token ", " = 20 (byte ", "must be below vocab_size = 20"]),
    "33 too short": (
        shard_file(12),
        ["tokens = 12 (byte 8): must be at least 13 for B = 2, T = 6"],
    ),
    "18 HTML": (b"<html>" + bytes(2000), ["HTML"]),
}


@pytest.mark.parametrize("name", ["train.bin", "val.bin"])
@pytest.mark.parametrize("row", [r for r in BAD_SHARDS if not r.startswith("32")])
def test_bad_shards_are_refused(trainer, files, row, name):
    """The error comes before the first step."""
    content, words = BAD_SHARDS[row]
    (files / name).write_bytes(content)
    assert refused(train(trainer, files), name + ": ", *words)


def test_ids_beyond_the_vocabulary_are_named(trainer, files):
    """Row 32: the error names the position of the token when its batch is read."""
    tokens = np.full(60, 3)
    tokens[7] = 20
    (files / "val.bin").write_bytes(shard(tokens))
    done = train(trainer, files)
    assert done.returncode == 1
    line = "val.bin: token 7 = 20 (byte 1038): must be below vocab_size = 20"
    assert done.stderr.decode() == f"train_gpt2: error: {line}\n"
    tokens[7] = 19
    (files / "val.bin").write_bytes(shard(tokens))
    assert train(trainer, files).returncode == 0


def test_every_shard_is_looked_at_before_training(trainer, files):
    """Every file that a pattern matches is checked."""
    (files / "s_1.bin").write_bytes(shard_file(40))
    (files / "s_2.bin").write_bytes(GOOD_SHARD[:-1])
    assert refused(train(trainer, files, "-i", "s_*.bin"), "s_2.bin: ", "1143")
    assert refused(train(trainer, files, "-i", "x_*.bin"), "x_*.bin: ", "No such file")


# ---- the tokenizer --------------------------------------------------------------------------

TOKEN_5 = 1024 + 3 * 5
BAD_TOKENIZERS = {
    "1 empty": (b"", ["0 bytes: header needs 1024"]),
    "1 magic": (with_number(GOOD_TOKENIZER, 0, TOKENS), ["magic = 20240520", "a GPT-2 tokenizer"]),
    "1 version": (with_number(GOOD_TOKENIZER, 1, 3), ["version = 3 (byte 4): must be 1 or 2"]),
    "version 1 of another size": (
        with_number(GOOD_TOKENIZER, 1, 1),
        ["tokens = 20 (byte 8): must be 50257 in version 1"],
    ),
    "20 header only": (GOOD_TOKENIZER[:1024], ["tokens = 20 (byte 8): at most 0 fit"]),
    "20 cut in a token": (GOOD_TOKENIZER[:-1], ["token 19 of 20: length = 2", "1 bytes left"]),
    "20 cut before a token": (
        tokenizer_file([b"longer" * 9] * 19, 19)[:8]
        + struct.pack("<i", 20)
        + tokenizer_file([b"longer" * 9] * 19, 19)[12:],
        ["ends before token 19 of 20"],
    ),
    "21 length 0": (
        GOOD_TOKENIZER[:TOKEN_5] + b"\0" + GOOD_TOKENIZER[TOKEN_5 + 1 :],
        ["token 5: length = 0 (byte 1039): must be at least 1"],
    ),
    "21 length past the file": (
        GOOD_TOKENIZER[:-3] + b"\xff" + GOOD_TOKENIZER[-2:],
        ["token 19 of 20: length = 255 (byte 1081): 2 bytes left"],
    ),
    "20 bytes after the last": (GOOD_TOKENIZER + b"more", ["4 bytes (byte 1084) after the last"]),
    "23 too few": (
        tokenizer_file(TEXTS[:19], 3),
        ["tokens = 19 (byte 8): must be at least 20, the vocab_size of m.bin"],
    ),
    "23 count negative": (with_number(GOOD_TOKENIZER, 2, -1), ["tokens = -1 (byte 8)"]),
    "23 count past the file": (
        with_number(GOOD_TOKENIZER, 2, 2**31 - 1),
        ["tokens = 2147483647 (byte 8): at most 30 fit in the file"],
    ),
    "end of text above": (with_number(GOOD_TOKENIZER, 3, 20), ["end_of_text = 20 (byte 12)"]),
    "end of text negative": (with_number(GOOD_TOKENIZER, 3, -1), ["from 0 to 19"]),
}


@pytest.mark.parametrize("row", BAD_TOKENIZERS)
def test_bad_tokenizers_are_refused(trainer, files, row):
    """The error is one line; only a missing file is a warning."""
    content, words = BAD_TOKENIZERS[row]
    (files / "t.bin").write_bytes(content)
    assert refused(train(trainer, files), "t.bin: ", *words)


def test_version_1_of_a_tokenizer(trainer, files):
    """It has the end-of-text id of GPT-2, which a smaller model lacks."""
    (files / "t.bin").write_bytes(tokenizer_file([b"x"] * 50257, 0, version=1))
    assert refused(train(trainer, files), "end_of_text = 50256 (byte 12): must be from 0 to 19")
    config = GPT2Config(**{**CONFIG.__dict__, "vocab_size": 50257, "padded_vocab_size": 50257})
    (files / "m.bin").write_bytes(model_file(config))
    assert train(trainer, files).returncode == 0


# ---- files of any kind, and flags -----------------------------------------------------------


@pytest.mark.parametrize("flag", ["-e", "-z", "-i", "-j"])
def test_only_regular_files_are_opened(trainer, files, flag):
    """Row 19: a folder, a FIFO or a missing file is an error, and nothing hangs."""
    (files / "folder").mkdir()
    os.mkfifo(files / "fifo")
    assert refused(train(trainer, files, flag, "folder"), "folder: is a folder")
    assert refused(train(trainer, files, flag, "fifo"), "fifo: is not a regular file")
    assert refused(train(trainer, files, flag, "m.bin/x"), "m.bin/x: Not a directory")
    if flag != "-z":
        assert refused(train(trainer, files, flag, "none"), "none: No such file")


@pytest.mark.parametrize("output", ["folder", "none/out.bin", "fifo"])
def test_output_that_cannot_be_written_is_refused_before_training(trainer, files, output):
    """Row 65."""
    (files / "folder").mkdir()
    os.mkfifo(files / "fifo")
    assert refused(train(trainer, files, "-o", output), output)
    assert not list(files.glob("**/*.part"))


BAD_FLAGS = {
    "rows 0": (["-b", "0"], "-b = 0: must be a whole number from 1 to 2147483647"),
    "rows 1e3": (["-b", "1e3"], "-b = 1e3: must be a whole number"),
    "rows 2^31": (["-b", "2147483648"], "-b = 2147483648"),
    "rows past 64 bits": (["-b", "9" * 30], "-b = 9999"),
    "a batch that no shard has": (["-b", "2147483647"], "must be at least 12884901883"),
    "tokens -6": (["-t", "-6"], "-t = -6"),
    "tokens blank": (["-t", " 6"], "-t =  6"),
    "steps empty": (["-x", ""], "-x = : must be a whole number from 0"),
    "rate nan": (["-l", "nan"], "-l = nan: must be a number from 0 on"),
    "rate inf": (["-l", "1e39"], "-l = 1e39"),
    "rate negative": (["-l", "-1"], "-l = -1"),
    "rate with more": (["-l", "1e-4x"], "-l = 1e-4x"),
}


@pytest.mark.parametrize("row", BAD_FLAGS)
def test_bad_numbers_are_refused(trainer, files, row):
    flags, words = BAD_FLAGS[row]
    assert refused(train(trainer, files, *flags), words)


@pytest.mark.parametrize("flags", [["-q", "1"], ["-b"], ["b", "1"], ["-bb", "1"], ["--help"]])
def test_unknown_flags_get_the_usage(trainer, files, flags):
    done = train(trainer, files, *flags)
    assert done.returncode == 1
    assert done.stdout == b""
    assert done.stderr.startswith(b"usage: train_gpt2 ")


def test_without_flags_the_file_names_are_the_original_ones(trainer, tmp_path):
    """The error names the first missing file; shards have two default places."""
    assert refused(run(trainer, cwd=tmp_path), "gpt2_124M.bin: No such file")
    config = GPT2Config(**{**CONFIG.__dict__, "max_seq_len": 64})
    (tmp_path / "gpt2_124M.bin").write_bytes(model_file(config))
    stories = "dev/data/tinystories/TinyStories"
    shakespeare = "dev/data/tinyshakespeare/tiny_shakespeare"
    assert refused(run(trainer, cwd=tmp_path), stories + "_train.bin: No such file")
    for name in (stories, shakespeare):
        (tmp_path / name).parent.mkdir(parents=True)
    (tmp_path / f"{stories}_train.bin").write_bytes(shard_file(600))
    assert refused(run(trainer, cwd=tmp_path), stories + "_val.bin: No such file")
    (tmp_path / f"{stories}_val.bin").write_bytes(shard_file(900))
    done = run(trainer, cwd=tmp_path)
    assert done.returncode == 0
    assert b"train dataset num_batches: 2\nval dataset num_batches: 3\n" in done.stdout
    (tmp_path / f"{shakespeare}_val.bin").write_bytes(shard_file(300))
    done = run(trainer, cwd=tmp_path)
    assert b"train dataset num_batches: 2\nval dataset num_batches: 1\n" in done.stdout
    assert b"warning: gpt2_tokenizer.bin: No such file" in done.stderr


def test_untrained_models_have_names(trainer, files):
    """d6 is a shape with 1024 positions; d7 is a missing file."""
    assert refused(
        train(trainer, files, "-e", "d6", "-t", "1025"), "d6: max_seq_len = 1024", "1025"
    )
    assert refused(train(trainer, files, "-e", "d7"), "d7: No such file")


def test_batch_that_memory_cannot_hold_is_refused(trainer, files):
    """Row 76: the error says how much is needed and which flags reduce it."""
    (files / "train.bin").write_bytes(shard_file(400_001))
    flags = [part for pair in FILES.items() for part in pair]
    limited = ["sh", "-c", 'ulimit -v 300000; exec "$@"', "sh"]
    done = run(*limited, trainer, *flags, "-j", "train.bin", "-b", "50000", "-t", "8", cwd=files)
    assert refused(done, "not enough memory: ", "(see -b, -t) needs ")


def test_training_that_explodes_stops(trainer, files):
    """Row 75: a non-finite loss ends the training, and no model is written."""
    done = train(trainer, files, "-l", "1e30", "-x", "9", "-o", "out.bin")
    assert done.returncode == 1
    assert b"train_gpt2: error: step " in done.stderr
    assert b"must be finite" in done.stderr
    assert not (files / "out.bin").exists()


def test_the_old_model_stays_if_the_new_one_cannot_be_written(trainer, files):
    """Row 71: no space left while the model is written."""
    (files / "out.bin").write_bytes(b"old")
    flags = [part for pair in FILES.items() for part in pair] + FLAGS + ["-o", "out.bin"]
    limited = ["sh", "-c", 'trap "" XFSZ; ulimit -f 4; exec "$@"', "sh"]
    done = run(*limited, trainer, *flags, cwd=files)
    assert done.returncode == 1
    assert b"train_gpt2: error: out.bin: File too large" in done.stderr
    assert (files / "out.bin").read_bytes() == b"old"
    assert not (files / "out.bin.part").exists()
