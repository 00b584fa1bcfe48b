"""Models by name, `org/model`: in Hugging Face's local cache, or downloaded where that is asked."""

from __future__ import annotations

import importlib.util
import os
import re
from typing import Any

from pyllm2.errors import BackendError, FileError

_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
# What a model needs; the weights of torch only where there are no others.
FILES = ["*.json", "*.jinja", "*.safetensors", "tokenizer.model", "merges.txt"]
TORCH = ["pytorch_model*.bin"]


def folder_of(path: str | os.PathLike[str], download: bool = False) -> str:
    """The folder that a name stands for; any other path as it is, and one whose folder exists.

    download: fetch what the cache has not, with a progress bar on stderr.

    Raises FileError for a model that is neither there nor can be fetched, BackendError without the
    huggingface_hub package.
    """
    name = os.fsdecode(path)
    if not _NAME.fullmatch(name) or os.path.lexists(name.partition("/")[0]):
        return name
    if importlib.util.find_spec("huggingface_hub") is None:
        if download:
            words = "needs the huggingface_hub package: pip install 'pyllm2[hub]'"
            raise BackendError(f"{name}: a download {words}")
        raise FileError(name, "no such file or directory")
    if download:
        return _fetched(name)
    try:
        return _snapshot(name, local_files_only=True)
    except Exception:  # of many kinds: not in the cache, a damaged cache
        raise FileError(
            name,
            "no such file or folder, and not in the cache of Hugging Face: --download fetches it",
        ) from None


def _fetched(name: str) -> str:
    try:
        folder = _snapshot(name, allow_patterns=FILES)
        if not any(file.endswith(".safetensors") for file in os.listdir(folder)):
            folder = _snapshot(name, allow_patterns=FILES + TORCH)
        return folder
    except Exception as error:  # of the network, of the server, of the disk
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise FileError(name, f"cannot be downloaded: {reason}") from None


def _snapshot(name: str, **options: Any) -> str:
    from huggingface_hub import snapshot_download

    return str(snapshot_download(name, **options))
