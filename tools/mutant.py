"""A mutant, and the tokens of a program in Python or C."""

from __future__ import annotations

import re
from dataclasses import dataclass

TWINS = {
    old: new
    for pair in (
        "max min, maximum minimum, fmax fmin, argmax argmin, cos sin, exp exp2, log log2, "
        "tanh sinh, floor ceil, any all, zeros ones, sum prod, cumsum cumprod, "
        "startswith endswith, cosf sinf, expf exp2f, logf log2f, tanhf sinhf, fmaxf fminf"
    ).split(", ")
    for old, new in (pair.split(), pair.split()[::-1])
}
COMPARE = {"<": "<=", "<=": "<", ">": ">=", ">=": ">", "==": "!=", "!=": "=="}


@dataclass(frozen=True)
class Mutant:
    """In `file`, `text` in place of the characters from `start` to `end`."""

    file: str
    function: str  # qualified; "" for the top level of a module
    operator: str
    start: int
    end: int
    text: str
    nth: int = 1  # of this operator in this function, counted from 1

    @property
    def name(self) -> str:
        return f"{self.file}:{self.function or '<module>'}:{self.operator}:{self.nth}"

    def apply(self, source: str) -> str:
        return source[: self.start] + self.text + source[self.end :]

    def lines(self, source: str) -> tuple[str, str]:
        """The lines that change, before and after, without indentation and comments."""
        first = source.rfind("\n", 0, self.start) + 1
        last = (source + "\n").find("\n", self.end)
        before, after = source[first:last], self.text + source[self.end : last]
        return _tidy(before), _tidy(source[first : self.start] + after)


def _tidy(text: str) -> str:
    lines = (re.sub(r"\s+(#|//).*$", "", line).strip() for line in text.splitlines())
    return " ".join(line for line in lines if line)


@dataclass(frozen=True)
class Token:
    kind: str
    text: str
    start: int
    end: int


_PYTHON_TOKEN = re.compile(
    r"""(?P<space>\s+|\\\n|\#[^\n]*)
    |(?P<string>[fFrRbB]{0,2}(?:\"{3}.*?\"{3}|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'))
    |(?P<number>\.?[0-9](?:[eE][+-]|[\w.])*)
    |(?P<word>[^\W\d]\w*)
    |(?P<sign>->|\*\*=?|//=?|<<=?|>>=?|[-+*/%&|^<>=!:@]=|.)""",
    re.VERBOSE | re.DOTALL,
)
_C_TOKEN = re.compile(
    r"""(?P<space>\s+|\\\n|//[^\n]*|/\*.*?\*/)
    |(?P<directive>^[ \t]*\#(?:\\\n|[^\n])*)
    |(?P<string>"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*')
    |(?P<number>\.?[0-9](?:[eEpP][+-]|[\w.])*)
    |(?P<word>[A-Za-z_]\w*)
    |(?P<sign>->|\+\+|--|<<=|>>=|<<|>>|&&|\|\||\.\.\.|[-+*/%&|^<>=!]=|.)""",
    re.VERBOSE | re.MULTILINE | re.DOTALL,
)


def tokens_of(file: str, text: str) -> list[Token]:
    """The tokens that say something: no comments, spaces, line ends, preprocessor lines."""
    pattern = _PYTHON_TOKEN if file.endswith(".py") else _C_TOKEN
    return [
        Token(str(m.lastgroup), m.group(), m.start(), m.end())
        for m in pattern.finditer(text)
        if m.lastgroup not in ("space", "directive")
    ]
