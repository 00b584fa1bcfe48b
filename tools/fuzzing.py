"""Shared code of the fuzzers: a build with sanitizers, mutations of files, outcomes of runs.

A good outcome is a clean run (exit code 0) or a refusal (exit code 1 and a line on stderr). A
sanitizer report, a signal, a timeout or anything else is a failure: its files are kept, its
command is printed, and the exit code is 1.
"""

import argparse
import os
import random
import shlex
import shutil
import struct
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

CSRC = Path(__file__).resolve().parent.parent / "csrc"
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g"]
SMALL = "0 1 2 3 4 5 7 8 16 63 64 127 255 256 269 270 271 65535 65536 -1 -2 -8 -270"
POWERS = (2**24, 2**28, 2**29, 2**30, 2**31 - 2, 2**31 - 1, -(2**31), -(2**31) + 1)
BOUNDARY = (*map(int, SMALL.split()), *POWERS)
GOOD = ("clean run", "refusal")


def put(content: bytes, at: int, value: int) -> bytes:
    """content with the int32 at a byte offset replaced."""
    return content[:at] + struct.pack("<i", value) + content[at + 4 :]


def mutate(content: bytes, rng: random.Random, header: int) -> bytes:
    """One random change: flip, cut, extend, overwrite an int, or copy a stretch elsewhere."""
    kind = rng.randrange(6)
    data = bytearray(content)
    if kind == 0:
        for _ in range(rng.randint(1, 8)):
            at = rng.randrange(len(data)) if data else 0
            data[at : at + 1] = bytes([rng.randrange(256)])
    elif kind == 1:
        del data[rng.randint(0, len(data)) :]
    elif kind == 2:
        data += rng.randbytes(rng.randint(1, 300))
    elif kind in (3, 4) and len(data) >= 4:
        last = min(header, len(data)) - 4 if kind == 3 else len(data) - 4
        at = rng.randint(0, max(last, 0))
        at -= at % 4 if rng.random() < 0.8 else 0
        data[at : at + 4] = struct.pack("<i", rng.choice(BOUNDARY))
    elif data:
        a, b = rng.randrange(len(data)), rng.randrange(len(data))
        n = rng.randint(1, 64)
        data[a : a + n] = data[b : b + n]
    return bytes(data)


def outcome(command: list[str | bytes], stdin: bytes, timeout: float, cwd: Path) -> tuple[str, str]:
    """The kind of outcome of a command, and its stderr."""
    environment = {
        **os.environ,
        "ASAN_OPTIONS": "allocator_may_return_null=1:exitcode=99",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }
    try:
        done = subprocess.run(
            command, input=stdin, capture_output=True, timeout=timeout, env=environment, cwd=cwd
        )
    except subprocess.TimeoutExpired:
        return "timeout", ""
    message = done.stderr.decode(errors="replace")
    lines = message.splitlines()
    speaks = (f"{Path(os.fsdecode(command[0])).name}: error: ", "usage: ")
    refused = any(line.startswith(speaks) for line in lines)
    # a refusal leaves its memory to exit(); a clean run must free all of it
    if refused and "ERROR: LeakSanitizer" in message:
        kind = "refusal"
    elif "Sanitizer: " in message or "runtime error: " in message:
        kind = "sanitizer report"
    elif done.returncode < 0:
        kind = "signal"
    elif done.returncode == 0:
        kind = "clean run"
    elif done.returncode == 1 and refused:
        kind = "refusal"
    else:
        kind = "other"
    return kind, message


def options_of(about: str) -> argparse.Namespace:
    """The command line of a fuzzer."""
    parser = argparse.ArgumentParser(description=about.partition("\n")[0])
    parser.add_argument("--cases", type=int, default=500, help="mutated inputs (default 500)")
    parser.add_argument("--seed", type=int, default=1, help="seed of the mutations (default 1)")
    parser.add_argument("--timeout", type=float, default=20.0, help="seconds per run (default 20)")
    parser.add_argument(
        "--optimize", default="1", help="-O level (default 1; 0 also detects unused reads)"
    )
    parser.add_argument("--flags", default="", help="more compiler flags, as one argument")
    parser.add_argument("--cc", default="cc", help="compiler (default cc)")
    return parser.parse_args()


class Fuzzer:
    """A program of csrc built with sanitizers, a folder to run it in, and counts of outcomes."""

    def __init__(self, name: str, options: argparse.Namespace) -> None:
        if shutil.which(options.cc) is None:
            print(f"fuzz_{name}: error: no compiler named {options.cc}", file=sys.stderr)
            raise SystemExit(1)
        self.options = options
        self.folder = Path(tempfile.mkdtemp(prefix=f"fuzz_{name}_"))
        self.program = self.folder / name
        self.counts: Counter[str] = Counter()
        self.failures = 0
        flags = [*SANITIZE, f"-O{options.optimize}", *shlex.split(options.flags)]
        source = str(CSRC / f"{name}.c")
        subprocess.run([options.cc, *flags, source, "-lm", "-o", str(self.program)], check=True)

    def case(
        self,
        name: str,
        files: dict[str, bytes],
        arguments: list[str | bytes],
        wanted: str,
        stdin: bytes = b"",
    ) -> None:
        """Run one input; keep it if the outcome is bad or not the wanted one."""
        for path, content in files.items():
            (self.folder / path).write_bytes(content)
        command = [str(self.program), *arguments]
        kind, message = outcome(command, stdin, self.options.timeout, self.folder)
        self.counts[kind] += 1
        if kind in GOOD and wanted in ("", kind):
            return
        self.failures += 1
        kept = self.folder / f"failure{self.failures}"
        kept.mkdir()
        for path in files:
            shutil.copy(self.folder / path, kept)
        text = shlex.join(os.fsdecode(part) for part in command)
        print(f"{name}: {kind}" + (f", expected a {wanted}" if kind in GOOD else ""))
        print(f"  {text[:400]}\n  files in {kept}")
        print("".join(f"  | {line}\n" for line in message.splitlines()[:12]))

    def report(self) -> int:
        """Print the summary line; the exit code."""
        invalid = sum(self.counts.values()) - self.options.cases
        outcomes = ("clean run", "refusal", "sanitizer report", "signal", "timeout", "other")
        print(
            f"table of {invalid} and {self.options.cases} mutations (seed {self.options.seed}): "
            + ", ".join(f"{outcome}: {self.counts[outcome]}" for outcome in outcomes)
            + f"; failures: {self.failures}"
        )
        if self.failures == 0:
            shutil.rmtree(self.folder)
        return 1 if self.failures else 0
