"""`export`: write a model in another format, one tensor at a time."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pyllm2.errors import ConfigError, FileError, TokenizerError, shown
from pyllm2.formats import huggingface, llama2c_q8, llmc
from pyllm2.formats.new_folder import new_folder
from pyllm2.formats.reader import open_source
from pyllm2.formats.writer import atomic_write
from pyllm2.gpt2 import checkpoint as gpt2_checkpoint
from pyllm2.inference.containers import GGUF, HUGGINGFACE, PLAIN, Container, open_container
from pyllm2.llama2 import checkpoint as llama2_checkpoint
from pyllm2.llama2.config import Llama2Config
from pyllm2.parameters import Streamed
from pyllm2.tokenizers import fitted
from pyllm2.tokenizers.chat_template import ChatTemplate, find_chat_template
from pyllm2.tokenizers.documents import AnyTokenizer
from pyllm2.tokenizers.export import gguf_metadata, huggingface_files
from pyllm2.tokenizers.folder import has_tokenizer

# Formats, and the dtypes that each can hold.
FORMATS: dict[str, tuple[str, ...]] = {
    "v0": ("f32",),
    "v1": ("f32",),
    "v2": (),
    "llmc": ("f32", "bf16"),
    "hf": ("f32", "f16", "bf16"),
    "gguf": ("f32", "f16", "bf16", "q8_0", "q4_0"),
}
_OF_FAMILY = {"llama2": ("v0", "v1", "v2", "hf", "gguf"), "gpt2": ("llmc", "hf", "gguf")}
_NAMES = {"llama2": "Llama-2", "gpt2": "GPT-2"}
_TEMPLATE, _MORE_TEMPLATES = "chat_template.jinja", "additional_chat_templates"
# Files beside the weights of a folder that are copied as they are.
_COPIED = (
    "tokenizer.json tokenizer.model tokenizer_config.json special_tokens_map.json "
    "added_tokens.json vocab.json merges.txt generation_config.json chat_template.jinja"
).split()
# All that a folder may get, as patterns; weights in any number of files.
FOLDER_FILES = (*_COPIED, "config.json", "model*.safetensors*", f"{_MORE_TEMPLATES}/*.jinja")
_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")  # keys that are, too
_NO_TOKENIZER = "{}: no tokenizer goes with it: name one with --tokenizer"
_MOST_COPIED = 2**27  # bytes of such a file


@dataclass(frozen=True)
class Exported:
    """group_size: of int8, else 0   notes: warnings"""

    group_size: int
    notes: list[str]


def export(
    source: str | os.PathLike[str] | Container,
    target: str | os.PathLike[str],
    to: str,
    dtype: str | None = None,
    group_size: int = llama2c_q8.DEFAULT_GROUP_SIZE,
    like_original: bool = False,
    drop_unsupported: bool = False,
    tokenizer: AnyTokenizer | None = None,
    template: ChatTemplate | None = None,
    replace: bool = False,
) -> Exported:
    """Write a model in one of `FORMATS`; hf is a new folder, all others are files.

    dtype: of the weights, one that the format has. None: float32 in llama2.c's and llm.c's formats;
    in the others that of each tensor, and float32 for quantised ones, so that nothing is lost.
    group_size, like_original: of v2; it is halved until it divides dim and hidden_dim, or with
    like_original only dim, as in the original, which may leave out inputs of w2.
    drop_unsupported: leave out what the format cannot hold, with a warning, instead of refusing.
    tokenizer, template: instead of those of the source, for hf and gguf.
    replace: a folder of a model may be there, and is replaced; a file always is.

    Raises FileError, FormatError; ConfigError for what the format cannot hold; ValueError for a
    dtype that it has not.
    """
    if dtype is not None and dtype not in FORMATS[to]:
        raise ValueError(f"dtype {dtype}: {to} has {', '.join(FORMATS[to]) or 'int8 only'}")
    container = source if isinstance(source, Container) else open_container(source)
    if to not in _OF_FAMILY[container.family]:
        names = ", ".join(_OF_FAMILY[container.family])
        family = _NAMES[container.family]
        raise FileError(container.path, f"is a {family}, which {to} cannot hold: choose {names}")
    notes = list(container.notes)
    if to in ("v0", "v1", "v2"):
        plain, lost = _as_llama2c(container, to, drop_unsupported)
        notes += lost
        size = 0
        if to == "v2":
            widths = plain.config.dim, plain.config.hidden_dim
            size = llama2c_q8.fitting_group_size(group_size, *widths, like_original)
        llama2_checkpoint.save(target, plain, int(to[1]), size)
        return Exported(size, notes)
    if to == "llmc":
        version = llmc.BFLOAT16 if dtype == "bf16" else llmc.FLOAT32
        gpt2_checkpoint.save(target, container.streamed, version)
        return Exported(0, notes)
    try:
        if to == "hf":
            old = FOLDER_FILES if replace else ()
            _folder(container, target, dtype, tokenizer, template, notes, old)
        else:
            _gguf(container, target, dtype, tokenizer, template, notes)
    except ConfigError as error:
        raise FileError(container.path, f"cannot be written as {to}: {error}") from None
    return Exported(0, notes)


# ---- llama2.c --------------------------------------------------------------------------------


def _as_llama2c(container: Container, to: str, drop: bool) -> tuple[Streamed, list[str]]:
    """The model with run.c's config, and warnings: what is left out with `drop`.

    Raises FileError naming all that the format cannot hold.
    """
    streamed = container.streamed
    config, more = streamed.config, streamed.config.beyond_run_c
    if not more:
        return streamed, []
    lost = ", ".join(f"{name} = {value}" for name, value in more.items())
    where = f"llama2.c's format {to} has no place for {lost}"
    if "head_size" in more:
        raise FileError(container.path, f"cannot be written: {where}")
    if not drop:
        raise FileError(
            container.path,
            f"cannot be written: {where} (export --drop-unsupported leaves it out: other text)",
        )
    plain = Llama2Config(*(getattr(config, name) for name in llama2_checkpoint.FIELDS))
    shapes = plain.shapes("classifier" not in streamed.shapes)
    note = f"{container.path}: {where}: left out, so the model gives other text"
    return replace(streamed, config=plain, shapes=shapes), [note]


# ---- Hugging Face and GGUF -------------------------------------------------------------------


def _tokenizer_of(
    container: Container, tokenizer: AnyTokenizer | None, notes: list[str]
) -> AnyTokenizer | None:
    """The tokenizer of the result, with as many ids as the model has."""
    found: Any = tokenizer or container.tokenizer()
    if found is None:
        notes.append(_NO_TOKENIZER.format(container.path))
        return None
    whole: Any = fitted(found, container.streamed.config.vocab_size, container.path)
    return whole


def _template_of(container: Container, template: ChatTemplate | None) -> ChatTemplate | None:
    """The chat template of the result. Raises FileError for a name that is no name of a file."""
    if template is None and container.kind not in PLAIN:
        template = find_chat_template(container.path)
    for name in template.sources if template is not None else ():
        if not re.fullmatch(r"[\w.-]+", name):
            expected = "expected letters, digits, '_', '-' and '.'"
            raise FileError(container.path, f"chat template {shown(name)}: {expected}")
    return template


def _folder(
    container: Container,
    target: str | os.PathLike[str],
    dtype: str | None,
    tokenizer: AnyTokenizer | None,
    template: ChatTemplate | None,
    notes: list[str],
    old: Sequence[str] = (),
) -> None:
    """Weights and config; the small files of a folder as they are, or made of the tokenizer."""
    copies = container.kind == "Hugging Face" and tokenizer is None
    files = _small_files(container.path) if copies else {}
    if copies:
        if not has_tokenizer(container.path):
            notes.append(_NO_TOKENIZER.format(container.path))
        config = huggingface.read_config(container.path).values
        ids = {key: config[key] for key in _IDS if key in config}
    else:
        known = _tokenizer_of(container, tokenizer, notes)
        if known is not None:
            try:
                files = huggingface_files(known)
            except TokenizerError as error:
                notes.append(f"{error}: the folder has no tokenizer")
        ids = _ids(container, known)
    found = _template_of(container, template)
    with new_folder(target, old) as folder:
        HUGGINGFACE[container.family].save(folder, container.streamed, dtype, ids)
        if ids and not copies:
            huggingface.write_json(folder / huggingface.GENERATION_CONFIG, ids)
        for name, data in files.items():
            _write(folder / name, data)
        if found is not None and (template is not None or not copies):
            for name, text in found.sources.items():
                place = _TEMPLATE if name == "default" else f"{_MORE_TEMPLATES}/{name}.jinja"
                (folder / place).parent.mkdir(exist_ok=True)
                _write(folder / place, text.encode("utf-8", "surrogatepass"))


def _ids(container: Container, tokenizer: AnyTokenizer | None) -> dict[str, Any]:
    """bos_token_id and eos_token_id of a config, as far as they are known."""
    ends = container.end_ids
    if ends is None and tokenizer is not None:
        ends = tuple(tokenizer.stop) or tuple(i for i in (tokenizer.end,) if i >= 0)
    found: dict[str, Any] = {}
    if tokenizer is not None and tokenizer.begin >= 0:
        found["bos_token_id"] = tokenizer.begin
    if ends:
        found["eos_token_id"] = list(ends) if len(ends) > 1 else ends[0]
    return found


def _small_files(path: str) -> dict[str, bytes]:
    """The files of a folder beside its weights."""
    names = [name for name in _COPIED if os.path.isfile(os.path.join(path, name))]
    templates = Path(path, _MORE_TEMPLATES)
    if templates.is_dir():
        names += [f"{_MORE_TEMPLATES}/{found.name}" for found in sorted(templates.glob("*.jinja"))]
    files = {}
    for name in names:
        with open_source(os.path.join(path, name)) as source:
            if source.size > _MOST_COPIED:
                raise FileError(
                    source.path, f"{source.size} bytes: at most {_MOST_COPIED} are copied"
                )
            files[name] = source.read_all().tobytes()
    return files


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(exist_ok=True)
    with atomic_write(path) as file:
        file.write(data)


def _gguf(
    container: Container,
    target: str | os.PathLike[str],
    dtype: str | None,
    tokenizer: AnyTokenizer | None,
    template: ChatTemplate | None,
    notes: list[str],
) -> None:
    metadata: dict[str, Any] = {"general.name": _name(container.path)}
    known = _tokenizer_of(container, tokenizer, notes)
    if known is not None:
        try:
            metadata |= gguf_metadata(known)
        except TokenizerError as error:
            notes.append(f"{error}: the file has no tokenizer")
        else:
            metadata |= _end_metadata(container.end_ids, known)
    found = _template_of(container, template)
    for name, text in {} if found is None else found.sources.items():
        suffix = "" if name == "default" else f".{name}"
        metadata[f"tokenizer.chat_template{suffix}"] = text
    GGUF[container.family].save(target, container.streamed, dtype, metadata)


def _end_metadata(end_ids: tuple[int, ...] | None, tokenizer: AnyTokenizer) -> Mapping[str, int]:
    """What ends a text, where the model says it and not its tokenizer: eos, and one more."""
    ends = tokenizer.stop if end_ids is None else end_ids
    others = [i for i in ends if i != tokenizer.end]
    if not others:
        return {}
    keys = ["eot_token_id"] if tokenizer.end in ends else ["eos_token_id", "eot_token_id"]
    return {f"tokenizer.ggml.{key}": i for key, i in zip(keys, others, strict=False)}


def _name(path: str) -> str:
    name = os.path.basename(os.path.abspath(path))
    return name.encode("utf-8", "replace").decode().removesuffix(".gguf").removesuffix(".bin")
