"""What a file or folder holds: which family, its config, and its arrays, none of which is read yet.

a file      a checkpoint of llama2.c or llm.c, or GGUF: its first bytes tell
a folder    of Hugging Face, with a config.json; or of Meta, with a params.json
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

from pyllm2.backends import Engine
from pyllm2.errors import FileError
from pyllm2.formats import huggingface, llmc, meta
from pyllm2.formats.gguf import MAGIC, read_gguf
from pyllm2.formats.reader import Source, open_source
from pyllm2.gpt2 import checkpoint as gpt2_checkpoint
from pyllm2.gpt2 import gguf as gpt2_gguf
from pyllm2.gpt2 import huggingface as gpt2_huggingface
from pyllm2.gpt2 import imported as gpt2_imported
from pyllm2.inference import training_run
from pyllm2.inference.session import Decoder
from pyllm2.llama2 import checkpoint as llama2_checkpoint
from pyllm2.llama2 import gguf as llama2_gguf
from pyllm2.llama2 import huggingface as llama2_huggingface
from pyllm2.llama2 import imported as llama2_imported
from pyllm2.llama2 import meta as llama2_meta
from pyllm2.parameters import Streamed
from pyllm2.tokenizers import Tokenizer, from_gguf, load_tokenizer
from pyllm2.tokenizers.folder import has_tokenizer

CHECKPOINTS: dict[str, ModuleType] = {"llama2": llama2_checkpoint, "gpt2": gpt2_checkpoint}
GGUF: dict[str, ModuleType] = {"llama2": llama2_gguf, "gpt2": gpt2_gguf}
HUGGINGFACE: dict[str, ModuleType] = {"llama2": llama2_huggingface, "gpt2": gpt2_huggingface}
PLAIN = ("llama2.c", "llm.c", "training")  # kinds without tokenizer and chat template

_GGUF_FAMILY = {arch: name for name, module in GGUF.items() for arch in module.ARCHITECTURES}
_TYPES = {a: t for module in HUGGINGFACE.values() for a, t in module.ARCHITECTURES.items()}
_TYPE_FAMILY = {
    t: name for name, module in HUGGINGFACE.items() for t in module.ARCHITECTURES.values()
}


@dataclass(frozen=True)
class Container:
    """A model that has been opened.

    kind: llama2.c, llm.c, training, GGUF, Hugging Face or Meta   family: llama2 or gpt2
    notes: warnings   tokenizer: reads the one that is in there; gives None if there is none
    end_ids: what ends a text, where the files of the model say it themselves
    """

    path: str
    kind: str
    family: str
    streamed: Streamed
    notes: list[str]
    tokenizer: Callable[[], Tokenizer | None] = lambda: None
    end_ids: tuple[int, ...] | None = None

    def model(self, engine: Engine, unpack: bool = False) -> Decoder:
        """The model; of a Llama-2 with matrices in blocks as they are in the file, unless `unpack`.

        Raises NotEnoughMemoryError before anything is read, FileError.
        """
        if self.family == "gpt2":
            return gpt2_imported.build(self.streamed.config, engine, self.streamed.read)
        return llama2_imported.build(self.streamed, engine, unpack)


def open_container(path: str | os.PathLike[str]) -> Container:
    """Open a model of any kind.

    Raises FileError, FormatError: which field, key or tensor, what was found and expected.
    """
    path = training_run.model_file(os.fspath(path))
    if os.path.isdir(path):
        return _folder(path)
    with open_source(path) as source:
        if is_gguf(source):
            return from_gguf_file(source)
        if training_run.is_checkpoint(source):
            family, streamed = training_run.stream(source)
            return Container(source.path, "training", family, streamed, [])
        family = family_of(source)
        streamed, notes = CHECKPOINTS[family].stream(source)
        kind = "llama2.c" if family == "llama2" else "llm.c"
        return Container(source.path, kind, family, streamed, notes)


def is_gguf(source: Source) -> bool:
    return source.head[: len(MAGIC)] == MAGIC


def family_of(source: Source) -> str:
    """GPT-2 by llm.c's magic number, else Llama-2: its reader refuses whatever is neither."""
    return "gpt2" if source.head[:4] == llmc.MAGIC.to_bytes(4, "little") else "llama2"


def from_gguf_file(source: Source) -> Container:
    """A model in GGUF.

    Its tokenizer's `stop` are all ids that llama.cpp ends a text at; rows of the embedding beyond
    its tokens are ids without text.
    """
    gguf = read_gguf(source)
    family = _GGUF_FAMILY[gguf.architecture(tuple(_GGUF_FAMILY))]
    streamed, notes = GGUF[family].stream(gguf)

    def tokenizer() -> Tokenizer | None:
        if "tokenizer.ggml.model" not in gguf.metadata:
            return None
        return from_gguf(gguf.metadata, gguf.path)

    return Container(gguf.path, "GGUF", family, streamed, notes, tokenizer)


def _folder(path: str) -> Container:
    def tokenizer() -> Tokenizer | None:
        return load_tokenizer(path) if has_tokenizer(path) else None

    if huggingface.is_folder(path):
        config = huggingface.read_config(path)
        family = _TYPE_FAMILY[huggingface.architecture(config, _TYPES)]
        end_ids = huggingface.end_ids(path)
        streamed, notes = HUGGINGFACE[family].stream(path)
        return Container(path, "Hugging Face", family, streamed, notes, tokenizer, end_ids)
    if meta.is_folder(path):
        streamed, notes = llama2_meta.stream(path)
        return Container(path, "Meta", "llama2", streamed, notes, tokenizer)
    raise FileError(path, f"is a folder, {_what_is_in(path)}")


def _what_is_in(path: str) -> str:
    """Why a folder is no model, and which file of it may be one."""
    expected = f"without {huggingface.CONFIG} (Hugging Face) or {meta.PARAMS} (Meta)"
    try:
        names = sorted(os.listdir(path))
    except OSError:
        return expected
    for suffix in (".gguf", ".bin"):
        for name in names:
            if name.endswith(suffix):
                return f"{expected}: name a file of it, such as {os.path.join(path, name)}"
    return expected
