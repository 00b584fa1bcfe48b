"""The process that renders chat templates: a template is a program from a stranger.

`template_process` starts this file as a script, with an interpreter of its own, so that a template
that runs forever can be killed, one that needs too much memory meets the limit of this process, and
one that crashes the interpreter takes nothing with it. Messages in both directions are 8 bytes of
length, little-endian, and that many bytes. To this process: pickles made by `template_process`; the
first is {"path", "memory"}, the others are requests. From it: JSON, {"text"} or {"error",
"message", "line"}.

The environment is that of transformers' `apply_chat_template`: jinja2's immutable sandbox,
trim_blocks, lstrip_blocks, `break` and `continue`, blocks `{% generation %}`, a `tojson` that keeps
the order of keys and escapes nothing, `raise_exception(message)`, `strftime_now(format)`.
"""

from __future__ import annotations

import json
import pickle
import signal
import sys
from contextlib import suppress
from datetime import datetime
from typing import IO, Any

MAX_MESSAGE = 4000  # characters of an error


def read_message(stream: IO[bytes]) -> bytes | None:
    """The next message; None at the end of the stream."""
    head = stream.read(8)
    if len(head) < 8:
        return None
    n = int.from_bytes(head, "little")
    data = stream.read(n)
    return data if len(data) == n else None


def write_message(stream: IO[bytes], data: bytes) -> None:
    stream.write(len(data).to_bytes(8, "little"))
    stream.write(data)
    stream.flush()


def environment() -> Any:
    """The jinja2 environment of a chat template."""
    from jinja2 import nodes
    from jinja2.exceptions import TemplateError
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}…{% endgeneration %}` marks what the assistant says; it prints its body.

        As with `{% call %}`, a variable that is set in the body is not known after it.
        """

        tags = {"generation"}  # noqa: RUF012  the attribute that jinja2 reads

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.CallBlock(self.call_method("printed"), [], [], body).set_lineno(line)

        def printed(self, caller: Any) -> Any:
            return caller()

    def tojson(
        value: Any,
        ensure_ascii: bool = False,
        indent: Any = None,
        separators: Any = None,
        sort_keys: bool = False,
    ) -> str:
        return json.dumps(
            value,
            ensure_ascii=ensure_ascii,
            indent=indent,
            separators=separators,
            sort_keys=sort_keys,
        )

    def raise_exception(message: Any) -> None:
        raise TemplateError(message)

    made = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    made.filters["tojson"] = tojson
    made.globals["raise_exception"] = raise_exception
    return made


class TooLongError(Exception):
    """The text has more characters than the request allows."""


def render(made: Any, request: dict[str, Any]) -> str:
    """The text of a request {"source", "variables", "now", "limit"}."""
    now = request["now"]

    def strftime_now(format: str) -> str:
        return (now or datetime.now()).strftime(format)

    template = made.from_string(request["source"], globals={"strftime_now": strftime_now})
    parts, n = [], 0
    for part in template.generate(**request["variables"]):
        n += len(part)
        if n > request["limit"]:
            raise TooLongError
        parts.append(part)
    return "".join(parts)


def answer(made: Any, data: bytes) -> dict[str, Any]:
    """What is sent back: the text, or what went wrong."""
    try:
        return {"text": render(made, pickle.loads(data))}
    except TooLongError:
        return {"error": "length"}
    except MemoryError:
        return {"error": "memory"}
    except RecursionError:
        return {"error": "depth"}
    except Exception as error:
        from jinja2 import TemplateError

        message = error.message if isinstance(error, TemplateError) else str(error)
        line = getattr(error, "lineno", None)
        name = type(error).__name__
        return {"error": name, "message": str(message or name)[:MAX_MESSAGE], "line": line}


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends this one
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    first = read_message(requests)
    if first is None:
        return
    start = pickle.loads(first)
    with suppress(ImportError, OSError, ValueError):  # not POSIX; a lower limit is set already
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_AS)
        known = [n for n in (soft, hard, start["memory"]) if n != resource.RLIM_INFINITY]
        resource.setrlimit(resource.RLIMIT_AS, (min(known), hard))
    sys.path[:] = start["path"]
    try:
        made = environment()
    except ImportError:
        write_message(answers, b'{"error": "absent"}')
        return
    write_message(answers, b"{}")
    while (data := read_message(requests)) is not None:
        found = answer(made, data)
        try:
            reply = json.dumps(found, ensure_ascii=False).encode("utf-8", "surrogatepass")
        except MemoryError:
            found, reply = {"error": "memory"}, b'{"error": "memory"}'
        write_message(answers, reply)
        if found.get("error") == "memory":
            return


if __name__ == "__main__":
    main()
