"""Build csrc/run.c, alone and with a shim around its parts, and run it."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

CSRC = Path(__file__).parents[2] / "csrc"
STRICT = ["-O2", "-ffp-contract=off"]
WARNINGS = ["-std=c99", "-Wall", "-Wextra", "-pedantic"]


def compile_c(target, *arguments):
    """Run the system compiler and return what it printed."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler named cc")
    command = [compiler, *arguments, "-o", str(target), "-lm"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


# The functions of run.c that read no file by themselves, made reachable.
SHIM = """
#define main run_main
#include "run.c"
#undef main
static vocabulary shim_vocabulary;
void shim_load(const char *path, int32_t V)
{
    shim_vocabulary = read_vocabulary(path, V, "model");
}
int64_t shim_encode(const char *text, int32_t *out)
{
    int64_t n;
    int32_t *ids = encode(&shim_vocabulary, text, &n);
    memcpy(out, ids, (size_t)n * sizeof *ids);
    free(ids);
    return n;
}
int32_t shim_decode(int32_t previous, int32_t id, char *out, int32_t *shown)
{
    unsigned char one;
    const unsigned char *text;
    int32_t n = decode_one(&shim_vocabulary, previous, id, &text, &one);
    memcpy(out, text, (size_t)n);
    *shown = is_shown(text, n);
    return n;
}
float shim_coin(uint64_t *random) { return next_coin(random); }
int32_t shim_sample(float *logits, int32_t V, float temperature, float topp, uint64_t *random)
{
    sampler s = {temperature, topp, *random, malloc((size_t)V * sizeof(candidate))};
    int32_t id = sample(&s, logits, V, 0);
    *random = s.random;
    free(s.candidates);
    return id;
}
"""


def run(program, *arguments, stdin=b"", cwd=None):
    command = [os.fsencode(a) for a in (program, *arguments)]
    return subprocess.run(command, input=stdin, capture_output=True, cwd=cwd, timeout=30)


def refused(done, *words):
    """Exit code 1, nothing on stdout, one line on stderr that holds every word."""
    message = done.stderr.decode()
    assert done.returncode == 1, message
    assert done.stdout == b""
    errors = [line for line in message.splitlines() if line.startswith("run: error: ")]
    assert message.splitlines()[-1:] == errors, message
    for word in words:
        assert word in errors[0], message
    return True
