"""The table of GPT-2's ops, forward and backward: inputs, bound, laws."""

from __future__ import annotations

from pyllm2.testing.gpt2 import bounds, laws, strategies
from pyllm2.testing.op import Op

OPS = {
    op.name: op
    for op in [
        Op(
            "encoder_forward",
            strategies.encoder_forward_inputs(),
            bounds.encoder_forward,
            [laws.zero_wpe_copies_rows_of_wte],
        ),
        Op(
            "encoder_backward",
            strategies.encoder_backward_inputs(),
            bounds.encoder_backward,
            [laws.ones_count_the_occurrences_of_a_token],
        ),
        Op(
            "layernorm_forward",
            strategies.layernorm_forward_inputs(),
            bounds.layernorm_forward,
            [laws.rows_sum_to_0, laws.zero_weight_returns_the_bias],
        ),
        Op(
            "layernorm_backward",
            strategies.layernorm_backward_inputs(),
            bounds.layernorm_backward,
            [laws.dx_is_orthogonal_to_1_and_to_n],
        ),
        Op(
            "matmul_forward",
            strategies.matmul_forward_inputs(),
            bounds.matmul_forward,
            [laws.unit_rows_pick_columns_of_w, laws.zero_rows_return_the_bias],
        ),
        Op(
            "matmul_backward",
            strategies.matmul_backward_inputs(),
            bounds.matmul_backward,
            [laws.dx_dot_x_and_dw_dot_w_are_dout_dot_out, laws.unit_dout_picks_a_row_of_w],
        ),
        Op(
            "attention_forward",
            strategies.attention_forward_inputs(),
            bounds.attention_forward,
            [
                laws.future_does_not_change_the_past,
                laws.last_queries_equal_those_of_the_whole,
                laws.zero_queries_average_the_values,
                laws.scores_far_below_minus_10000_get_weight_0,
            ],
        ),
        Op(
            "attention_backward",
            strategies.attention_backward_inputs(),
            bounds.attention_backward,
            [laws.future_gets_no_gradient, laws.dk_sums_to_0_over_positions],
        ),
        Op(
            "gelu_forward",
            strategies.gelu_forward_inputs(),
            bounds.gelu_forward,
            [laws.gelu_x_minus_gelu_minus_x_is_x, laws.gelu_is_exact_at_0_and_at_60],
        ),
        Op(
            "gelu_backward",
            strategies.gelu_backward_inputs(),
            bounds.gelu_backward,
            [laws.gelu_slopes_at_x_and_minus_x_sum_to_1, laws.gelu_slope_is_half_at_0_and_1_at_60],
        ),
        Op(
            "residual_forward",
            strategies.residual_forward_inputs(),
            bounds.residual_forward,
            [laws.addition_commutes],
        ),
        Op(
            "residual_backward",
            strategies.residual_backward_inputs(),
            bounds.residual_backward,
            [laws.results_do_not_alias],
        ),
        Op(
            "softmax_forward",
            strategies.softmax_forward_inputs(),
            bounds.softmax_forward,
            [
                laws.probabilities_sum_to_1,
                laws.padding_gets_probability_0_and_changes_nothing,
                laws.a_constant_shift_changes_nothing,
                laws.logits_far_below_minus_10000_give_nan,
            ],
        ),
        Op(
            "crossentropy_forward",
            strategies.crossentropy_forward_inputs(),
            bounds.crossentropy_forward,
            [laws.probability_1_costs_0_and_probability_0_infinity],
        ),
        Op(
            "crossentropy_softmax_backward",
            strategies.crossentropy_softmax_backward_inputs(),
            bounds.crossentropy_softmax_backward,
            [laws.dlogits_is_probs_minus_target_times_dloss],
        ),
    ]
}
