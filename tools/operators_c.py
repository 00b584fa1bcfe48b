"""The operators of `operators.py` over the tokens of a C file."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise

from mutant import COMPARE, TWINS, Mutant, Token, tokens_of

_TYPE = re.compile(
    r"(const|static|inline|unsigned|signed|struct|enum|void|char|short|int|long|float|double|bool"
    r"|FILE|\w+_t)$"
)
_KEYWORDS = {"return", "sizeof", "case", "else", "do", "goto", "if", "for", "while", "switch"}
_CLOSING = {"(": ")", "[": "]", "{": "}"}
_ALLOCATES = {"malloc", "calloc", "realloc", "memset", "sizeof"}


def functions(tokens: Sequence[Token]) -> Iterator[tuple[str, int, int]]:
    """Name, first token of the parameters and last token of the body, of each function."""
    depth, i = 0, 0
    while i < len(tokens):
        text = tokens[i].text
        if text == "(" and depth == 0 and tokens[i - 1].kind == "word":
            closed = _match(tokens, i)
            if closed + 1 < len(tokens) and tokens[closed + 1].text == "{":
                end = _match(tokens, closed + 1)
                yield tokens[i - 1].text, i, end
                i = end + 1
                continue
        depth += (text in _CLOSING) - (text in _CLOSING.values())
        i += 1


def _match(tokens: Sequence[Token], i: int) -> int:
    """Where the bracket at i is closed."""
    depth = 0
    for k in range(i, len(tokens)):
        depth += (tokens[k].text in _CLOSING) - (tokens[k].text in _CLOSING.values())
        if depth == 0:
            return k
    return len(tokens) - 1


class C:
    """The proposals for a C file."""

    def __init__(self, file: str, source: str) -> None:
        self.file, self.tokens = file, tokens_of(file, source)
        self.source = source
        self.found: list[Mutant] = []

    def proposals(self) -> list[Mutant]:
        for name, first, last in functions(self.tokens):
            self.function = name
            self.unseen = self._unseen(first, last)
            self.types = self._types(first, last)
            self.body = range(_match(self.tokens, first) + 2, last)
            self.headers = self._for_headers()
            self.loops = {self.tokens[i].text for i in self._loop_variables()}
            for i in self.body:
                if not any(i in span for span in self.unseen):
                    self._operators(i)
        return self.found

    def _unseen(self, first: int, last: int) -> list[range]:
        """When threads are worth their while: nobody can tell but by a clock."""
        macros = [i for i in range(first, last) if self.tokens[i].text.startswith("PARALLEL_")]
        return [range(i, _match(self.tokens, i + 1)) for i in macros]

    def propose(self, operator: str, first: int, last: int, text: str) -> None:
        """`text` in place of the tokens from first to last."""
        start, end = self.tokens[first].start, self.tokens[last].end
        self.found.append(Mutant(self.file, self.function, operator, start, end, text))

    def text(self, first: int, last: int) -> str:
        return self.source[self.tokens[first].start : self.tokens[last].end]

    # What is where.

    def _types(self, first: int, last: int) -> dict[str, str]:
        """The types of parameters and of local variables, where a simple look can tell."""
        text = self.text(first, last)
        found = re.findall(r"((?:const\s+)?[A-Za-z_]\w*)([\s*]+)([A-Za-z_]\w*)\s*(?=[,)=;])", text)
        return {name: kind + stars.replace(" ", "") for kind, stars, name in found}

    def _for_headers(self) -> dict[int, tuple[int, int, int]]:
        """`for` at i -> its first semicolon, its second, its closing bracket."""
        found = {}
        for i in self.body:
            if self.tokens[i].text == "for":
                close = _match(self.tokens, i + 1)
                marks = [k for k in range(i, close) if self.tokens[k].text == ";"]
                if len(marks) == 2:
                    found[i] = (marks[0], marks[1], close)
        return found

    def _loop_variables(self) -> Iterator[int]:
        for i, (first, _, _) in self.headers.items():
            for k in range(i, first):
                if self.tokens[k].text == "=":
                    yield k - 1

    def _in_header(self, i: int) -> bool:
        return any(start < i < end for start, (_, _, end) in self.headers.items())

    def _is_cast(self, i: int) -> bool:
        """Whether the bracket at i holds a type."""
        inside = self.tokens[i + 1 : _match(self.tokens, i)]
        return bool(inside) and all(t.text == "*" or _TYPE.match(t.text) for t in inside)

    def _ends_operand(self, i: int) -> bool:
        t = self.tokens[i]
        if t.text == ")":
            depth, k = 1, i
            while depth:
                k -= 1
                depth += (self.tokens[k].text == ")") - (self.tokens[k].text == "(")
            return not self._is_cast(k)
        if t.kind == "word":
            return t.text not in _KEYWORDS and not _TYPE.match(t.text)
        return t.kind in ("number", "string") or t.text == "]"

    def _is_binary(self, i: int) -> bool:
        before, word = self.tokens[i - 2].text, self.tokens[i - 1]
        declares = (
            self.tokens[i].text == "*"
            and word.kind == "word"
            and (before in ";{}" or _TYPE.match(before) or self.tokens[i + 1].text == ")")
        )
        return self._ends_operand(i - 1) and not declares

    def _operand(self, i: int) -> int:
        """The last token of the operand that begins at i."""
        while self.tokens[i].text in ("-", "+", "!", "~", "*", "&", "++", "--") or (
            self.tokens[i].text == "(" and self._is_cast(i)
        ):
            i = _match(self.tokens, i) + 1 if self.tokens[i].text == "(" else i + 1
        last = _match(self.tokens, i) if self.tokens[i].text == "(" else i
        while self.tokens[last + 1].text in ("[", "(", ".", "->", "++", "--"):
            text = self.tokens[last + 1].text
            if text in ("[", "("):
                last = _match(self.tokens, last + 1)
            else:
                last += 2 if text in (".", "->") else 1
        return last

    def _product(self, i: int) -> int:
        last = self._operand(i)
        while self.tokens[last + 1].text in ("*", "/", "%"):
            last = self._operand(last + 2)
        return last

    def _statement(self, i: int) -> int | None:
        """The last token of the statement that begins at i, if it may be left out."""
        before, token = self.tokens[i - 1].text, self.tokens[i]
        if not (before in (";", "{", "}", "else") or (before == ")" and i - 1 in self._closings())):
            return None
        if token.kind != "word" or token.text in _KEYWORDS or _TYPE.match(token.text):
            return None
        second = self.tokens[i + 1]
        if second.kind == "word" or (second.text == "*" and self.tokens[i + 2].kind == "word"):
            return None  # a declaration
        last, assigns = i, False
        while self.tokens[last].text != ";":
            if self.tokens[last].text in "{}:" or self.tokens[last].text in _KEYWORDS - {"sizeof"}:
                return None  # a macro, a label
            if self.tokens[last].text in _CLOSING:
                last = _match(self.tokens, last)
            text = self.tokens[last].text
            assigns |= text in ("=", "+=", "-=", "*=", "/=", "|=", "&=", "++", "--")
            last += 1
        return last if assigns or second.text == "(" else None

    def _closings(self) -> set[int]:
        """Closing brackets after which a statement begins."""
        starts = [i for i in self.body if self.tokens[i].text in ("for", "if", "while")]
        return {_match(self.tokens, i + 1) for i in starts}

    # What each token is good for.

    def _operators(self, i: int) -> None:
        token, following = self.tokens[i], self.tokens[i + 1]
        text = token.text
        in_header = self._in_header(i)
        if text in ("+", "-") and self._is_binary(i):
            self.propose("drop-term", i, self._product(i + 1), "")
            self.propose("plus-minus", i, i, "-" if text == "+" else "+")
        elif text in ("-", "!"):
            self.propose("drop-sign", i, i, "")
        elif text in ("+=", "-=") and not in_header:
            self.propose("plus-minus", i, i, "-=" if text == "+=" else "+=")
        elif text in ("*", "/", "%") and self._is_binary(i):
            self.propose("drop-factor", i, self._operand(i + 1), "")
        elif text in COMPARE and not in_header:
            self.propose("compare", i, i, COMPARE[text])
        elif text in ("&&", "||"):
            self.propose("and-or", i, i, "||" if text == "&&" else "&&")
        elif text == "[" and following.text in self.loops and self.tokens[i + 2].text == "]":
            self.propose("index-zero", i + 1, i + 1, "0")
        elif token.kind == "number" and not in_header:
            self._constant(i)
        elif text in ("continue", "break"):
            self.propose("jump", i, i, "")
        elif text == "if":
            last = _match(self.tokens, i + 1)
            self.propose("negate", i + 1, last, f"(!{self.text(i + 1, last)})")
        elif text == "for" and i in self.headers:
            self._range(*self.headers[i])
        elif token.kind == "word" and following.text == "(" and text not in _KEYWORDS:
            if text in TWINS:
                self.propose("twin", i, i, TWINS[text])
            self._swap(i + 1)
        last_token = self._statement(i)
        if last_token is not None:
            self.propose("drop-statement", i, last_token, ";")

    def _constant(self, i: int) -> None:
        text = self.tokens[i].text
        around = {self.tokens[k].text for k in range(max(i - 12, self.body.start), i)}
        if re.fullmatch(r"\d+\.\d*f?", text):
            number, suffix = float(text.rstrip("f")), "f" if text.endswith("f") else ""
            self.propose("constant", i, i, f"{2 * number if number else 1.0}{suffix}")
        elif re.fullmatch(r"\d+", text) and not around & {"[", *_ALLOCATES}:
            self.propose("constant", i, i, str(2 * int(text) if int(text) else 1))

    def _range(self, first: int, second: int, close: int) -> None:
        """The bounds of `for (i = a; i < b; ...)`."""
        words = self.tokens[first + 1 : second]
        signs = [t.text for t in words]
        if len(words) >= 3 and not {"&&", "||", "?"} & set(signs):
            if signs[1] == "<":
                self.propose("range-end", second - 1, second - 1, f"{words[-1].text} - 1")
            elif signs[1] in ("<=", ">="):
                self.propose("range-end", first + 2, first + 2, signs[1][0])
        if self.tokens[first - 2].text == "=" and signs[1:2] in (["<"], ["<="]):
            start = self.tokens[first - 1].text
            text = "1" if start == "0" else f"{start} + 1"
            self.propose("range-begin", first - 1, first - 1, text)

    def _swap(self, i: int) -> None:
        """Neighbouring arguments that are variables of one type change places."""
        close = _match(self.tokens, i)
        names = [
            k
            for k in range(i + 1, close)
            if self.tokens[k - 1].text in ("(", ",") and self.tokens[k + 1].text in (",", ")")
        ]
        for a, b in pairwise(names):
            kinds = [self.types.get(self.tokens[k].text) for k in (a, b)]
            if b == a + 2 and kinds[0] is not None and kinds[0] == kinds[1]:
                text = f"{self.tokens[b].text}, {self.tokens[a].text}"
                self.propose("swap-arguments", a, b, text)
