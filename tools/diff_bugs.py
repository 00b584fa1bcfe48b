"""Plant bugs in every backend, and see whether `pyllm2 diff` names the op, or the right stretch.

    python tools/diff_bugs.py                     60 bugs of operators.py, and a table
    python tools/diff_bugs.py --only c --count 20
    python tools/diff_bugs.py --list              what there is to plant
    python tools/diff_bugs.py --unbroken 500      no bugs: drawn models on which nothing may differ

A bug in a plain op is to be found as the *local* fault of that op, and of no op that does not use
the changed function. One in a pass in one piece (decoding and training steps of numba and c) is to
be in the stretch that `diff` says. The runs are those of `RUNS`; the first with a fault counts.

    named       the right op, or the right stretch
    other       faults, but elsewhere
    unseen      everything is inside its bound
    crash       the process ended by a signal or took too long: nothing is said
    equivalent  tools/mutants/equivalent.toml says why no caller can observe it
    invalid     the changed file cannot be compiled

Exit code 0 if 95 % are named (of those that are neither equivalent nor invalid), 1 if not.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import mutate
import operators
from mutate import Bug, equivalents, ops_served, short, source_of
from mutate_areas import AREAS
from mutate_run import Stage, Workspace, free_folder, op_tables

REPOSITORY = Path(__file__).resolve().parents[1]
WANTED = 0.95
SECONDS = 600  # for one bug: Numba compiles whatever reaches the changed file
IDS = [1, 5, 7, 5, 2, 9, 11, 3, 8, 4, 6, 10, 12, 1, 1, 7, 9, 14, 20, 3]
RUNS = [(size, family) for size in ("small", "odd") for family in ("llama2", "int8", "gpt2")]


@dataclass(frozen=True)
class Kind:
    """Where bugs are planted. files: patterns   area: of `mutate_areas`   share: of the count"""

    name: str
    backend: str
    files: str
    area: str
    share: int
    whole: bool = False


KINDS = (
    Kind("numpy", "numpy", "pyllm2/llama2/ops.py pyllm2/gpt2/ops.py", "numpy", 16),
    Kind(
        "numba", "numba-strict", "pyllm2/llama2/ops_numba.py pyllm2/gpt2/ops_numba.py", "numba", 12
    ),
    Kind("c", "c-strict", "csrc/llama2/ops.c csrc/llama2/matmul.c csrc/gpt2/ops.c", "c", 16),
    Kind("whole-c", "c-strict", "csrc/*/model.c csrc/*/training.c", "c", 8, whole=True),
    Kind(
        "whole-numba",
        "numba",
        "pyllm2/fast/llama2/decode.py pyllm2/fast/*/training.py pyllm2/fast/*/kernels.py "
        "pyllm2/fast/*/attention.py",
        "fast",
        8,
        whole=True,
    ),
)
# What a changed line of a whole pass does: words in it, and the ops whose result it changes.
_LINE = {
    r"matmul|product|linear|packed|pack_weights|matvec|wqkv|w13": "matmul",
    r"rmsnorm|layernorm|_normalize|_squares|norm\b": "rmsnorm layernorm_forward layernorm_backward",
    r"rope|cos|sin": "rope rope_tables",
    r"attention|_attend|scores|softmax|head|_block_|_group_|group|blocks|key": "attention softmax",
    r"swiglu|gate": "swiglu",
    r"gelu": "gelu_forward",
    r"residual|add\(": "residual residual_forward residual_rmsnorm",
    r"encoder": "encoder_forward",
    r"embedding": "embedding",
    r"crossentropy|losses|dloss": "crossentropy softmax_forward",
    r"quantize|operand": "quantize matmul",
    r"bias": "matmul",
}

_PROGRAMS = re.compile("(cache|state|parameters)_(bind|floats|sizes)$")  # only those use them


# ---- what to plant -------------------------------------------------------------------------------


def candidates(kind: Kind, seed: int) -> list[Bug]:
    """The bugs of a kind, in the order in which they are taken."""
    area = next(area for area in AREAS if area.name == kind.area)
    paths = {p for pattern in kind.files.split() for p in REPOSITORY.glob(pattern)}
    reasons, tables = equivalents(), op_tables()
    found = []
    for path in sorted(paths):
        file = path.relative_to(REPOSITORY).as_posix()
        for m in operators.sample(operators.mutants(file, source_of(file)), 2, seed):
            if kind.whole and re.search(
                "(cache|state|parameters)_(bind|floats|sizes)$", m.function
            ):
                continue  # only the programs use them
            key = mutate._key(m.file, m.function, *m.lines(source_of(m.file)))
            bug = Bug(short(m.name), area, m, reasons.get(key, ""))
            if expected_ops(kind, bug, tables):
                found.append(bug)
    return sorted(found, key=lambda bug: operators.rank(bug.mutant, seed))


def expected_ops(kind: Kind, bug: Bug, tables: dict[str, list[str]]) -> set[str]:
    """The ops of which one is to be named; none if no run of a model uses the function."""
    if not kind.whole:
        return set(ops_served(bug, tables))
    before, _ = bug.mutant.lines(source_of(bug.mutant.file))
    words = f"{bug.mutant.function.rpartition('.')[2]} {before}"
    return {op for w, ops in _LINE.items() if re.search(w, words) for op in ops.split()}


def right(kind: Kind, expected: set[str], faults: Sequence[dict[str, Any]]) -> bool:
    """Whether faults say where the bug is."""
    local = {op for f in faults if f["kind"] == "local" for op in f["ops"]}
    if not kind.whole:
        return bool(local) and local <= expected
    stretch = local or {op for f in faults if f["kind"] == "whole" for op in f["ops"]}
    return any(_same(op, wanted) for op in stretch for wanted in expected)


def _same(op: str, wanted: str) -> bool:
    """Whether they are the forward and backward of one op."""
    first, second = (
        re.sub(r"_(forward|backward|q8|softmax_backward)$", "", o) for o in (op, wanted)
    )
    return first == second


# ---- running -------------------------------------------------------------------------------------


def judge(space: Workspace, kind: Kind, bug: Bug, tables: dict[str, list[str]]) -> dict[str, Any]:
    began = time.monotonic()
    expected = expected_ops(kind, bug, tables)
    before, after = bug.mutant.lines(source_of(bug.mutant.file))
    verdict = {"name": bug.name, "kind": kind.name, "before": before, "after": after}
    if bug.reason:
        return {**verdict, "state": "equivalent", "said": bug.reason, "seconds": 0.0}
    with space.planted(bug.mutant):
        state, faults = _child(space, kind)
    if state == "faults":
        state = "named" if right(kind, expected, faults) else "other"
    said = "; ".join(f["text"][:160] for f in faults[:2])
    seconds = round(time.monotonic() - began, 1)
    return {**verdict, "state": state, "said": said, "seconds": seconds}


def _child(space: Workspace, kind: Kind) -> tuple[str, list[dict[str, Any]]]:
    """State, and the faults of the first run that has any."""
    stage = Stage("diff", (), "", "", kind.backend, SECONDS)
    environment = {**os.environ, **space.environment(stage)}
    words = [sys.executable, str(space.root / "tools/diff_bugs.py"), "--child", kind.backend]
    try:
        done = subprocess.run(
            words, cwd=space.root, env=environment, capture_output=True, timeout=SECONDS
        )
    except subprocess.TimeoutExpired:
        return "crash", []
    if done.returncode < 0:
        return "crash", []
    try:
        faults = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        text = done.stderr.decode("utf-8", "replace")
        state = "invalid" if re.search(r"TypingError|LoweringError|failed:", text) else "crash"
        return state, [{"kind": "", "ops": [], "text": text.strip()[-160:]}]
    if any(re.search("TypingError|LoweringError|raises BackendError", f["text"]) for f in faults):
        return "invalid", faults
    return ("faults" if faults else "unseen"), faults


def models() -> Iterator[tuple[Any, Any]]:
    """The models and runs of RUNS."""
    import numpy as np

    from pyllm2 import backends
    from pyllm2.inference.language_model import LanguageModel
    from pyllm2.llama2.config import Llama2Config
    from pyllm2.llama2.model import Llama2
    from pyllm2.observe.runs import Prompt, Step
    from pyllm2.testing.gpt2 import strategies as gpt2
    from pyllm2.testing.llama2 import strategies as llama2
    from tests.observe.models import fixed, int8

    for size, family in RUNS:
        if size == "small":
            model = fixed(family)
        elif family == "gpt2":
            config = gpt2.GPT2Config(24, 45, 2, 3, 36, 48)
            engine = backends.engine("numpy", family="gpt2")
            params = gpt2.random_parameters(config, seed=2)
            model = LanguageModel(gpt2.GPT2(config, params, engine), None, "numpy")
        else:
            # Heads of 26 = 16 + 8 + 2: every loop that takes elements in pieces has work.
            sizes = Llama2Config(104, 65, 2, 4, 2, 45, 24)
            weights = llama2.random_weights(sizes, shared_classifier=True, seed=2)
            llama = Llama2(sizes, weights, backends.engine("numpy"))
            llama = int8(llama, 13) if family == "int8" else llama
            model = LanguageModel(llama, None, "numpy")
        ids = [i % model.config.vocab_size for i in (IDS if size == "odd" else IDS[:9])]
        yield model.model, Prompt(ids)
        if family != "int8":
            x, y = np.array([ids[:-1], ids[1:]]), np.array([ids[1:], ids[:-1]])
            yield model.trainable, Step(x, y)


def child(backend: str) -> int:
    """Print the faults of the first run that has any, as JSON."""
    import warnings

    import numpy as np

    from pyllm2.observe.isolated import compare_safely
    from pyllm2.observe.standard import Standard

    warnings.simplefilter("ignore")
    np.seterr(all="ignore")
    for model, run in models():
        report = compare_safely(Standard(model, run), [backend])
        if not report.passed:
            faults = report.as_json()["faults"]
            if not faults:
                faults = [{"kind": "", "ops": [], "text": "outside, without a fault"}]
            print(json.dumps(faults))
            return 0
    print("[]")
    return 0


# ---- nothing outside where nothing is wrong ------------------------------------------------------


def unbroken(count: int) -> int:
    """Drawn models on all backends that can run here; exit code 1 if anything is outside."""
    from hypothesis import HealthCheck, given, settings

    sys.path.insert(0, str(REPOSITORY))
    from pyllm2 import backends
    from pyllm2.observe.diff import diff
    from tests.observe.models import can_train, language_models

    able = [name for name in backends.NAMES if backends.why_not(name) is None]
    tried: Counter[str] = Counter()
    worst = 0.0

    @settings(
        max_examples=count, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(language_models())
    def check(drawn: Any) -> None:
        nonlocal worst
        model, ids = drawn
        int8 = hasattr(getattr(getattr(model.model, "weights", None), "wq", None), "scales")
        for training in (False, True):
            if training and (len(ids) < 2 or not can_train(model)):
                continue
            report = diff(model, able, ids, training)
            family = "int8" if int8 else type(model.model).__name__
            tried[f"{family}, {'training' if training else 'inference'}"] += 1
            worst = max(worst, report.worst.share)
            assert report.passed, str(report)

    check()
    print(f"nothing outside on {', '.join(able)}; largest share of a bound {worst:.3f}")
    for name, n in sorted(tried.items()):
        print(f"  {n:4} {name}")
    return 0


# ---- the command ---------------------------------------------------------------------------------


def report(verdicts: Sequence[dict[str, Any]]) -> str:
    from tabulate import tabulate

    states = ("named", "other", "unseen", "crash", "equivalent", "invalid")
    rows = []
    for name in [*(kind.name for kind in KINDS), "all"]:
        ours = [v for v in verdicts if name in (v["kind"], "all")]
        n = Counter(v["state"] for v in ours)
        judged = len(ours) - n["equivalent"] - n["invalid"]
        if ours:
            share = f"{100 * n['named'] / judged:.1f} %" if judged else "-"
            rows.append([name, len(ours), *(n[state] for state in states), share])
    lines = [tabulate(rows, ["bugs", "planted", *states, "share"], tablefmt="github")]
    for v in verdicts:
        if v["state"] in ("other", "unseen", "crash"):
            lines += [f"- {v['state']}: {v['name']}  ({v['said']})"]
            lines += [f"      {v['before']}", f"   -> {v['after']}"]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    names = [kind.name for kind in KINDS]
    parser.add_argument("--only", action="append", choices=names, help="this kind only")
    parser.add_argument(
        "--match", metavar="TEXT", help="of the chosen, those with this in the name"
    )
    parser.add_argument("--count", type=int, default=60, help="bugs to plant in all")
    parser.add_argument("--seed", type=int, default=0, help="of the sample (default 0)")
    parser.add_argument("--list", action="store_true", help="name the bugs and plant none")
    parser.add_argument("--json", metavar="OUT", help="append the verdicts to this file")
    parser.add_argument("--unbroken", type=int, metavar="N", help="N drawn models, no bugs")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.child:
        return child(options.child)
    if options.unbroken:
        return unbroken(options.unbroken)
    kinds = [kind for kind in KINDS if kind.name in (options.only or names)]
    total = sum(kind.share for kind in kinds)
    chosen = [
        (kind, bug)
        for kind in kinds
        for bug in candidates(kind, options.seed)[: -(-options.count * kind.share // total)]
    ]
    chosen = [c for c in chosen if re.search(options.match or "", c[1].name)]
    tables = op_tables()
    if options.list:
        for kind, bug in chosen:
            before, after = bug.mutant.lines(source_of(bug.mutant.file))
            ops = ", ".join(sorted(expected_ops(kind, bug, tables)))
            print(f"{kind.name}: {bug.name}: {ops}\n      {before}\n   -> {after}")
        return 0
    verdicts = []
    with free_folder() as folder:
        space = Workspace(folder / "copy")
        for kind, bug in chosen:
            verdicts.append(judge(space, kind, bug, tables))
            v = verdicts[-1]
            print(f"{v['state']:10} {v['seconds']:6} s  {kind.name}: {v['name']}", file=sys.stderr)
            if options.json:
                with open(options.json, "a") as out:
                    out.write(json.dumps(v) + "\n")
    print(report(verdicts))
    n = Counter(v["state"] for v in verdicts)
    judged = len(verdicts) - n["equivalent"] - n["invalid"]
    return 0 if n["named"] >= WANTED * judged else 1


if __name__ == "__main__":
    sys.exit(main())
