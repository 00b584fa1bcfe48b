"""Rows 18 and 19: files that are no checkpoints, and paths that are no regular files."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from tests.hostile.case import GENERATE, RUN, Argv, Case, of_model
from tests.support.command import Argument
from tests.support.llama2_files import checkpoint, vocabulary

# ---- row 18: other kinds of files -------------------------------------------------------------


class Trap:
    """Creates a folder when it is unpickled, which the test would find."""

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, ("unpickled",)


def _zip() -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Trap()))
    return data.getvalue()


def _safetensors() -> bytes:
    header = json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(8)


HTML = b"<!DOCTYPE html>\n<html><head><title>404</title></head><body>no such model</body></html>\n"
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0123456789\nsize 1056540\n"
JSON = b'{"model_type": "llama", "hidden_size": 4096}'
TEXT = b"Once upon a time, there was a file.\n"
GGUF = b"GGUF" + struct.pack("<IQQ", 3, 2, 5) + bytes(200)
NPY = b"\x93NUMPY\x01\0" + bytes(100)
GPT2_OF_ZEROS = struct.pack("<ii", 20240326, 3).ljust(1024, b"\0")

IS_HTML = "looks like a web page: was the download link right?"
IS_LFS = "looks like a Git LFS pointer: run `git lfs pull` to fetch the real file"
IS_ZIP = "looks like a zip archive (a PyTorch checkpoint is one: name the folder that it is in)"
IS_PICKLE = "looks like a Python pickle, which is never opened: it could run any code"
IS_GGUF = "metadata key '' (byte 37): is there twice"
IS_SAFETENSORS = (
    "looks like a safetensors file: name the folder that it is in, with its config.json"
)
IS_TOKENIZER = "looks like a llama2.c tokenizer.bin, not a checkpoint"
IS_OF_ZEROS = "max_seq_len = 0 (byte 8): must be at least 1"

KINDS = [
    of_model(18, "html", HTML, IS_HTML),
    of_model(18, "html-long", b"\n <html>" + HTML * 100, IS_HTML),
    of_model(18, "lfs-pointer", LFS, IS_LFS),
    of_model(18, "gzip", gzip.compress(checkpoint()), "looks like gzip data: unpack it first"),
    of_model(18, "zip", _zip(), IS_ZIP),
    of_model(18, "pickle-2", pickle.dumps(Trap(), 2), IS_PICKLE),
    of_model(18, "pickle-5", pickle.dumps(Trap(), 5) + bytes(4000), IS_PICKLE),
    of_model(18, "gguf", GGUF, IS_GGUF),
    of_model(18, "safetensors", _safetensors(), IS_SAFETENSORS),
    of_model(18, "json", JSON, "looks like JSON text"),
    of_model(18, "text", TEXT, "looks like plain text"),
    of_model(18, "not-found-page", b"Not Found\n", "looks like plain text"),
    of_model(18, "tokenizer-as-model", vocabulary(), IS_TOKENIZER),
    of_model(18, "npy", NPY, "looks like a NumPy array (.npy)"),
    of_model(18, "llmc-of-nothing", GPT2_OF_ZEROS, IS_OF_ZEROS, run=False),
]

# ---- row 19: paths ----------------------------------------------------------------------------


def _instead(make: Callable[[Path], object]) -> Callable[[Path], None]:
    """Remove m.bin, then make something else of that name."""

    def change(folder: Path) -> None:
        path = folder / "m.bin"
        path.unlink()
        make(path)

    return change


_folder, _fifo = _instead(Path.mkdir), _instead(os.mkfifo)
_missing = _instead(lambda path: None)
_loop = _instead(lambda path: path.symlink_to("m.bin"))


def _unreadable(folder: Path) -> None:
    (folder / "m.bin").chmod(0)


def at_path(name: str, path: Argument, error: str, of: str = "m.bin") -> Case:
    """GENERATE with another path for the model, or for the file `of`."""
    return Case(19, name, error, argv=tuple(path if w == of else w for w in GENERATE))


MISSING = "no such file or directory"
NO_TOKENIZER_THERE = (
    "has no tokenizer: expected tokenizer.json, tokenizer.model, vocab.json and merges.txt, "
    "or tokenizer.bin"
)
IS_FOLDER = "is a folder, expected a regular file"
NO_MODEL_FOLDER = "is a folder, without config.json (Hugging Face) or params.json (Meta)"
IS_FIFO = "m.bin: is a FIFO (named pipe), expected a regular file"
NO_TOKENIZER = "tokenizer.bin: no such file: name the tokenizer with --tokenizer FILE"
IS_GPT2_TOKENIZER = "t.bin: is a GPT-2 tokenizer: expected one of llama2.c"
RANKS = {"m.bin": checkpoint(vocab_size=4), "t.bin": b"YQ== 0\nYg== 1\nYw== 2\n"}

REPLACED = [
    Case(19, "folder", f"m.bin: {NO_MODEL_FOLDER}", make=_folder, run=True),
    Case(19, "fifo", IS_FIFO, make=_fifo),
    Case(19, "missing", f"m.bin: {MISSING}", make=_missing, run=True),
]
PATHS = [
    *REPLACED,
    Case(19, "fifo-run", IS_FIFO, make=_fifo, argv=RUN),  # in a process, lest it wait for a writer
    Case(19, "link-to-itself", "m.bin: too many levels of symbolic links", make=_loop),
    at_path("device", "/dev/zero", "/dev/zero: is a character device, expected a regular file"),
    at_path("below-a-file", "t.bin/m.bin", "t.bin/m.bin: not a directory"),
    at_path("long-name", "m" * 300, "m" * 300 + ": file name too long"),
    at_path("empty-name", "", f"'': {MISSING}"),
    at_path("newline-in-name", "a\nb\x1b[2J", f"a\\nb\\x1b[2J: {MISSING}"),
    at_path("name-not-utf8", b"a\xff", f"a\\udcff: {MISSING}"),
    at_path("tokenizer-missing", "no.bin", f"no.bin: {MISSING}", of="t.bin"),
    at_path("tokenizer-is-folder", ".", f".: {NO_TOKENIZER_THERE}", of="t.bin"),
    Case(19, "tokenizer-nowhere", NO_TOKENIZER, argv=("generate", "m.bin")),
    Case(19, "prompt-file-is-folder", f".: {IS_FOLDER}", argv=(*GENERATE, "--prompt-file", ".")),
    Case(19, "run-gpt2-tokenizer", IS_GPT2_TOKENIZER, RANKS, RUN),
]
if os.geteuid() != 0:  # root may read everything
    PATHS.append(Case(19, "unreadable", "m.bin: permission denied", make=_unreadable))

# Without a tokenizer the message is still about the model.
GENERATE_ALONE: Argv = ("generate", "m.bin", "--backend", "numpy")
ALONE = [
    replace(case, name=f"{case.name}-alone", argv=GENERATE_ALONE, run=False)
    for case in (*KINDS, *REPLACED)
]
OTHER_FILES = [*KINDS, *PATHS, *ALONE]
