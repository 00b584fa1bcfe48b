"""Draws cases: seeds of weights are tried until the run of the original can be judged by ids."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from pyllm2.conform.case import SPACE_ID, Case, Text
from pyllm2.conform.chat import expected
from pyllm2.conform.dialects import TODAY, Dialect
from pyllm2.conform.judge import new_ids
from pyllm2.conform.reference import Expected

MOST_SEEDS = 400
Accept = Callable[[Case, Expected], bool]


class NoCaseError(Exception):
    """No seed gives a case that can be judged."""


@dataclass
class Maker:
    """What all cases of a session have in common.

    vocab_size: of a program that takes no other, else None
    has: the words of the template
    """

    has: frozenset[str] = frozenset(("temperature", "topp", "seed", "steps", "prompt"))
    vocab_size: int | None = None
    dim: int = 8  # of the base
    hidden_dim: int = 12
    least_head: int = 2  # head size; more for a program that computes in whole vectors only
    dialect: Dialect = TODAY
    topp_default: float = 0.9
    tried: int = field(default=0)

    def base(self, **changes: object) -> Case:
        """The smallest model that has passed, with changes."""
        found = {"dim": self.dim, "hidden_dim": self.hidden_dim, **changes}
        return self.fitted(Case(**found))  # type: ignore[arg-type]

    def fitted(self, case: Case) -> Case:
        """The case as this program can be given it."""
        if self.vocab_size is not None:
            case = case.but(vocab_size=self.vocab_size)
        if "steps" not in self.has and case.steps > 0:
            case = case.but(seq_len=min(case.steps, case.seq_len))
        if "temperature" not in self.has and case.temperature == 0:
            # it samples: logits so far apart that the best id has all the probability
            case = case.but(loudness=2000.0, left_out=(*case.left_out, "temperature", "topp"))
        return case

    def judged(self, case: Case) -> Expected:
        """The run of the original, in the dialect of the session."""
        return expected(quiet(case), self.dialect)

    def draw(
        self, case: Case, first: int = 1, distinct: int = 3, accept: Accept | None = None
    ) -> tuple[Case, Expected]:
        """The case with the first seed of weights from `first` on whose run is sure throughout,
        says tracers, and has at least `distinct` different ids among the new ones.

        Raises NoCaseError.
        """
        for seed in range(first, first + MOST_SEEDS):
            self.tried += 1
            candidate = self.fitted(case.but(weights=seed))
            run = self.judged(candidate)
            ids, _, _ = new_ids(run)
            if not run.settled or (run.stopped and accept is None):
                continue
            chosen = run.ids[run.new :]
            if len(set(chosen)) < min(distinct, len(chosen)):
                continue
            if accept is None and not says_tracers(candidate, chosen):
                continue
            if accept is not None and not accept(candidate, run):
                continue
            if ids or accept is not None:
                return candidate, run
        raise NoCaseError(f"no weights from seed {first} on give a case that can be judged")


def quiet(case: Case) -> Case:
    """The case whose greedy run a program that cannot be told a temperature is judged by."""
    if case.loudness == 1 or "temperature" not in case.left_out:
        return case
    left_out = tuple(word for word in case.left_out if word not in ("temperature", "topp"))
    return case.but(left_out=left_out, temperature=0.0)


def says_tracers(case: Case, ids: list[int]) -> bool:
    """Whether all ids can be read out of stdout."""
    others = {text.id for text in case.texts}
    return not others.intersection(ids)


# ---- vocabularies --------------------------------------------------------------------------------


def bytes_and(*texts: tuple[bytes, float], first: int = 300) -> tuple[Text, ...]:
    """The 256 byte pieces, a space, and texts with scores.

    Ids do not follow the order of the texts, and no text has the id of its place among the sorted.
    """
    found = [Text(3 + b, b"<0x%02X>" % b) for b in range(256)]
    found.append(Text(290, b" ", -90.0))
    ids = [first + 17 * (i + 1) % 101 for i in range(len(texts))]
    found += [Text(i, piece, score) for i, (piece, score) in zip(ids, texts, strict=True)]
    return tuple(found)


def letters(alphabet: bytes, *more: tuple[bytes, float]) -> tuple[Text, ...]:
    """Pieces of one character each, with low scores, and merges."""
    single = [(bytes([c]), -500.0 - c) for c in alphabet]
    return bytes_and(*single, *more)


__all__ = ["SPACE_ID", "Maker", "NoCaseError", "bytes_and", "letters", "quiet", "says_tracers"]
