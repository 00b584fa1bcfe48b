"""Row 78: texts to learn from that are no text."""

from __future__ import annotations

from tests.hostile.case import Argv, Case

PREPARE: Argv = ("data", "prepare", "x.txt", "--tokenizer", "bytes", "--out", "d")
TRAIN: Argv = ("tokenizer", "train", "x.txt", "--out", "x.model")
TRAIN_TEXT: Argv = ("train", "text", "x.txt", "--out", "d", "--backend", "numpy")
COMMANDS = {"prepare": PREPARE, "tokenizer": TRAIN, "train-text": TRAIN_TEXT}
UTF16 = "is UTF-16 text: convert it to UTF-8 (iconv -f UTF-16 -t UTF-8)"
NO_TEXTS = [
    ("empty", b"", "is empty"),
    ("blank", b" \r\n\t\n", "is blank"),
    ("only-bom", b"\xef\xbb\xbf\n", "is blank"),
    ("utf-16-le", "Once\n".encode("utf-16"), UTF16),
    ("utf-16-be", b"\xfe\xff" + "Once\n".encode("utf-16-be"), UTF16),
    ("utf-16-without-mark", "Once\n".encode("utf-16-le"), UTF16),
    ("gzip", b"\x1f\x8b\x08\0\0\0\0\0", "is no text: looks like gzip data: unpack it first"),
]
SEPARATOR = "--separator: 'a\\nb': expected blank-line, none, or the text of a line"
TEXT_FILES = [
    Case(78, f"{command}-{name}", f"x.txt: {error}", {"x.txt": data}, argv)
    for command, argv in COMMANDS.items()
    for name, data, error in NO_TEXTS
]
TEXT_FILES += [
    Case(
        78,
        f"{command}-separator",
        SEPARATOR,
        {"x.txt": b"a"},
        (*argv, "--separator", "a\nb"),
        2,
    )
    for command, argv in COMMANDS.items()
]
