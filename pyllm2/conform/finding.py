"""A failure as a folder: the two files, the command, what was expected and what came."""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyllm2.conform import child
from pyllm2.conform.adapter import RUN_C, RUN_C_CHAT, STDIN, Adapter, ids_of, parse
from pyllm2.conform.case import Case
from pyllm2.conform.judge import Verdict, new_ids
from pyllm2.conform.reference import Expected
from pyllm2.errors import FileError, os_errors

_MARK = "# pyllm2: "


@dataclass(frozen=True)
class Finding:
    """The smallest case that was found for a property."""

    name: str
    case: Case
    wanted: Expected
    verdict: Verdict
    out: bytes
    shell_line: str
    folder: str = ""

    @property
    def expected_text(self) -> bytes:
        return self.wanted.text + b"\n"


def write(finding: Finding, adapter: Adapter, under: Path) -> str:
    """Write `NAME-1` (or the next free number) below a folder; returns its path.

    Raises FileError.
    """
    with os_errors(under):
        under.mkdir(parents=True, exist_ok=True)
    for number in range(1, 10_000):
        folder = under / f"{finding.name}-{number}"
        try:
            folder.mkdir()
            break
        except FileExistsError:
            continue
        except OSError as error:
            raise FileError(folder, (error.strerror or str(error)).lower()) from None
    with os_errors(folder):
        adapter.lay_out(finding.case, folder)
        (folder / "expected").write_bytes(finding.expected_text)
        (folder / "got").write_bytes(finding.out)
        (folder / "cmd").write_text(_script(finding, adapter), encoding="utf-8")
        (folder / "cmd").chmod(0o755)
    return str(folder)


def _script(finding: Finding, adapter: Adapter) -> str:
    """A script for sh, with a comment that `replay` reads."""
    case = finding.case
    ids, _, sure = new_ids(finding.wanted)
    record = {
        "property": finding.name,
        "judge": case.judge,
        "program": len(adapter.program),
        "sure": sure,
        "argv": [os.fsdecode(word) for word in adapter.command(case)],
        "words": {k: os.fsdecode(v) for k, v in case.words().items()},
        "environment": dict(adapter.environment),
        "begin": adapter.begin,
        "end": adapter.end,
        "damage": case.damage,
        "says": finding.verdict.says,
    }
    lines = [
        "#!/bin/sh",
        f"# {finding.name}: {finding.verdict.says}".replace("\n", " "),
        f"# {case.summary()}".replace("\n", " "),
        f"# ids {' '.join(map(str, ids))}; sure: the first {sure}",
        _MARK + json.dumps(record),
        'cd "$(dirname "$0")" || exit 1',
        finding.shell_line,
    ]
    return "\n".join(lines) + "\n"


def read(folder: Path) -> dict[str, Any]:
    """The record of a folder. Raises FileError if it is not one of ours."""
    path = folder / "cmd"
    with os_errors(path):
        text = path.read_text(encoding="utf-8", errors="replace")
    for line in text.splitlines():
        if line.startswith(_MARK):
            try:
                record = json.loads(line.removeprefix(_MARK))
            except ValueError:
                break
            if isinstance(record, dict) and _complete(record):
                return record
    raise FileError(path, "is not a finding of pyllm2 conform: no record in it")


def _complete(record: dict[str, Any]) -> bool:
    words: dict[str, type] = dict.fromkeys(("property", "judge", "begin", "end", "says"), str)
    words |= {"sure": int, "program": int, "argv": list, "words": dict, "environment": dict}
    if not all(type(record.get(name)) is kind for name, kind in words.items()):
        return False
    texts = [*record["argv"], *record["environment"].values(), *record["words"].values()]
    return bool(record["argv"]) and all(isinstance(text, str) for text in texts)


@dataclass(frozen=True)
class Replay:
    """One finding again."""

    name: str
    same: bool  # whether the program now prints what is expected
    expected: list[int]
    found: list[int]
    ended: str
    out: bytes


def replay(
    folder: Path, limits: child.Limits, program: tuple[str, ...] = (), against: tuple[str, ...] = ()
) -> Replay:
    """Run the command of a finding, in a copy of its folder.

    program: in place of the recorded one, if given
    against: a program with run.c's command line, whose text is expected in place of the record's

    Raises FileError.
    """
    record = read(folder)
    with os_errors(folder):
        expected = (folder / "expected").read_bytes()
    sure = record["sure"]
    if against:
        values = {k: v for k, v in record["words"].items() if isinstance(v, str)}
        chats = (folder / STDIN).is_file()
        line = parse(RUN_C_CHAT if chats else RUN_C).fill(
            {k: os.fsencode(v) for k, v in values.items()}
        )
        expected = _run_copy(folder, [*map(os.fsencode, against), *line], {}, limits).out
        sure = len(ids_of(expected))
    argv = [os.fsencode(word) for word in record["argv"]]
    if program:
        argv = [*map(os.fsencode, program), *argv[record["program"] :]]
    outcome = _run_copy(folder, argv, record["environment"], limits)
    adapter = Adapter(("",), begin=record["begin"], end=record["end"])
    text = adapter.text_of(outcome.out)
    ids, found = ids_of(expected), ids_of(text)
    if record["judge"] in ("stdout", "between", "start", "text"):
        same = expected.strip(b"\n") in text and outcome.code == 0
        same = same and (record["judge"] != "stdout" or text == expected)
    elif record["judge"] in ("refusal", "survives"):
        same = not outcome.stopped and (record["judge"] == "survives" or outcome.code != 0)
    else:
        same = found[:sure] == ids[:sure] and outcome.code == 0
        same = same and (record["judge"] != "count" or len(found) == len(ids))
    return Replay(record["property"], same, ids, found, outcome.ended, outcome.out)


def _run_copy(
    folder: Path, argv: list[bytes], environment: dict[str, str], limits: child.Limits
) -> child.Outcome:
    with tempfile.TemporaryDirectory(prefix="conform-") as name:
        for path in folder.rglob("*"):
            if path.is_file() and path.name not in ("cmd", "expected", "got"):
                target = Path(name) / path.relative_to(folder)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(path.read_bytes())
        locale = {"LC_ALL": "C.UTF-8", "LANG": "C.UTF-8"}
        stdin = Path(name, STDIN).read_bytes() if Path(name, STDIN).is_file() else b""
        return child.run(argv, Path(name), limits, {**os.environ, **locale, **environment}, stdin)
