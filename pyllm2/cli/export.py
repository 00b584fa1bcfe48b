"""`pyllm2 export`: write a model in another format."""

from __future__ import annotations

import argparse
import os
import warnings
from typing import Any

from pyllm2.cli import flags
from pyllm2.cli.output import say
from pyllm2.cli.outputs import add_force, check_folder, check_output, output
from pyllm2.errors import PyLLM2Warning, UsageError

SUMMARY = "convert a model between llama2.c, llm.c, Hugging Face and GGUF"
EXAMPLE = """\
examples:
  pyllm2 export ./SmolLM2-135M-Instruct smol.gguf --format gguf --dtype q8_0
  pyllm2 export llama-2-7b/ llama.bin --format v2"""
_FORMATS = ("v0", "v1", "v2", "llmc", "hf", "gguf")
_DTYPES = ("f32", "f16", "bf16", "q8_0", "q4_0")


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EXAMPLE
    parser.add_argument("source", metavar="IN", help="model of any kind: file or folder")
    parser.add_argument(
        "target", type=output, metavar="OUT", help="file to write; of hf: a new folder"
    )
    parser.add_argument(
        "--format",
        choices=_FORMATS,
        required=True,
        help="v0, v1 (float32) and v2 (int8): llama2.c's; llmc: llm.c's GPT-2; hf: a Hugging Face "
        "folder; gguf: a file for llama.cpp",
    )
    parser.add_argument(
        "--dtype",
        choices=_DTYPES,
        help="of the weights (default: what each tensor has; of v0, v1 and llmc: f32)",
    )
    parser.add_argument(
        "--drop-unsupported",
        action="store_true",
        help="leave out what v0, v1 and v2 cannot hold instead of refusing; the "
        "model then gives other text",
    )
    parser.add_argument(
        "--tokenizer",
        metavar="FILE",
        help=f"goes into hf and gguf: {flags.TOKENIZER_FILES}, or the words gpt2 or bytes "
        "(default: that of IN)",
    )
    flags.add_chat_template(parser)
    flags.add_group_size(parser)
    add_force(parser)


def main(options: argparse.Namespace) -> int:
    convert(options, options.format)
    return 0


def convert(options: argparse.Namespace, to: str) -> int:
    """Write the file or folder, print what it is; returns the group size, 0 for float32."""
    from pyllm2.inference.export import FORMATS, export

    dtype, drop = getattr(options, "dtype", None), getattr(options, "drop_unsupported", False)
    if dtype is not None and dtype not in FORMATS[to]:
        has = ", ".join(FORMATS[to]) or "int8 only"
        raise UsageError(f"--dtype {dtype}: format {to} has {has}")
    inputs = [getattr(options, name, None) for name in ("source", "tokenizer", "text")]
    if to == "hf":
        check_folder(options.target, *inputs, force=options.force)
    else:
        check_output(options.target, *inputs, force=options.force)
    target = os.path.realpath(options.target)  # /proc/self/fd/1 names another file afterwards
    found = export(
        options.source,
        options.target,
        to,
        dtype,
        options.group_size,
        options.like_original,
        drop,
        replace=options.force,
        **(_beside(options) if to in ("hf", "gguf") else {}),
    )
    for note in found.notes:
        warnings.warn(note, PyLLM2Warning, stacklevel=1)
    size = found.group_size
    groups = f", groups of {size}" if size else ""
    if size and size != options.group_size:
        groups += f" ({options.group_size} does not divide the widths)"
    nbytes = f", {os.path.getsize(target)} bytes" if os.path.isfile(target) else ""
    say(f"{options.target}: {to}{groups}{nbytes}")
    return size


def _beside(options: argparse.Namespace) -> dict[str, Any]:
    """The tokenizer and chat template that the flags name, or that lie beside a checkpoint."""
    from pyllm2.cli.loading import DEFAULT_TOKENIZER
    from pyllm2.formats.reader import open_source
    from pyllm2.inference.containers import is_gguf
    from pyllm2.inference.training_run import model_file
    from pyllm2.tokenizers import load_tokenizer
    from pyllm2.tokenizers.chat_formats import named_template
    from pyllm2.tokenizers.chat_template import load_chat_template

    found: dict[str, Any] = {}
    named, source = options.tokenizer, model_file(options.source)
    beside = os.path.join(os.path.dirname(source), DEFAULT_TOKENIZER)
    if named is None and os.path.isfile(source) and os.path.isfile(beside):
        with open_source(source) as opened:
            named = None if is_gguf(opened) else beside
    if named is not None:
        found["tokenizer"] = load_tokenizer(named)
    if options.chat_template is not None:
        path = options.chat_template
        of_file = os.path.exists(path)
        found["template"] = load_chat_template(path) if of_file else named_template(path, None)
    return found
