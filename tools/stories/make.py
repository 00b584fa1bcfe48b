"""Make the model in the box: text from a teacher, a vocabulary, shards, training.

    python tools/stories/make.py stories260K.bin tok512.bin FOLDER

Every step is a command that anybody could type; this only types them. A step whose result is in
FOLDER already is not done again, so that it goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

PROCESSES = 2  # that sample, each every second story
MEGABYTES = 4.2  # of each
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
    """One process a text."""
    script = Path(__file__).with_name("sample.py")
    running = [
        subprocess.Popen(
            [sys.executable, str(script), teacher, vocabulary, str(text),
             "--megabytes", str(MEGABYTES), "--first", str(i), "--every", str(PROCESSES)]
        )
        for i, text in enumerate(texts)
        if not text.exists()
    ]  # fmt: skip
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
    steps = [
        (model, pyllm2("tokenizer", "train", *texts, "--vocab-size", VOCABULARY, "--out", model)),
        (tokenizer, pyllm2("tokenizer", "export", model, tokenizer)),
        (data, pyllm2("data", "prepare", *texts, "--tokenizer", tokenizer, "--out", data,
                      "--val-tokens", VALIDATION_TOKENS)),
        (run / "model.bin", pyllm2("train", "llama2", "--init", SHAPE,
                                   "--train", data / "train.bin", "--val", data / "val.bin",
                                   "--tokenizer", tokenizer, "--out", run,
                                   "--backend", options.backend, *recipe,
                                   *(["--resume"] if any(run.glob("step_*")) else []))),
    ]  # fmt: skip
    for result, command in steps:
        if not result.exists():
            print(" ".join(command), file=sys.stderr)
            subprocess.run(command, check=True)
    print(f"{run / 'model.bin'} and {tokenizer}: put them into pyllm2/stories/")


if __name__ == "__main__":
    main()
