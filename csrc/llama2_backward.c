/* llama2_backward.c - see llama2_backward.h. Read it beside ops_backward.py: same names, same
 * order, loops written out.
 *
 * Every sum runs over ascending indices from +0 and is rounded at each step. The formulas are
 * written from left to right as they are to be evaluated. OpenMP shares out rows and heads but
 * never splits a sum, so it changes no bit.
 */
#ifndef LLAMA2_BACKWARD_C
#define LLAMA2_BACKWARD_C

#include "llama2_backward.h"
#include "parallel.h"

#include <math.h>
#include <stddef.h>
#include <string.h>

static void zero(float *a, int64_t n)
{
    memset(a, 0, (size_t)n * sizeof(float));
}

/* ---- embedding, rmsnorm -------------------------------------------------------------------- */

/* dtable[tokens[n]] += dout[n]          dout: (N, C)  tokens: (N,)  ->  dtable: (V, C)
 * One thread: a token that occurs twice is one row that is added to twice. */
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

/* With r = 1 / sqrt(mean(x^2) + 1e-5), normal = x * r and g = dout * weight, the mean over C:
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
        const float r = 1.0f / sqrtf(squares / (float)C + 1e-5f);
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

/* ---- matmul -------------------------------------------------------------------------------- */

/* dx[n,c] = sum_o dout[n,o] * w[o,c]        dw[o,c] = sum_n dout[n,o] * x[n,c]
 * dout: (N, OC)  x: (N, C)  w: (OC, C)  ->  dx: (N, C)  dw: (OC, C) */
void llama2_matmul_backward_naive(float *dx, float *dw, const float *dout, const float *x,
                                  const float *w, int64_t N, int64_t C, int64_t OC)
{
    for (int64_t n = 0; n < N; n++) {
        for (int64_t c = 0; c < C; c++) {
            float sum = 0.0f;
            for (int64_t o = 0; o < OC; o++) {
                sum += dout[n * OC + o] * w[o * C + c];
            }
            dx[n * C + c] = sum;
        }
    }
    for (int64_t o = 0; o < OC; o++) {
        for (int64_t c = 0; c < C; c++) {
            float sum = 0.0f;
            for (int64_t n = 0; n < N; n++) {
                sum += dout[n * OC + o] * x[n * C + c];
            }
            dw[o * C + c] = sum;
        }
    }
}

/* rows that are used for every output before the next are read; outputs side by side */
enum { DEPTH = 256, TILE_ROWS = 8, TILE_COLUMNS = 32 };

/* out[i,c] += sum_k a[i * row + k * step] * rows[k,c], k ascending, for a tile of out that is small
 * enough to stay in registers. Wide, so that compilers see vectors in it; out and rows: (.., C) */
static inline void add_to_tile(float *out, const float *a, int64_t row, int64_t step,
                               const float *rows, int64_t K, int64_t C)
{
    float sums[TILE_ROWS][TILE_COLUMNS];
    for (int64_t i = 0; i < TILE_ROWS; i++) {
        memcpy(sums[i], out + i * C, sizeof sums[i]);
    }
    for (int64_t k = 0; k < K; k++) {
        for (int64_t i = 0; i < TILE_ROWS; i++) {
            const float factor = a[i * row + k * step];
            for (int64_t c = 0; c < TILE_COLUMNS; c++) {
                sums[i][c] += factor * rows[k * C + c];
            }
        }
    }
    for (int64_t i = 0; i < TILE_ROWS; i++) {
        memcpy(out + i * C, sums[i], sizeof sums[i]);
    }
}

/* The same for `columns` of one row of out, in memory: what tiles leave over */
static inline void add_to_row(float *out, const float *a, int64_t step, const float *rows,
                              int64_t K, int64_t C, int64_t columns)
{
    for (int64_t k = 0; k < K; k++) {
        const float factor = a[k * step];
        for (int64_t c = 0; c < columns; c++) {
            out[c] += factor * rows[k * C + c];
        }
    }
}

/* out[m,c] = sum_k a[m * row + k * step] * rows[k,c], k ascending          ->  (M, C)
 * Both halves of matmul_backward are this; a is dout as it is, or transposed. */
static void sums_of_rows(float *out, const float *a, int64_t row, int64_t step, const float *rows,
                         int64_t M, int64_t K, int64_t C)
{
    zero(out, M * C);
    for (int64_t first = 0; first < K; first += DEPTH) {
        const int64_t depth = K - first < DEPTH ? K - first : DEPTH;
        const float *from = rows + first * C;
        PARALLEL_IF(M * depth * C > WORTH_THREADS)
        for (int64_t m = 0; m < M; m += TILE_ROWS) {
            const int64_t end = m + TILE_ROWS < M ? m + TILE_ROWS : M;
            const int64_t tiled = end - m == TILE_ROWS ? C / TILE_COLUMNS * TILE_COLUMNS : 0;
            const float *factors = a + m * row + first * step;
            for (int64_t c = 0; c < tiled; c += TILE_COLUMNS) {
                add_to_tile(out + m * C + c, factors, row, step, from + c, depth, C);
            }
            for (int64_t i = m; i < end; i++) {
                add_to_row(out + i * C + tiled, factors + (i - m) * row, step, from + tiled,
                           depth, C, C - tiled);
            }
        }
    }
}

void llama2_matmul_backward(float *dx, float *dw, const float *dout, const float *x,
                            const float *w, int64_t N, int64_t C, int64_t OC)
{
    sums_of_rows(dx, dout, OC, 1, w, N, OC, C);
    sums_of_rows(dw, dout, 1, OC, x, OC, N, C);
}

/* ---- rope ---------------------------------------------------------------------------------- */

/* The turn back, by -angle: (da, db) = (a cos + b sin, b cos - a sin), (a, b) a pair of dout
 * dout: (N, heads, hs)  cos, sin: (N, hs/2)  ->  (N, heads, hs) */
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

/* ---- attention ----------------------------------------------------------------------------- */

/* One query: its weights for the `seen` keys, then what they make of the values.
 * k, v: of one head, rows `stride` apart. keep: of this query, or NULL. */
static void attention_row(float *out, float *weights, const float *query, const float *k,
                          const float *v, const float *keep,
                          int64_t seen, int64_t stride, int64_t hs)
{
    const float root = sqrtf((float)hs);
    float largest = -INFINITY, sum = 0.0f;

    /* pass 1: how well the query matches each key, and the best match */
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
    /* pass 2: matches to weights */
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
 * ->  out: (B, T, NH * hs)  att: (B, NH, T, T), 0 for the future
 * Head h reads key/value head h / (NH/NKV). */
void llama2_attention_forward(float *out, float *att, const float *q, const float *k,
                              const float *v, const float *keep,
                              int64_t B, int64_t T, int64_t NH, int64_t NKV, int64_t hs)
{
    PARALLEL_NESTED_IF(3, B * T * T * NH * hs > WORTH_THREADS)
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

/* The passes of one query from the last to the first. dquery is written; dk, dv, whose rows are
 * `stride` apart as those of k and v are, are added to. datt: scratch of `seen`. */
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
 * The query heads of a group add to one key/value head, first all positions of the first of them:
 * so threads get whole groups. */
void llama2_attention_backward(float *dq, float *dk, float *dv, float *datt, const float *dout,
                               const float *q, const float *k, const float *v, const float *att,
                               const float *keep,
                               int64_t B, int64_t T, int64_t NH, int64_t NKV, int64_t hs)
{
    const int64_t group = NH / NKV, stride = NKV * hs;
    zero(dk, B * T * stride);
    zero(dv, B * T * stride);
    PARALLEL_NESTED_IF(2, B * T * T * NH * hs > WORTH_THREADS)
    for (int64_t b = 0; b < B; b++) {
        for (int64_t g = 0; g < NKV; g++) {
            const int64_t head = b * T * stride + g * hs;
            float *scratch = datt + (b * NKV + g) * T;
            for (int64_t h = g * group; h < (g + 1) * group; h++) {
                for (int64_t t = 0; t < T; t++) {
                    const int64_t row = ((b * T + t) * NH + h) * hs;
                    const int64_t pairs = ((b * NH + h) * T + t) * T;
                    attention_backward_row(dq + row, dk + head, dv + head, scratch,
                                           dout + row, q + row, k + head, v + head, att + pairs,
                                           keep != NULL ? keep + pairs : NULL,
                                           t + 1, stride, hs);
                }
            }
        }
    }
}

/* ---- swiglu, dropout ----------------------------------------------------------------------- */

/* With sigmoid = 1 / (1 + exp(-gate)):
 *     dgate = dout * up * sigmoid * (1 + gate * (1 - sigmoid))        dup = dout * gate * sigmoid */
void llama2_swiglu_backward(float *dgate, float *dup, const float *dout, const float *gate,
                            const float *up, int64_t n)
{
    PARALLEL_IF(n > WORTH_THREADS)
    for (int64_t i = 0; i < n; i++) {
        const float sigmoid = 1.0f / (1.0f + expf(-gate[i]));
        dgate[i] = dout[i] * up[i] * sigmoid * (1.0f + gate[i] * (1.0f - sigmoid));
        dup[i] = dout[i] * gate[i] * sigmoid;
    }
}

/* out = x * keep          keep: 0, or what makes up for the zeros */
void llama2_dropout(float *out, const float *x, const float *keep, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        out[i] = x[i] * keep[i];
    }
}

/* ---- cross-entropy ------------------------------------------------------------------------- */

/* losses = log(sum(exp(logits - max))) - (logits[target] - max), or 0        probs = softmax(logits)
 * logits: (N, V)  targets: (N,)  ->  losses: (N,)  probs: (N, V) */
void llama2_crossentropy_forward(float *losses, float *probs, const float *logits,
                                 const int32_t *targets, int64_t N, int64_t V)
{
    PARALLEL_IF(N * V > WORTH_THREADS)
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

/* dlogits[i] = (probs[i] - [i = target]) * dloss, or 0 where nothing was asked
 * dlosses, targets: (N,)  probs: (N, V)  ->  (N, V) */
void llama2_crossentropy_backward(float *dlogits, const float *dlosses, const float *probs,
                                  const int32_t *targets, int64_t N, int64_t V)
{
    PARALLEL_IF(N * V > WORTH_THREADS)
    for (int64_t n = 0; n < N; n++) {
        const float dloss = targets[n] < 0 ? 0.0f : dlosses[n];
        for (int64_t i = 0; i < V; i++) {
            const float hit = i == targets[n] ? 1.0f : 0.0f;
            dlogits[n * V + i] = (probs[n * V + i] - hit) * dloss;
        }
    }
}

#endif
