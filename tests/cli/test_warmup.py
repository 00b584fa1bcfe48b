"""`pyllm2 warmup`: it asks for every kernel that generation and training ask for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pyllm2 import backends
from pyllm2.llama2.checkpoint import export
from tests.support.command import environment, in_process
from tests.support.llama2_files import checkpoint, vocabulary
from tests.support.toy_training import write_shards

# Runs `warmup`, then the commands of stdin (one per line), and prints those kernels and signatures
# that the commands asked Numba for and `warmup` did not. Whether a kernel is compiled or loaded
# from the cache makes no difference, so that the cache need not be empty.
PROBE = """
import sys
from numba.core.dispatcher import Dispatcher
from pyllm2.cli import main

asked, compile = set(), Dispatcher.compile

def recorded(self, signature):
    asked.add(f"{self.py_func.__module__}.{self.py_func.__qualname__} {signature}")
    return compile(self, signature)

Dispatcher.compile = recorded
assert main(["warmup", "--only", sys.argv[1]]) == 0
warm = set(asked)
assert warm
for line in sys.stdin:
    assert main(line.split()) == 0
print("MISSING", *sorted(asked - warm), sep="\\n")
"""
TRAINING = (
    "--train train_*.bin --val val.bin --batch 3 --context 4 --steps 2 --total-batch 24 --warmup 0 "
    "--sample-every 1"
)
LLAMA2 = "dim=24,layers=1,heads=3,vocab=13,context=9"
COMMANDS = f"""
generate m.bin --tokenizer t.bin --prompt hello --max-new-tokens 3
generate q8.bin --tokenizer t.bin --prompt hello --max-new-tokens 3 --mmap
train gpt2 --init layers=1,heads=3,channels=24,vocab=257,context=9 --out gpt2 {TRAINING}
generate gpt2/model.bin --tokenizer bytes --prompt-file m.txt --max-new-tokens 3
generate gpt2/model.bin --tokenizer bytes --max-new-tokens 3 --mmap
train llama2 --init {LLAMA2} --out plain {TRAINING}
train llama2 --init {LLAMA2} --out dropout {TRAINING} --dropout 0.2
""".strip().splitlines()


@pytest.mark.parametrize("backend", ["numba", "numba-strict"])
def test_after_it_no_command_needs_another_kernel(backend: str, tmp_path: Path) -> None:
    """Both families, float32 and int8, files read and mapped, inference and training."""
    if backends.why_not(backend) is not None:
        pytest.skip("needs numba")
    (tmp_path / "m.bin").write_bytes(checkpoint())
    (tmp_path / "t.bin").write_bytes(vocabulary())
    (tmp_path / "m.txt").write_bytes(b"")
    export(tmp_path / "m.bin", tmp_path / "q8.bin", "v2", 4)
    write_shards(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", PROBE, backend],
        cwd=tmp_path,
        env=environment(),
        input="\n".join(f"{line} --backend {backend}" for line in COMMANDS).encode(),
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.endswith(b"MISSING\n"), done.stdout.partition(b"MISSING\n")[2].decode()


def test_only_chooses_backends_families_and_work(tmp_path: Path) -> None:
    """Words of one kind add up; a kind without a word is not restricted."""
    outcome = in_process(["warmup", "--only", "numpy,c-strict,gpt2"], tmp_path)
    if backends.why_not("c-strict") is not None:
        assert outcome.code == 1
        return
    numpy, *lines = outcome.out.decode().splitlines()
    assert numpy == "numpy: has nothing to compile"
    assert [line.partition(": ready, ")[0] for line in lines] == [
        "c-strict: gpt2 float32 inference",
        "c-strict: gpt2 training",
    ]
