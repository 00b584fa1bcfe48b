"""Recipes of `train text`, compared: the loss per byte on the held-back last tenth of a text.

    python tools/recipe.py TEXT --seconds 180 --vary learning_rate=2e-3,4e-3 --vary total=1024,4096
    python tools/recipe.py TEXT --tokens 4000000 --fixed vocab=512 --vary weight_decay=0,0.1

Every combination of the values given with --vary is trained for the same number of tokens, once per
seed, on the first nine tenths, which the vocabulary is trained on too. --seconds instead of
--tokens: as many tokens as this machine trains in that time, measured per shape. What is neither
varied nor --fixed is what `train text` takes. Prints a table, the best row first.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from pyllm2 import backends
from pyllm2.cli.train_text import batch, speed_of
from pyllm2.formats.llmc_tokens import write_shard
from pyllm2.formats.sentencepiece_model import to_vocabulary
from pyllm2.formats.text import open_texts
from pyllm2.inference.language_model import LanguageModel
from pyllm2.inference.text_loss import TextLoss, text_losses
from pyllm2.llama2 import family
from pyllm2.tokenizers.sentencepiece import SentencePieceTokenizer
from pyllm2.training import sizing
from pyllm2.training.folder import NoFolder
from pyllm2.training.loader import DataLoader
from pyllm2.training.recipe import Plan, Recipe
from pyllm2.training.trainer import Trainer
from pyllm2.training.vocabulary import train_vocabulary

HELD_BACK = 0.1
WORDS = {"shape", "schedule"}  # settings that are no numbers


class Data:
    """The two parts of a text, and tokenizers of any size for it."""

    def __init__(self, text: Path, folder: Path) -> None:
        whole = text.read_bytes()
        cut = whole.rfind(b"\n", 0, int(len(whole) * (1 - HELD_BACK))) + 1
        self.folder = folder
        self.paths = folder / "first.txt", folder / "last.txt"
        for path, part in zip(self.paths, (whole[:cut], whole[cut:]), strict=True):
            path.write_bytes(part)
        self.nbytes = cut
        self._made: dict[int, tuple[Any, list[int]]] = {}

    def tokenizer(self, V: int) -> tuple[Any, list[int]]:
        """A tokenizer of V pieces and the ids of the held-back part; writes V.bin."""
        if V not in self._made:
            with open_texts([self.paths[0]]) as texts:
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
    data: Data, settings: dict[str, Any], tokens: int, backend: str, threads: int | None
) -> tuple[float, float]:
    """(nats per byte of the held-back part, seconds) of one run."""
    s = dict(settings)
    V, T, total = int(s.pop("vocab")), int(s.pop("context")), int(s.pop("total"))
    total = total or sizing.tokens_per_update(tokens)
    rate = s.pop("learning_rate")
    B = batch(total, T)
    tokenizer, ids = data.tokenizer(V)
    config = family.descriptor(f"{s.pop('shape')},context={T}", V)
    steps = max(20, tokens // total)
    warmup = max(1, int(s.pop("warmup") * steps))
    seed, dropout = int(s.pop("seed")), float(s.pop("dropout"))
    s["learning_rate"] = sizing.learning_rate(config.dim) if rate is None else rate
    recipe = Recipe(B, T, total, steps, warmup=warmup, seed=seed, dropout=dropout, **s)
    engine = backends.engine(backend, threads, "llama2")
    model = family.build(config, family.initial_parameters(config, seed), engine, dropout, seed)
    loader = DataLoader([str(data.folder / f"{V}.bin")], B, T, shuffle=True, seed=seed)
    check = DataLoader([str(data.folder / f"{V}.bin")], B, T)
    trainer = Trainer(
        model,
        backends.ops(backend, threads, "training"),
        recipe,
        Plan(validate_every=0, validation_batches=1, save_every=0),
        loader,
        check,
        NoFolder(),
        family.MATRICES,
        {},
        list,
    )
    began = time.perf_counter()
    trainer.run()
    seconds = time.perf_counter() - began
    trained = LanguageModel(family.decoder(model), tokenizer, backend)
    found = TextLoss(text_losses(trained, ids), data.paths[1].stat().st_size)
    return found.nats_per_byte, seconds


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
        "seed": 1337,
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


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("text", type=Path)
    budget = parser.add_mutually_exclusive_group(required=True)
    budget.add_argument("--tokens", type=int)
    budget.add_argument("--seconds", type=float)
    parser.add_argument("--vary", action="append", default=[], metavar="NAME=A,B")
    parser.add_argument("--fixed", action="append", default=[], metavar="NAME=A")
    parser.add_argument("--backend", default=backends.default())
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    varied = pairs(options.vary)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        data = Data(options.text, Path(folder))
        base = defaults(data) | {name: value[0] for name, value in pairs(options.fixed).items()}
        for values in itertools.product(*varied.values()):
            settings = base | dict(zip(varied, values, strict=True))
            tokens = options.tokens
            if tokens is None:
                V, T = int(settings["vocab"]), int(settings["context"])
                config = family.descriptor(f"{settings['shape']},context={T}", V)
                engine = backends.engine(options.backend, options.threads, "llama2")
                tokens = int(speed_of(config, engine, T) * options.seconds)
            loss, seconds = train(data, settings, tokens, options.backend, options.threads)
            said = " ".join(f"{name}={settings[name]}" for name in varied)
            rows.append(
                (loss, f"{loss:.4f} nats/byte  {tokens:>10,} tokens {seconds:6.1f} s  {said}")
            )
            print(rows[-1][1], file=sys.stderr, flush=True)
    print("\n".join(line for _, line in sorted(rows)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
