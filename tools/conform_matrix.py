"""Every wrong program of tests/conform against every property: is it found, and nothing else?

python tools/conform_matrix.py [--only TEXT] [--budget SECONDS]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pyllm2.conform.adapter import RUN_C_CHAT, Adapter, parse
from pyllm2.conform.child import Limits
from pyllm2.conform.properties import BY_NAME
from pyllm2.conform.result import NOT_TESTED, PASSES
from pyllm2.conform.session import Options, Session
from tests.conform.wrong import WRONG, Wrong, build


def row(wrong: Wrong, folder: Path, budget: float) -> tuple[str, bool]:
    """The line of a wrong program, and whether it is as it should be."""
    began = time.monotonic()
    program = build(wrong, folder)
    adapter = Adapter((str(program),), limits=Limits(3.0, 2**28))
    chat = BY_NAME[wrong.property].chat
    if chat:
        adapter = replace(adapter, template=parse(RUN_C_CHAT))
    options = Options(budget=budget, skip=("drawn",), out=folder / "out", chat=chat)
    session = Session(adapter, options)
    if session.smoke() is not None:
        return f"{wrong.name:<36} NOT DRIVABLE", False
    results = list(session.check_all())
    failing = [r for r in results if r.status not in (PASSES, NOT_TESTED)]
    named = [r.name for r in failing]
    size = ""
    small = True
    for result in failing:
        if result.finding is not None:
            c = result.finding.case
            size = f"layers {c.n_layers}, dim {c.dim}, steps {c.steps}"
            small = c.n_layers <= 2 and c.dim <= 8 and c.steps <= 4
    good = named == [wrong.property]
    verdict = ("ok" if small else "ok, large") if good else "WRONG"
    seconds = time.monotonic() - began
    found = ", ".join(f"{r.name} ({r.status})" for r in failing) or "nothing"
    line = f"{wrong.name:<36} {found:<34} {size:<28} {session.runs:4} runs {seconds:5.1f} s"
    return f"{line}  {verdict}", good


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default="", help="wrong programs with this in their name")
    parser.add_argument("--budget", type=float, default=60)
    options = parser.parse_args()
    chosen = [w for w in WRONG if options.only in w.name]
    good = 0
    for wrong in chosen:
        with tempfile.TemporaryDirectory() as name:
            line, ok = row(wrong, Path(name), options.budget)
        print(line, flush=True)
        good += ok
    print(f"{good} of {len(chosen)} found, with no other property accused")
    return 0 if good == len(chosen) else 1


if __name__ == "__main__":
    sys.exit(main())
