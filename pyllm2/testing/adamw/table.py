"""The table of the optimizer's ops: inputs, bound, laws."""

from __future__ import annotations

from typing import Any

import numpy as np

from pyllm2.testing.adamw import bounds, laws, strategies
from pyllm2.testing.op import Array, Op


def as_array(function: Any, dw: Array) -> Any:
    """A norm, which is a float, as a 0-dimensional array."""
    norm = function(dw)
    assert isinstance(norm, float), f"{type(norm)}, expected a float"
    return np.array(norm)


OPS = {
    op.name: op
    for op in [
        Op(
            "adamw_update",
            strategies.adamw_update_inputs(),
            bounds.adamw_update,
            [
                laws.first_step_is_lr_times_the_sign,
                laws.zero_gradient_leaves_only_weight_decay,
                laws.scale_multiplies_the_gradient,
                laws.zero_learning_rate_leaves_w_unchanged,
            ],
            call=laws.updated,
        ),
        Op(
            "global_norm",
            strategies.global_norm_inputs(),
            bounds.global_norm,
            [laws.norm_of_2x_is_2_norm_of_x],
            call=as_array,
            dtype=np.float64,
        ),
    ]
}
