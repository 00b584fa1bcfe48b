/* ops.c - the operations of ops.h; the matrix products are in matmul.c.
 *
 * Names and order are those of pyllm2/llama2/ops.py, with the loops written out. Every sum runs
 * over ascending indices from +0 and is rounded at each step; formulas are evaluated from left to
 * right as written. OpenMP distributes rows and heads and never splits a sum.
 */
#ifndef LLAMA2_OPS_C
#define LLAMA2_OPS_C

#include "ops.h"
#include "matmul.c"
#include "packed.c"
#include "../common/exponential.h"
#include "../common/parallel.h"

#include <math.h>
#include <stddef.h>
#include <string.h>

static void zero(float *a, int64_t n)
{
    memset(a, 0, (size_t)n * sizeof(float));
}

/* ---- embedding ----------------------------------------------------------------------------- */

/* out[t] = table[tokens[t]]          tokens: (T,)  table: (V, C)  ->  (T, C) */
void llama2_embedding(float *out, const int32_t *tokens, const float *table, int64_t T, int64_t C)
{
    for (int64_t t = 0; t < T; t++) {
        memcpy(out + t * C, table + tokens[t] * C, (size_t)C * sizeof(float));
    }
}

/* dtable[tokens[n]] += dout[n]          dout: (N, C)  tokens: (N,)  ->  dtable: (V, C)
 * Serial: two rows with the same token add to the same row of dtable. */
void llama2_embedding_backward(float *dtable, const float *dout, const int32_t *tokens,
                               int64_t N, int64_t C)
{
    for (int64_t n = 0; n < N; n++) {
        float *drow = dtable + tokens[n] * C;
        for (int64_t c = 0; c < C; c++) {
            drow[c] += dout[n * C + c];
        }
    }
}

/* ---- rmsnorm ------------------------------------------------------------------------------- */

/* out = weight * (x / sqrt(mean(x^2) + eps))          x: (T, C)  weight: (C,)  ->  (T, C)
 * The reciprocal of the root first, then the two products in this order. */
void llama2_rmsnorm(float *out, const float *x, const float *weight, int64_t T, int64_t C,
                    float eps)
{
    for (int64_t t = 0; t < T; t++) {
        const float *row = x + t * C;
        float squares = 0.0f;
        for (int64_t c = 0; c < C; c++) {
            squares += row[c] * row[c];
        }
        float scale = 1.0f / sqrtf(squares / (float)C + eps);
        for (int64_t c = 0; c < C; c++) {
            out[t * C + c] = weight[c] * (scale * row[c]);
        }
    }
}

/* With r = 1 / sqrt(mean(x^2) + 1e-5), normal = x * r, g = dout * weight and means over C:
 *     dx = (g - normal * mean(g * normal)) * r        dweight = sum_n normal * dout
 * dout, x: (N, C)  weight: (C,)  ->  dx: (N, C)  dweight: (C,) */
void llama2_rmsnorm_backward(float *dx, float *dweight, const float *dout, const float *x,
                             const float *weight, int64_t N, int64_t C)
{
    zero(dweight, C);
    for (int64_t n = 0; n < N; n++) {
        const float *row = x + n * C;
        const float *drow = dout + n * C;
        float squares = 0.0f, along = 0.0f;
        for (int64_t c = 0; c < C; c++) {
            squares += row[c] * row[c];
        }
        const float r = 1.0f / sqrtf(squares / (float)C + LLAMA2_EPS);
        for (int64_t c = 0; c < C; c++) {
            along += drow[c] * weight[c] * (row[c] * r);
        }
        along = along / (float)C;
        for (int64_t c = 0; c < C; c++) {
            const float normal = row[c] * r;
            dweight[c] += normal * drow[c];
            dx[n * C + c] = (drow[c] * weight[c] - normal * along) * r;
        }
    }
}

/* ---- rope ---------------------------------------------------------------------------------- */

/* cos, sin of angle = position / base^(2i/hs)          ->  (S, hs/2) each
 * Power, quotient and angle are each rounded to float32: at large positions this decides bits.
 * Models that stretch their context divide pair i by divisors[i] and multiply by a scale. */
void llama2_rope_tables(float *cos, float *sin, const float *divisors, int64_t S, int64_t hs,
                        float base, float scale)
{
    for (int64_t i = 0; i < hs / 2; i++) {
        float freq = 1.0f / powf(base, (float)(2 * i) / (float)hs);
        if (divisors != NULL) {
            freq /= divisors[i];
        }
        for (int64_t p = 0; p < S; p++) {
            float angle = (float)p * freq;
            cos[p * (hs / 2) + i] = scale * cosf(angle);
            sin[p * (hs / 2) + i] = scale * sinf(angle);
        }
    }
}

/* Each adjacent pair (a, b) of a head, rotated by its angle: (a cos - b sin, a sin + b cos)
 * x: (T, heads, hs)  cos, sin: (T, hs/2)  ->  (T, heads, hs); out may be x. */
void llama2_rope(float *out, const float *x, const float *cos, const float *sin,
                 int64_t T, int64_t heads, int64_t hs)
{
    for (int64_t t = 0; t < T; t++) {
        for (int64_t h = 0; h < heads; h++) {
            const float *from = x + (t * heads + h) * hs;
            float *to = out + (t * heads + h) * hs;
            for (int64_t i = 0; i < hs / 2; i++) {
                float a = from[2 * i], b = from[2 * i + 1];
                float c = cos[t * (hs / 2) + i], s = sin[t * (hs / 2) + i];
                to[2 * i] = a * c - b * s;
                to[2 * i + 1] = a * s + b * c;
            }
        }
    }
}

/* The rotation by -angle of each pair (a, b) of dout: (a cos + b sin, b cos - a sin)
 * dout: (N, heads, hs)  cos, sin: (N, hs/2)  ->  (N, heads, hs); dx may be dout. */
void llama2_rope_backward(float *dx, const float *dout, const float *cos, const float *sin,
                          int64_t N, int64_t heads, int64_t hs)
{
    for (int64_t n = 0; n < N; n++) {
        for (int64_t h = 0; h < heads; h++) {
            const float *from = dout + (n * heads + h) * hs;
            float *to = dx + (n * heads + h) * hs;
            for (int64_t i = 0; i < hs / 2; i++) {
                const float a = from[2 * i], b = from[2 * i + 1];
                const float c = cos[n * (hs / 2) + i], s = sin[n * (hs / 2) + i];
                to[2 * i] = a * c + b * s;
                to[2 * i + 1] = b * c - a * s;
            }
        }
    }
}

/* ---- softmax ------------------------------------------------------------------------------- */

/* out = exp(x - max(x)) / sum(exp(x - max(x))), row by row          x: (T, C)  ->  (T, C)
 * out may be x. */
void llama2_softmax(float *out, const float *x, int64_t T, int64_t C)
{
    for (int64_t t = 0; t < T; t++) {
        const float *row = x + t * C;
        float *to = out + t * C;
        const float largest = largest_of(row, C);
        float sum = 0.0f;
        for (int64_t c = 0; c < C; c++) {
            to[c] = row[c] - largest;
        }
        for (int64_t c = 0; c < C; c++) {  /* of one array, so that it can become vectors */
            to[c] = exponential(to[c]);
            sum += to[c];
        }
        for (int64_t c = 0; c < C; c++) {
            to[c] /= sum;
        }
    }
}

/* ---- attention ----------------------------------------------------------------------------- */

/* a[p] = query . key p          for first <= p < seen; k: rows `stride` apart */
static inline void scores_of_keys(float *a, const float *query, const float *k, int64_t first,
                                  int64_t seen, int64_t stride, int64_t hs)
{
    for (int64_t p = first; p < seen; p++) {
        const float *key = k + p * stride;
        float score = 0.0f;
        for (int64_t i = 0; i < hs; i++) {
            score += query[i] * key[i];
        }
        a[p] = score;
    }
}

/* o[i] = sum_p a[p] * v[p][i], oldest position first, for n channels in registers: n <= 16 */
static inline void sum_of_values(float *o, const float *a, const float *v, int64_t first,
                                 int64_t seen, int64_t stride, int64_t n)
{
    float sum[16] = {0.0f};
    for (int64_t p = first; p < seen; p++) {
        for (int64_t i = 0; i < n; i++) {
            sum[i] += a[p] * v[p * stride + i];
        }
    }
    memcpy(o, sum, (size_t)n * sizeof(float));
}

/* One head of llama2_attention. a: (P,) workspace. k, v: rows `stride` apart. */
static void attention_head(float *out, float *a, const float *q, const float *k, const float *v,
                           int64_t T, int64_t P, int64_t C, int64_t stride, int64_t hs,
                           int64_t window)
{
    const float root = sqrtf((float)hs);
    for (int64_t t = 0; t < T; t++) {
        const float *query = q + t * C;
        float *o = out + t * C;
        const int64_t seen = P - T + t + 1;
        const int64_t first = window > 0 && window < seen ? seen - window : 0;

        /* pass 1: scores, query . key */
        if (hs == 8) {  /* a constant, so that the compiler unrolls it */
            scores_of_keys(a, query, k, first, seen, stride, 8);
        } else {
            scores_of_keys(a, query, k, first, seen, stride, hs);
        }
        for (int64_t p = first; p < seen; p++) {
            a[p] /= root;
        }
        /* pass 2: scores to weights */
        llama2_softmax(a + first, a + first, 1, seen - first);
        /* pass 3: weighted sum of the values, oldest position first */
        int64_t i = 0;
        for (; i + 16 <= hs; i += 16) {
            sum_of_values(o + i, a, v + i, first, seen, stride, 16);
        }
        for (; i + 8 <= hs; i += 8) {
            sum_of_values(o + i, a, v + i, first, seen, stride, 8);
        }
        if (i < hs) {
            sum_of_values(o + i, a, v + i, first, seen, stride, hs - i);
        }
    }
}

/* out = softmax(q k^T / sqrt(hs)) v per head; query t sees the keys up to its own position, with a
 * window (0: none) only the last of them
 * q: (T, NH, hs)  k, v: (P, NKV, hs)  ->  (T, NH * hs)
 * att: (NH, P) workspace. Head h reads key/value head h / (NH/NKV). */
void llama2_attention(float *out, float *att, const float *q, const float *k, const float *v,
                      int64_t T, int64_t P, int64_t NH, int64_t NKV, int64_t hs, int64_t window)
{
    const int64_t group = NH / NKV;
    PARALLEL_FOR(h, NH, T * P * NH * hs > MIN_PARALLEL_WORK,
                 attention_head(out + h * hs, att + h * P, q + h * hs, k + h / group * hs,
                                v + h / group * hs, T, P, NH * hs, NKV * hs, hs, window))
}

/* One query of training: its weights for the first `seen` keys, and the weighted sum of values.
 * k, v: one head, rows `stride` apart. keep: of this query, or NULL. */
static void attention_row(float *out, float *weights, const float *query, const float *k,
                          const float *v, const float *keep,
                          int64_t seen, int64_t stride, int64_t hs)
{
    const float root = sqrtf((float)hs);
    float largest = -INFINITY, sum = 0.0f;

    /* pass 1: scores, query . key, and the largest */
    for (int64_t s = 0; s < seen; s++) {
        float score = 0.0f;
        for (int64_t i = 0; i < hs; i++) {
            score += query[i] * k[s * stride + i];
        }
        weights[s] = score / root;
        if (weights[s] > largest) {
            largest = weights[s];
        }
    }
    /* pass 2: scores to weights */
    for (int64_t s = 0; s < seen; s++) {
        weights[s] = expf(weights[s] - largest);
        sum += weights[s];
    }
    for (int64_t s = 0; s < seen; s++) {
        weights[s] /= sum;
    }
    /* pass 3: weighted sum of the values, oldest position first */
    zero(out, hs);
    for (int64_t s = 0; s < seen; s++) {
        const float weight = keep != NULL ? weights[s] * keep[s] : weights[s];
        for (int64_t i = 0; i < hs; i++) {
            out[i] += weight * v[s * stride + i];
        }
    }
}

/* out[t] = sum_s att[t,s] * keep[t,s] * v[s]        att[t] = softmax(q[t] . k[0..t] / sqrt(hs))
 * q: (B, T, NH, hs)  k, v: (B, T, NKV, hs)  keep: (B, NH, T, T)
 * ->  out: (B, T, NH * hs)  att: (B, NH, T, T), 0 for future positions
 * Head h reads key/value head h / (NH/NKV). */
void llama2_attention_forward(float *out, float *att, const float *q, const float *k,
                              const float *v, const float *keep,
                              int64_t B, int64_t T, int64_t NH, int64_t NKV, int64_t hs)
{
    PARALLEL_NESTED_IF(3, B * T * T * NH * hs > MIN_PARALLEL_WORK)
    for (int64_t b = 0; b < B; b++) {
        for (int64_t h = 0; h < NH; h++) {
            for (int64_t t = 0; t < T; t++) {
                const int64_t head = (b * T * NKV + h / (NH / NKV)) * hs;
                const int64_t row = ((b * T + t) * NH + h) * hs;
                const int64_t pairs = ((b * NH + h) * T + t) * T;
                attention_row(out + row, att + pairs, q + row, k + head, v + head,
                              keep != NULL ? keep + pairs : NULL, t + 1, NKV * hs, hs);
                zero(att + pairs + t + 1, T - t - 1);
            }
        }
    }
}

/* The backward of one query. dquery is written; dk and dv, whose rows are `stride` apart like
 * those of k and v, are added to. datt: workspace of `seen` floats. */
static void attention_backward_row(float *dquery, float *dk, float *dv, float *datt,
                                   const float *dout, const float *query, const float *k,
                                   const float *v, const float *weights, const float *keep,
                                   int64_t seen, int64_t stride, int64_t hs)
{
    const float root = sqrtf((float)hs);
    float along = 0.0f;

    for (int64_t s = 0; s < seen; s++) {
        const float scale = keep != NULL ? keep[s] : 1.0f;
        const float weight = weights[s] * scale;
        float dweight = 0.0f;
        for (int64_t i = 0; i < hs; i++) {
            dweight += dout[i] * v[s * stride + i];
        }
        for (int64_t i = 0; i < hs; i++) {
            dv[s * stride + i] += weight * dout[i];
        }
        datt[s] = dweight * scale;
        along += weights[s] * datt[s];
    }
    zero(dquery, hs);
    for (int64_t s = 0; s < seen; s++) {
        const float dscore = weights[s] * (datt[s] - along) / root;
        for (int64_t i = 0; i < hs; i++) {
            dquery[i] += dscore * k[s * stride + i];
        }
        for (int64_t i = 0; i < hs; i++) {
            dk[s * stride + i] += dscore * query[i];
        }
    }
}

/* With w = att * keep and datt = (dout . v) * keep:
 *     dv[s] = sum_t w[t,s] * dout[t]        dscores = att * (datt - sum_s att * datt) / sqrt(hs)
 *     dq[t] = sum_s dscores[t,s] * k[s]     dk[s] = sum_t dscores[t,s] * q[t]
 * ->  dq: (B, T, NH, hs)  dk, dv: (B, T, NKV, hs)
 * The query heads of a group add to one key/value head, head by head, each over all positions; so
 * a thread takes a whole group. */
void llama2_attention_backward(float *dq, float *dk, float *dv, float *datt, const float *dout,
                               const float *q, const float *k, const float *v, const float *att,
                               const float *keep,
                               int64_t B, int64_t T, int64_t NH, int64_t NKV, int64_t hs)
{
    const int64_t group = NH / NKV, stride = NKV * hs;
    zero(dk, B * T * stride);
    zero(dv, B * T * stride);
    PARALLEL_NESTED_IF(2, B * T * T * NH * hs > MIN_PARALLEL_WORK)
    for (int64_t b = 0; b < B; b++) {
        for (int64_t g = 0; g < NKV; g++) {
            const int64_t head = b * T * stride + g * hs;
            float *workspace = datt + (b * NKV + g) * T;
            for (int64_t h = g * group; h < (g + 1) * group; h++) {
                for (int64_t t = 0; t < T; t++) {
                    const int64_t row = ((b * T + t) * NH + h) * hs;
                    const int64_t pairs = ((b * NH + h) * T + t) * T;
                    attention_backward_row(dq + row, dk + head, dv + head, workspace,
                                           dout + row, q + row, k + head, v + head, att + pairs,
                                           keep != NULL ? keep + pairs : NULL,
                                           t + 1, stride, hs);
                }
            }
        }
    }
}

/* ---- residual, swiglu, dropout ------------------------------------------------------------- */

/* out = x + y          x, y: (T, C)  ->  (T, C); out may be x. */
void llama2_residual(float *out, const float *x, const float *y, int64_t T, int64_t C)
{
    for (int64_t i = 0; i < T * C; i++) {
        out[i] = x[i] + y[i];
    }
}

/* out = gate * sigmoid(gate) * up          gate, up: (T, F)  ->  (T, F); out may be gate or up. */
void llama2_swiglu(float *out, const float *gate, const float *up, int64_t T, int64_t F)
{
    for (int64_t i = 0; i < T * F; i++) {
        float sigmoid = 1.0f / (1.0f + exponential(-gate[i]));
        out[i] = gate[i] * sigmoid * up[i];
    }
}

/* With sigmoid = 1 / (1 + exp(-gate)):
 *     dgate = dout * up * sigmoid * (1 + gate * (1 - sigmoid))      dup = dout * gate * sigmoid */
void llama2_swiglu_backward(float *dgate, float *dup, const float *dout, const float *gate,
                            const float *up, int64_t n)
{
    PARALLEL_IF(n > MIN_PARALLEL_WORK)
    for (int64_t i = 0; i < n; i++) {
        const float sigmoid = 1.0f / (1.0f + expf(-gate[i]));
        dgate[i] = dout[i] * up[i] * sigmoid * (1.0f + gate[i] * (1.0f - sigmoid));
        dup[i] = dout[i] * gate[i] * sigmoid;
    }
}

/* out = x * keep          keep: 0, or 1 / (1 - rate) */
void llama2_dropout(float *out, const float *x, const float *keep, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        out[i] = x[i] * keep[i];
    }
}

/* ---- cross-entropy ------------------------------------------------------------------------- */

/* losses = log(sum(exp(logits - max))) - (logits[target] - max), or 0 where target = -1
 * probs = softmax(logits)
 * logits: (N, V)  targets: (N,)  ->  losses: (N,)  probs: (N, V) */
void llama2_crossentropy_forward(float *losses, float *probs, const float *logits,
                                 const int32_t *targets, int64_t N, int64_t V)
{
    PARALLEL_IF(N * V > MIN_PARALLEL_WORK)
    for (int64_t n = 0; n < N; n++) {
        const float *row = logits + n * V;
        float *to = probs + n * V;
        float largest = row[0], sum = 0.0f;
        for (int64_t i = 1; i < V; i++) {
            if (row[i] > largest) {
                largest = row[i];
            }
        }
        for (int64_t i = 0; i < V; i++) {
            to[i] = expf(row[i] - largest);
            sum += to[i];
        }
        for (int64_t i = 0; i < V; i++) {
            to[i] /= sum;
        }
        losses[n] = targets[n] < 0 ? 0.0f : logf(sum) - (row[targets[n]] - largest);
    }
}

/* dlogits[i] = (probs[i] - [i = target]) * dloss, or 0 where target = -1
 * dlosses, targets: (N,)  probs: (N, V)  ->  (N, V) */
void llama2_crossentropy_backward(float *dlogits, const float *dlosses, const float *probs,
                                  const int32_t *targets, int64_t N, int64_t V)
{
    PARALLEL_IF(N * V > MIN_PARALLEL_WORK)
    for (int64_t n = 0; n < N; n++) {
        const float dloss = targets[n] < 0 ? 0.0f : dlosses[n];
        for (int64_t i = 0; i < V; i++) {
            const float hit = i == targets[n] ? 1.0f : 0.0f;
            dlogits[n * V + i] = (probs[n * V + i] - hit) * dloss;
        }
    }
}

#endif
