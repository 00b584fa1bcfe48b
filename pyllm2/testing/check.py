"""Every op of every model under its name, and the one function that checks any of them.

from pyllm2.testing import check_op

def test_my_rmsnorm():
    check_op("rmsnorm", my_rmsnorm)

def test_my_gradient():
    check_op("matmul_backward", my_matmul_backward, model="llama2")
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pyllm2.testing.gpt2_ops import GPT2_OPS
from pyllm2.testing.llama2_training_ops import LLAMA2_TRAINING_OPS
from pyllm2.testing.op import hold
from pyllm2.testing.ops import OPS
from pyllm2.testing.training_ops import TRAINING_OPS

# By the package that has them. A name that two packages have is that of the later one here.
OPS_OF = {"llama2": OPS | LLAMA2_TRAINING_OPS, "gpt2": GPT2_OPS, "training": TRAINING_OPS}
ALL_OPS = {name: op for ops in OPS_OF.values() for name, op in ops.items()}


def check_op(name: str, function: Callable[..., Any], model: str | None = None) -> None:
    """Hold a function to the specification's op of that name, on many drawn inputs.

    model: "llama2", "gpt2", or "training" (the optimizer), for matmul_backward, attention_forward,
    attention_backward and crossentropy_forward, which both models have; those of GPT-2 by default.

    Checks shape, dtype, that the inputs are left alone, the bound against a float64 evaluation,
    and the op's laws. Raises AssertionError with the smallest inputs that hypothesis finds.
    KeyError for a name that no model has.
    """
    hold((ALL_OPS if model is None else OPS_OF[model])[name], function)
