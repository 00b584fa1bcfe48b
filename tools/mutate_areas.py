"""Where bugs are planted, how many, and which tests know the code."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Area:
    """Files with one kind of code, and the tests that know it. Patterns as for Path.glob.

    In `tests`, {package} stands for llama2, gpt2 or training, {stem} for the name of the file.
    backend: which ops their properties are tried on; empty if the files have no ops
    backends: those that the tests run on   seconds: of processor time for all of them
    interpreted: first try what comes first as plain Python, see `mutate_interpret`
    """

    name: str
    files: str
    per_function: int  # bugs to plant, at most
    most: int  # in all the files
    tests: str
    backend: str = ""
    backends: str = "numpy"
    seconds: int = 30
    interpreted: bool = False
    but: str = ""  # files that belong elsewhere


AREAS = (
    Area(
        "numpy",
        "pyllm2/*/ops.py",
        4,
        140,
        "tests/{package}/test_ops*.py tests/testing/test_gradcheck.py tests/{package}/test_*.py",
        backend="numpy",
    ),
    Area(
        "numba",
        "pyllm2/*/ops_numba.py",
        4,
        120,
        "tests/{package}/test_ops*.py tests/{package}/test_*.py",
        backend="numba-strict",
        backends="numba-strict,numba",
        interpreted=True,
    ),
    Area(
        "c",
        "csrc/*/ops.c csrc/*/matmul.c csrc/*/model.c csrc/*/training.c csrc/common/adamw.c",
        3,
        160,
        "tests/csrc/test_*bits.py tests/{package}/test_ops*.py tests/csrc/test_{package}*.py "
        "tests/{package}/test_*.py",
        backend="c-strict",
        backends="c-strict",
    ),
    Area(
        "binding",
        "pyllm2/*/ops_c.py",
        1,
        40,
        "tests/csrc/test_c_*.py tests/csrc/test_*.py tests/{package}/test_*.py",
        backend="c-strict",
        backends="c-strict,c",
    ),
    Area(
        "program",
        "csrc/**/*.c csrc/**/*.h",
        2,
        80,
        "tests/csrc/test_mersenne.py tests/csrc/test_*.py",
        backends="c-strict",
    ),
    Area(
        "vectors",
        "pyllm2/fast/ir.py pyllm2/fast/tile.py pyllm2/fast/vectors*.py",
        1,
        60,
        "tests/fast/test_{stem}*.py tests/fast/test_*.py tests/llama2/test_*numba*.py",
        backends="numba",
        seconds=120,
    ),
    Area(
        "fast",
        "pyllm2/fast/**/*.py",
        1,
        110,
        "tests/fast/test_{stem}*.py tests/llama2/test_training_numba.py "
        "tests/gpt2/test_engine_numba.py tests/{package}/test_model.py "
        "tests/{package}/test_training.py tests/fast/test_*.py tests/{package}/test_*numba*.py",
        backends="numba",
        seconds=120,
        interpreted=True,
    ),
    Area(
        "compiling",
        "pyllm2/compiling/*.py",
        1,
        30,
        "tests/compiling/test_*.py tests/csrc/test_c_*.py tests/csrc/test_*bits.py "
        "tests/llama2/test_numba*.py",
        backends="numba,numba-strict,c-strict,c",
        seconds=60,
    ),
    Area(
        "model",
        "pyllm2/llama2/*.py pyllm2/gpt2/*.py pyllm2/parameters.py",
        2,
        80,
        "tests/{package}/test_{stem}.py tests/{package}/test_*.py tests/testing/test_*.py "
        "tests/inference/test_*.py tests/hostile/test_*.py tests/training/test_*.py",
    ),
    Area(
        "inference",
        "pyllm2/inference/*.py",
        2,
        50,
        "tests/inference/test_*.py tests/llama2/test_*.py tests/hostile/test_*.py "
        "tests/cli/test_*.py",
    ),
    Area(
        "tokenizers",
        "pyllm2/tokenizers/*.py",
        2,
        50,
        "tests/tokenizers/test_*.py tests/hostile/test_tokenizer_json.py "
        "tests/hostile/test_sentencepiece.py tests/cli/test_tokenize*.py "
        "tests/inference/test_gguf.py tests/cli/test_chat.py tests/cli/test_any_tokenizer.py "
        "tests/hostile/test_refusals.py",
        seconds=60,
    ),
    Area(
        "formats",
        "pyllm2/formats/*.py",
        1,
        50,
        "tests/formats/test_*.py tests/inference/test_folders.py tests/inference/test_gguf.py "
        "tests/hostile/test_*.py tests/{package}/test_*.py tests/training/test_*.py "
        "tests/tokenizers/test_*.py",
        seconds=60,
    ),
    Area(
        "training",
        "pyllm2/training/*.py pyllm2/mersenne.py",
        2,
        80,
        "tests/training/test_{stem}.py tests/training/test_*.py tests/hostile/test_training.py",
        but="pyllm2/training/plot.py pyllm2/training/signals.py",
    ),
)
