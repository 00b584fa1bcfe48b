"""The table of the ops of Llama-2's training: inputs, bound, laws."""

from __future__ import annotations

from pyllm2.testing import llama2_training_bounds as bounds
from pyllm2.testing import llama2_training_laws as laws
from pyllm2.testing import llama2_training_strategies as strategies
from pyllm2.testing.op import Op
from pyllm2.testing.strategies import rope_inputs

LLAMA2_TRAINING_OPS = {
    op.name: op
    for op in [
        Op(
            "embedding_backward",
            strategies.embedding_backward_inputs(),
            bounds.embedding_backward,
            [laws.counts_occurrences, laws.what_was_there_stays],
        ),
        Op(
            "rmsnorm_backward",
            strategies.rmsnorm_backward_inputs(),
            bounds.rmsnorm_backward,
            [
                laws.has_no_part_along_x,
                laws.is_linear_in_the_weight,
                laws.without_weight_nothing_comes_back,
            ],
        ),
        Op(
            "matmul_backward",
            strategies.matmul_backward_inputs(),
            bounds.matmul_backward,
            [
                laws.gives_back_the_product,
                laws.a_single_output_picks_a_row,
                laws.a_single_row_picks_itself,
            ],
        ),
        Op(
            "rope_backward",
            rope_inputs(),
            bounds.rope_backward,
            [laws.turns_back, laws.angle_zero_is_identity, laws.is_the_transpose_of_rope],
        ),
        Op(
            "attention_forward",
            strategies.attention_forward_inputs(),
            bounds.attention_forward,
            [
                laws.future_does_not_change_the_past,
                laws.one_position_gives_its_value,
                laws.dropout_is_after_the_weights,
                laws.is_the_attention_of_inference,
            ],
        ),
        Op(
            "attention_backward",
            strategies.attention_backward_inputs(),
            bounds.attention_backward,
            [
                laws.the_future_gets_no_gradient,
                laws.shared_heads_sum_up,
                laws.is_linear_in_the_values,
                laws.softmax_gradient_sums_to_nothing,
                laws.what_is_dropped_gets_no_gradient,
            ],
        ),
        Op(
            "swiglu_backward",
            strategies.swiglu_backward_inputs(),
            bounds.swiglu_backward,
            [laws.bends_at_zero, laws.slopes_mirror, laws.is_linear_in_up],
        ),
        Op("dropout", strategies.dropout_inputs(), bounds.dropout, [laws.keeps_or_drops]),
        Op(
            "crossentropy_forward",
            strategies.crossentropy_forward_inputs(),
            bounds.crossentropy_forward,
            [
                laws.ignored_targets_cost_nothing,
                laws.sums_to_one,
                laws.shift_changes_nothing,
                laws.no_surprise_is_infinite,
            ],
        ),
        Op(
            "crossentropy_backward",
            strategies.crossentropy_backward_inputs(),
            bounds.crossentropy_backward,
            [laws.pulls_one_up_and_one_down, laws.rows_sum_to_nothing],
        ),
    ]
}
