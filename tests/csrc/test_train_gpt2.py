"""csrc/train_gpt2.c against a second definition, on small random files."""

from __future__ import annotations

import itertools
import math
import re

import numpy as np
import pytest

from pyllm2.gpt2.config import GPT2Config
from pyllm2.parameters import Parameters
from tests.csrc.gpt2_definition import Loader, Training
from tests.csrc.program import CSRC, STRICT_O3, run
from tests.csrc.trainer_parts import CLoader
from tests.support.gpt2_files import CONFIG, model_file, shard, shard_file, tokenizer_file

ROUNDED = 5e-7  # of a number printed with six decimals


def test_compiles_without_a_warning(trainer):
    """-Wall -Wextra -pedantic print nothing."""
    assert trainer.with_suffix(".txt").read_text() == ""


# ---- gpt2/loader.c --------------------------------------------------------------------------


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("place", [(1, 3, 0, 1), (2, 4, 0, 1), (2, 4, 1, 2)])
def test_batches_are_those_of_the_definition(trainer_library, tmp_path, place, shuffle):
    """Over several epochs, a reset and a seek, with shards of unequal length."""
    lengths = (17, 33, 40, 18)  # one sample for the largest stride, exactly two, and remainders
    draw = np.random.default_rng(7)
    shards = [draw.integers(0, 65536, n) for n in lengths]
    for i, tokens in enumerate(shards):
        (tmp_path / f"s_{i}.bin").write_bytes(shard(tokens))
    (tmp_path / "other.bin").write_bytes(b"")
    shape = (*place, shuffle)  # B, T, rank, processes
    got = CLoader(trainer_library, tmp_path / "s_*.bin", *shape)
    expected = Loader(shards, *shape)
    assert got.num_tokens == sum(lengths)

    def same_for(n):
        for _ in range(n):
            (a, where), (b, there) = got.next(), expected.next()
            assert where == there
            assert a.tolist() == b.tolist()

    same_for(60)
    trainer_library.reset()
    expected.reset()
    same_for(30)
    if not shuffle:
        trainer_library.seek(2, 1)
        expected.begin(2)
        expected.taken = 1
        same_for(20)
    trainer_library.close()


# ---- gpt2/vocabulary.c ----------------------------------------------------------------------


def test_what_is_printed_of_a_token(trainer_library, tmp_path):
    """Single bytes only if printable or whitespace, longer texts always, both up to a NUL."""
    lone = [bytes([b]) for b in range(256)]
    longer = [b"ab", b"\xff\x01", b"\x00abc", b"a\x00bc", b"\x01\x00", b"ab\x00c", b"x" * 255]
    path = tmp_path / "t.bin"
    path.write_bytes(tokenizer_file([*lone, *longer], end_of_text=7))
    assert trainer_library.vocabulary_of(str(path).encode(), 256 + len(longer)) == 7
    out = np.zeros(300, np.uint8)
    shown = []
    for i in range(len(lone) + len(longer)):
        n = trainer_library.shown(i, out)
        shown.append(out[:n].tobytes())
    blank_or_printable = {9, 10, 11, 12, 13, *range(32, 127)}
    assert shown[:256] == [s if s[0] in blank_or_printable else b"" for s in lone]
    assert shown[256:] == [b"ab", b"\xff\x01", b"", b"a", b"", b"ab", b"x" * 255]


# ---- the trainer ----------------------------------------------------------------------------

STEP = r"step (\d+): train loss (\S+) \(took \d+\.\d{6} ms\)"
B, T, LR = 2, 6, "1e-2"
SHAPE_FLAGS = ["-b", B, "-t", T, "-l", LR]


def train(program, folder, *flags):
    files = ["-e", "m.bin", "-z", "none", "-i", "train.bin", "-j", "val.bin"]
    arguments = [str(a) for a in (*files, *flags)]
    return run(program, *arguments, cwd=folder)


def losses_of(done):
    """Validation and training losses of a log."""
    text = done.stdout.decode()
    validation = [float(x) for x in re.findall(r"^val loss (\S+)$", text, re.MULTILINE)]
    return validation, [float(x) for _, x in re.findall(STEP, text)]


def definition(folder, train_tokens=200, validation_tokens=60):
    """The second definition of the same model and batches."""
    flat = np.frombuffer((folder / "m.bin").read_bytes()[1024:], "<f4").copy()
    shards = {}
    for name, n in (("train", train_tokens), ("val", validation_tokens)):
        content = (folder / f"{name}.bin").read_bytes()
        shards[name] = [np.frombuffer(content, "<u2", n, 1024).astype(np.int32)]
    train_loader = Loader(shards["train"], B, T, shuffle=True)
    return Training(CONFIG, flat, train_loader, Loader(shards["val"], B, T), float(LR))


def test_record_has_the_lines_of_the_original(trainer, corpus):
    """Every line, in order, with the sizes of the model and the data."""
    done = train(trainer, corpus, *SHAPE_FLAGS)
    assert done.returncode == 0, done.stderr
    b, s, v = CONFIG.channels * B * T, CONFIG.num_layers, CONFIG.padded_vocab_size
    pairs = CONFIG.num_heads * B * T * T
    activations = s * (18 * b + 4 * B * T + 2 * pairs) + 2 * b + 2 * B * T + (2 * v + 1) * B * T
    head = f"""[GPT-2]
max_seq_len: 8
vocab_size: 20
padded_vocab_size: 32
num_layers: 2
num_heads: 2
channels: 8
num_parameters: {CONFIG.parameters()}
train dataset num_batches: 16
val dataset num_batches: 5
num_activations: {activations}
"""
    loss = r"\d+\.\d{6}"
    body = ""
    for step in range(41):
        body += f"val loss {loss}\n" if step % 10 == 0 else ""
        body += r"generating:\n---\n(\d+ ){5}\n---\n" if step in (20, 40) else ""
        body += rf"step {step}: train loss {loss} \(took \d+\.\d{{6}} ms\)\n"
    assert re.fullmatch(re.escape(head) + body, done.stdout.decode()), done.stdout.decode()


def test_losses_are_those_of_the_definition(trainer, corpus):
    """41 updates and five validations agree with the NumPy model and AdamW.

    5e-5 is ten times the measured effect of other summation orders, and of PyTorch, on such losses.
    """
    validation, training = losses_of(train(trainer, corpus, *SHAPE_FLAGS))
    expected = definition(corpus)
    for step in range(41):
        if step % 10 == 0:
            assert abs(validation[step // 10] - expected.validation_loss()) <= 5e-5 + ROUNDED, step
        assert abs(training[step] - expected.train_loss()) <= 5e-5 + ROUNDED, step
    assert len(validation) == 5
    assert len(training) == 41


def coins(n):
    """The first floats of xorshift64* from 1337."""
    state, found = 1337, []
    for _ in range(n):
        state ^= state >> 12
        state = (state ^ state << 25) % 2**64
        state ^= state >> 27
        found.append((state * 0x2545F4914F6CDD1D % 2**64 >> 40) / 2**24)
    return found


def test_texts_are_drawn_from_the_model(trainer, corpus):
    """The coin of each id falls into its interval of cumulative probability, up to rounding.

    The second text continues the sequence of coins.
    """
    done = train(trainer, corpus, *SHAPE_FLAGS)
    texts = re.findall(r"---\n([\d ]+)\n---\n", done.stdout.decode())
    coin = iter(coins(2 * (T - 1)))
    expected = definition(corpus)
    for step in range(41):
        if step in (20, 40):
            tokens = [CONFIG.vocab_size - 1]
            for drawn in map(int, texts[step // 20 - 1].split()):
                share = np.r_[0, np.cumsum(expected.likelihood(tokens))]
                assert share[drawn] - 1e-4 <= next(coin) <= share[drawn + 1] + 1e-4
                tokens.append(drawn)
            assert len(tokens) == T
        expected.train_loss()


def parrot():
    """A model that repeats its last token: blocks that add nothing, and embeddings of +-1 whose dot
    products with others are at most half of the maximum."""
    params = Parameters(CONFIG.shapes())
    signs = itertools.islice(itertools.combinations(range(CONFIG.channels), 4), CONFIG.vocab_size)
    params.wte[...] = -1
    for row, positive in zip(params.wte, signs, strict=False):
        row[list(positive)] = 1
    params.lnfw[...] = 5
    return model_file(floats=params.flat)


@pytest.mark.parametrize("end", [0, 3, CONFIG.vocab_size - 1])
def test_text_begins_after_the_end_of_a_text(trainer, corpus, end):
    """The first token is the end-of-text id of the tokenizer file; it is not printed."""
    (corpus / "m.bin").write_bytes(parrot())
    letters = [b"%c " % (ord("a") + i) for i in range(CONFIG.vocab_size)]
    (corpus / "t.bin").write_bytes(tokenizer_file(letters, end))
    done = train(trainer, corpus, *SHAPE_FLAGS, "-l", 0, "-z", "t.bin")
    assert done.stdout.count(b"---\n" + letters[end] * (T - 1) + b"\n---\n") == 2


def test_text_begins_with_the_last_id_if_there_is_no_tokenizer(trainer, corpus):
    """Ids are printed instead of texts, with a warning."""
    (corpus / "m.bin").write_bytes(parrot())
    done = train(trainer, corpus, *SHAPE_FLAGS, "-l", 0)
    assert done.stdout.count(b"---\n" + b"19 " * (T - 1) + b"\n---\n") == 2
    assert done.stderr.count(b"warning: none: No such file") == 1


def test_written_model_goes_on_where_it_stopped(trainer, corpus):
    """The file of -o is a model file with the validation loss of that step."""
    done = train(trainer, corpus, *SHAPE_FLAGS, "-x", 11)
    assert train(trainer, corpus, *SHAPE_FLAGS, "-x", 10, "-o", "out.bin").returncode == 0
    assert (corpus / "out.bin").read_bytes()[:1024] == model_file()[:1024]
    assert sorted(p.name for p in corpus.glob("out*")) == ["out.bin"]
    again = train(trainer, corpus, *SHAPE_FLAGS, "-x", 1, "-e", "out.bin")
    assert losses_of(again)[0][0] == losses_of(done)[0][1]


def test_one_batch_is_learned_by_heart(trainer, corpus):
    """On a shard of a single sample the loss falls to a tenth."""
    (corpus / "train.bin").write_bytes(shard_file(B * T + 1, seed=5))
    _, training = losses_of(train(trainer, corpus, *SHAPE_FLAGS, "-x", 200))
    assert training[-1] < training[0] / 10


def test_threads_change_no_bit(trainer, corpus, build):
    """The build with OpenMP, with one thread or three, writes the same model."""
    try:
        parallel = build(CSRC / "train_gpt2.c", *STRICT_O3, "-fopenmp")
    except AssertionError:
        pytest.skip("this compiler has no OpenMP")
    models = []
    for program, threads in ((trainer, 1), (parallel, 1), (parallel, 3)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("OMP_NUM_THREADS", str(threads))
            train(program, corpus, *SHAPE_FLAGS, "-x", 5, "-o", "out.bin")
        models.append((corpus / "out.bin").read_bytes())
        (corpus / "out.bin").unlink()
    assert models[0] == models[1] == models[2]


def test_gradient_is_that_of_the_mean_loss(trainer, corpus):
    """AdamW cancels the scale of a gradient unless it is near epsilon, as for an unlikely id here.

    Of a parrot on one token, the loss has the gradient p_j * lnf in the row j of another token,
    with p_j = e^-20 for one that is half like it and nothing for the rest, and lnf = +-5. The
    layernorm's epsilon makes each number smaller by 5e-6, and so p_j larger by 1e-4 at most.
    """
    content, (token, rate) = parrot(), (5, 1e-2)
    (corpus / "m.bin").write_bytes(content)
    (corpus / "train.bin").write_bytes(shard([token] * 50))
    assert (
        train(trainer, corpus, *SHAPE_FLAGS, "-l", rate, "-x", 1, "-o", "out.bin").returncode == 0
    )
    old, new = (
        Parameters(CONFIG.shapes(), np.frombuffer(c, "<f4", offset=1024)).wte.astype(float)
        for c in (content, (corpus / "out.bin").read_bytes())
    )
    likeness = old[: CONFIG.vocab_size] @ old[token]
    gradient = np.outer(np.exp(5 * (likeness - 8)), 5 * old[token])
    step = rate * gradient / (np.abs(gradient) + 1e-8)
    others = np.arange(CONFIG.vocab_size) != token
    assert (likeness == 4).any()
    change = new[: CONFIG.vocab_size] - old[: CONFIG.vocab_size]
    assert (np.abs(change + step)[others] <= 1e-4 * rate + 2.0**-24).all()
    assert (new[CONFIG.vocab_size :] == old[CONFIG.vocab_size :]).all()


def test_numbers_that_are_not_given_are_the_original_ones(trainer, corpus):
    """The defaults of -b, -t, -x and -l, given explicitly, lead to the same model."""
    config = GPT2Config(**{**CONFIG.__dict__, "max_seq_len": 64})
    (corpus / "m.bin").write_bytes(model_file(config))
    for name in ("train.bin", "val.bin"):
        (corpus / name).write_bytes(shard_file(1000))
    original = ["-b", 4, "-t", 64, "-x", 41, "-l", "0.0001"]
    for flags, output in (([], "a.bin"), (original, "b.bin")):
        assert train(trainer, corpus, *flags, "-o", output).returncode == 0
    assert (corpus / "a.bin").read_bytes() == (corpus / "b.bin").read_bytes()


@pytest.mark.parametrize("flags", [["-l", 0, "-x", 3], ["-x", 0]])
def test_model_stays_where_nothing_is_learned(trainer, corpus, flags):
    """A learning rate of 0 and -x 0 leave every bit."""
    done = train(trainer, corpus, *SHAPE_FLAGS, *flags, "-o", "out.bin")
    assert done.returncode == 0
    assert done.stdout.count(b"train loss") == flags[-1]
    assert (corpus / "out.bin").read_bytes() == (corpus / "m.bin").read_bytes()


def test_mean_of_first_batches_is_log_of_vocabulary_for_a_flat_model(trainer, corpus):
    """With all weights zero every id has the same probability."""
    (corpus / "m.bin").write_bytes(model_file(std=0.0))
    validation, training = losses_of(train(trainer, corpus, *SHAPE_FLAGS, "-x", 1))
    assert abs(validation[0] - math.log(20)) <= 1e-5
    assert abs(training[0] - math.log(20)) <= 1e-5
