"""Chats: what a program answers to lines on stdin. Tested in place of the others by --chat."""

from __future__ import annotations

from typing import Any

from pyllm2.conform.case import EOS, Case
from pyllm2.conform.chat import first_ids
from pyllm2.conform.judge import new_ids
from pyllm2.conform.maker import Maker, letters
from pyllm2.conform.property import Draw, Property
from pyllm2.conform.reference import Expected

NEW = 5  # ids of an answer
_ABC = letters(b"abcd")
_LINES = (b"a", b"bc", b"d", b"ab", b"cd", b"da")  # more than any case asks for
_CHAT = ("chat",)


def answering(*rows: dict[str, Any], asks: bool = False, **fixed: Any) -> Draw:
    """The answer to one message.

    rows: changes in turn, with `user` and `system` as texts
    asks: the system prompt is the first line of stdin, also where a flag could say it
    """

    def draw(maker: Maker, i: int) -> tuple[Case, Expected]:
        case = _begun(maker, {**fixed, **rows[i % len(rows)]}, asks)
        case = case.but(steps=len(first_ids(case, maker.dialect)) - 1 + NEW)
        return maker.draw(maker.fitted(case), 1 + 100 * i, 2, _no_end)

    return draw


def turns(judge: str = "ids") -> Draw:
    """Two messages: EOS ends the first answer."""

    def draw(maker: Maker, i: int) -> tuple[Case, Expected]:
        user = _LINES[i % len(_LINES)]
        case = _begun(maker, {"user": user, "boost": ((EOS, 3.0),), "judge": judge}, False)
        case = case.but(steps=2 * len(first_ids(case, maker.dialect)) + 2 + NEW)

        def two(case: Case, run: Expected) -> bool:
            if run.stopped or run.ids.count(EOS) != 1 or any(t.id in run.ids for t in case.texts):
                return False
            before = run.ids.index(EOS)
            return 1 <= before <= 3 and len(run.ids) - before > NEW

        return maker.draw(maker.fitted(case), 1 + 100 * i, 2, two)

    return draw


def _begun(maker: Maker, row: dict[str, Any], asks: bool) -> Case:
    """A chat whose system prompt is a flag, or the first line of stdin if there is none."""
    changes = dict(row)
    user, system = changes.pop("user", b"ab"), changes.pop("system", b"")
    flag = "system" in maker.has and not asks
    first = () if "prompt" in changes else (user,)
    lines = (*(() if flag else (system,)), *first, *_LINES)
    given = {
        "texts": _ABC,
        "seq_len": 200,
        "steps": 200,
        "lines": lines,
        "system": system if flag else None,
    }
    return maker.base(**{**given, **changes})


def _no_end(case: Case, run: Expected) -> bool:
    """Whether the answer is tracers only, and goes on to the last step."""
    named = any(text.id in run.ids for text in case.texts)
    return EOS not in run.ids and not named and len(new_ids(run)[0]) > 2


_ASKED = answering({"system": b"d"}, {"system": b""}, {"system": b"ab"}, asks=True)

PROPERTIES = (
    Property(
        "chat",
        "one message: BOS and [INST] text [/INST], then the answer",
        "no BOS, other spaces around the message, or its last id fed twice",
        answering({"user": b"ab"}, {"user": b"dcba"}, {"user": b"a"}, {"user": b""}),
        needs=(),
        chat=True,
    ),
    Property(
        "chat-system",
        "a system prompt stands in the first message, between <<SYS>> and <</SYS>>",
        "line ends left out or too many, or the system prompt is not used",
        answering({"system": b"d"}, {"system": b"ab", "user": b"c"}),
        cases=3,
        needs=_CHAT,
        words=("system",),
        chat=True,
    ),
    Property(
        "chat-system-line",
        "without its flag the system prompt is the first line of stdin",
        "it is taken for the message, or keeps its line end",
        _ASKED,
        cases=3,
        needs=("chat-system",),
        words=("system",),
        chat=True,
    ),
    Property(
        "chat-system-asked",
        "the first line of stdin is the system prompt",
        "it is taken for the message, or its line ends differ",
        _ASKED,
        cases=3,
        needs=_CHAT,
        without="system",
        chat=True,
    ),
    Property(
        "chat-first",
        "a prompt on the command line is the first message",
        "it is ignored, or asked for all the same",
        answering({"prompt": b"ab"}, {"prompt": b"c"}),
        cases=2,
        needs=_CHAT,
        words=("prompt",),
        chat=True,
    ),
    Property(
        "chat-turns",
        "EOS ends an answer; the next message begins with BOS and sees all before it",
        "the answer goes on, positions begin again at 0, the system prompt is repeated, or no id "
        "is chosen after EOS",
        turns(),
        cases=4,
        needs=_CHAT,
        chat=True,
    ),
    Property(
        "chat-steps",
        "the number of steps is that of the whole chat, prompts included",
        "only the ids of answers are counted, or those of one answer",
        answering({"user": b"ab"}, {"user": b"dcba"}, judge="count"),
        cases=2,
        needs=_CHAT,
        words=("steps",),
        chat=True,
    ),
    Property(
        "chat-coins",
        "a random number is drawn at every position, inside a prompt too",
        "numbers are drawn for the answer only",
        answering(
            {"seed": 7}, {"seed": 1}, {"seed": 123456789}, temperature=1.0, topp=1.0, loudness=4.0
        ),
        cases=3,
        needs=_CHAT,
        words=("temperature", "seed"),
        chat=True,
    ),
    Property(
        "chat-stdout",
        "stdout has the questions, the answers and a line end after each EOS, nothing else",
        "other questions, a banner, or no line end after an answer",
        turns("stdout"),
        cases=2,
        needs=("chat-turns", "chat-steps"),
        run_c_only=True,
        chat=True,
    ),
)
