"""Text of ids that come one by one: only whole characters come out."""

from __future__ import annotations

from pyllm2.tokenizers.pipeline import PipelineTokenizer

_LONGEST = 4  # bytes of a character


class TextStream:
    """The bytes of ids as they come, without half of a character at the end.

        stream = TextStream(tokenizer)
        for i in ids:
            write(stream.push(i))
        write(stream.flush())

    at_start: whether the ids are the start of a text. All that comes out is `decode(ids)`.
    Bytes that are not UTF-8 come out with the next character, or at the end.
    """

    def __init__(self, tokenizer: PipelineTokenizer, at_start: bool = True) -> None:
        self._tokenizer, self._at_start = tokenizer, at_start
        self._held = b""

    def push(self, i: int) -> bytes:
        """The bytes that are complete with one more id; none if there are none."""
        self._held += self._tokenizer.decode_one(i, self._at_start)
        self._at_start = self._at_start and i in self._tokenizer.decoding.silent
        if self._held[-_LONGEST:].decode("utf-8", "replace").endswith("\ufffd"):
            return b""
        return self.flush()

    def flush(self) -> bytes:
        """What is left at the end."""
        out, self._held = self._held, b""
        return out
