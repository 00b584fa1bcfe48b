"""Property-test a kernel of your own against the specification.

    import numpy as np
    from pyllm2.testing import check_op

    def my_rmsnorm(x, weight):
        return weight * (x / np.sqrt((x * x).mean(-1, keepdims=True) + np.float32(1e-5)))

    def test_my_rmsnorm():
        check_op("rmsnorm", my_rmsnorm)

`check_op` returns what it saw: print it. `check_gradient(forward, backward, *inputs)` checks an op
that has no name here; `check_ops(module, model="llama2")` every op of a model that a module has.
`exercise.md`, in this folder, is an exercise to solve with `check_op`. `tables["llama2"]`,
`tables["gpt2"]` and `tables["adamw"]` hold the ops of a model by name: how inputs are drawn, how
large an error may be, which laws the result obeys. `model_bound` and `training_bound` give the
error allowed to a whole model. Needs hypothesis: pip install 'pyllm2[testing]'.
"""

from pyllm2.testing.bounds import Bounded
from pyllm2.testing.check import Report, check_op, check_ops, tables
from pyllm2.testing.check_gradient import check_gradient
from pyllm2.testing.model_bound import TrainingBound, model_bound, training_bound
from pyllm2.testing.op import Op, assert_all_close, assert_close

__all__ = [
    "Bounded",
    "Op",
    "Report",
    "TrainingBound",
    "assert_all_close",
    "assert_close",
    "check_gradient",
    "check_op",
    "check_ops",
    "model_bound",
    "tables",
    "training_bound",
]
