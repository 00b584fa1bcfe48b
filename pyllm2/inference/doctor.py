"""Examine a path: what it is, whether it is whole, and whether its numbers look like a model."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pyllm2.errors import FileError, PyLLM2Error, printable
from pyllm2.formats import huggingface, meta
from pyllm2.formats.kinds import kind_of
from pyllm2.formats.reader import open_source
from pyllm2.formats.safetensors_file import open_safetensors
from pyllm2.formats.tensors import Tensors
from pyllm2.formats.torch_pickle import is_torch, open_torch
from pyllm2.inference import rotary_check
from pyllm2.inference.containers import PLAIN, Container, open_container
from pyllm2.inference.training_run import WITHOUT_LAYERS
from pyllm2.parameters import Streamed, slices
from pyllm2.tokenizers import Tokenizer, fitted, load_tokenizer
from pyllm2.tokenizers.chat_template import find_chat_template

FINE, BROKEN, NOT_SUPPORTED = 0, 1, 3
FAR_OUT = 1e4  # no weight of a usable model is that large
_UNSUPPORTED = ("not supported", "are supported", "looks like", "unsupported", "refused")
# Of the right kind, had it been fetched or written as it should.
_BROKEN = ("LFS", "web page", "download", "expected a JSON object")


@dataclass
class Finding:
    """What is known of one path. code: FINE, BROKEN or NOT_SUPPORTED."""

    path: str
    kind: str
    code: int = FINE
    lines: list[str] = field(default_factory=list)
    command: str = ""

    def fault(self, line: str) -> None:
        self.lines.append(line)
        self.code = BROKEN


def examine(path: str) -> Finding:
    """Look at one path. Faults become lines of the finding; nothing is raised for them.

    Tensors are read one by one; only whether queries and keys are in the right order is measured
    with the whole model, if that fits in memory.
    """
    try:
        finding = Finding(path, _kind(path))
        part = _tensors_alone(path)
    except PyLLM2Error as error:
        reason = error.reason if isinstance(error, FileError) else str(error)
        return Finding(path, "nothing that can be read", BROKEN, [reason])
    if part is not None:
        return _part(finding, part)
    try:
        container = open_container(path)
    except PyLLM2Error as error:
        return _no_model(finding, error)
    streamed = container.streamed
    finding.kind = f"a model of {container.kind}"
    finding.lines += [*container.notes, _config(streamed.config)]
    try:
        finding.lines.append(_size(path))
        for fault in _faults(streamed, WITHOUT_LAYERS[container.family]):
            finding.fault(fault)
        _vocabulary(finding, container)
        if finding.code == FINE:
            _order(finding, container)
    except PyLLM2Error as error:
        finding.fault(str(error))
    chats = finding.code == FINE and _chats(finding, container)
    finding.command = f"pyllm2 {'chat' if chats else 'generate'} {path}"
    return finding


def _kind(path: str) -> str:
    """What a path is by its first bytes or its config. Raises FileError."""
    if os.path.isdir(path):
        for module, words in ((huggingface, "Hugging Face"), (meta, "Meta")):
            if module.is_folder(path):
                return f"a folder of {words}"
        return "a folder"
    with open_source(path) as source:
        return kind_of(source.head) or "a checkpoint of llama2.c, by exclusion"


def _config(config: Any) -> str:
    """The fields of a config but those that have their usual value."""
    fields = dataclasses.fields(config)
    values = {field.name: getattr(config, field.name) for field in fields}
    kept = {f.name: values[f.name] for f in fields if values[f.name] != f.default}
    return ", ".join(f"{name}={value}" for name, value in kept.items())


def _size(path: str) -> str:
    if not os.path.isdir(path):
        return f"{os.path.getsize(path)} bytes, as many as its header asks for"
    sizes = [entry.stat().st_size for entry in os.scandir(path) if entry.is_file()]
    return f"{sum(sizes)} bytes in {len(sizes)} files, every tensor inside its file"


# ---- files that are a part -------------------------------------------------------------------


def _tensors_alone(path: str) -> Tensors | PyLLM2Error | None:
    """The tensors of a safetensors or PyTorch file, or what is wrong with it; None: another."""
    if os.path.isdir(path):
        return None
    with open_source(path) as source:
        head = source.head
    opener = None
    if is_torch(head):
        opener = open_torch
    elif path.endswith(".safetensors") or (head[8:9] == b"{" and head[4:8] == bytes(4)):
        opener = open_safetensors
    if opener is None:
        return None
    try:
        return opener(path)
    except PyLLM2Error as error:
        return error


def _part(finding: Finding, tensors: Tensors | PyLLM2Error) -> Finding:
    """A file of weights without what says how they are used."""
    if isinstance(tensors, PyLLM2Error):
        return _no_model(finding, tensors)
    finding.kind = "weights of a model, without its config"
    finding.lines.append(f"{len(tensors)} tensors, every one inside the file")
    folder = os.path.dirname(os.path.abspath(finding.path))
    if huggingface.is_folder(folder) or meta.is_folder(folder):
        finding.command = f"pyllm2 doctor {folder}"
    else:
        words = f"{huggingface.CONFIG} or {meta.PARAMS} is not beside it"
        finding.code, finding.lines = NOT_SUPPORTED, [*finding.lines, words]
    return finding


def _no_model(finding: Finding, error: PyLLM2Error) -> Finding:
    """A tokenizer is fine; anything else is what `_refused` says."""
    try:
        tokenizer = load_tokenizer(finding.path)
    except PyLLM2Error:
        return _refused(finding, error)
    if _is_model(finding):
        return _refused(finding, error)
    finding.kind = "a tokenizer"
    finding.lines.append(f"{tokenizer.vocab_size} tokens")
    finding.command = f"pyllm2 tokenize --tokenizer {finding.path} TEXT"
    return finding


def _is_model(finding: Finding) -> bool:
    """Whether the path has what a model has, and not only what a tokenizer has."""
    if not os.path.isdir(finding.path):
        return False
    weights = (".safetensors", ".pth", huggingface.INDEX, "pytorch_model.bin")
    return finding.kind != "a folder" or any(
        name.endswith(weights) for name in os.listdir(finding.path)
    )


def _refused(finding: Finding, error: PyLLM2Error) -> Finding:
    """What is refused by its kind or by a name is not supported, the rest is broken."""
    text = str(error)
    unsupported = any(words in text for words in _UNSUPPORTED)
    broken = any(words in text for words in _BROKEN)
    finding.code = NOT_SUPPORTED if unsupported and not broken else BROKEN
    finding.lines.append(text)
    return finding


# ---- what is in a model ----------------------------------------------------------------------


def _faults(streamed: Streamed, without_layers: tuple[str, ...]) -> Iterator[str]:
    """NaN, infinities, constant tensors and numbers far out, by the name of the tensor."""
    for name, layer in slices(streamed.shapes, without_layers):
        array = streamed.read(name, layer)
        where = name if name in without_layers else f"{name}, layer {layer}"
        first = array.flat[0]
        finite = np.isfinite(array)
        if not finite.all():
            yield f"{where}: {np.count_nonzero(~finite)} numbers are not finite"
        elif array.size > 1 and array.ndim > 1 and (array == first).all():
            yield f"{where}: " + (f"all numbers are {first:g}" if first else "all zero")
        elif array.ndim == 1 and "norm" in name and not array.any():
            yield f"{where}: all zero"
        elif (largest := np.abs(array).max()) > FAR_OUT:
            yield f"{where}: its largest number is {largest:g}"


def _vocabulary(finding: Finding, container: Container) -> None:
    """The tokenizer that is there, against the ids of the model. Raises FileError."""
    V = container.streamed.config.vocab_size
    plain = container.kind in PLAIN
    tokenizer = _beside(finding.path, V) if plain else container.tokenizer()
    if tokenizer is None:
        where = "beside it" if plain else "in it"
        finding.lines.append(f"no tokenizer {where}: --tokenizer FILE names one")
    else:
        found = tokenizer.vocab_size
        fitted(tokenizer, V)
        finding.lines.append(f"tokenizer of {found} tokens, the model has {V} ids")
    for i in container.end_ids or ():
        if i >= V:
            finding.fault(f"eos_token_id = {i}: the model has ids 0 to {V - 1}")


def _beside(path: str, V: int) -> Tokenizer | None:
    """tokenizer.bin in the folder or beside the file, as `generate` takes it. Raises FileError."""
    folder = path if os.path.isdir(path) else os.path.dirname(path)
    beside = os.path.join(folder, "tokenizer.bin")
    return load_tokenizer(beside, V, printable(path)) if os.path.exists(beside) else None


def _order(finding: Finding, container: Container) -> None:
    """Whether queries and keys are in the order that the container says they have."""
    found = rotary_check.measure(container)
    if found.line:
        finding.lines.append(found.line)
    if found.wrong:
        finding.code = BROKEN


def _chats(finding: Finding, container: Container) -> bool:
    """Whether the model has a chat template that works; a line if it has one that does not."""
    if container.kind in PLAIN:
        return False
    try:
        template = find_chat_template(container.path)
        if template is None:
            return False
        template.render([{"role": "user", "content": "Hello"}], add_generation_prompt=True)
    except PyLLM2Error as error:
        finding.lines.append(str(error))
        return False
    finding.lines.append("chat template: renders a conversation")
    return True
