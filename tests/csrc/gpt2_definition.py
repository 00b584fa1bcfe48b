"""A second definition of csrc/train_gpt2.c: NumPy's Mersenne Twister, a loader in plain Python, and
the model and AdamW of the specification."""

from __future__ import annotations

import numpy as np

from pyllm2.backends import Engine
from pyllm2.gpt2 import ops
from pyllm2.gpt2 import training as gpt2
from pyllm2.parameters import Parameters
from pyllm2.training.ops import adamw_update


class Twister:
    """The words of NumPy's MT19937 after a seed."""

    def __init__(self, seed):
        self.state = np.random.RandomState(seed)

    def words(self, n):
        return self.state.randint(0, 2**32, n, np.uint32)

    def shuffle(self, items):
        """Fisher and Yates, in place, from the last item down."""
        for i in range(len(items) - 1, 0, -1):
            j = int(self.words(1)[0]) % (i + 1)
            items[i], items[j] = items[j], items[i]


class Loader:
    """Batches of shards; a shard is an array of tokens.

    A position: place in the order of shards, samples taken from it, shard, sample.
    """

    def __init__(self, shards, B, T, rank=0, processes=1, shuffle=False):
        self.shards, self.B, self.T, self.shuffle = shards, B, T, shuffle
        self.skip, self.stride = rank * B * T, processes * B * T
        self.random = Twister(42 + rank)
        self.order = list(range(len(shards)))
        self.reset()

    def reset(self):
        if self.shuffle:
            self.random.shuffle(self.order)
        self.begin(0)

    def begin(self, place):
        self.place, self.taken = place, 0
        self.samples = list(range((len(self.shards[self.order[place]]) - 1) // self.stride))
        if self.shuffle:
            self.random.shuffle(self.samples)

    def next(self):
        """The B·T + 1 tokens of a batch, and its position."""
        if self.taken == len(self.samples):
            if self.place + 1 == len(self.order):
                self.reset()
            else:
                self.begin(self.place + 1)
        which, sample = self.order[self.place], self.samples[self.taken]
        self.taken += 1
        first = sample * self.stride + self.skip
        tokens = self.shards[which][first : first + self.B * self.T + 1]
        return tokens, (self.place, self.taken, which, sample)


class Training:
    """A model, its moments, and batches for it."""

    def __init__(self, config, flat, train, validation, lr):
        self.config, self.lr, self.step = config, lr, 0
        self.params = Parameters(config.shapes(), flat)
        self.model = gpt2.TrainableGPT2(config, self.params, Engine(ops))
        self.m, self.v = np.zeros_like(flat), np.zeros_like(flat)
        self.loaders = {"train": train, "val": validation}

    def forward(self, loader):
        """The activations of the loader's next batch."""
        tokens, _ = loader.next()
        inputs, targets = (t.reshape(loader.B, loader.T) for t in (tokens[:-1], tokens[1:]))
        return self.model.forward(inputs, targets)

    def validation_loss(self):
        self.loaders["val"].reset()
        return float(np.mean([self.forward(self.loaders["val"]).losses.mean() for _ in range(5)]))

    def train_loss(self):
        """Make one update; the loss before it."""
        acts = self.forward(self.loaders["train"])
        loss = acts.losses
        self.step += 1
        grads = self.model.backward(acts, np.full_like(loss, 1 / loss.size))
        adamw_update(
            self.params.flat, grads.flat, self.m, self.v, self.step, self.lr, 0.9, 0.999, 1e-8, 0.0
        )
        return float(loss.mean())

    def likelihood(self, tokens):
        """Probabilities of the token after these: (V,)"""
        logits = self.model.forward(*np.array([[tokens]] * 2)).logits[0, -1:]
        V = self.config.vocab_size
        return ops.softmax_forward(logits, V)[0, :V]
