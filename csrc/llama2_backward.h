/* llama2_backward.h - the operations of Llama 2 that only training has: what its forward lacks, and
 * every op backwards.
 *
 * Arrays, names and sizes are those of llama2.h, on N = B * T rows: all positions of B sequences
 * under one another. Only attention has to know where a sequence ends.
 *
 * A backward WRITES its outputs; what is used twice is added up by llama2_residual. The exception
 * is llama2_embedding_backward, which adds to the gradient that the classifier has left. Outputs
 * and inputs lie apart unless it says otherwise.
 *
 * The strict build, -O2 -ffp-contract=off, adds in one fixed order and defines the right bits.
 */
#ifndef LLAMA2_BACKWARD_H
#define LLAMA2_BACKWARD_H

#include <stdint.h>

/* dtable: (V, C), added to   tokens: (N,) */
void llama2_embedding_backward(float *dtable, const float *dout, const int32_t *tokens,
                               int64_t N, int64_t C);

void llama2_rmsnorm_backward(float *dx, float *dweight, const float *dout, const float *x,
                             const float *weight, int64_t N, int64_t C);

/* dout: (N, OC)   w: (OC, C) */
void llama2_matmul_backward(float *dx, float *dw, const float *dout, const float *x,
                            const float *w, int64_t N, int64_t C, int64_t OC);

/* The definition of matmul_backward, plain loops: same bits in the strict build, only slower. */
void llama2_matmul_backward_naive(float *dx, float *dw, const float *dout, const float *x,
                                  const float *w, int64_t N, int64_t C, int64_t OC);

/* dx may be dout itself. */
void llama2_rope_backward(float *dx, const float *dout, const float *cos, const float *sin,
                          int64_t N, int64_t heads, int64_t hs);

/* q: (B, T, NH, hs)   k, v: (B, T, NKV, hs)   keep: (B, NH, T, T), or NULL: everything is kept
 * out: (B, T, NH * hs)   att: (B, NH, T, T), before dropout */
void llama2_attention_forward(float *out, float *att, const float *q, const float *k,
                              const float *v, const float *keep,
                              int64_t B, int64_t T, int64_t NH, int64_t NKV, int64_t hs);

/* datt: (B, NKV, T), scratch */
void llama2_attention_backward(float *dq, float *dk, float *dv, float *datt, const float *dout,
                               const float *q, const float *k, const float *v, const float *att,
                               const float *keep,
                               int64_t B, int64_t T, int64_t NH, int64_t NKV, int64_t hs);

/* n = N * F */
void llama2_swiglu_backward(float *dgate, float *dup, const float *dout, const float *gate,
                            const float *up, int64_t n);

/* n elements; out may be x itself. */
void llama2_dropout(float *out, const float *x, const float *keep, int64_t n);

/* targets: (N,) in [0, V), or -1: not asked */
void llama2_crossentropy_forward(float *losses, float *probs, const float *logits,
                                 const int32_t *targets, int64_t N, int64_t V);
void llama2_crossentropy_backward(float *dlogits, const float *dlosses, const float *probs,
                                  const int32_t *targets, int64_t N, int64_t V);

#endif
