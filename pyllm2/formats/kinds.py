"""Recognise a file by its first bytes, so that an error can say what the file is."""

from __future__ import annotations

import struct

PLAIN_TEXT, JSON_TEXT = "plain text", "JSON text"

# (offset, bytes there, what the file is)
_SIGNATURES = [
    (0, b"version https://git-lfs", "a Git LFS pointer: run `git lfs pull` to fetch the real file"),
    (0, b"\x1f\x8b", "gzip data: unpack it first"),
    (
        0,
        b"PK\x03\x04",
        "a zip archive (a PyTorch checkpoint is one: name the folder that it is in)",
    ),
    (0, b"GGUF", "a GGUF model"),
    (0, b"\x7fELF", "an executable or library"),
    (0, b"\x89PNG", "a PNG image"),
    (0, b"%PDF", "a PDF document"),
    (0, b"BZh", "bzip2 data: unpack it first"),
    (0, b"\xfd7zXZ\x00", "xz data: unpack it first"),
    (0, b"\x28\xb5\x2f\xfd", "zstd data: unpack it first"),
    (0, b"ggml", "an old GGML model, not supported"),
    (0, b"\x93NUMPY", "a NumPy array (.npy)"),
    (0, b"\x89HDF", "an HDF5 file"),
    (0, b"ak42", "a big-endian llama2.c checkpoint (magic 32346b61), not supported"),
    (0, struct.pack("<i", 20240326), "an llm.c GPT-2 checkpoint"),
    (0, struct.pack("<i", 20240803), "an llm.c Llama-3 checkpoint, not supported"),
    (0, struct.pack("<i", 20240520), "an llm.c token shard (GPT-2 ids), not a checkpoint"),
    (0, struct.pack("<i", 20240801), "an llm.c token shard (Llama-3 ids), not a checkpoint"),
    (0, struct.pack("<i", 20240522), "an llm.c evaluation file, not a checkpoint"),
    (0, struct.pack("<i", 20240527), "an llm.c optimizer state, not a checkpoint"),
    (0, struct.pack("<i", 20240327), "an llm.c debug state, not a checkpoint"),
    (0, struct.pack("<i", 20240527), "an llm.c optimizer state, not a checkpoint"),
    (0, struct.pack("<i", 20240328), "an llm.c tokenizer file, not a checkpoint"),
    (12, b"<unk>", "a llama2.c tokenizer.bin, not a checkpoint"),
]


def kind_of(head: bytes) -> str | None:
    """What a file with these first bytes is, in words; None if it is not recognised."""
    for offset, signature, words in _SIGNATURES:
        if head[offset : offset + len(signature)] == signature:
            return words
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return "a Python pickle, which is never opened: it could run any code"
    if is_sentencepiece(head):
        return "a SentencePiece model, not a checkpoint"
    if len(head) >= 9 and head[8:9] == b"{" and struct.unpack("<Q", head[:8])[0] < 2**32:
        return "a safetensors file: name the folder that it is in, with its config.json"
    start = head.lstrip()[:64].lower()
    if start.startswith((b"<!doctype html", b"<html", b"<?xml")):
        return "a web page: was the download link right?"
    if start.startswith((b"{", b"[")) and is_text(head):
        return JSON_TEXT
    if is_text(head):
        return PLAIN_TEXT
    return None


def is_sentencepiece(head: bytes) -> bool:
    """A SentencePiece model is a protobuf whose first record is a short first piece.

    Bytes: 0x0A, length of the record, 0x0A, length of the text, text.
    """
    return len(head) > 4 and head[0] == 0x0A and head[2] == 0x0A and 0 < head[3] < head[1] < 128


def is_text(head: bytes) -> bool:
    """Whether `head` is not empty and has no control characters but white space."""
    return len(head) > 0 and all(c >= 0x20 or c in b"\t\n\r\f" for c in head[:512])
