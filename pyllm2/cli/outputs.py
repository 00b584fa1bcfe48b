"""Files and folders that the user names for the results, and the one rule for overwriting.

A command refuses an output that exists and is not empty, in one line that names it; `--force`
replaces it. An input is never replaced. A FIFO or a device is written to. Of a folder, `--force`
replaces the files that the command may have written; with any other file in it it is refused.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from fnmatch import fnmatch
from typing import Any

from pyllm2.errors import FileError, UsageError, os_errors
from pyllm2.formats.new_folder import content
from pyllm2.formats.writer import require_writable

EXISTS = "already exists: --force replaces it"
# Files of a model's folder: weights and config of Hugging Face, Meta and `train`, tokenizers.
READ = (
    "*.safetensors *.pth pytorch_model*.bin model.bin *.index.json *config.json *.jinja "
    "params.json tokenizer.* vocab.json merges.txt added_tokens.json special_tokens_map.json"
).split()


def output(name: str) -> str:
    """The argparse type of every argument that names an output; a test looks for it."""
    return name


def add_force(parser: Any, text: str = "replace an output that already exists") -> None:
    parser.add_argument("--force", action="store_true", help=text)


def check_output(target: str, *inputs: str | None, force: bool) -> None:
    """Refuse a file that exists and is not empty, cannot be written, or is one of the inputs.

    Of an input that is a folder, the files count that a model may be read from (`READ`); of one
    part of a GGUF all parts. None and "" are no inputs.

    Raises UsageError for an input, FileError with the reason.
    """
    if os.path.isfile(target):
        for source in filter(None, inputs):
            if any(os.path.samefile(file, target) for file in _files_of(source)):
                raise UsageError(f"{target}: the output would overwrite the input")
        if not force and os.path.getsize(target):
            raise FileError(target, EXISTS)
    require_writable(target)


def check_outputs(targets: Sequence[str | None], *inputs: str | None, force: bool) -> None:
    """`check_output` of every file that is named; refuses one that is named twice. UsageError."""
    named = [target for target in targets if target]
    for i, target in enumerate(named):
        check_output(target, *inputs, force=force)
        is_device = os.path.exists(target) and not os.path.isfile(target)
        if not is_device and os.path.realpath(target) in map(os.path.realpath, named[:i]):
            raise UsageError(f"{target}: the name of two outputs")


def check_folder(target: str, *inputs: str | None, force: bool) -> None:
    """Refuse, before any work, a folder that is not empty; with an input in it in any case.

    Raises UsageError for an input, FileError.
    """
    if not os.path.lexists(target):
        return
    if not os.path.isdir(target):
        raise FileError(target, "is no folder: choose a new folder")
    with os_errors(target):
        if not content(target):
            return
    folder = os.path.realpath(target)
    for source in map(os.path.realpath, filter(None, inputs)):
        if os.path.exists(source) and os.path.commonpath((source, folder)) == folder:
            raise UsageError(f"{target}: the output would overwrite the input")
    if not force:
        raise FileError(target, EXISTS)


def _files_of(source: str) -> list[str]:
    """The files that an input may be read from, as far as they exist."""
    from pyllm2.formats.gguf import part_names

    if os.path.isdir(source):
        with os_errors(source):
            names = [name for name in os.listdir(source) if any(fnmatch(name, of) for of in READ)]
        files = [os.path.join(source, name) for name in names]
    else:
        files = [source, *part_names(source)]
    return [file for file in files if os.path.isfile(file)]
