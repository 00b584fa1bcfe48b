"""Programs and libraries of csrc, compiled once per test session, and runs of the programs."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from filelock import FileLock

from pyllm2.compiling.c_header import parse
from pyllm2.compiling.c_library import Library

CSRC = Path(__file__).parents[2] / "csrc"
# Every -O level gives the same bits without contraction: -O3 where the program runs for long, -O1
# where compiling takes longer than the calls.
STRICT = "-O2 -ffp-contract=off -Wall -Wextra -pedantic".split()
STRICT_O3 = ["-O3", *STRICT[1:]]
SHARED = f"-O1 -ffp-contract=off -fPIC -shared -I{CSRC}".split()


def compile_c(target, *arguments):
    """Run the system compiler and return what it printed."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler named cc")
    command = [compiler, *map(str, arguments), "-o", str(target), "-lm"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


class Build:
    """Compiles each pair of source and flags once, for all worker processes of a session."""

    def __init__(self, folder):
        self.folder = folder

    def __call__(self, source, *flags):
        """The path of the program or library; the compiler's output is beside it, as .txt."""
        key = hashlib.sha256("\0".join([str(source), *flags]).encode()).hexdigest()[:8]
        folder = self.folder / key
        target = folder / Path(source).stem  # the usual name of the program
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / "lock"):
            if not target.exists():
                printed = compile_c(folder / "part", *flags, source)
                target.with_suffix(".txt").write_text(printed)
                (folder / "part").rename(target)
        return target

    def library(self, name, text):
        """A library of C text that includes files of csrc; calls reach its functions shim_..."""
        source = self.folder / f"{name}.c"
        with FileLock(self.folder / "lock"):
            source.write_text(text)
        loaded = ctypes.CDLL(str(self(source, *SHARED)))
        return Library(loaded, parse(text), "shim_")


# Functions of run.c that tests call one by one.
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


# Functions of train_gpt2.c that tests call one by one.
TRAINER_SHIM = """
#define main train_main
#include "train_gpt2.c"
#undef main
static loader shim_loader;
static gpt2_vocabulary shim_vocabulary;
static mersenne shim_random;
void shim_seed(uint32_t seed) { mersenne_seed(&shim_random, seed); }
uint32_t shim_u32(void) { return mersenne_u32(&shim_random); }
uint64_t shim_u64(void) { return mersenne_u64(&shim_random); }
float shim_f32(void) { return mersenne_f32(&shim_random); }
double shim_f64(void) { return mersenne_f64(&shim_random); }
void shim_normals(float *out, int64_t n, float mean, float std)
{
    mersenne_normals(out, n, mean, std, &shim_random);
}
void shim_shuffle(int32_t *items, int64_t n) { mersenne_shuffle(items, n, &shim_random); }
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
int32_t shim_shown(int32_t id, char *out)
{
    const unsigned char *text;
    const int32_t n = shown_text(&shim_vocabulary, id, &text);
    memcpy(out, text, (size_t)n);
    return n;
}
void shim_draw(float *floats, const int32_t *fields)
{
    gpt2_config config;
    gpt2_parameters params;
    memcpy(&config, fields, sizeof config);
    gpt2_parameters_bind(&params, &config, floats);
    draw_parameters(&params, &config);
}
"""


LIMITED = ["sh", "-c", 'ulimit -v 4194304; exec "$@"', "sh"]  # 4 GiB: huge allocations fail


def run(program, *arguments, stdin=b"", cwd=None):
    """Run a program, with limited memory."""
    command = LIMITED + [os.fsencode(a) for a in (program, *arguments)]
    return subprocess.run(command, input=stdin, capture_output=True, cwd=cwd, timeout=120)


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
