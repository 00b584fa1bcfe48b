"""Which tokens begin and end a text, from what the files of a tokenizer say."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from pyllm2.tokenizers.added_tokens import AddedToken
from pyllm2.tokenizers.pipeline import NONE, Specials

# Texts of the token that ends a document, where no file says which it is.
ENDS = ("</s>", "<|end_of_text|>", "<|endoftext|>", "<eos>")
NAMES = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")

# What transformers' classes call their tokens, where `tokenizer_config.json` does not say.
_LLAMA = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
_GPT2 = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>")
_QWEN2 = {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
OF_CLASS = {"LlamaTokenizer": _LLAMA, "GPT2Tokenizer": _GPT2, "Qwen2Tokenizer": _QWEN2}


def known_specials(
    added: Iterable[AddedToken], front: Sequence[int], back: Sequence[int]
) -> Specials:
    """What a `tokenizer.json` says by itself.

    The first id in front of a text begins it, the first of `ENDS` that is a special token ends it.
    """
    of_content = {token.content: token.id for token in added if token.special}
    end = next((of_content[text] for text in ENDS if text in of_content), NONE)
    begin = front[0] if front else NONE
    ids = frozenset(of_content.values())
    stop = () if end == NONE else (end,)
    return Specials({}, begin, end, stop, tuple(front), tuple(back), ids)


def with_names(specials: Specials, names: Mapping[str, str], id_of: Mapping[str, int]) -> Specials:
    """The same with what `tokenizer_config.json` says: `bos_token` -> its text.

    id_of: text of a special token -> id. A name of a token that does not exist says nothing of ids.
    """
    begin = id_of.get(names.get("bos_token", ""), specials.begin)
    end = id_of.get(names.get("eos_token", ""), specials.end)
    stop = () if end == NONE else (end,)
    return replace(specials, names=dict(names), begin=begin, end=end, stop=stop)
