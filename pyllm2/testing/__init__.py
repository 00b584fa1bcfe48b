"""Property-test a kernel of your own against the specification.

    import numpy as np
    from pyllm2.testing import check_op

    def my_rmsnorm(x, weight):
        return (weight * (x / np.sqrt((x * x).mean(-1, keepdims=True) + np.float32(1e-5))))

    def test_my_rmsnorm():
        check_op("rmsnorm", my_rmsnorm)

`OPS` is the table behind it; `strategies` draws inputs and whole models, `bounds` derives what an
implementation may be off by. Needs hypothesis: pip install 'pyllm2[testing]'.
"""

from pyllm2.testing.bounds import Bounded, model_bound
from pyllm2.testing.ops import OPS, Op, assert_close, check_op

__all__ = ["OPS", "Bounded", "Op", "assert_close", "check_op", "model_bound"]
