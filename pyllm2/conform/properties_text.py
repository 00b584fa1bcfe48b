"""Prompts and printing: the encoding shows in what a random model says after the prompt."""

from __future__ import annotations

from typing import Any

from pyllm2.conform.case import BOS, EOS, Case, Text
from pyllm2.conform.judge import new_ids
from pyllm2.conform.maker import Maker, bytes_and, letters
from pyllm2.conform.property import Draw, Property
from pyllm2.conform.reference import Expected

NEW = 5  # ids after a prompt


def after(*rows: tuple[bytes, tuple[Text, ...]], **changes: Any) -> Draw:
    """Continue the prompts in turn, each with its vocabulary."""

    def draw(maker: Maker, i: int) -> tuple[Case, Expected]:
        prompt, texts = rows[i % len(rows)]
        case = maker.base(**{"prompt": prompt, "texts": texts, **changes})
        length = len(maker.judged(case.but(steps=1)).prompt_ids)
        return maker.draw(case.but(steps=length - 1 + NEW), 1 + 100 * i, 2)

    return draw


def saying(*pieces: bytes, at: int = 1, judge: str = "between") -> Draw:
    """A model that says one of these pieces as its (at + 1)-th id, between tracers.

    A random model is drawn first; then the piece is given to the id that it says there.
    """

    def draw(maker: Maker, i: int) -> tuple[Case, Expected]:
        base = maker.base(shared=True, judge=judge)
        seed = 1 + 50 * i

        def once(case: Case, run: Expected) -> bool:
            return run.ids.count(run.ids[at]) == 1 and not {0, 1, 2, 20} & set(run.ids)

        case, run = maker.draw(base, seed, 3, once)
        chosen = run.ids[at]
        named = [t for t in case.texts if t.id != chosen]
        case = case.but(texts=(*named, Text(chosen, pieces[i % len(pieces)], -3000.0)))
        return case.but(boost=((chosen, 5.0),)), maker.judged(case.but(boost=((chosen, 5.0),)))

    return draw


def meeting(special: int, judge: str = "count") -> Draw:
    """A model that says BOS or EOS after some ids; its embedding is enlarged for that."""

    def draw(maker: Maker, i: int) -> tuple[Case, Expected]:
        base = maker.base(boost=((special, 3.0),), judge=judge, steps=10)

        def meets(case: Case, run: Expected) -> bool:
            if any(text.id in run.ids for text in case.texts):
                return False
            if special == BOS:
                return run.stopped and 2 <= len(run.ids) <= 3
            return not run.stopped and special in run.ids[1:3] and len(new_ids(run)[0]) > 5

        return maker.draw(base, 1 + 50 * i, 2, meets)

    return draw


_ABC = letters(b"abcd")
_PAIRS = letters(b"abcd", (b"ab", -8.0), (b"bc", -4.0), (b"cd", -6.0), (b"bcd", -9.0))
_TRIPLE = letters(b"abc", (b"abc", -1.0))
_SAME = letters(b"ab", (b"aa", -5.0))
_EQUAL = letters(b"abc", (b"ab", -5.0), (b"bc", -5.0))
_SPACED = letters(b"ab", (b" a", -3.0), (b"  ", -2.0), (b" ab", -1.0))
_WIDE = bytes_and(
    ("é".encode(), -500.0), ("中".encode(), -501.0), ("🙂".encode(), -502.0), (b"a", -503.0)
)
_WIDE_MERGES = bytes_and(
    ("é".encode(), -500.0), ("中".encode(), -501.0), (b"a", -502.0), ("é中".encode(), -3.0)
)
_PROMPT = ("prompt",)
_PROMPTED = ("rope", "feed-forward")

PROPERTIES = (
    Property(
        "prompt",
        "characters of a prompt, each a piece of its own",
        "no BOS or no space before the text, the index in the sorted vocabulary taken for the id, "
        "or a prompt that is not fed",
        after((b"ab", _ABC), (b"dcba", _ABC), (b"a", _ABC), (b"bdd", _ABC)),
        needs=_PROMPTED,
        words=_PROMPT,
        switch="dummy_space",
    ),
    Property(
        "empty-prompt",
        "an empty prompt is no prompt: BOS only",
        "the space is put before an empty text too",
        after((b"", _ABC)),
        cases=2,
        needs=("prompt",),
        words=_PROMPT,
    ),
    Property(
        "merges",
        "the pair whose piece has the highest score is merged, again and again",
        "scores not read or not compared, only one merge, or the first pair taken for the best",
        after((b"abcd", _PAIRS), (b"bcd", _PAIRS), (b"abab", _PAIRS), (b"dabc", _PAIRS)),
        needs=("prompt",),
        words=_PROMPT,
        needs_scores=True,
    ),
    Property(
        "merge-triples",
        "only two ids become one: 'abc' is never reached without 'ab' or 'bc'",
        "the longest piece is taken, or three ids are merged at once",
        after((b"abc", _TRIPLE), (b"cabc", _TRIPLE)),
        cases=3,
        needs=("merges",),
        words=_PROMPT,
        needs_scores=True,
    ),
    Property(
        "merge-ties",
        "of pairs with equal scores the leftmost is merged first",
        "the last of equals is taken: >= in place of >",
        after((b"abc", _EQUAL), (b"aaab", _SAME), (b"aaa", _SAME), (b"babc", _EQUAL)),
        needs=("merges",),
        words=_PROMPT,
        needs_scores=True,
    ),
    Property(
        "spaces",
        "spaces of a prompt stay, and merge with the space before the text",
        "the prompt is stripped or split into words",
        after((b" a", _SPACED), (b"a b", _SPACED), (b"b  a", _SPACED), (b"b ", _SPACED)),
        needs=("merges",),
        words=_PROMPT,
        needs_scores=True,
    ),
    Property(
        "characters",
        "a character of two to four bytes that is a piece is one id",
        "the prompt is read byte by byte, or by UTF-16 units",
        after(("é".encode(), _WIDE), ("a中".encode(), _WIDE), ("🙂a".encode(), _WIDE)),
        needs=("prompt",),
        words=_PROMPT,
    ),
    Property(
        "byte-fallback",
        "a character that is no piece becomes its bytes, ids 3 + byte",
        "the offset of 3, signed bytes, or the character is dropped or becomes <unk>",
        after((b"z", _ABC), ("ß".encode(), _ABC), ("a日b".encode(), _ABC), (b"\n", _ABC)),
        needs=("prompt",),
        words=_PROMPT,
    ),
    Property(
        "character-merges",
        "characters of several bytes merge like others",
        "lengths counted in characters in place of bytes",
        after(("é中".encode(), _WIDE_MERGES), ("aé中".encode(), _WIDE_MERGES)),
        cases=2,
        needs=("characters", "merges"),
        words=_PROMPT,
        needs_scores=True,
    ),
    Property(
        "invalid-utf8",
        "bytes that are not UTF-8 become byte ids",
        "the text is decoded with replacement characters",
        after((b"a\xff", _ABC), (b"\x80\x80b", _ABC), (b"\xe4\xb8a", _ABC)),
        cases=3,
        needs=("byte-fallback",),
        words=_PROMPT,
    ),
    Property(
        "joined",
        "nothing stands between two pieces",
        "pieces printed with the padding of their buffer, or each with a line end or a space",
        saying(b"[17]", b"word", b"two words"),
        cases=3,
        needs=_PROMPTED,
    ),
    Property(
        "byte-pieces",
        "a piece <0x41> is the byte A",
        "pieces of bytes are printed as they are, as run.c did until August 2023",
        saying(b"<0x41>", b"<0x0A>", b"<0x7E>"),
        cases=3,
        needs=("joined",),
        switch="byte_pieces",
    ),
    Property(
        "hidden-bytes",
        "a single byte that is neither printable ASCII nor white space is not printed",
        "every byte is printed, as run.c did until August 2023",
        saying(b"<0x07>", b"<0xE9>", b"<0x1B>", b"\x02"),
        cases=4,
        needs=("byte-pieces",),
        switch="hides_bytes",
    ),
    Property(
        "wide-pieces",
        "a piece of several bytes is printed as it is, not ASCII or half a character too",
        "the bytes are decoded, or passed through a filter",
        saying("é".encode(), "中🙂".encode(), b"\t\n", b"a\x01b"),
        cases=4,
        needs=("joined",),
    ),
    Property(
        "first-space",
        "directly after BOS one leading space of a piece is dropped, elsewhere none",
        "the space is dropped everywhere, nowhere, or from the whole text",
        saying(b" x[9]", b"  y[9]", at=0, judge="start"),
        cases=2,
        needs=("joined",),
    ),
    Property(
        "later-space",
        "a leading space of a later piece stays",
        "the space is dropped everywhere, or the pieces are stripped",
        saying(b" x", b" y "),
        cases=2,
        needs=("joined",),
    ),
    Property(
        "bos-stops",
        "BOS ends the text and is not printed",
        "it is printed and the text goes on, as run.c did until July 2023",
        meeting(BOS),
        cases=3,
        needs=(*_PROMPTED, "steps"),
        switch="bos_stops",
    ),
    Property(
        "eos-continues",
        "EOS is a piece like others: the text goes on",
        "the text ends there",
        meeting(EOS, "ids"),
        cases=3,
        needs=_PROMPTED,
    ),
    Property(
        "stdout",
        "stdout has the text and one line end, nothing else",
        "a banner, the speed or the prompt is printed on stdout too",
        after((b"ab", _ABC), (b"", _ABC), judge="stdout"),
        cases=2,
        needs=("joined", "first-space", "later-space", "empty-prompt", "steps-prompt"),
        run_c_only=True,
    ),
)
