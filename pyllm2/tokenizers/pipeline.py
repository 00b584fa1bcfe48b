"""The tokenizer of other libraries' files: a row of plain steps, and how ids become text again.

    text -> cut out added tokens -> normalise each part -> cut out tokens that are looked for in
    normalised text -> split into words -> merge each word -> ids
    ids -> the bytes of each

Which steps these are, the file says: `huggingface`, `sentencepiece_model`, `rank_file`, `gguf`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pyllm2.errors import TokenizerError
from pyllm2.tokenizers.added_tokens import AddedTokens
from pyllm2.tokenizers.arguments import described, text_bytes, token_id, token_ids
from pyllm2.tokenizers.bpe import Words
from pyllm2.tokenizers.one_file import write_one_file

NONE = -1  # an id that the tokenizer does not have

Normalize = Callable[[str, bool], str]
Split = Callable[[str, bool], list[str]]


@dataclass(frozen=True)
class Steps:
    """From text to ids. The flag of `normalize` and `split` is True for a part at the start.

    added: cut out of the text itself   normalized: cut out of normalised text
    always: a special token is found even where special tokens are text: user-defined pieces
    after_token: a part behind a token counts as one at the start in `normalize`
    shrinks: a text may have fewer ids than its length over that of the longest piece
    """

    words: Words
    split: Split
    normalize: Normalize = field(default=lambda text, at_start: text)
    added: AddedTokens = field(default_factory=lambda: AddedTokens([]))
    normalized: AddedTokens = field(default_factory=lambda: AddedTokens([]))
    after_token: bool = False
    shrinks: bool = False

    def ids(self, text: str, special: bool) -> list[int]:
        """The ids of a text."""
        out: list[int] = []
        at_start = True
        for part, token, start in self.added.cut(text, special):
            if token is not None:
                out.append(token)
                at_start = self.after_token
                continue
            opens = start == 0
            whole = self.normalize(part, at_start)
            for piece, inner, at in self.normalized.cut(whole, special):
                if inner is not None:
                    out.append(inner)
                elif piece:
                    out += self.words.encode(self.split(piece, opens and at == 0))
            at_start = False
        return out


@dataclass(frozen=True)
class Decoding:
    """From ids to bytes: those of every piece, and those of a piece at the start of a text.

    opening: id -> bytes at the start, where they differ
    silent: ids after which the text still has not begun
    """

    pieces: list[bytes]
    opening: Mapping[int, bytes] = field(default_factory=dict)
    silent: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Specials:
    """The tokens of the format.

    names: "bos_token" -> its text, ...   begin, end: ids, or NONE   stop: ids that end generation
    front, back: ids that the model expects around a text
    ids: all special tokens   parsed: whether texts may contain them unless the caller says
    """

    names: Mapping[str, str] = field(default_factory=dict)
    begin: int = NONE
    end: int = NONE
    stop: tuple[int, ...] = ()
    front: tuple[int, ...] = ()
    back: tuple[int, ...] = ()
    ids: frozenset[int] = frozenset()
    parsed: bool = True


class PipelineTokenizer:
    """A tokenizer read from a file of another library.

    Text is bytes; those that are not UTF-8 become byte tokens where the vocabulary has them.
    rebuild: a function and its arguments that make the same tokenizer again, for pickle
    source: what the file said, for `export`
    """

    def __init__(
        self,
        name: str,
        steps: Steps,
        decoding: Decoding,
        specials: Specials,
        rebuild: tuple[Callable[..., PipelineTokenizer], tuple[Any, ...]],
        source: Any = None,
    ) -> None:
        self.name, self.steps, self.decoding, self.specials = name, steps, decoding, specials
        self.source = source
        self._rebuild = rebuild
        self.pieces = decoding.pieces
        self._longest = max(map(len, self.pieces), default=1)

    def __reduce__(self) -> tuple[Any, ...]:
        build, arguments = self._rebuild
        return _again, (build, arguments, self.specials, len(self.pieces))

    @property
    def vocab_size(self) -> int:
        return len(self.pieces)

    @property
    def special_tokens(self) -> dict[str, str]:
        """The special tokens that have a name: `bos_token`, `eos_token`, `pad_token` ..."""
        return dict(self.specials.names)

    @property
    def begin(self) -> int:
        """The id in front of a text, or -1."""
        return self.specials.begin

    @property
    def end(self) -> int:
        """The id after a text, or -1."""
        return self.specials.end

    @property
    def stop(self) -> tuple[int, ...]:
        """The ids that end generation."""
        return self.specials.stop

    def padded(self, vocab_size: int) -> PipelineTokenizer:
        """The same with the ids of a model that has more rows: they have no bytes."""
        more = [b""] * (vocab_size - len(self.pieces))
        decoding = replace(self.decoding, pieces=self.pieces + more)
        parts = self.name, self.steps, decoding, self.specials, self._rebuild, self.source
        return PipelineTokenizer(*parts)

    def encode(
        self, text: str | bytes, bos: bool = False, eos: bool = False, special: bool | None = None
    ) -> list[int]:
        """The ids of a text, those of the library that the file belongs to.

        bos, eos: put `begin` in front, `end` behind, if the tokenizer has them.
        special: whether special tokens in the text (`<s>`) are parsed. If not, they are plain
        text. None: as the library does, which is yes for all but a SentencePiece model.

        Raises TokenizerError for what is no text, BackendError without the regex package.
        """
        specials = self.specials
        characters = text_bytes(text).decode("utf-8", "surrogateescape")
        parsed = specials.parsed if special is None else bool(special)
        ids = self.steps.ids(characters, parsed)
        if bos and specials.begin != NONE:
            ids.insert(0, specials.begin)
        if eos and specials.end != NONE:
            ids.append(specials.end)
        return ids

    __repr__ = described

    def encode_prompt(self, text: str | bytes, special: bool | None = None) -> list[int]:
        """The ids of a prompt, with what the model expects around it."""
        return [*self.specials.front, *self.encode(text, special=special), *self.specials.back]

    def encode_document(self, text: bytes) -> list[int]:
        """The ids of a training document: `begin` in front, or else `end` behind."""
        if self.specials.begin != NONE:
            return self.encode(text, bos=True, special=False)
        return self.encode(text, eos=True, special=False)

    def at_least(self, text: str | bytes) -> int:
        """A lower bound of the number of ids of a prompt, without encoding it."""
        return 0 if self.steps.shrinks else -(-len(text) // max(1, self._longest))

    def decode(
        self, ids: Iterable[int], at_start: bool = True, skip_special: bool = False
    ) -> bytes:
        """The bytes of ids.

        at_start: whether they are the start of a text, so that the space which `encode` puts there
        is dropped. skip_special: leave out special tokens.

        Raises TokenizerError for an id outside the vocabulary.
        """
        out = []
        for i in token_ids(ids):
            piece = self.decode_one(i, at_start)
            if not (skip_special and i in self.specials.ids):
                at_start = at_start and i in self.decoding.silent
                out.append(piece)
        return b"".join(out)

    def decode_one(self, i: int, at_start: bool = False) -> bytes:
        """The bytes of one id; at_start: without the space that `encode` puts at the start."""
        i = token_id(i)
        if not 0 <= i < len(self.pieces):
            raise TokenizerError(f"token id {i}: {self.name} has ids 0 to {len(self.pieces) - 1}")
        return self.decoding.opening.get(i, self.pieces[i]) if at_start else self.pieces[i]

    def write_tokenizer(self, path: str | os.PathLike[str]) -> None:
        """Write the tokenizer as one file that `load_tokenizer` reads, atomically."""
        write_one_file(self.source, self.name, path)


def _again(
    build: Callable[..., PipelineTokenizer],
    arguments: Sequence[Any],
    specials: Specials,
    vocab_size: int,
) -> PipelineTokenizer:
    """A tokenizer from a pickle."""
    tokenizer = build(*arguments).padded(vocab_size)
    tokenizer.specials = specials
    return tokenizer
