/* ops.h - the operations of Llama 2, forward and backward, one function each.
 *
 * Arrays are row-major, and float32 unless declared int8; token ids are int32; sizes are int64_t.
 * Arguments are outputs, inputs, sizes. The functions do not allocate, print, exit or keep state.
 * They trust pointers and sizes: check them before the call.
 *
 *   T tokens of a call              P cached positions + T      S cache length
 *   B batch rows                    N = B * T rows              V vocabulary size
 *   C channels (dim)                F feed-forward width        OC output channels
 *   NH query heads                  NKV key/value heads         hs head size
 *   GS group size: int8 elements that share a scale
 *
 * A backward op writes its outputs; llama2_residual adds gradients up where a tensor is used
 * twice. The exception is llama2_embedding_backward, which adds to the classifier's gradient.
 * Outputs do not overlap inputs except where stated.
 *
 * The strict build (-O2 -ffp-contract=off) sums in one fixed order and defines the exact bits.
 */
#ifndef LLAMA2_OPS_H
#define LLAMA2_OPS_H

#include <stdint.h>

/* tokens: (T,)  table: (V, C)  ->  (T, C) */
void llama2_embedding(float *out, const int32_t *tokens, const float *table, int64_t T, int64_t C);
/* dtable: (V, C), added to */
void llama2_embedding_backward(float *dtable, const float *dout, const int32_t *tokens,
                               int64_t N, int64_t C);

/* The numbers of run.c; other models have their own. */
#define LLAMA2_EPS 1e-5f
#define LLAMA2_ROPE_BASE 10000.0f

/* out may be x. */
void llama2_rmsnorm(float *out, const float *x, const float *weight, int64_t T, int64_t C,
                    float eps);
void llama2_rmsnorm_backward(float *dx, float *dweight, const float *dout, const float *x,
                             const float *weight, int64_t N, int64_t C);

/* x: (T, C)  w: (OC, C)  b: (OC,), or NULL  ->  (T, OC) */
void llama2_matmul(float *out, const float *x, const float *w, const float *b,
                   int64_t T, int64_t C, int64_t OC);
void llama2_matmul_backward(float *dx, float *dw, const float *dout, const float *x,
                            const float *w, int64_t N, int64_t C, int64_t OC);

/* The definitions of matmul and its backward as plain loops: slower, same bits when strict. */
void llama2_matmul_naive(float *out, const float *x, const float *w, const float *b,
                         int64_t T, int64_t C, int64_t OC);
void llama2_matmul_backward_naive(float *dx, float *dw, const float *dout, const float *x,
                                  const float *w, int64_t N, int64_t C, int64_t OC);

/* divisors: (hs/2,), or NULL  ->  cos, sin: (S, hs/2) */
void llama2_rope_tables(float *cos, float *sin, const float *divisors, int64_t S, int64_t hs,
                        float base, float scale);
/* x: (T, heads, hs)  cos, sin: (T, hs/2); out may be x, dx may be dout. */
void llama2_rope(float *out, const float *x, const float *cos, const float *sin,
                 int64_t T, int64_t heads, int64_t hs);
void llama2_rope_backward(float *dx, const float *dout, const float *cos, const float *sin,
                          int64_t N, int64_t heads, int64_t hs);

/* x: (T, C); out may be x. */
void llama2_softmax(float *out, const float *x, int64_t T, int64_t C);

/* Inference. q: (T, NH, hs)  k, v: (P, NKV, hs)  ->  (T, NH * hs)  att: (NH, P), workspace
 * window: a query sees at most so many positions, 0: all up to its own */
void llama2_attention(float *out, float *att, const float *q, const float *k, const float *v,
                      int64_t T, int64_t P, int64_t NH, int64_t NKV, int64_t hs, int64_t window);

/* Training. q: (B, T, NH, hs)  k, v: (B, T, NKV, hs)  keep: (B, NH, T, T), or NULL: no dropout
 * out: (B, T, NH * hs)  att: (B, NH, T, T), before dropout */
void llama2_attention_forward(float *out, float *att, const float *q, const float *k,
                              const float *v, const float *keep,
                              int64_t B, int64_t T, int64_t NH, int64_t NKV, int64_t hs);
/* datt: (B, NKV, T), workspace */
void llama2_attention_backward(float *dq, float *dk, float *dv, float *datt, const float *dout,
                               const float *q, const float *k, const float *v, const float *att,
                               const float *keep,
                               int64_t B, int64_t T, int64_t NH, int64_t NKV, int64_t hs);

/* x, y: (T, C); out may be x. */
void llama2_residual(float *out, const float *x, const float *y, int64_t T, int64_t C);

/* gate, up: (T, F); out may be gate or up. */
void llama2_swiglu(float *out, const float *gate, const float *up, int64_t T, int64_t F);
/* n = N * F */
void llama2_swiglu_backward(float *dgate, float *dup, const float *dout, const float *gate,
                            const float *up, int64_t n);

/* x, keep: (n,); out may be x. Its backward is the same product, of dout. */
void llama2_dropout(float *out, const float *x, const float *keep, int64_t n);

/* logits: (N, V)  targets: (N,) in [0, V), or -1: ignored  ->  losses: (N,)  probs: (N, V) */
void llama2_crossentropy_forward(float *losses, float *probs, const float *logits,
                                 const int32_t *targets, int64_t N, int64_t V);
void llama2_crossentropy_backward(float *dlogits, const float *dlosses, const float *probs,
                                  const int32_t *targets, int64_t N, int64_t V);

/* ---- int8: value * scale, one scale per GS consecutive values ------------------------------- */

/* x: (T, C)  ->  values: (T, C)  scales: (T, C / GS) */
void llama2_quantize(int8_t *values, float *scales, const float *x,
                     int64_t T, int64_t C, int64_t GS);

/* values: (n,)  scales: (n / GS,)  ->  (n,) */
void llama2_dequantize(float *out, const int8_t *values, const float *scales,
                       int64_t n, int64_t GS);

/* x: (T, C)  w: (OC, C)  w_scales: (OC * C / GS,)  ->  (T, OC) */
void llama2_matmul_q8(float *out, const int8_t *x, const float *x_scales,
                      const int8_t *w, const float *w_scales,
                      int64_t T, int64_t C, int64_t OC, int64_t GS);

/* ---- blocks of GGUF; kind is the id of a type there ------------------------------------------ */

/* Numbers in so many bytes; 0 for a kind that is not here, or a part of a block. */
int64_t llama2_packed_numbers(int32_t kind, int64_t bytes);

/* Bytes of so many numbers, whole blocks. */
int64_t llama2_packed_bytes(int32_t kind, int64_t numbers);

/* w: (OC, bytes of a row)  ->  (OC, C) */
void llama2_dequantize_packed(float *out, const uint8_t *w, int32_t kind, int64_t OC, int64_t C);

/* x: (T, C)  w: (OC, bytes of a row)  b: (OC,), or NULL  ->  (T, OC) */
void llama2_matmul_packed(float *out, const float *x, const uint8_t *w, int32_t kind,
                          const float *b, int64_t T, int64_t C, int64_t OC);

#endif
