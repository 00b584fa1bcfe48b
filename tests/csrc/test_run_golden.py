"""csrc/run.c against the record of the original: whole runs, then single functions."""

from __future__ import annotations

import itertools
import json
import struct

import numpy as np
import pytest

from tests.csrc.oracle import Model
from tests.csrc.program import refused, run
from tests.csrc.run_parts import decode, encode, generator, sample
from tests.csrc.tiny import SHAPE, checkpoint_v0, vocabulary


def records(golden, name):
    cases = json.loads((golden / name).read_text())
    cases = cases["cases"] if isinstance(cases, dict) else cases
    assert {case["engine"] for case in cases} == {"run", "runq"}
    return cases


def test_stories_are_the_original_bytes(golden, program):
    """Every recorded text of either engine, byte for byte, with the exit code."""
    for case in records(golden, "generations.json"):
        arguments = [golden / case["model"], "-z", golden / case["tokenizer"]]
        for flag, field in (("-t", "temperature"), ("-p", "topp"), ("-s", "seed"), ("-n", "steps")):
            arguments += [flag, case[field]] if case[field] is not None else []
        if case["prompt_hex"] is not None:
            arguments += ["-i", bytes.fromhex(case["prompt_hex"])]
        done = run(program, *arguments)
        assert done.stdout.hex() == case["stdout_hex"], case["name"]
        assert done.returncode == case["exit_code"], case["name"]
        assert (b"achieved tok/s: " in done.stderr) == case["speed_line_on_stderr"], case["name"]


def test_chats_are_the_original_bytes(golden, program):
    """Every recorded chat of either engine, byte for byte, with the exit code."""
    for case in records(golden, "chat.json"):
        arguments = [golden / case["model"], "-z", golden / case["tokenizer"], "-m", "chat"]
        for letter, value in case["options"].items():
            arguments += ["-" + letter, value]
        done = run(program, *arguments, stdin=bytes.fromhex(case["stdin_hex"]))
        assert done.stdout.hex() == case["stdout_hex"], case["name"]
        assert done.returncode == case["exit_code"], case["name"]


def test_command_line_is_the_original(golden, program, tmp_path):
    """Every recorded call gives the recorded stdout and exit code; undefined ones are refused."""
    model, tok = (golden / "stories260K.bin").read_bytes(), (golden / "tok512.bin").read_bytes()
    int8 = golden / "stories260K_q80_g64.bin"
    made = {
        "{SHORT_HEADER}": model[:20],
        "{HEADER_ONLY}": model[:28],
        "{HALF_MODEL}": model[:500000],
        "{MODEL_NO_ROPE}": model[:1040156],
        "{EMPTY}": b"",
        "{Q80_SHORT}": int8.read_bytes()[:30],
        "{TOK_HALF}": tok[:3000],
        "{TOK_3BYTES}": tok[:3],
        "{TOK_ZERO_LENGTH_PIECE}": struct.pack("<ifi", 7, 0, 0) + tok[4:],
    }
    paths = {
        "{MODEL}": golden / "stories260K.bin",
        "{Q80}": int8,
        "{TOK}": golden / "tok512.bin",
        "{TOK32K}": golden / "tokenizer.bin",
        "{MISSING}": tmp_path / "missing",
    }
    for name, content in made.items():
        paths[name] = tmp_path / name.strip("{}")
        paths[name].write_bytes(content)
    for case in records(golden, "cli.json"):
        if case["name"] in ("q80_engine_reads_v0", "q80_engine_reads_v1"):
            continue  # the original int8 program refuses these; run.c reads all layouts
        done = run(program, *(paths.get(a, a) for a in case["argv"]), cwd=tmp_path)
        if case["undefined_upstream"]:
            assert refused(done), case["name"]
            continue
        assert done.returncode == case["exit_code"], case["name"]
        if case["stdout_hex"] is not None:
            assert done.stdout.hex() == case["stdout_hex"], case["name"]
        if done.returncode != 0:
            assert done.stderr.startswith((b"run: error: ", b"usage: ")), case["name"]


def test_v1_file_tells_the_same_story(golden, program):
    """A v1 export of the same model gives the same bytes as the v0 file."""
    flags = ["-z", golden / "tok512.bin", "-s", "9", "-n", "80"]
    v0, v1 = (
        run(program, golden / name, *flags) for name in ("stories260K.bin", "stories260K_v1.bin")
    )
    assert v0.returncode == v1.returncode == 0
    assert v0.stdout == v1.stdout


# ---- the parts against the record -----------------------------------------------------------


def test_prompts_become_the_recorded_ids(golden, library):
    """Encoding gives the recorded ids for every text, under both vocabularies."""
    for name, tok, V in (("tok512", "tok512.bin", 512), ("tok32000", "tokenizer.bin", 32000)):
        library.load(str(golden / tok).encode(), V)
        for case in json.loads((golden / f"encode_{name}.json").read_text()):
            text = bytes.fromhex(case["text_hex"])
            first = 0 if case["bos"] else 1  # the program always adds BOS and never EOS
            assert encode(library, text)[first:] + [2] * case["eos"] == case["ids"], text


def test_long_prompts_are_merged_as_by_the_plain_rule(golden, library):
    """The heap merges like a repeated search for the best pair."""
    data, at, pieces, scores = (golden / "tok512.bin").read_bytes(), 4, [], []
    while at < len(data):
        score, length = struct.unpack_from("<fi", data, at)
        pieces.append(data[at + 8 : at + 8 + length])
        scores.append(score)
        at += 8 + length
    index = {p: i for i, p in enumerate(pieces)}
    text = bytes(np.random.default_rng(5).choice(np.frombuffer(b"the and once ", np.uint8), 400))
    ids = [1, index[b" "]] + [index[bytes([b])] for b in text]
    while True:
        joined = [index.get(pieces[a] + pieces[b]) for a, b in itertools.pairwise(ids)]
        best = max(
            (i for i, j in enumerate(joined) if j is not None),
            key=lambda i: (scores[joined[i]], -i),
            default=None,
        )
        if best is None:
            break
        ids[best : best + 2] = [joined[best]]
    library.load(str(golden / "tok512.bin").encode(), 512)
    assert encode(library, text) == ids


def test_ids_become_the_recorded_bytes(golden, library):
    """Decoding and the print filter give the recorded bytes, odd pieces included."""
    recorded = json.loads((golden / "decode.json").read_text())
    odd = json.loads((golden / "decode_odd_pieces.json").read_text())
    tables = [("tok512.bin", 512, recorded["tok512"]), ("odd_pieces.bin", 30, odd["cases"])]
    tables += [
        ("tokenizer.bin", 32000, rows)
        for name, rows in recorded.items()
        if name not in ("columns", "tok512") and isinstance(rows, list)
    ]
    assert len(tables) == 3
    for name, V, rows in tables:
        library.load(str(golden / name).encode(), V)
        for previous, token, piece, printed in rows:
            text, shown = decode(library, previous, token)
            assert text.hex() == piece, (name, previous, token)
            assert (text.hex() if shown else "") == printed, (name, previous, token)


def test_coins_are_the_recorded_ones(golden, library):
    """The generator gives the recorded floats and ends in the recorded state."""
    for case in json.loads((golden / "rng.json").read_text()):
        state = generator(int(case["seed"]))
        assert [library.coin(state) for _ in case["f32"]] == case["f32"]
        assert f"{state[0]:016x}" == case["state_after_hex"]


def test_choices_are_the_recorded_ones(golden, library):
    """The sampler chooses the recorded ids, ties and limits included, and draws as many coins."""
    for case in json.loads((golden / "sampler.json").read_text()):
        logits = np.array([int(b, 16) for b in case["logits_bits"]], np.uint32).view(np.float32)
        state = generator(int(case["seed"]))
        for wanted in case["choices"]:
            got = sample(library, logits, case["temperature"], case["topp"], state)
            assert got == wanted, case["name"]
        assert f"{state[0]:016x}" == case["state_after_hex"], case["name"]


@pytest.mark.parametrize("topp", [0, 1])
def test_overflow_of_plain_sampling_is_the_last_id(library, topp):
    """A temperature that makes every probability NaN gives id V - 1, and one coin is drawn."""
    state, one = generator(3), generator(3)
    assert sample(library, [1, 1, 4, 1, 1, 1, 1, 1], 1e-40, topp, state) == 7
    library.coin(one)
    assert state == one


@pytest.mark.parametrize("V", [1, 8])
def test_no_candidate_means_the_likeliest(library, V):
    """A top-p below every probability of a flat distribution chooses the first maximum."""
    assert sample(library, np.ones(V), 1, 0.1, generator(3)) == 0


def test_an_id_without_probability_is_never_drawn(library):
    """A coin of exactly 0 passes over ids of probability 0."""
    assert sample(library, [-np.inf, 0], 1, 1, generator(0)) == 1


def test_units_have_at_most_four_bytes(library, tmp_path):
    """Stray continuation bytes are looked up four at a time, the rest by themselves."""
    special = [b"<unk>", b"\n<s>\n", b"\n</s>\n", *(b"<0x%02X>" % b for b in range(256))]
    (tmp_path / "t.bin").write_bytes(vocabulary(pieces=[*special, b" ", b"\x80" * 4]))
    library.load(str(tmp_path / "t.bin").encode(), 261)
    assert encode(library, b"\x80" * 5) == [1, 259, 260, 131]


def test_a_long_prompt_continues_as_if_fed_one_by_one(program, library, llama2, tmp_path):
    """A prompt of several chunks gives the greedy ids that token by token decoding gives."""
    content = checkpoint_v0({**SHAPE, "seq_len": 200})
    (tmp_path / "m.bin").write_bytes(content)
    (tmp_path / "t.bin").write_bytes(vocabulary())
    library.load(str(tmp_path / "t.bin").encode(), 270)
    text = b"a z " * 40
    ids = encode(library, text)
    assert 64 < len(ids) < 180
    model, wanted = Model(llama2, content), b""
    for pos in range(200):
        likeliest = int(np.argmax(model.feed([ids[pos]], pos)))
        if pos + 1 == len(ids):
            ids.append(likeliest)
        if ids[pos + 1] == 1:
            break
        piece, shown = decode(library, ids[pos], ids[pos + 1])
        wanted += piece if shown else b""
    done = run(program, "m.bin", "-z", "t.bin", "-t", "0", "-n", "0", "-i", text, cwd=tmp_path)
    assert done.stdout == wanted + b"\n"
