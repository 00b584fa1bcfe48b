"""Texts that end a generation, wherever the borders of its tokens are."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pyllm2.inference.token import Token


class StopText:
    """Lets tokens pass until one of the texts appears; holds back what may become one.

    The text of all tokens that have passed ends before the first stop text. A token that contains
    its beginning passes with the bytes in front of it.
    """

    def __init__(self, texts: Iterable[bytes] = ()) -> None:
        self.texts = tuple(texts)
        self.found: bytes | None = None  # the text that ended the generation
        self._held: list[Token] = []

    def add(self, token: Token) -> Sequence[Token]:
        """The tokens that pass now that this one is known."""
        self._held.append(token)
        text = b"".join(held.bytes for held in self._held)
        places = [(text.find(stop), stop) for stop in self.texts]
        found = min(((at, -len(stop), stop) for at, stop in places if at >= 0), default=None)
        if found is not None:
            self.found = found[2]
            passed, self._held = self._pass(found[0], cut=True), []
            return passed
        begun = max((_begun(stop, text) for stop in self.texts), default=0)
        return self._pass(len(text) - begun)

    def rest(self) -> Sequence[Token]:
        """The tokens that were held back when the generation ended in another way."""
        held, self._held = self._held, []
        return held

    def _pass(self, nbytes: int, cut: bool = False) -> list[Token]:
        """Release the tokens of the first bytes; with `cut`, also the part of the next one."""
        passed = []
        while self._held and len(self._held[0].bytes) <= nbytes:
            token = self._held.pop(0)
            nbytes -= len(token.bytes)
            passed.append(token)
        if cut and nbytes:
            token = self._held[0]
            passed.append(Token(token.id, token.bytes[:nbytes], token.logprob))
        return passed


def _begun(stop: bytes, text: bytes) -> int:
    """How many bytes at the end of `text` may be the beginning of `stop`.

    Example: b"<end>", b"a <e" -> 2
    """
    most = min(len(stop) - 1, len(text))
    return next((n for n in range(most, 0, -1) if text.endswith(stop[:n])), 0)
