"""Recipes of `train text`, compared: bits per byte of the held-back last tenth of texts.

    python tools/recipe.py TEXT --tokens 4000000 --vary learning_rate=4e-3,8e-3 --vary dropout=0,0.1
    python tools/recipe.py TEXT TEXT --updates 2000 --fixed vocab=512 --vary seed=1,2,3
    python tools/recipe.py TEXT --tokens 200000 --init MODEL --tokenizer FILE --fixed context=512

Every combination of the values given with --vary is trained on the first nine tenths of every text,
which the vocabulary is trained on too, for the same number of tokens (or updates): never for a
time, so that the table does not depend on the machine. Every combination has one row, the mean over
seeds; the best is first. What is neither varied nor --fixed is what `train text` takes. --init goes
on with a trained model and its tokenizer; a context beyond the model's lengthens it.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import math
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from pyllm2 import backends
from pyllm2.cli.train_text import batch
from pyllm2.formats.llmc_tokens import write_shard
from pyllm2.formats.sentencepiece_model import to_vocabulary
from pyllm2.formats.text import open_texts
from pyllm2.inference.language_model import LanguageModel
from pyllm2.inference.text_loss import TextLoss, text_losses
from pyllm2.llama2 import family
from pyllm2.tokenizers import load_tokenizer
from pyllm2.tokenizers.sentencepiece import SentencePieceTokenizer
from pyllm2.training import sizing
from pyllm2.training.folder import NoFolder
from pyllm2.training.loader import DataLoader
from pyllm2.training.recipe import Plan, Recipe
from pyllm2.training.trainer import Trainer
from pyllm2.training.vocabulary import train_vocabulary

HELD_BACK = 0.1
WORDS = {"shape", "schedule"}  # settings that are no numbers
SEED = 1337


class Data:
    """The two parts of a text, and tokenizers of any size for it, or the one that is given."""

    def __init__(self, text: Path, folder: Path, given: Any = None) -> None:
        whole = text.read_bytes()
        cut = whole.rfind(b"\n", 0, int(len(whole) * (1 - HELD_BACK))) + 1
        self.name, self.folder, self.given = text.name, folder, given
        self.paths = folder / "first.txt", folder / "last.txt"
        folder.mkdir()
        for path, part in zip(self.paths, (whole[:cut], whole[cut:]), strict=True):
            path.write_bytes(part)
        self.nbytes = cut
        self._made: dict[int, tuple[Any, list[int]]] = {}

    def tokenizer(self, V: int) -> tuple[Any, list[int]]:
        """A tokenizer of V pieces and the ids of the held-back part; writes V.bin."""
        if V not in self._made:
            with open_texts([self.paths[0]]) as texts:
                tokenizer = self.given
                if tokenizer is None:
                    found = to_vocabulary(train_vocabulary(texts, V))
                    tokenizer = SentencePieceTokenizer(found.pieces, found.scores)
                ids = _ids(texts, tokenizer)
            write_shard(self.folder / f"{V}.bin", np.array(ids), 2)
            with open_texts([self.paths[1]]) as texts:
                self._made[V] = tokenizer, _ids(texts, tokenizer)
        return self._made[V]


def _ids(texts: Any, tokenizer: Any) -> list[int]:
    documents = (document for text in texts for document in text.documents())
    return [i for document in documents for i in tokenizer.encode_document(document)]


def train(
    data: Data, settings: dict[str, Any], budget: argparse.Namespace
) -> tuple[float, int, float]:
    """(bits per byte of the held-back part, tokens, seconds) of one run."""
    s = dict(settings)
    V, T, total = int(s.pop("vocab")), int(s.pop("context")), int(s.pop("total"))
    rate, shape = s.pop("learning_rate"), s.pop("shape")
    total = total or sizing.tokens_per_update(budget.tokens or 0)
    B = batch(total, T)
    seed, dropout = int(s.pop("seed")), float(s.pop("dropout"))
    if budget.init is None:
        config = family.descriptor(f"{shape},context={T}", V)
        parameters = family.initial_parameters(config, seed)
    else:
        config, parameters = family.load_parameters(budget.init)
        config = dataclasses.replace(config, seq_len=max(T, config.seq_len))
    tokenizer, ids = data.tokenizer(config.vocab_size)
    steps = budget.updates or max(1, budget.tokens // total)
    warmup = max(1, int(s.pop("warmup") * steps))
    s["learning_rate"] = sizing.learning_rate(config.dim) if rate is None else rate
    recipe = Recipe(B, T, total, steps, warmup=warmup, seed=seed, dropout=dropout, **s)
    engine = backends.engine(budget.backend, budget.threads, "llama2")
    model = family.build(config, parameters, engine, dropout, seed)
    shard = str(data.folder / f"{config.vocab_size}.bin")
    trainer = Trainer(
        model,
        backends.ops(budget.backend, budget.threads, "training"),
        recipe,
        Plan(validate_every=0, validation_batches=1, save_every=0),
        DataLoader([shard], B, T, shuffle=True, seed=seed),
        DataLoader([shard], B, T),
        NoFolder(),
        family.MATRICES,
        {},
        list,
    )
    began = time.perf_counter()
    trainer.run()
    seconds = time.perf_counter() - began
    trained = LanguageModel(family.decoder(model), tokenizer, budget.backend)
    found = TextLoss(text_losses(trained, ids), data.paths[1].stat().st_size)
    return found.nats_per_byte / math.log(2), steps * total, seconds


def defaults(data: Data) -> dict[str, Any]:
    """What `train text` takes for a text of this size."""
    return {
        "vocab": sizing.vocabulary_size(data.nbytes),
        "shape": sizing.SHAPES[3],
        "context": 256,
        "total": 0,
        "learning_rate": None,
        "warmup": sizing.WARMUP,
        "weight_decay": sizing.WEIGHT_DECAY,
        "dropout": 0.0,
        "schedule": "llama2",
        "final_fraction": 0.0,
        "beta2": sizing.BETA2,
        "seed": SEED,
    }


def pairs(specs: list[str]) -> dict[str, list[Any]]:
    """Example: ["total=512,1024"] -> {"total": [512, 1024]}. Shapes are separated by semicolons."""
    found = {}
    for spec in specs:
        name, _, values = spec.partition("=")
        words = values.split(";" if name == "shape" else ",")
        found[name] = words if name in WORDS else [_number(word) for word in words]
    return found


def _number(word: str) -> Any:
    return int(word) if word.isdigit() else float(word)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("texts", type=Path, nargs="+", metavar="TEXT")
    budget = parser.add_mutually_exclusive_group(required=True)
    budget.add_argument("--tokens", type=int, help="tokens per run")
    budget.add_argument("--updates", type=int, help="updates per run")
    parser.add_argument("--vary", action="append", default=[], metavar="NAME=A,B")
    parser.add_argument("--fixed", action="append", default=[], metavar="NAME=A")
    parser.add_argument("--init", metavar="MODEL", help="trained model to go on with")
    parser.add_argument("--tokenizer", metavar="FILE", help="tokenizer of all runs")
    parser.add_argument("--backend", default=backends.default())
    parser.add_argument("--threads", type=int)
    return parser.parse_args()


def table(names: list[str], texts: list[str], found: dict[tuple[Any, ...], Any]) -> str:
    """Markdown: a row per combination, the mean of its seeds in bits per byte for each text.

    found: {values: [[bits per byte of each seed] for each text]}
    """
    means = {values: [sum(bits) / len(bits) for bits in row] for values, row in found.items()}
    lines = [f"| {' | '.join([*names, *texts])} |", "| --- " * (len(names) + len(texts)) + "|"]
    for values, row in sorted(means.items(), key=lambda item: sum(item[1])):
        lines.append(f"| {' | '.join([*map(str, values), *(f'{x:.4f}' for x in row)])} |")
    return "\n".join(lines)


def main() -> int:
    options = _options()
    given = load_tokenizer(options.tokenizer) if options.tokenizer else None
    varied, fixed = pairs(options.vary), pairs(options.fixed)
    seeds = varied.pop("seed", fixed.pop("seed", [SEED]))
    names = list(varied)
    found: dict[tuple[Any, ...], list[list[float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        texts = [Data(text, Path(folder) / str(n), given) for n, text in enumerate(options.texts)]
        for values, (n, data), seed in itertools.product(
            itertools.product(*varied.values()), enumerate(texts), seeds
        ):
            chosen = dict(zip(names, values, strict=True))
            settings = defaults(data) | {name: value[0] for name, value in fixed.items()} | chosen
            bits, tokens, seconds = train(data, settings | {"seed": seed}, options)
            found.setdefault(values, [[] for _ in texts])[n].append(bits)
            said = " ".join(f"{name}={value}" for name, value in {**chosen, "seed": seed}.items())
            print(
                f"{data.name}: {bits:.4f} bits per byte, {tokens:,} tokens, "
                f"{seconds:.0f} s, {said}",
                file=sys.stderr,
                flush=True,
            )
    print(table(names, [data.name for data in texts], found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
