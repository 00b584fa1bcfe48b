"""Files that the user names for the results: checked before any work."""

from __future__ import annotations

import os
from fnmatch import fnmatch

from pyllm2.errors import UsageError, os_errors
from pyllm2.formats.writer import require_writable

# Files of a model's folder: weights and config of Hugging Face, Meta and `train`, tokenizers.
READ = (
    "*.safetensors *.pth pytorch_model*.bin model.bin *.index.json *config.json *.jinja "
    "params.json tokenizer.* vocab.json merges.txt added_tokens.json special_tokens_map.json"
).split()


def check_output(target: str, *inputs: str) -> None:
    """Refuse an output that cannot be written, or that is one of the inputs.

    Of an input that is a folder, the files count that a model may be read from (`READ`); of one
    part of a GGUF all parts.

    Raises UsageError for an input, FileError with the operating system's reason.
    """
    if os.path.isfile(target):
        for source in inputs:
            if any(os.path.samefile(file, target) for file in _files_of(source)):
                raise UsageError(f"{target}: the output would overwrite the input")
    require_writable(target)


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
