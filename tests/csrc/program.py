"""Build csrc/run.c and csrc/train_gpt2.c, alone and with a shim around the parts, and run them."""

from __future__ import annotations

import os
import resource
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


# The parts of train_gpt2.c that a test calls one by one, besides those of mersenne.c.
TRAINER_SHIM = """
#define main train_main
#include "train_gpt2.c"
#undef main
static loader shim_loader;
static gpt2_vocabulary shim_vocabulary;
int64_t shim_open(const char *pattern, const int64_t *shape)
{
    shim_loader = (loader){.B = shape[0], .T = shape[1], .rank = shape[2], .processes = shape[3],
                           .shuffle = shape[4] != 0, .vocab_size = 65536};
    open_loader(&shim_loader, pattern);
    return shim_loader.num_tokens;
}
void shim_next(int32_t *tokens, int64_t *position)
{
    loader *l = &shim_loader;
    loader_next(l);
    memcpy(tokens, l->tokens, (size_t)(l->B * l->T + 1) * sizeof *tokens);
    position[0] = l->shard;
    position[1] = l->sample;
    position[2] = l->shard_order[l->shard];
    position[3] = l->shuffle ? l->sample_order[l->sample - 1] : l->sample - 1;
}
void shim_reset(void) { loader_reset(&shim_loader); }
void shim_seek(int64_t shard, int64_t sample) { loader_seek(&shim_loader, shard, sample); }
void shim_close(void) { close_loader(&shim_loader); }
int32_t shim_vocabulary_of(const char *path, int32_t V)
{
    shim_vocabulary = read_gpt2_vocabulary(path, V, "model");
    return shim_vocabulary.end_of_text;
}
int32_t shim_shown(int32_t id, unsigned char *out)
{
    const unsigned char *text;
    const int32_t n = shown_text(&shim_vocabulary, id, &text);
    memcpy(out, text, (size_t)n);
    return n;
}
void shim_draw(const gpt2_config *config, float *floats)
{
    gpt2_parameters params;
    gpt2_parameters_bind(&params, config, floats);
    draw_parameters(&params, config);
}
"""


def limit_memory():
    """A lie about sizes has to be noticed, not tried."""
    resource.setrlimit(resource.RLIMIT_AS, (2**32, 2**32))


def run(program, *arguments, stdin=b"", cwd=None):
    command = [os.fsencode(a) for a in (program, *arguments)]
    return subprocess.run(
        command, input=stdin, capture_output=True, cwd=cwd, timeout=120, preexec_fn=limit_memory
    )


def refused(done, *words, program="run"):
    """Exit code 1, nothing on stdout, one line on stderr that holds every word."""
    message = done.stderr.decode()
    assert done.returncode == 1, message
    assert done.stdout == b""
    errors = [line for line in message.splitlines() if line.startswith(f"{program}: error: ")]
    assert message.splitlines()[-1:] == errors, message
    for word in words:
        assert word in errors[0], message
    return True
