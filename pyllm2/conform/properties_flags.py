"""Flags and files: sampling by seed, the number of steps, files that are cut or missing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pyllm2.conform.case import Case
from pyllm2.conform.maker import Maker, letters
from pyllm2.conform.property import Draw, Property
from pyllm2.conform.reference import Expected

_FULL = ("rope", "feed-forward")
_SAMPLED = ("temperature", "seed")
_ABC = letters(b"abcd")


def sampled(*rows: dict[str, Any], **fixed: Any) -> Draw:
    """Sampled ids, with other weights for each case: the coin is far from every boundary."""

    def draw(maker: Maker, i: int) -> tuple[Case, Expected]:
        row = {"temperature": 1.0, "topp": 1.0, **fixed, **rows[i % len(rows)]}
        if "topp" not in maker.has:
            row["topp"] = maker.topp_default
        return maker.draw(maker.base(**row), 1 + 100 * i, 3)

    return draw


def law(*rows: dict[str, Any], **fixed: Any) -> Draw:
    """Sampled ids whose random numbers are not known; the model is drawn by its greedy ids."""

    def draw(maker: Maker, i: int) -> tuple[Case, Expected]:
        row = {**fixed, **rows[i % len(rows)]}
        steps = row.pop("steps", 12)
        case, run = maker.draw(maker.base(steps=steps, loudness=4.0), 1 + 100 * i, 3)
        return case.but(**row, judge="law"), run

    return draw


def plain(*rows: dict[str, Any], **fixed: Any) -> Draw:
    """Greedy ids, with these changes."""

    def draw(maker: Maker, i: int) -> tuple[Case, Expected]:
        return maker.draw(maker.base(**{**fixed, **rows[i % len(rows)]}), 1 + 100 * i, 3)

    return draw


def damaged(damages: Sequence[str], judge: str) -> Draw:
    """Files that are cut or missing. A model is cut at shares of its size."""

    def draw(maker: Maker, i: int) -> tuple[Case, Expected]:
        case, run = maker.draw(maker.base(judge=judge), 1 + 100 * i, 3)
        damage = damages[i % len(damages)]
        if damage.startswith("cut "):
            size = len(case.model_file() or b"")
            damage = f"model cut to {int(size * float(damage[4:]))}"
        return case.but(damage=damage), run

    return draw


PROPERTIES = (
    Property(
        "steps",
        "as many ids as steps",
        "one step too many or too few, or the first or last id is not printed",
        plain({"steps": 1}, {"steps": 4}, {"steps": 9}, judge="count"),
        cases=3,
        needs=_FULL,
        words=("steps",),
    ),
    Property(
        "steps-prompt",
        "the prompt counts among the steps",
        "steps are counted from the end of the prompt",
        plain({"prompt": b"ab", "texts": _ABC, "steps": 7}, judge="count"),
        cases=2,
        needs=("steps", "prompt"),
        words=("steps", "prompt"),
    ),
    Property(
        "steps-0",
        "0 steps: the whole context",
        "0 is taken for no steps at all",
        plain({"steps": 0, "seq_len": 12}, judge="count"),
        cases=2,
        needs=("steps",),
        words=("steps",),
    ),
    Property(
        "steps-beyond",
        "more steps than the context: it ends there",
        "steps are not limited by the context: the cache is written beyond its end",
        plain({"steps": 6, "seq_len": 4}, {"steps": 4000, "seq_len": 16}, judge="count"),
        cases=2,
        needs=("steps",),
        words=("steps",),
    ),
    Property(
        "coins",
        "the random numbers of a seed: xorshift64*, of which every new id takes one",
        "a signed shift, a state that is copied and never advances, or another generator",
        sampled(
            {"seed": 987654321},
            {"seed": 42},
            {"seed": 1},
            {"seed": 2147483647},
        ),
        cases=8,
        needs=_FULL,
        words=_SAMPLED,
    ),
    Property(
        "coins-prompt",
        "the prompt takes no random numbers",
        "a random number is drawn at every position",
        sampled({"seed": 7, "prompt": b"abc", "texts": _ABC, "steps": 10}),
        cases=2,
        needs=("coins", "prompt"),
        words=(*_SAMPLED, "prompt"),
    ),
    Property(
        "temperature",
        "logits are divided by the temperature, below 1 and above",
        "the temperature is ignored or limited to 1, or multiplies",
        sampled({"temperature": 2.0}, {"temperature": 0.5}, {"temperature": 5.0}),
        needs=("coins",),
        words=_SAMPLED,
    ),
    Property(
        "top-p",
        "the coin falls on the most probable ids that add up to more than p",
        "the id that exceeds p is left out, the coin is not multiplied by their sum, or the order",
        sampled({"topp": 0.9}, {"topp": 0.5}, {"topp": 0.25}, {"topp": 0.75, "temperature": 1.5}),
        cases=8,
        needs=("temperature",),
        words=(*_SAMPLED, "topp"),
    ),
    Property(
        "top-p-tiny",
        "p below the largest probability: the most probable id",
        "a set that can become empty",
        sampled({"topp": 0.002}, {"topp": 0.01}),
        cases=2,
        needs=("top-p",),
        words=(*_SAMPLED, "topp"),
    ),
    Property(
        "top-p-0",
        "p = 0 keeps all ids, as p = 1 does",
        "p = 0 is taken for a set of one id",
        sampled({"topp": 0.0}),
        cases=2,
        needs=("top-p",),
        words=(*_SAMPLED, "topp"),
    ),
    Property(
        "top-p-range",
        "p outside of 0 to 1 means 0.9",
        "p is clamped to the nearest bound, or taken as it is",
        sampled({"topp": 1.5}, {"topp": -0.5}),
        cases=2,
        needs=("top-p",),
        words=(*_SAMPLED, "topp"),
        run_c_only=True,
    ),
    Property(
        "nucleus-law",
        "without a seed: every id is among the most probable ones that add up to p",
        "ids are drawn from all, or the order is wrong",
        law({"topp": 0.5}, {"topp": 0.25}, {"topp": 0.5, "temperature": 3.0}, temperature=1.0),
        needs=_FULL,
        words=("temperature", "topp"),
        without="seed",
    ),
    Property(
        "hot-law",
        "without a seed: at temperature 100 ids are nearly uniform, and new ones at each step",
        "a temperature above 1 is ignored, or the random number never changes",
        law({"temperature": 100.0, "topp": 1.0}, steps=24),
        cases=3,
        needs=_FULL,
        words=("temperature",),
        without="seed",
    ),
    Property(
        "negative-temperature",
        "a temperature below 0 means 0",
        "it is taken as it is",
        plain({"temperature": -1.0}),
        cases=1,
        needs=_FULL,
        words=("temperature",),
        run_c_only=True,
    ),
    Property(
        "negative-seed",
        "the seed is a signed number of 32 bits, extended to 64",
        "it is read as unsigned, or extended with zeros",
        sampled({"seed": -1}, {"seed": -12345}),
        cases=2,
        needs=("coins",),
        words=_SAMPLED,
        run_c_only=True,
    ),
    Property(
        "defaults",
        "without flags: temperature 1, top-p 0.9, 256 steps",
        "other defaults",
        sampled(
            {"left_out": ("temperature", "topp", "steps"), "seq_len": 8},
            {"left_out": ("topp",), "temperature": 0.8},
        ),
        cases=3,
        needs=("top-p",),
        words=(*_SAMPLED, "topp"),
        run_c_only=True,
    ),
    Property(
        "longer-vocabulary",
        "entries of the vocabulary file beyond the model's are not read",
        "the size of the vocabulary is taken from the file of the tokenizer",
        plain(
            {"damage": "longer tokenizer"},
            {"damage": "longer tokenizer", "prompt": b"ab", "texts": _ABC},
        ),
        cases=2,
        needs=("prompt",),
    ),
    Property(
        "missing-files",
        "a model or vocabulary that does not exist ends the program with an error",
        "the result of opening a file is not checked, or the exit code is 0",
        damaged(("no model", "no tokenizer"), "refusal"),
        cases=2,
    ),
    Property(
        "cut-files",
        "no hang and no memory beyond the limit on files that are cut",
        "a loop waits for bytes that do not come, or memory is allocated before a size is checked",
        damaged(
            ("cut 0.5", "cut 0.001", "tokenizer cut", "shorter tokenizer", "cut 0", "cut 0.95"),
            "survives",
        ),
        needs=("smoke",),
    ),
)
