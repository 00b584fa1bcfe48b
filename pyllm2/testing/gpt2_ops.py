"""The table of GPT-2's ops, forward and backward: inputs, bound, laws."""

from __future__ import annotations

from pyllm2.testing import gpt2_bounds as bounds
from pyllm2.testing import gpt2_laws as laws
from pyllm2.testing import gpt2_strategies as strategies
from pyllm2.testing.op import Op

GPT2_OPS = {
    op.name: op
    for op in [
        Op(
            "encoder_forward",
            strategies.encoder_forward_inputs(),
            bounds.encoder_forward,
            [laws.without_positions_it_copies],
        ),
        Op(
            "encoder_backward",
            strategies.encoder_backward_inputs(),
            bounds.encoder_backward,
            [laws.counts_occurrences],
        ),
        Op(
            "layernorm_forward",
            strategies.layernorm_forward_inputs(),
            bounds.layernorm_forward,
            [laws.sums_to_nothing],
        ),
        Op(
            "layernorm_backward",
            strategies.layernorm_backward_inputs(),
            bounds.layernorm_backward,
            [laws.has_no_part_along_1_and_n],
        ),
        Op(
            "matmul_forward",
            strategies.matmul_forward_inputs(),
            bounds.matmul_forward,
            [laws.picks_columns],
        ),
        Op(
            "matmul_backward",
            strategies.matmul_backward_inputs(),
            bounds.matmul_backward,
            [laws.gives_back_the_product, laws.a_single_output_picks_a_row],
        ),
        Op(
            "attention_forward",
            strategies.attention_forward_inputs(),
            bounds.attention_forward,
            [
                laws.future_does_not_change_the_past,
                laws.the_last_queries_are_a_suffix,
                laws.no_question_gives_the_mean,
                laws.below_the_floor_is_zero,
            ],
        ),
        Op(
            "attention_backward",
            strategies.attention_backward_inputs(),
            bounds.attention_backward,
            [laws.the_future_gets_no_gradient, laws.keys_may_shift_together],
        ),
        Op(
            "gelu_forward",
            strategies.gelu_forward_inputs(),
            bounds.gelu_forward,
            [laws.bends_at_zero],
        ),
        Op(
            "gelu_backward",
            strategies.gelu_backward_inputs(),
            bounds.gelu_backward,
            [laws.slopes_mirror],
        ),
        Op(
            "residual_forward",
            strategies.residual_forward_inputs(),
            bounds.residual_forward,
            [laws.either_may_come_first],
        ),
        Op(
            "residual_backward",
            strategies.residual_backward_inputs(),
            bounds.residual_backward,
            [laws.hands_on_two_arrays],
        ),
        Op(
            "softmax_forward",
            strategies.softmax_forward_inputs(),
            bounds.softmax_forward,
            [
                laws.sums_to_one,
                laws.padding_is_not_there,
                laws.shift_changes_nothing,
                laws.below_the_floor_is_nan,
            ],
        ),
        Op(
            "crossentropy_forward",
            strategies.crossentropy_forward_inputs(),
            bounds.crossentropy_forward,
            [laws.only_the_target_counts],
        ),
        Op(
            "crossentropy_softmax_backward",
            strategies.crossentropy_softmax_backward_inputs(),
            bounds.crossentropy_softmax_backward,
            [laws.pulls_one_up_and_one_down],
        ),
    ]
}
