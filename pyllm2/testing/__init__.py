"""Property-test a kernel of your own against the specification.

    import numpy as np
    from pyllm2.testing import check_op

    def my_rmsnorm(x, weight):
        return (weight * (x / np.sqrt((x * x).mean(-1, keepdims=True) + np.float32(1e-5))))

    def test_my_rmsnorm():
        check_op("rmsnorm", my_rmsnorm)

`OPS`, `GPT2_OPS` and so on are the tables behind it; strategies draw inputs and whole
models, bounds derive what an implementation may be off by, laws say what must hold, one module
each for every table. Needs hypothesis: pip install 'pyllm2[testing]'.
"""

from pyllm2.testing.bounds import Bounded, model_bound
from pyllm2.testing.check import ALL_OPS, OPS_OF, check_op
from pyllm2.testing.gpt2_model_bound import TrainingBound, training_bound
from pyllm2.testing.gpt2_ops import GPT2_OPS
from pyllm2.testing.llama2_model_bound import llama2_training_bound
from pyllm2.testing.llama2_training_ops import LLAMA2_TRAINING_OPS
from pyllm2.testing.op import Op, assert_all_close, assert_close
from pyllm2.testing.ops import OPS
from pyllm2.testing.training_ops import TRAINING_OPS

__all__ = [
    "ALL_OPS",
    "GPT2_OPS",
    "LLAMA2_TRAINING_OPS",
    "OPS",
    "OPS_OF",
    "TRAINING_OPS",
    "Bounded",
    "Op",
    "TrainingBound",
    "assert_all_close",
    "assert_close",
    "check_op",
    "llama2_training_bound",
    "model_bound",
    "training_bound",
]
