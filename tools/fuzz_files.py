"""Damage every kind of file that a command reads, and count what the command does with it.

    python -m tools.fuzz_files --cases 3000 --seed 1

Two of three cases run in a fork of a process that has imported pyllm2, the third as the real
command line. Both have 2 GiB of address space and a time limit. A good outcome is exit code 0, or
exit code 1 and one line of error with printable text; a traceback, a signal, a hang, memory past
the limit and anything else is a failure: its files are kept and its command is printed.

Exit code 0 if nothing failed.
"""

from __future__ import annotations

import argparse
import os
import random
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from tests.hostile.llmc_files import EVALUATION, GPT2, VOCABULARY
from tests.support.command import TIMEOUT, Argument, Outcome, as_process, in_process
from tests.support.forked import as_fork
from tests.support.llama2_files import checkpoint, lay_out, quantized
from tests.support.toy_training import TRAIN, write_shards
from tools.fuzzing import mutate

ALARM = -14  # exit code of a fork whose time is over
MODEL = "m.bin --tokenizer t.bin --backend numpy".split()
GENERATE = ["generate", *MODEL, "--max-new-tokens", "2", "--seed", "1", "--prompt", "a cab"]
GPT2_GENERATE = "generate g.bin --tokenizer v.bin --backend numpy --max-new-tokens 2".split()
RESUME = [*TRAIN, "--resume"]
CHECKPOINT = "out/step_00000006.safetensors"
# (kind, file that is damaged, its bytes or None as it is, commands that read it)
Kind = tuple[str, str, bytes | None, list[list[str]]]
KINDS: list[Kind] = [
    *(
        (
            f"llama2 {name}",
            "m.bin",
            data,
            [
                GENERATE,
                [*GENERATE, "--mmap"],
                "run m.bin -z t.bin -n 3 -s 1 --backend numpy".split(),
                "export m.bin out.bin --format v1 --force".split(),
                "quantize m.bin out.bin --group-size 4 --report --force".split(),
            ],
        )
        for name, data in (
            ("v0", checkpoint(0)),
            ("v1", checkpoint(1, False)),
            ("v2", quantized()),
        )
    ),
    (
        "tokenizer.bin",
        "t.bin",
        None,
        [
            GENERATE,
            "run m.bin -z t.bin -n 3 -s 1 --backend numpy -i a".split(),
            "tokenize --tokenizer t.bin --pieces abc".split(),
            "tokenizer export t.bin out.bin --force".split(),
        ],
    ),
    (
        "SentencePiece",
        "text.model",
        None,
        [
            "tokenize --tokenizer text.model --pieces abc".split(),
            "tokenizer export text.model out.bin --force".split(),
        ],
    ),
    ("ranks", "ranks.txt", None, ["tokenize --tokenizer ranks.txt --decode 97".split()]),
    ("gpt2", "g.bin", GPT2, [GPT2_GENERATE, [*GPT2_GENERATE, "--mmap"]]),
    ("gpt2 tokenizer", "v.bin", VOCABULARY, [GPT2_GENERATE]),
    ("evaluation", "e.bin", EVALUATION, ["eval hellaswag g.bin --data e.bin".split()]),
    ("shard", "train_0.bin", None, [[*TRAIN, "--steps", "2"]]),
    ("training checkpoint", CHECKPOINT, None, [RESUME]),
    ("log", "out/main.log", None, [[*RESUME, "--plot", "loss.svg"]]),
    (
        "text",
        "text.txt",
        None,
        [
            "data prepare text.txt --tokenizer bytes --val-tokens 9 --out new".split(),
            "tokenizer train text.txt --vocab-size 300 --out out.model --force".split(),
            "tokenize --tokenizer t.bin --text-file text.txt".split(),
        ],
    ),
]


def prepare(folder: Path) -> None:
    """Write all files, and a training run that has stopped halfway."""
    folder.mkdir()
    lay_out(folder, {"g.bin": GPT2, "v.bin": VOCABULARY, "e.bin": EVALUATION})
    write_shards(folder)
    (folder / "text.txt").write_text("one two three four five six seven eight nine\n\n" * 20)
    ranks = (f"{'QUJD'[: 4 * (r > 0)] or 'QQ=='} {r}\n" for r in range(2))
    (folder / "ranks.txt").write_text("".join(ranks))
    for argv in (
        "tokenizer train text.txt --vocab-size 280 --out text.model".split(),
        [*TRAIN, "--save-every", "6"],
    ):
        outcome = in_process(argv, folder)
        if outcome.code:
            raise SystemExit(outcome.err.decode())
    (folder / "out" / "step_00000012.safetensors").unlink()


def judge(outcome: Outcome, argv: list[Argument]) -> str:
    """The kind of an outcome. `doctor` prints what it finds, with exit codes of its own."""
    said = outcome.err.decode(errors="replace")
    errors = [line for line in said.splitlines() if line.startswith("pyllm2: error: ")]
    if "Traceback" in said or outcome.code == 70:
        return "traceback"
    if outcome.code == ALARM:
        return "hang"
    if outcome.code < 0 or outcome.code > 128:
        return "signal"
    if "not enough memory" in said:
        return "memory"
    if outcome.code == 0 and not errors:
        return "done"
    if argv[0] == "doctor" and outcome.code in (1, 3) and not errors:
        return "refused"
    if outcome.code == 1 and len(errors) == 1 and errors[0].isprintable():
        return "refused"
    return "other"


def run(how: Callable[..., Outcome], argv: list[Argument], folder: Path) -> tuple[str, str]:
    """The kind of outcome of a command, and its stderr."""
    try:
        outcome = how(argv, folder)
    except subprocess.TimeoutExpired:
        return "hang", ""
    return judge(outcome, argv), outcome.err.decode(errors="replace")


def fuzz(
    kinds: list[Kind],
    prepare: Callable[[Path], None],
    cases: int,
    seed: int,
    change: Callable[[str, bytes, random.Random], bytes],
) -> int:
    """Damage files and run commands; the exit code.

    prepare: makes a folder of valid files   change: (path, its bytes, random) -> damaged bytes
    """
    rng = random.Random(seed)
    counts: Counter[str] = Counter()
    place = Path(tempfile.mkdtemp(prefix="pyllm2-fuzz-")).resolve()
    inputs, folder = place / "inputs", place / "work"
    prepare(inputs)
    for number in range(cases):
        name, path, data, commands = kinds[number % len(kinds)]
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(inputs, folder)
        valid = (folder / path).read_bytes() if data is None else data
        (folder / path).write_bytes(change(path, valid, rng))
        argv: list[Argument] = [*rng.choice(commands)]
        how = as_process if rng.random() < 1 / 3 else as_fork
        kind, said = run(how, argv, folder)
        left = [p for p in folder.rglob("*") if p.name.startswith(".pyllm2-")]
        if left:
            kind, said = "other", f"{said}left over: {left}"
        counts[kind] += 1
        if kind not in ("done", "refused"):
            kept = place / f"failure{counts.total()}"
            shutil.copytree(folder, kept)
            command = shlex.join(map(os.fsdecode, argv))
            print(f"{name}: {kind}: pyllm2 {command}\n  files in {kept}")
            print("".join(f"  | {line}\n" for line in said.splitlines()[-12:]), flush=True)
    failures = counts.total() - counts["done"] - counts["refused"]
    kinds_of_outcome = "done refused traceback signal hang memory other".split()
    print(
        f"{counts.total()} cases (seed {seed}, at most {TIMEOUT} s each): "
        + ", ".join(f"{kind} {counts[kind]}" for kind in kinds_of_outcome)
    )
    if not failures:
        shutil.rmtree(place)
    return 1 if failures else 0


def options_for(kinds: list[Kind], cases: int, about: str) -> argparse.Namespace:
    """The command line; `kinds` has those that --only leaves."""
    parser = argparse.ArgumentParser(description=about.splitlines()[0])
    parser.add_argument("--cases", type=int, default=cases)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", choices=[kind[0] for kind in kinds], help="one kind of file")
    options = parser.parse_args()
    options.kinds = [kind for kind in kinds if options.only in (None, kind[0])]
    return options


def change(path: str, valid: bytes, rng: random.Random) -> bytes:
    return mutate(valid, rng, min(len(valid), 1100))


def main() -> int:
    options = options_for(KINDS, 3000, __doc__ or "")
    return fuzz(options.kinds, prepare, options.cases, options.seed, change)


if __name__ == "__main__":
    sys.exit(main())
