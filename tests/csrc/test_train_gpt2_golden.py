"""csrc/train_gpt2.c in its strict build against the record of the original, bit for bit."""

from __future__ import annotations

import hashlib
import json
import re

import numpy as np
import pytest

from tests.csrc.oracle import same_bits
from tests.csrc.program import run
from tests.csrc.trainer_parts import CLoader, first_weights, normals


@pytest.fixture(scope="module")
def llmc(shared):
    return shared / "golden" / "llmc"


def flags_of(model, folder, *more):
    shards = ["-i", folder / "train.bin", "-j", folder / "val.bin"]
    return ["-e", model, *shards, *map(str, more)]


def test_transcript_is_that_of_the_original(llmc, trainer):
    """The standard output of 41 steps, byte for byte except for times."""
    folder = llmc / "program_cpu" / "small"
    flags = flags_of(llmc / "models/small/model.bin", folder, "-z", folder / "tokenizer.bin")
    done = run(trainer, *flags)
    assert done.returncode == 0
    assert done.stderr == b""
    masked = re.sub(rb"took [0-9.]+ ms", b"took * ms", done.stdout)
    assert masked == (folder / "stdout.txt").read_bytes()


def test_trained_model_has_the_recorded_bits(llmc, trainer, tmp_path):
    """Every printed line and, after 41 updates, every parameter."""
    folder = llmc / "trainer_cpu" / "tiny"
    model = llmc / "models/tiny/model.bin"
    flags = ["-z", "none", "-t", 16, "-l", "1e-3", "-o", tmp_path / "out.bin"]
    done = run(trainer, *flags_of(model, folder, *flags))
    assert done.returncode == 0
    log = json.loads((folder / "log.json").read_text())
    expected = []
    for event in log["events"]:
        written = "".join(f"{i} " for i in event.get("generated", []))
        expected += [event["line"]] if "line" in event else ["generating:", "---", written, "---"]
    lines = re.sub(r" \(took [0-9.]+ ms\)", "", done.stdout.decode()).splitlines()
    assert lines[11:] == expected
    assert lines[8] == f"train dataset num_batches: {log['train_num_batches']}"
    assert lines[9] == f"val dataset num_batches: {log['val_num_batches']}"
    content = (tmp_path / "out.bin").read_bytes()
    assert content[:1024] == model.read_bytes()[:1024]
    final = np.load(folder / "final.npz")["params"]
    assert same_bits(np.frombuffer(content, "<f4", offset=1024), final)


# ---- data -----------------------------------------------------------------------------------


def test_batches_and_positions_are_the_recorded_ones(llmc, trainer_library):
    """Every recorded run: shards by pattern, ranks, shuffles, resets, seeks."""
    folder = llmc / "dataloader"
    runs = json.loads((folder / "runs.json").read_text())
    z = np.load(folder / "sequences.npz")
    assert len(runs) == 11
    for name, r in runs.items():
        B, T, shuffle = r["B"], r["T"], bool(r["should_shuffle"])
        pattern = folder / "shards" / r["pattern"]
        shape = (B, T, r["process_rank"], r["num_processes"], shuffle)
        loader = CLoader(trainer_library, pattern, *shape)
        assert loader.num_tokens == r["num_tokens"], name
        batch = 0
        for step in r["script"]:
            if step[0] == "reset":
                trainer_library.reset()
            elif step[0] == "resume":
                trainer_library.seek(*step[1:])
            else:
                for _ in range(step[1]):
                    tokens, position = loader.next()
                    assert (tokens[:-1] == z[name + "__inputs"][batch].ravel()).all(), name
                    assert (tokens[1:] == z[name + "__targets"][batch].ravel()).all(), name
                    assert position == tuple(z[name + "__pos"][batch]), name
                    batch += 1
        assert batch == len(z[name + "__inputs"])
        trainer_library.close()


def test_tokens_print_as_recorded(llmc, trainer_library):
    """The printed bytes of each token of two files, and their end-of-text ids."""
    folder = llmc / "tokenizer"
    record = json.loads((folder / "tokenizer.json").read_text())
    out = np.zeros(300, np.uint8)
    for name, printed in (("small", "printed_hex"), ("small_rev", None)):
        case = record[name]
        path = str(folder / case["file"]).encode()
        assert trainer_library.vocabulary_of(path, case["vocab"]) == case["eot"]
        if printed is not None:
            for token, shown in record[printed].items():
                n = trainer_library.shown(int(token), out)
                assert out[:n].tobytes().hex() == shown, token


# ---- random numbers -------------------------------------------------------------------------


def test_words_and_floats_are_the_recorded_ones(llmc, trainer_library):
    """MT19937 after each seed of the record, and the next word after some normals."""
    library = trainer_library
    record = json.loads((llmc / "rand.json").read_text())
    assert len(record) == 8
    for name, r in record.items():
        seed = int(name)
        library.seed(seed)
        words = [library.u32() for _ in range(1252)]
        assert words[:20] == r["u32_first20"]
        assert words[620:630] == r["u32_620_630"]
        assert words[1244:] == r["u32_1244_1252"]
        library.seed(seed)
        assert [str(library.u64()) for _ in r["u64"]] == r["u64"]
        library.seed(seed)
        assert [library.f32() for _ in r["f32"]] == r["f32"]
        library.seed(seed)
        assert [library.f64() for _ in r["f64"]] == r["f64"]
        for n in (1, 2, 5, 8, 15, 16, 17, 24, 31, 32, 33, 48, 100):
            library.seed(seed)
            normals(library, n)
            next_word = library.u32()
            assert next_word == r[f"next_u32_after_normal_n{n}"]


def test_permutations_are_the_recorded_ones(llmc, trainer_library):
    """A shuffle, a second one on top, and the word after it."""
    for seed, r in json.loads((llmc / "rand.json").read_text()).items():
        for name, case in r["perm"].items():
            n = int(name)
            trainer_library.seed(int(seed))
            items = np.arange(n, dtype=np.int32)
            for kept in ("first", "second_on_top"):
                trainer_library.shuffle(items, n)
                assert items.tolist() == case[kept]
            assert trainer_library.u32() == case["next_u32"]


def test_normals_are_the_recorded_bits(llmc, trainer_library):
    """Every recorded seed, count, mean and deviation."""
    z = np.load(llmc / "rand_normals.npz")
    for name in z.files:
        seed, n, mean, std = (part[1:] for part in name.split("_"))
        trainer_library.seed(int(seed))
        got = normals(trainer_library, int(n), float(mean), float(std))
        assert same_bits(got, z[name]), name


@pytest.mark.parametrize("name", ["init_tiny", "d6"])
def test_first_weights_are_the_recorded_ones(llmc, trainer_library, name):
    """Of a small shape and of the smallest named one."""
    record = json.loads((llmc / "init/init.json").read_text())[name]
    values = [record["config"][field] for field in ("maxT", "V", "L", "NH", "C", "Vp")]
    floats = first_weights(trainer_library, values)
    assert hashlib.sha256(floats).hexdigest() == record["sha256_fp32"]
