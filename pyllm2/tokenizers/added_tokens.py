"""Tokens that are found in a text as they stand, before anything else: `<s>`, `<|im_end|>`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from pyllm2.tokenizers.word_patterns import WHITE_SPACE, is_word_character

_SPACE_BEHIND = re.compile(f"[{WHITE_SPACE}]*")


@dataclass(frozen=True)
class AddedToken:
    """A token and how it is found.

    special: part of the model's format, such as the end of a text, and not of the text
    normalized: looked for in the normalised text   single_word: not inside a word
    lstrip, rstrip: takes the white space to its left, right
    """

    id: int
    content: str
    special: bool = True
    normalized: bool = False
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False


class AddedTokens:
    """Cuts tokens out of a text: the leftmost first, the longest of those that begin there."""

    def __init__(self, tokens: Iterable[AddedToken]) -> None:
        self.tokens = [token for token in tokens if token.content]
        self._of_content = {token.content: token for token in self.tokens}
        lengths: dict[str, set[int]] = {}
        for content in self._of_content:
            lengths.setdefault(content[0], set()).add(len(content))
        self._lengths = {first: sorted(found, reverse=True) for first, found in lengths.items()}
        self._begins = re.compile("[" + "".join(map(re.escape, lengths)) + "]") if lengths else None

    def cut(self, text: str, special: bool = True) -> Iterator[tuple[str, int | None, int]]:
        """The text in parts: (text, None, where it begins) or (content, id of the token, where).

        special: whether special tokens are found. If not, they still hide a token inside them.
        """
        done = 0
        for token, start, end in self._matches(text):
            if not special and token.special:
                continue
            if token.single_word and (
                (start > 0 and is_word_character(text[start - 1]))
                or (end < len(text) and is_word_character(text[end]))
            ):
                continue
            if token.lstrip:
                start = max(done, _begin_of_space(text, start))
            if token.rstrip:
                space = _SPACE_BEHIND.match(text, end)
                end = space.end() if space else end
            if done < start:
                yield text[done:start], None, done
            yield token.content, token.id, start
            done = end
        if done < len(text):
            yield text[done:], None, done

    def _matches(self, text: str) -> Iterator[tuple[AddedToken, int, int]]:
        at = 0
        while self._begins is not None and (found := self._begins.search(text, at)):
            at = found.start()
            for n in self._lengths[found[0]]:
                token = self._of_content.get(text[at : at + n])
                if token is not None:
                    yield token, at, at + n
                    at += n
                    break
            else:
                at += 1


def _begin_of_space(text: str, end: int) -> int:
    """Where the white space that ends at `end` begins."""
    while end > 0 and _SPACE_BEHIND.fullmatch(text, end - 1, end):
        end -= 1
    return end
