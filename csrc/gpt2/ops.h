/* ops.h - the operations of GPT-2, forward and backward, one function each.
 *
 * Arrays are row-major float32; token ids are int32; sizes are int64_t. Arguments are outputs,
 * inputs, sizes. The functions do not allocate, print, exit or keep state. They trust pointers and
 * sizes: check them before the call.
 *
 *   B batch rows     T time steps     N = B * T rows          OC output channels
 *   C channels       NH heads         hs = C / NH
 *   V vocabulary     Vp the same padded, V <= Vp
 *
 * A forward op overwrites its outputs. A backward op ADDS to its outputs, so that a tensor that is
 * used twice gets the sum of both gradients; clear them first where you want one gradient alone.
 *
 * The strict build (-O2 -ffp-contract=off) sums in one fixed order and defines the exact bits.
 */
#ifndef GPT2_OPS_H
#define GPT2_OPS_H

#include <stdint.h>

/* tokens: (B, T)  wte: (Vp, C)  wpe: (at least T, C)  ->  (B, T, C) */
void gpt2_encoder_forward(float *out, const int32_t *tokens, const float *wte, const float *wpe,
                          int64_t B, int64_t T, int64_t C);
void gpt2_encoder_backward(float *dwte, float *dwpe, const float *dout, const int32_t *tokens,
                           int64_t B, int64_t T, int64_t C);

/* x: (N, C)  ->  out: (N, C)  mean, rstd: (N,), inputs of the backward op */
void gpt2_layernorm_forward(float *out, float *mean, float *rstd,
                            const float *x, const float *w, const float *b, int64_t N, int64_t C);
void gpt2_layernorm_backward(float *dx, float *dw, float *db, const float *dout, const float *x,
                             const float *w, const float *mean, const float *rstd,
                             int64_t N, int64_t C);

/* x: (N, C)  w: (OC, C)  b: (OC,), or NULL, then db is NULL too  ->  (N, OC) */
void gpt2_matmul_forward(float *out, const float *x, const float *w, const float *b,
                         int64_t N, int64_t C, int64_t OC);
void gpt2_matmul_backward(float *dx, float *dw, float *db, const float *dout, const float *x,
                          const float *w, int64_t N, int64_t C, int64_t OC);

/* The definition of matmul_forward as plain loops: slower, same bits when strict. */
void gpt2_matmul_forward_naive(float *out, const float *x, const float *w, const float *b,
                               int64_t N, int64_t C, int64_t OC);

/* qkv: (B, P, 3C)  ->  out: (B, P - first, C)  preatt, att: (B, NH, P - first, P)
 * The queries are those of positions first .. P-1; first = 0 in training. Scores of future
 * positions are not written to preatt; their weights in att are 0. */
void gpt2_attention_forward(float *out, float *preatt, float *att, const float *qkv,
                            int64_t B, int64_t P, int64_t C, int64_t NH, int64_t first);

/* dqkv: (B, T, 3C)  dpreatt, datt: (B, NH, T, T), gradients of preatt and att, also added to: pass
 * zeros for a plain gradient. */
void gpt2_attention_backward(float *dqkv, float *dpreatt, float *datt,
                             const float *dout, const float *qkv, const float *att,
                             int64_t B, int64_t T, int64_t C, int64_t NH);

/* x: (n,)  ->  (n,) */
void gpt2_gelu_forward(float *out, const float *x, int64_t n);
void gpt2_gelu_backward(float *dx, const float *dout, const float *x, int64_t n);

/* a, b: (n,)  ->  (n,) */
void gpt2_residual_forward(float *out, const float *a, const float *b, int64_t n);
void gpt2_residual_backward(float *da, float *db, const float *dout, int64_t n);

/* logits: (N, Vp)  ->  (N, Vp) */
void gpt2_softmax_forward(float *probs, const float *logits, int64_t N, int64_t V, int64_t Vp);

/* probs: (N, Vp)  targets: (N,) in [0, V)  ->  (N,) */
void gpt2_crossentropy_forward(float *losses, const float *probs, const int32_t *targets,
                               int64_t N, int64_t Vp);
void gpt2_crossentropy_softmax_backward(float *dlogits, const float *dlosses, const float *probs,
                                        const int32_t *targets,
                                        int64_t N, int64_t V, int64_t Vp);

/* (sum of losses, in order) / N */
float gpt2_mean_loss(const float *losses, int64_t N);

#endif
