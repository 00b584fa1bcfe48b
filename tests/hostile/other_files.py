"""Rows 18 and 19: what is no checkpoint at all, and paths that are no files."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import struct
import zipfile
from pathlib import Path

from ..cli.tiny import checkpoint, vocabulary
from .case import GENERATE, RUN, Case, of_model


class Trap:
    """Unpickled, it would make a file: the test looks whether one is left behind."""

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, ("unpickled",)


def _zip() -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Trap()))
    return data.getvalue()


HTML = b"<!DOCTYPE html>\n<html><head><title>404</title></head><body>no such model</body></html>\n"
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0123456789\nsize 1056540\n"
SAFETENSORS = json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
ZIP = "looks like a zip archive (a PyTorch checkpoint is one, of pickles, never opened)"
PICKLE = "looks like a Python pickle, which is never opened: it could run any code"

KINDS = [
    of_model(18, "html", HTML, "looks like a web page: was the download link right?"),
    of_model(18, "html-long", b"\n <html>" + HTML * 100,
             "looks like a web page: was the download link right?"),
    of_model(18, "lfs-pointer", LFS,
             "looks like a Git LFS pointer: run `git lfs pull` to fetch the real file"),
    of_model(18, "gzip", gzip.compress(checkpoint()), "looks like gzip data: unpack it first"),
    of_model(18, "zip", _zip(), ZIP),
    of_model(18, "pickle-2", pickle.dumps(Trap(), 2), PICKLE),
    of_model(18, "pickle-5", pickle.dumps(Trap(), 5) + bytes(4000), PICKLE),
    of_model(18, "gguf", b"GGUF" + struct.pack("<IQQ", 3, 2, 5) + bytes(200),
             "looks like a GGUF model, not supported"),
    of_model(18, "safetensors", struct.pack("<Q", len(SAFETENSORS)) + SAFETENSORS + bytes(8),
             "looks like a safetensors file, not supported"),
    of_model(18, "json", b'{"model_type": "llama", "hidden_size": 4096}', "looks like JSON text"),
    of_model(18, "text", b"Once upon a time, there was a file.\n", "looks like plain text"),
    of_model(18, "not-found-page", b"Not Found\n", "looks like plain text"),
    of_model(18, "tokenizer-as-model", vocabulary(),
             "looks like a llama2.c tokenizer.bin, not a checkpoint"),
    of_model(18, "npy", b"\x93NUMPY\x01\0" + bytes(100), "looks like a NumPy array (.npy)"),
    of_model(18, "llmc-of-nothing", struct.pack("<ii", 20240326, 3).ljust(1024, b"\0"),
             "max_seq_len = 0 (byte 8): must be at least 1", run=False),
]  # fmt: skip


def _folder(at: Path) -> None:
    (at / "m.bin").unlink()
    (at / "m.bin").mkdir()


def _fifo(at: Path) -> None:
    (at / "m.bin").unlink()
    os.mkfifo(at / "m.bin")


def _missing(at: Path) -> None:
    (at / "m.bin").unlink()


def _loop(at: Path) -> None:
    (at / "m.bin").unlink()
    (at / "m.bin").symlink_to("m.bin")


def _unreadable(at: Path) -> None:
    (at / "m.bin").chmod(0)


def at_path(name: str, path: str | bytes, error: str) -> Case:
    """`generate` with a model path of which `error` speaks."""
    argv = tuple(path if word == "m.bin" else word for word in GENERATE)
    return Case(19, name, error, argv=argv)


PATHS = [
    Case(19, "folder", "m.bin: is a folder, expected a regular file", make=_folder, run=True),
    Case(19, "fifo", "m.bin: is a FIFO (named pipe), expected a regular file", make=_fifo),
    Case(19, "fifo-run", "m.bin: is a FIFO (named pipe), expected a regular file", make=_fifo,
         argv=RUN),  # a process of its own, for a reader that waits would wait for ever
    Case(19, "missing", "m.bin: no such file or directory", make=_missing, run=True),
    Case(19, "link-to-itself", "m.bin: too many levels of symbolic links", make=_loop),
    at_path("device", "/dev/zero", "/dev/zero: is a character device, expected a regular file"),
    at_path("below-a-file", "t.bin/m.bin", "t.bin/m.bin: not a directory"),
    at_path("long-name", "m" * 300, "m" * 300 + ": file name too long"),
    at_path("empty-name", "", "'': no such file or directory"),
    at_path("newline-in-name", "a\nb\x1b[2J", "a\\nb\\x1b[2J: no such file or directory"),
    at_path("name-not-utf8", b"a\xff", "a\\udcff: no such file or directory"),
    Case(19, "tokenizer-missing", "no.bin: no such file or directory",
         argv=tuple("no.bin" if word == "t.bin" else word for word in GENERATE)),
    Case(19, "tokenizer-is-folder", ".: is a folder, expected a regular file",
         argv=tuple("." if word == "t.bin" else word for word in GENERATE)),
    Case(19, "tokenizer-nowhere",
         "tokenizer.bin: no such file: name the vocabulary with --tokenizer FILE",
         argv=("generate", "m.bin")),
    Case(19, "prompt-file-is-folder", ".: is a folder, expected a regular file",
         argv=(*GENERATE, "--prompt-file", ".")),
]  # fmt: skip
if os.geteuid() != 0:  # nothing is unreadable for root
    PATHS.append(Case(19, "unreadable", "m.bin: permission denied", make=_unreadable))
OTHER_FILES = [*KINDS, *PATHS]
