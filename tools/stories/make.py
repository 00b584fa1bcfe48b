"""Make the bundled model: text sampled from a teacher, vocabulary, shards, training.

    python tools/stories/make.py stories260K.bin tok512.bin FOLDER

Every step is an ordinary command. A step whose result is already in FOLDER is skipped, so an
interrupted script continues.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

PROCESSES = 2  # sampling processes, each makes every second story
MEGABYTES = 4.2  # per process
VOCABULARY = 1024
VALIDATION_TOKENS = 50_000
SHAPE = "dim=128,layers=5,heads=8,kv_heads=4,context=256"
RECIPE = {
    "--batch": 8,
    "--context": 256,
    "--total-batch": 8192,
    "--steps": 1500,
    "--warmup": 60,
    "--learning-rate": 2e-3,
    "--val-every": 100,
    "--val-batches": 10,
    "--sample-every": 200,
    "--sample-tokens": 120,
    "--save-every": 25,
    "--seed": 1337,
}


def pyllm2(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "pyllm2", *map(str, arguments)]


def sample(teacher: str, vocabulary: str, texts: list[Path]) -> None:
    """Run one sampling process per text."""
    script = Path(__file__).with_name("sample.py")
    running = []
    for i, text in enumerate(texts):
        if not text.exists():
            flags = f"--megabytes {MEGABYTES} --first {i} --every {PROCESSES}".split()
            command = [sys.executable, str(script), teacher, vocabulary, str(text), *flags]
            running.append(subprocess.Popen(command))
    for process in running:
        if process.wait():
            raise SystemExit(process.returncode)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("teacher")
    parser.add_argument("vocabulary")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--backend", default="numba")
    options = parser.parse_args()

    folder = options.folder
    folder.mkdir(parents=True, exist_ok=True)
    texts = [folder / f"stories{i}.txt" for i in range(PROCESSES)]
    sample(options.teacher, options.vocabulary, texts)

    model, tokenizer = folder / "stories.model", folder / "tokenizer.bin"
    data, run = folder / "data", folder / "run"
    recipe = [word for item in RECIPE.items() for word in item]
    train = pyllm2("tokenizer", "train", *texts, "--vocab-size", VOCABULARY, "--out", model)
    prepare = pyllm2("data", "prepare", *texts, "--tokenizer", tokenizer, "--out", data)
    fit = pyllm2("train", "llama2", "--init", SHAPE, "--out", run, *recipe)
    fit += ["--train", str(data / "train.bin"), "--val", str(data / "val.bin")]
    fit += ["--tokenizer", str(tokenizer), "--backend", options.backend]
    fit += ["--resume"] if any(run.glob("step_*")) else []
    steps = [
        (model, train),
        (tokenizer, pyllm2("tokenizer", "export", model, tokenizer)),
        (data, [*prepare, "--val-tokens", str(VALIDATION_TOKENS)]),
        (run / "model.bin", fit),
    ]
    for result, command in steps:
        if not result.exists():
            print(" ".join(command), file=sys.stderr)
            subprocess.run(command, check=True)
    print(f"copy {run / 'model.bin'} and {tokenizer} to pyllm2/stories/")


if __name__ == "__main__":
    main()
