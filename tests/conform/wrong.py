"""Wrong programs: run.c of csrc with one place changed each, and the property that must name it.

All are compiled into one folder of sources per program; -O0, because that compiles fastest and
gives the same bits.
"""

from __future__ import annotations

import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

CSRC = Path(__file__).parents[2] / "csrc"


@dataclass(frozen=True)
class Wrong:
    """One change. property: the one that finds it; kind: of its finding."""

    name: str
    property: str
    file: str
    old: str
    new: str
    status: str = "differs"


MODEL, OPS, CHECKPOINT = "llama2/model.c", "llama2/ops.c", "llama2/checkpoint.c"
VOCABULARY, SAMPLER, DRAW, RUN = (
    "llama2/vocabulary.c",
    "llama2/sampler.c",
    "common/draw.c",
    "run.c",
)

WRONG = (
    # ---- the model
    Wrong(
        "sums of whole vectors only",
        "vector-tails",
        "llama2/matmul.c",
        "i = 0; i < C; i++) {\n        sum_a += one[i] * a[i];",
        "i = 0; i < (C < 8 ? C : C / 4 * 4); i++) {\n        sum_a += one[i] * a[i];",
    ),
    Wrong(
        "w1 and w3 exchanged",
        "feed-forward",
        MODEL,
        "llama2_swiglu(s->hidden, s->gate, s->up, T, F);",
        "llama2_swiglu(s->hidden, s->up, s->gate, T, F);",
    ),
    Wrong(
        "sigmoid without its gate",
        "feed-forward",
        OPS,
        "out[i] = gate[i] * sigmoid * up[i];",
        "out[i] = sigmoid * up[i];",
    ),
    Wrong(
        "own position left out",
        "attention",
        OPS,
        "const int64_t seen = P - T + t + 1;",
        "const int64_t seen = P - T + t > 0 ? P - T + t : 1;",
    ),
    Wrong(
        "values not weighted",
        "attention",
        OPS,
        "sum[i] += a[p] * v[p * stride + i];",
        "sum[i] += v[p * stride + i];",
    ),
    Wrong(
        "halves rotated",
        "rope",
        OPS,
        "float a = from[2 * i], b = from[2 * i + 1];\n                float c",
        "float a = from[i], b = from[i + hs / 2];\n                float c",
    ),
    Wrong(
        "rotation by position + 1",
        "rope",
        OPS,
        "float angle = (float)p * freq;",
        "float angle = (float)p * freq * 1.5f;",
    ),
    Wrong(
        "scores not scaled",
        "rope",
        OPS,
        "            a[p] /= root;",
        "            a[p] += 0 * root;",
    ),
    Wrong(
        "cache strided by key/value heads",
        "layers",
        MODEL,
        "float *keys = cache->keys + l * S * KV;",
        "float *keys = cache->keys + (l < NKV ? l : NKV - 1) * S * KV;",
    ),
    Wrong(
        "norm of the first layer everywhere",
        "layers",
        MODEL,
        "w->ffn_norm + l * C",
        "w->ffn_norm",
    ),
    Wrong(
        "angle by the index in the row",
        "heads",
        OPS,
        "float c = cos[t * (hs / 2) + i], s = sin[t * (hs / 2) + i];\n                to",
        "float c = cos[t * (hs / 2) + (i + h) % (hs / 2)], "
        "s = sin[t * (hs / 2) + (i + h) % (hs / 2)];\n                to",
    ),
    Wrong(
        "heads interleaved",
        "grouped-heads",
        OPS,
        "q + h * hs, k + h / group * hs,",
        "q + h * hs, k + h % NKV * hs,",
    ),
    Wrong(
        "classifier always shared",
        "own-classifier",
        CHECKPOINT,
        "w->classifier = config->shared_classifier\n",
        "w->classifier = 1\n",
    ),
    Wrong(
        "no epsilon",
        "epsilon",
        OPS,
        "float scale = 1.0f / sqrtf(squares / (float)C + eps);",
        "float scale = 1.0f / sqrtf(squares / (float)C + 0.0f * eps);",
    ),
    Wrong(
        "epsilon of 1e-6",
        "epsilon",
        OPS,
        "float scale = 1.0f / sqrtf(squares / (float)C + eps);",
        "float scale = 1.0f / sqrtf(squares / (float)C + 0.1f * eps);",
    ),
    Wrong(
        "last of equal logits",
        "argmax-ties",
        SAMPLER,
        "if (x[i] > x[best]) {",
        "if (x[i] >= x[best]) {",
    ),
    Wrong(
        "softmax without the maximum",
        "large-scores",
        OPS,
        "            to[c] = row[c] - largest;",
        "            to[c] = row[c] - 0 * largest;",
    ),
    Wrong(
        "angles stop at position 100",
        "positions",
        OPS,
        "float angle = (float)p * freq;",
        "float angle = (float)(p > 100 ? 100 : p) * freq;",
    ),
    # ---- the vocabulary and the prompt
    Wrong(
        "index for id",
        "prompt",
        VOCABULARY,
        "return v->by_text[low].id;",
        "return low;",
    ),
    Wrong(
        "space for an empty prompt",
        "empty-prompt",
        RUN,
        'prompt != NULL ? prompt : ""',
        'prompt == NULL ? "" : *prompt != 0 ? prompt : " "',
    ),
    Wrong(
        "never merged",
        "merges",
        VOCABULARY,
        "*n = merge_ids(v, ids, *n);",
        "*n = *n < 0 ? merge_ids(v, ids, *n) : *n;",
    ),
    Wrong(
        "scores never stored",
        "merges",
        VOCABULARY,
        "memcpy(&p.score, record, sizeof p.score);",
        "p.score = 0.0f;",
    ),
    Wrong(
        "triples merged",
        "merge-triples",
        VOCABULARY,
        "        const int32_t id = find_piece(v, unit, bytes);",
        "        if (strlen((const char *)unit) >= 3 && find_piece(v, unit, 3) >= 0) bytes = 3;\n"
        "        const int32_t id = find_piece(v, unit, bytes);",
    ),
    Wrong(
        "last of equal scores",
        "merge-ties",
        VOCABULARY,
        "(a->score == b->score && a->left < b->left)",
        "(a->score == b->score && a->left > b->left)",
    ),
    Wrong(
        "prompt read byte by byte",
        "characters",
        VOCABULARY,
        "while (bytes < 4 && (unit[bytes] & 0xC0) == 0x80) {",
        "while (bytes < 1 && (unit[bytes] & 0xC0) == 0x80) {",
    ),
    Wrong(
        "byte ids without the offset",
        "byte-fallback",
        VOCABULARY,
        "ids[(*n)++] = unit[i] + FIRST_BYTE_ID;",
        "ids[(*n)++] = unit[i];",
    ),
    # ---- printing
    Wrong(
        "NULs after pieces",
        "joined",
        RUN,
        "fwrite(text, 1, (size_t)length, stdout);",
        'fwrite(text, 1, (size_t)length, stdout), fwrite("\\0\\0", 1, 2, stdout);',
    ),
    Wrong(
        "a line per piece",
        "joined",
        RUN,
        "fwrite(text, 1, (size_t)length, stdout);",
        "fwrite(text, 1, (size_t)length, stdout), putchar('\\n');",
    ),
    Wrong(
        "byte pieces as they are",
        "byte-pieces",
        VOCABULARY,
        "    if (byte >= 0) {",
        "    if (byte >= 300) {",
    ),
    Wrong(
        "every byte printed",
        "hidden-bytes",
        "common/shown.c",
        "return length > 1 ||",
        "return length > 0 ||",
    ),
    Wrong(
        "first space kept",
        "first-space",
        VOCABULARY,
        "const int32_t skip = previous == BOS && p->text[0] == ' ';",
        "const int32_t skip = previous == -1 && p->text[0] == ' ';",
    ),
    Wrong(
        "every space dropped",
        "later-space",
        VOCABULARY,
        "const int32_t skip = previous == BOS && p->text[0] == ' ';",
        "const int32_t skip = previous != -1 && p->length > 1 && p->text[0] == ' ';",
    ),
    Wrong("BOS goes on", "bos-stops", RUN, "if (next == BOS) {", "if (next == -1) {"),
    Wrong(
        "EOS stops",
        "eos-continues",
        RUN,
        "if (next == BOS) {",
        "if (next == BOS || next == EOS) {",
    ),
    Wrong(
        "a banner",
        "stdout",
        RUN,
        "    double start = 0.0;\n"
        if False
        else "    while (pos < e->steps) {\n        const int32_t",
        '    puts("llama2 port, 3 [layers]");\n    while (pos < e->steps) {\n        const int32_t',
    ),
    Wrong(
        "speed on stdout",
        "stdout",
        RUN,
        'fprintf(stderr, "achieved',
        'fprintf(stdout, "achieved',
    ),
    # ---- flags
    Wrong(
        "one step more",
        "steps",
        RUN,
        "    allocate_buffers(&e);",
        "    e.steps += e.steps < e.model.config.seq_len;\n    allocate_buffers(&e);",
    ),
    Wrong(
        "0 steps",
        "steps-0",
        RUN,
        "if (steps <= 0 || steps > e.model.config.seq_len) {",
        "if (steps < 0 || steps > e.model.config.seq_len) {",
    ),
    Wrong(
        "steps not limited",
        "steps-beyond",
        RUN,
        "if (steps <= 0 || steps > e.model.config.seq_len) {",
        "if (steps <= 0) {",
    ),
    Wrong(
        "signed shift",
        "coins",
        DRAW,
        "*random ^= *random >> 12;",
        "*random ^= (uint64_t)((int64_t)*random >> 12);",
    ),
    Wrong(
        "state never advances",
        "coins",
        SAMPLER,
        "const float coin = next_coin(&s->random);",
        "uint64_t copy = s->random; const float coin = next_coin(&copy);",
    ),
    Wrong(
        "temperature above 1 ignored",
        "temperature",
        SAMPLER,
        "logits[i] /= s->temperature;",
        "logits[i] /= s->temperature > 1.0f ? 1.0f : s->temperature;",
    ),
    Wrong(
        "coin not multiplied by the sum",
        "top-p",
        SAMPLER,
        "const float target = coin * mass;",
        "const float target = coin;",
    ),
    Wrong(
        "one candidate too few",
        "top-p",
        SAMPLER,
        "while (mass <= topp && last < n - 1) {",
        "while (mass + c[last + 1 < n ? last + 1 : last].p <= topp && last < n - 1) {",
    ),
    Wrong(
        "p clamped",
        "top-p-range",
        RUN,
        "topp = topp < 0.0f || topp > 1.0f ? 0.9f : topp;",
        "topp = topp < 0.0f ? 0.0f : topp > 1.0f ? 1.0f : topp;",
    ),
    Wrong(
        "seed extended with zeros",
        "negative-seed",
        RUN,
        "(uint64_t)(int64_t)seed",
        "(uint64_t)(uint32_t)seed",
    ),
    # ---- chats
    Wrong(
        "message without its marks",
        "chat",
        RUN,
        '"[INST] %s%s [/INST]"',
        '"%s%s"',
    ),
    Wrong(
        "no space after [INST]",
        "chat",
        RUN,
        '"[INST] %s%s [/INST]"',
        '"[INST]%s%s [/INST]"',
    ),
    Wrong(
        "one line end after the system prompt",
        "chat-system",
        RUN,
        "\\n<</SYS>>\\n\\n%s",
        "\\n<</SYS>>\\n%s",
    ),
    Wrong(
        "system prompt read as a message",
        "chat-system-line",
        RUN,
        'ask("Enter system prompt (optional): ", system_line);',
        "system_line[0] = 0;",
    ),
    Wrong(
        "message of the command line ignored",
        "chat-first",
        RUN,
        "if (is_first && s->first_user != NULL) {",
        "if (is_first && s->first_user == s->line) {",
    ),
    Wrong(
        "EOS does not end an answer",
        "chat-turns",
        RUN,
        "users_turn = fed[T - 1] == EOS;",
        "users_turn = fed[T - 1] == -1;",
    ),
    Wrong(
        "a step less in a chat",
        "chat-steps",
        RUN,
        "    while (pos < e->steps) {\n        if (users_turn) {",
        "    while (pos + 1 < e->steps) {\n        if (users_turn) {",
    ),
    Wrong(
        "no random numbers inside a prompt",
        "chat-coins",
        RUN,
        "            next = choose(e, e->logits + t * V, pos++);",
        "            next = k == n ? choose(e, e->logits + t * V, pos) : BOS;\n            pos++;",
    ),
    Wrong(
        "no line end after an answer",
        "chat-stdout",
        RUN,
        "putchar('\\n');\n            } else if (k == n)",
        "putchar(' ');\n            } else if (k == n)",
    ),
    # ---- accidents
    Wrong(
        "exit code 0 for a missing file",
        "missing-files",
        "common/reader.c",
        "    exit(EXIT_FAILURE);\n}\n\n#define REFUSE_IF",
        "    exit(0);\n}\n\n#define REFUSE_IF",
    ),
    Wrong(
        "hang on a prompt",
        "prompt",
        RUN,
        "    int32_t *ids = encode(&e->vocab, prompt, &n);\n    int32_t token",
        "    for (volatile int on = 1; prompt[0] == 'd' && on;) {}\n"
        "    int32_t *ids = encode(&e->vocab, prompt, &n);\n    int32_t token",
        "hangs",
    ),
    Wrong(
        "endless output",
        "steps-beyond",
        RUN,
        "    putchar('\\n');\n    if (pos > 1) {",
        '    while (pos == e->model.config.seq_len && pos == 4) puts("[3]");\n'
        "    putchar('\\n');\n    if (pos > 1) {",
        "hangs",
    ),
    Wrong(
        "memory blow-up",
        "cut-files",
        CHECKPOINT,
        "    const int64_t missing = need - from->size;",
        "    const int64_t missing = need - from->size;\n"
        "    while (missing > 0) memset(malloc(1 << 24), 1, 1 << 24);",
        "hangs",
    ),
)


def build(wrong: Wrong | None, folder: Path, flags: str = "-O0 -ffp-contract=off") -> Path:
    """Compile run.c with one change; None is run.c itself. Returns the program."""
    target = folder / "run"
    shutil.copytree(CSRC, folder / "csrc", ignore=shutil.ignore_patterns("gpt2", "train_*"))
    if wrong is not None:
        path = folder / "csrc" / wrong.file
        text = path.read_text(encoding="utf-8")
        assert text.count(wrong.old) == 1, f"{wrong.name}: {text.count(wrong.old)} places"
        path.write_text(text.replace(wrong.old, wrong.new), encoding="utf-8")
    command = ["cc", *flags.split(), "-w", str(folder / "csrc" / "run.c"), "-o", str(target), "-lm"]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    return target


def build_all(folder: Path, chosen: tuple[Wrong, ...] = WRONG) -> dict[str, Path]:
    """Every wrong program by name, two compilers at a time."""

    def one(pair: tuple[int, Wrong]) -> Path:
        place = folder / str(pair[0])
        place.mkdir(parents=True)
        return build(pair[1], place)

    with ThreadPoolExecutor(2) as pool:
        return dict(zip((w.name for w in chosen), pool.map(one, enumerate(chosen)), strict=True))
