"""A tokenizer as the files of a Hugging Face folder, and as the metadata of a GGUF file."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from pyllm2.errors import TokenizerError, shown
from pyllm2.formats.sentencepiece_proto import (
    BYTE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    SentencePieceModel,
    byte_of,
)
from pyllm2.tokenizers.bpe import SPACE
from pyllm2.tokenizers.documents import AnyTokenizer, Document, document_of, model_of
from pyllm2.tokenizers.gguf import PRE, PREFIX
from pyllm2.tokenizers.pipeline import NONE, PipelineTokenizer
from pyllm2.tokenizers.sentencepiece import BOS, SentencePieceTokenizer
from pyllm2.tokenizers.word_patterns import GPT2, KNOWN


def huggingface_files(tokenizer: AnyTokenizer) -> dict[str, bytes]:
    """File name -> content: `tokenizer.json` and `tokenizer_config.json`.

    A SentencePiece model that was read from a file is there, too, as it was; and it alone where a
    tokenizer.json cannot say what it does.

    Raises TokenizerError naming what no file can hold.
    """
    files: dict[str, bytes] = {}
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
    source = getattr(tokenizer, "source", None)
    if isinstance(source, SentencePieceModel) and source.raw:
        assert isinstance(tokenizer, PipelineTokenizer)
        files["tokenizer.model"] = source.raw
        config["add_bos_token"] = bool(tokenizer.specials.front)
        config["add_eos_token"] = bool(tokenizer.specials.back)
    try:
        files["tokenizer.json"] = _json(document_of(tokenizer))
    except TokenizerError:
        if not files:
            raise
        config["tokenizer_class"] = "LlamaTokenizer"
    config |= {"bos_token": None, "eos_token": None, **tokenizer.special_tokens}
    config["clean_up_tokenization_spaces"] = False
    return files | {"tokenizer_config.json": _json(config)}


def _json(value: Any) -> bytes:
    return (json.dumps(value, ensure_ascii=False, indent=1) + "\n").encode()


def gguf_metadata(tokenizer: AnyTokenizer) -> dict[str, Any]:
    """`tokenizer.ggml.*` of a GGUF file; arrays are lists of str, float or int.

    Raises TokenizerError naming what the metadata cannot hold.
    """
    if isinstance(tokenizer, SentencePieceTokenizer):
        found = _of_model(model_of(tokenizer), tokenizer.name)
        return found | _ids(tokenizer, {"unknown_token_id": 0}, front=(BOS,))
    front: tuple[int, ...] = (tokenizer.begin,)
    if isinstance(tokenizer, PipelineTokenizer):
        front = tokenizer.specials.front[:1]
        if isinstance(tokenizer.source, SentencePieceModel):
            model = tokenizer.source
            found = _of_model(model, tokenizer.name) | _padding(model.pieces, tokenizer)
            return found | _ids(tokenizer, {"unknown_token_id": model.unk_id}, front)
    document = document_of(tokenizer)
    model = document["model"]
    if document["pre_tokenizer"] is None or "Metaspace" in json.dumps(document["pre_tokenizer"]):
        found = _of_listed_pieces(document, tokenizer)
        unknown = model["vocab"].get(model["unk_token"], NONE)
        return found | _ids(tokenizer, {"unknown_token_id": unknown}, front)
    return _of_byte_level(document, tokenizer) | _ids(tokenizer, {}, front)


def _ids(tokenizer: AnyTokenizer, more: Mapping[str, int], front: Any) -> dict[str, Any]:
    ids = {"bos_token_id": tokenizer.begin, "eos_token_id": tokenizer.end, **more}
    if isinstance(tokenizer, PipelineTokenizer):
        of_text = {token.content: token.id for token in tokenizer.steps.added.tokens}
        pad = of_text.get(tokenizer.special_tokens.get("pad_token", ""), NONE)
        ids["padding_token_id"] = pad
    found: dict[str, Any] = {PREFIX + key: i for key, i in ids.items() if i != NONE}
    back = isinstance(tokenizer, PipelineTokenizer) and bool(tokenizer.specials.back)
    found[PREFIX + "add_bos_token"] = bool(front)
    found[PREFIX + "add_eos_token"] = back
    return found


def _named(model: str, pre: str, **arrays: Any) -> dict[str, Any]:
    return {PREFIX + key: value for key, value in {"model": model, "pre": pre, **arrays}.items()}


def _of_model(model: SentencePieceModel, name: str) -> dict[str, Any]:
    """The metadata of a SentencePiece model."""
    for what in ("charsmap", "remove_extra_whitespaces"):
        if getattr(model, what):
            raise TokenizerError(f"{name}: has {what}, which the metadata of GGUF cannot say")
    arrays = {"tokens": list(model.pieces), "scores": [_finite(s) for s in model.scores]}
    # a user-defined piece with a plain space is never found, because spaces are escaped before
    hidden = [kind == USER_DEFINED and " " in model.pieces[i] for i, kind in enumerate(model.kinds)]
    arrays["token_type"] = [
        UNUSED if hides else kind for kind, hides in zip(model.kinds, hidden, strict=True)
    ]
    return _named("llama", "default", **arrays, add_space_prefix=model.add_dummy_prefix)


def _finite(score: float) -> float:
    return score if math.isfinite(score) else math.copysign(1e30, score)


def _padding(tokens: list[str], tokenizer: PipelineTokenizer) -> dict[str, Any]:
    """The arrays of a SentencePiece model that is smaller than the vocabulary of its model."""
    model = tokenizer.source
    of_id = {token.id: token for token in tokenizer.steps.added.tokens}
    names, kinds = list(tokens), list(model.kinds)
    for i in range(len(tokens), len(tokenizer.pieces)):
        token = of_id.get(i)
        names.append(f"[PAD{i}]" if token is None else token.content)
        kinds.append(UNUSED if token is None else CONTROL if token.special else USER_DEFINED)
    scores = [_finite(s) for s in model.scores] + [0.0] * (len(names) - len(tokens))
    arrays = {"tokens": names, "scores": scores, "token_type": kinds}
    return {PREFIX + key: value for key, value in arrays.items()}


def _tokens(document: Document, tokenizer: AnyTokenizer) -> tuple[list[str], list[int]]:
    """The text and type of every id; ids without a token are named [PAD0] ..."""
    names = {i: text for text, i in document["model"]["vocab"].items()}
    kinds = {}
    for token in document["added_tokens"]:
        names[token["id"]] = token["content"]
        kinds[token["id"]] = CONTROL if token["special"] else USER_DEFINED
    n = len(tokenizer.pieces)
    tokens = [names.get(i, f"[PAD{i}]") for i in range(n)]
    return tokens, [kinds.get(i, NORMAL if i in names else UNUSED) for i in range(n)]


def _of_byte_level(document: Document, tokenizer: AnyTokenizer) -> dict[str, Any]:
    tokens, kinds = _tokens(document, tokenizer)
    merges = [m if isinstance(m, str) else " ".join(m) for m in document["model"]["merges"]]
    pre = _pre(document, tokenizer)
    arrays = {"tokens": tokens, "token_type": kinds, "merges": merges}
    return _named("gpt2", pre, **arrays)


def _pre(document: Document, tokenizer: AnyTokenizer) -> str:
    """The name that llama.cpp has for the words of a document."""
    component = document["pre_tokenizer"]
    steps = component.get("pretokenizers", [component])
    found = []
    for step in steps:
        if step["type"] == "ByteLevel" and step.get("add_prefix_space"):
            raise TokenizerError(f"{tokenizer.name}: add_prefix_space has no `pre` in GGUF")
        if step["type"] == "ByteLevel" and step.get("use_regex", True):
            found.append(GPT2)
        elif step["type"] != "ByteLevel":
            regex = step.get("pattern", {}).get("Regex")
            found.append("digits" if step["type"] == "Digits" else KNOWN.get(regex, regex))
    whole = bool(document["model"].get("ignore_merges")) and found != [GPT2]
    for name, (pattern, digits, is_whole, _) in PRE.items():
        if found == (["digits"] if digits else []) + [pattern] and whole == is_whole:
            return name
    raise TokenizerError(f"{tokenizer.name}: its pre_tokenizer has no `pre` in GGUF")


def _of_listed_pieces(document: Document, tokenizer: AnyTokenizer) -> dict[str, Any]:
    """A tokenizer.json in the manner of Llama 2: the score is the rank of the first merge.

    Tokens that no merge gives come behind all of these.
    """
    tokens, kinds = _tokens(document, tokenizer)
    rank: dict[str, int] = {}
    merges = document["model"]["merges"]
    for i, merge in enumerate(merges):
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        rank.setdefault(left + right, i)
    unknown = document["model"]["unk_token"]
    for i, token in enumerate(tokens):
        if token == unknown:
            kinds[i] = UNKNOWN
        elif byte_of(token) >= 0:
            kinds[i] = BYTE
    scores = [-float(rank.get(token, len(merges))) for token in tokens]
    said = json.dumps([document["normalizer"], document["pre_tokenizer"]], ensure_ascii=False)
    if SPACE not in said:
        raise TokenizerError(f"{tokenizer.name}: {shown(said)}: is not SentencePiece's way")
    prefix = '"Prepend"' in said or '"always"' in said or '"first"' in said
    arrays = {"tokens": tokens, "scores": scores, "token_type": kinds}
    return _named("llama", "default", **arrays, add_space_prefix=prefix)
