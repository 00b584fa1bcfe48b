"""Every op of every model under its name, and the one function that checks any of them.

from pyllm2.testing import check_op

def test_my_rmsnorm():
    check_op("rmsnorm", my_rmsnorm)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pyllm2.testing.gpt2_ops import GPT2_OPS
from pyllm2.testing.op import hold
from pyllm2.testing.ops import OPS
from pyllm2.testing.training_ops import TRAINING_OPS

ALL_OPS = OPS | GPT2_OPS | TRAINING_OPS  # the models have no name of an op in common


def check_op(name: str, function: Callable[..., Any]) -> None:
    """Hold a function to the specification's op of that name, on many drawn inputs.

    Checks shape, dtype, that the inputs are left alone, the bound against a float64 evaluation,
    and the op's laws. Raises AssertionError with the smallest inputs that hypothesis finds.
    KeyError for a name that no model has.
    """
    hold(ALL_OPS[name], function)
