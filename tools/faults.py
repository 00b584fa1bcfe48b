"""Fail one system call after another in every command, and check that nothing is lost.

    python -m tools.faults --calls 40

For every command and every kind of call (open, read, write, fsync, rename, close) the 1st, 2nd, ...
call on a file of its folder fails, until the command makes fewer calls. Then it must have

- exit code 1 and one line of error, or code 0 and the results of an undisturbed run;
- no traceback;
- every file as it was before, or as an undisturbed run leaves it, and no temporary file;
- of a training run, whole checkpoints only, and never fewer than before.

Needs Linux and a C compiler: the calls fail in a preloaded library, tools/faults.c.
Exit code 0 if all of that holds.
"""

from __future__ import annotations

import argparse
import errno
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from pyllm2.errors import PyLLM2Error
from pyllm2.training.checkpoint import CheckpointFile
from tests.support.llama2_files import lay_out
from tests.support.toy_training import N_PARAMETERS, TRAIN, write_shards

REPOSITORY = Path(__file__).resolve().parents[1]
CALLS = {
    "open": errno.EACCES,
    "read": errno.EIO,
    "write": errno.ENOSPC,
    "fsync": errno.EIO,
    "rename": errno.EROFS,
    "close": errno.EIO,
}
MODEL = "m.bin --tokenizer t.bin --backend numpy".split()
COMMANDS = {
    "generate": ["generate", *MODEL, "--max-new-tokens", "2", "--seed", "1"],
    "prompt": ["generate", *MODEL, "--prompt-file", "short.txt", "--seed", "1"],
    "run": "run m.bin -z t.bin -n 3 -s 1 --backend numpy".split(),
    "chat": ["chat", *MODEL, "--prompt", "a", "--max-new-tokens", "1", "--seed", "1"],
    "tokenize": "tokenize --tokenizer text.model --text-file text.txt".split(),
    "export": "export m.bin out.bin --format v1 --force".split(),
    "quantize": "quantize m.bin out.bin --group-size 4 --report --force".split(),
    "tokenizer export": "tokenizer export t.bin out.bin --force".split(),
    "tokenizer train": "tokenizer train text.txt --vocab-size 280 --out out.model --force".split(),
    "prepare": "data prepare text.txt --tokenizer bytes --val-tokens 9 --out new".split(),
    "prepare into": "data prepare text.txt --tokenizer bytes --val-tokens 9 --out empty".split(),
    "train": [*TRAIN, "--out", "fresh"],
    "resume": [*TRAIN, "--resume"],
}
# main.log is appended to; the lock and the process id are of the moment; plots have dates.
VOLATILE = {"main.log", ".lock", ".pid", "loss.png"}
TIMEOUT = 120


@dataclass
class Outcome:
    """A run of a command: exit code, both streams, files, and whether the fault happened."""

    code: int
    out: bytes
    err: str
    files: dict[str, bytes]
    failed: bool


@dataclass
class Tally:
    """Counts, and what was wrong."""

    runs: int = 0
    refused: int = 0
    unharmed: int = 0
    wrong: list[str] = field(default_factory=list)


def build(folder: Path) -> Path:
    """Compile the library."""
    library = folder / "faults.so"
    source = REPOSITORY / "tools" / "faults.c"
    command = [os.environ.get("CC", "cc"), "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"]
    subprocess.run(command, check=True)
    return library


def prepare(folder: Path, environment: dict[str, str]) -> None:
    """Write the inputs, older outputs, and a training run that has stopped halfway."""
    folder.mkdir()
    lay_out(folder, {"out.bin": b"old", "out.model": b"old"})
    write_shards(folder)
    (folder / "text.txt").write_text("one two three four five six seven eight nine\n" * 20)
    (folder / "short.txt").write_text("one")
    (folder / "empty").mkdir()
    for argv in (
        "tokenizer train text.txt --vocab-size 280 --out text.model".split(),
        [*TRAIN, "--save-every", "6"],
    ):
        command = [sys.executable, "-m", "pyllm2", *argv]
        subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True)
    for name in ("step_00000012.safetensors", "model.bin"):
        (folder / "out" / name).unlink()


def contents(folder: Path, copied: Path) -> dict[str, bytes]:
    """Every file below the folder, without the folder's name, which `run.json` has in it.

    copied: the folder of which it is a copy, whose name is left out too
    """
    ours, other = os.fsencode(folder), os.fsencode(copied)
    return {
        str(path.relative_to(folder)): path.read_bytes().replace(ours, b"").replace(other, b"")
        for path in folder.rglob("*")
        if path.is_file()
    }


def run(argv: list[str], inputs: Path, environment: dict[str, str], **fault: str) -> Outcome:
    """Run a command in a copy of the inputs, with a fault given by variables."""
    with tempfile.TemporaryDirectory(prefix="pyllm2-fault-") as place:
        folder, mark = Path(place).resolve() / "work", Path(place) / "mark"
        shutil.copytree(inputs, folder)
        done = subprocess.run(
            [sys.executable, "-m", "pyllm2", *argv],
            cwd=folder,
            env={**environment, **fault, "FAULT_FOLDER": str(folder), "FAULT_MARK": str(mark)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=TIMEOUT,
        )
        problems = "".join(damaged_checkpoints(folder))
        err = done.stderr.decode(errors="replace") + problems
        return Outcome(done.returncode, done.stdout, err, contents(folder, inputs), mark.exists())


def damaged_checkpoints(folder: Path) -> Iterator[str]:
    for path in folder.rglob("step_*.safetensors"):
        try:
            CheckpointFile(path).read(N_PARAMETERS)
        except PyLLM2Error as error:
            yield f"DAMAGED {error}\n"


def judge(found: Outcome, before: dict[str, bytes], usual: Outcome) -> list[str]:
    """What is wrong with an outcome."""
    wrong = []
    errors = [line for line in found.err.splitlines() if line.startswith("pyllm2: error: ")]
    if "Traceback" in found.err or "DAMAGED" in found.err:
        wrong.append(found.err)
    if found.code not in (0, 1) or len(errors) != found.code:
        wrong.append(f"exit code {found.code}, errors {errors}: {found.err[-300:]}")
    if found.code == 0 and found.out != usual.out:
        wrong.append("another output")
    for name in sorted({*found.files, *before, *usual.files}):
        base = os.path.basename(name)
        now, old, new = (files.get(name) for files in (found.files, before, usual.files))
        if base in VOLATILE or ".pyllm2-" in name:
            if ".pyllm2-" in name:
                wrong.append(f"left: {name}")
            continue
        if found.code == 0 and now != new:
            wrong.append(f"{name} is not that of an undisturbed run")
        if now not in (old, new) and not base.startswith("step_"):
            wrong.append(f"{name} is neither old nor new")
    steps = [
        max((name for name in files if "step_" in name), default="")
        for files in (before, found.files)
    ]
    if steps[1] < steps[0]:
        wrong.append(f"newest checkpoint was {steps[0]}, is {steps[1]}")
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--calls", type=int, default=40, help="calls of a kind that fail in turn")
    parser.add_argument("--only", choices=COMMANDS, help="one command")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    environment |= {"PYTHONSAFEPATH": "1", "MPLCONFIGDIR": tempfile.gettempdir()}
    total = Tally()
    with tempfile.TemporaryDirectory(prefix="pyllm2-faults-") as place:
        inputs = Path(place).resolve() / "inputs"
        library = build(Path(place))
        prepare(inputs, environment)
        faulty = {**environment, "LD_PRELOAD": str(library)}
        before = contents(inputs, inputs)
        for name, argv in COMMANDS.items():
            if options.only in (None, name):
                usual = run(argv, inputs, faulty)
                if usual.code:
                    raise SystemExit(f"{name} fails by itself: {usual.err}")
                tally = examine(argv, inputs, faulty, before, usual, options)
                print(
                    f"{name:<17} {tally.runs:4} faults: {tally.refused} refused, "
                    f"{tally.unharmed} unharmed, {len(tally.wrong)} wrong",
                    flush=True,
                )
                for text in tally.wrong:
                    print(f"    {name}: {text}")
                total.runs += tally.runs
                total.wrong += tally.wrong
    print(f"{total.runs} faults, {len(total.wrong)} wrong")
    return 1 if total.wrong else 0


def examine(
    argv: list[str],
    inputs: Path,
    environment: dict[str, str],
    before: dict[str, bytes],
    usual: Outcome,
    options: argparse.Namespace,
) -> Tally:
    """All faults of one command."""
    tally = Tally()

    def one(call: str, at: int) -> Outcome:
        fault = {"FAULT_CALL": call, "FAULT_AT": str(at), "FAULT_ERRNO": str(CALLS[call])}
        return run(argv, inputs, environment, **fault)

    with ThreadPoolExecutor(options.jobs) as pool:
        for call in CALLS:
            numbers = range(1, options.calls + 1)
            for start in range(0, options.calls, options.jobs):
                some = numbers[start : start + options.jobs]
                outcomes = list(pool.map(one, [call] * len(some), some))
                for at, found in zip(some, outcomes, strict=True):
                    if found.failed:
                        tally.runs += 1
                        tally.refused += found.code == 1
                        tally.unharmed += found.code == 0
                        tally.wrong += [
                            f"{call} {at}: {text}" for text in judge(found, before, usual)
                        ]
                if not all(found.failed for found in outcomes):
                    break
    return tally


if __name__ == "__main__":
    sys.exit(main())
