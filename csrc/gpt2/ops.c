/* ops.c - the operations of ops.h.
 *
 * Names and order are those of pyllm2/gpt2/ops.py, with the loops written out. Every sum runs over
 * ascending indices and is rounded at each step; formulas are evaluated from left to right as
 * written. OpenMP distributes rows, heads and output channels and never splits a sum.
 */
#ifndef GPT2_OPS_C
#define GPT2_OPS_C

#include "ops.h"
#include "../common/parallel.h"

#include <math.h>
#include <stddef.h>

#define GPT2_EPS 1e-5f
#define GPT2_FLOOR (-10000.0f)           /* initial value of the search for the largest score */
#define GPT2_GELU_CUBIC 0.044715f
#define GPT2_GELU_SCALE 0x1.988452p-1f   /* sqrtf of the float 2/pi: one ulp below sqrt(2/pi) */

/* ---- encoder ------------------------------------------------------------------------------- */

/* out[b,t] = wte[tokens[b,t]] + wpe[t]          ->  (B, T, C) */
void gpt2_encoder_forward(float *out, const int32_t *tokens, const float *wte, const float *wpe,
                          int64_t B, int64_t T, int64_t C)
{
    for (int64_t n = 0; n < B * T; n++) {
        const float *token = wte + tokens[n] * C;
        const float *position = wpe + n % T * C;
        for (int64_t c = 0; c < C; c++) {
            out[n * C + c] = token[c] + position[c];
        }
    }
}

/* dwte[tokens[b,t]] += dout[b,t]        dwpe[t] += dout[b,t]
 * Serial: two rows with the same token add to the same row of dwte. */
void gpt2_encoder_backward(float *dwte, float *dwpe, const float *dout, const int32_t *tokens,
                           int64_t B, int64_t T, int64_t C)
{
    for (int64_t n = 0; n < B * T; n++) {
        float *dtoken = dwte + tokens[n] * C;
        float *dposition = dwpe + n % T * C;
        for (int64_t c = 0; c < C; c++) {
            dtoken[c] += dout[n * C + c];
            dposition[c] += dout[n * C + c];
        }
    }
}

/* ---- layernorm ----------------------------------------------------------------------------- */

/* out = rstd * (x - mean) * w + b          rstd = 1 / sqrt(var + 1e-5)
 * x: (N, C)  w, b: (C,)  ->  out: (N, C)  mean, rstd: (N,)
 * Two passes: mean(x^2) - mean^2 would cancel. */
void gpt2_layernorm_forward(float *out, float *mean, float *rstd,
                            const float *x, const float *w, const float *b, int64_t N, int64_t C)
{
    for (int64_t n = 0; n < N; n++) {
        const float *row = x + n * C;
        float sum = 0.0f, squares = 0.0f;
        for (int64_t c = 0; c < C; c++) {
            sum += row[c];
        }
        const float m = sum / (float)C;
        for (int64_t c = 0; c < C; c++) {
            const float centred = row[c] - m;
            squares += centred * centred;
        }
        const float s = 1.0f / sqrtf(squares / (float)C + GPT2_EPS);
        for (int64_t c = 0; c < C; c++) {
            out[n * C + c] = s * (row[c] - m) * w[c] + b[c];
        }
        mean[n] = m;
        rstd[n] = s;
    }
}

/* With normal = (x - mean) * rstd, g = w * dout and means over C:
 *     dx += (g - mean(g) - normal * mean(g * normal)) * rstd
 *     dw += normal * dout        db += dout */
void gpt2_layernorm_backward(float *dx, float *dw, float *db, const float *dout, const float *x,
                             const float *w, const float *mean, const float *rstd,
                             int64_t N, int64_t C)
{
    for (int64_t n = 0; n < N; n++) {
        const float *row = x + n * C;
        const float *drow = dout + n * C;
        const float m = mean[n], s = rstd[n];
        float along_one = 0.0f, along_normal = 0.0f;
        for (int64_t c = 0; c < C; c++) {
            const float normal = (row[c] - m) * s;
            const float g = w[c] * drow[c];
            along_one += g;
            along_normal += g * normal;
        }
        along_one = along_one / (float)C;
        along_normal = along_normal / (float)C;
        for (int64_t c = 0; c < C; c++) {
            const float normal = (row[c] - m) * s;
            const float g = w[c] * drow[c];
            db[c] += drow[c];
            dw[c] += normal * drow[c];
            dx[n * C + c] += (g - along_one - normal * along_normal) * s;
        }
    }
}

/* ---- matmul -------------------------------------------------------------------------------- */

/* out[n,o] = b[o] + sum_c x[n,c] * w[o,c]; the sum starts from the bias, or from 0 without one
 * x: (N, C)  w: (OC, C)  b: (OC,) or NULL  ->  (N, OC) */
void gpt2_matmul_forward_naive(float *out, const float *x, const float *w, const float *b,
                               int64_t N, int64_t C, int64_t OC)
{
    PARALLEL_NESTED_IF(2, N * C * OC > MIN_PARALLEL_WORK)
    for (int64_t n = 0; n < N; n++) {
        for (int64_t o = 0; o < OC; o++) {
            float sum = b != NULL ? b[o] : 0.0f;
            for (int64_t c = 0; c < C; c++) {
                sum += x[n * C + c] * w[o * C + c];
            }
            out[n * OC + o] = sum;
        }
    }
}

enum { TILE = 8 };  /* rows that share one load of w */

/* The same sums, eight rows at a time: each element of w is loaded once for all eight. */
void gpt2_matmul_forward(float *out, const float *x, const float *w, const float *b,
                         int64_t N, int64_t C, int64_t OC)
{
    if (N % TILE != 0) {
        gpt2_matmul_forward_naive(out, x, w, b, N, C, OC);
        return;
    }
    PARALLEL_IF(N * C * OC > MIN_PARALLEL_WORK)
    for (int64_t first = 0; first < N; first += TILE) {
        for (int64_t o = 0; o < OC; o++) {
            float sums[TILE];
            for (int64_t i = 0; i < TILE; i++) {
                sums[i] = b != NULL ? b[o] : 0.0f;
            }
            for (int64_t c = 0; c < C; c++) {
                const float weight = w[o * C + c];
                for (int64_t i = 0; i < TILE; i++) {
                    sums[i] += x[(first + i) * C + c] * weight;
                }
            }
            for (int64_t i = 0; i < TILE; i++) {
                out[(first + i) * OC + o] = sums[i];
            }
        }
    }
}

/* dx[n,c] += sum_o w[o,c] * dout[n,o]    dw[o,c] += sum_n x[n,c] * dout[n,o]    db += sum_n dout
 * Two loops, because threads divide dx by rows, dw and db by output channels. */
void gpt2_matmul_backward(float *dx, float *dw, float *db, const float *dout, const float *x,
                          const float *w, int64_t N, int64_t C, int64_t OC)
{
    PARALLEL_IF(N * C * OC > MIN_PARALLEL_WORK)
    for (int64_t n = 0; n < N; n++) {
        for (int64_t o = 0; o < OC; o++) {
            const float d = dout[n * OC + o];
            for (int64_t c = 0; c < C; c++) {
                dx[n * C + c] += w[o * C + c] * d;
            }
        }
    }
    PARALLEL_IF(N * C * OC > MIN_PARALLEL_WORK)
    for (int64_t o = 0; o < OC; o++) {
        for (int64_t n = 0; n < N; n++) {
            const float d = dout[n * OC + o];
            if (db != NULL) {
                db[o] += d;
            }
            for (int64_t c = 0; c < C; c++) {
                dw[o * C + c] += x[n * C + c] * d;
            }
        }
    }
}

/* ---- attention ----------------------------------------------------------------------------- */

static float attention_scale(int64_t hs)
{
    return 1.0f / sqrtf((float)hs);
}

/* weights = softmax of `seen` scores; all 0 if all scores are far below the floor. */
static void attention_weights(float *weights, const float *scores, float largest, int64_t seen)
{
    float sum = 0.0f;
    for (int64_t s = 0; s < seen; s++) {
        weights[s] = expf(scores[s] - largest);
        sum += weights[s];
    }
    const float inverse = sum == 0.0f ? 0.0f : 1.0f / sum;
    for (int64_t s = 0; s < seen; s++) {
        weights[s] *= inverse;
    }
}

/* out[t] = sum_s att[t,s] * v[s]        att[t] = softmax(q[t] . k[0..t] / sqrt(hs))
 * qkv: (B, P, 3C)  ->  out: (B, T, C)  preatt, att: (B, NH, T, P), T = P - first
 * Row t is the query of position first + t; it sees the positions up to its own. */
void gpt2_attention_forward(float *out, float *preatt, float *att, const float *qkv,
                            int64_t B, int64_t P, int64_t C, int64_t NH, int64_t first)
{
    const int64_t T = P - first, hs = C / NH;
    const float scale = attention_scale(hs);
    PARALLEL_NESTED_IF(3, B * T * P * C > MIN_PARALLEL_WORK)
    for (int64_t b = 0; b < B; b++) {
        for (int64_t t = 0; t < T; t++) {
            for (int64_t h = 0; h < NH; h++) {
                const float *head = qkv + b * P * 3 * C + h * hs;  /* q; k and v are C and 2C on */
                const float *query = head + (first + t) * 3 * C;
                float *scores = preatt + ((b * NH + h) * T + t) * P;
                float *weights = att + ((b * NH + h) * T + t) * P;
                float *o = out + (b * T + t) * C + h * hs;
                const int64_t seen = first + t + 1;

                /* pass 1: scores, query . key, and the largest */
                float largest = GPT2_FLOOR;
                for (int64_t s = 0; s < seen; s++) {
                    const float *key = head + s * 3 * C + C;
                    float score = 0.0f;
                    for (int64_t i = 0; i < hs; i++) {
                        score += query[i] * key[i];
                    }
                    score *= scale;
                    if (score > largest) {
                        largest = score;
                    }
                    scores[s] = score;
                }
                /* pass 2: scores to weights; 0 for future positions */
                attention_weights(weights, scores, largest, seen);
                for (int64_t s = seen; s < P; s++) {
                    weights[s] = 0.0f;
                }
                /* pass 3: weighted sum of the values, oldest position first */
                for (int64_t i = 0; i < hs; i++) {
                    o[i] = 0.0f;
                }
                for (int64_t s = 0; s < seen; s++) {
                    const float *value = head + s * 3 * C + 2 * C;
                    for (int64_t i = 0; i < hs; i++) {
                        o[i] += weights[s] * value[i];
                    }
                }
            }
        }
    }
}

/* Passes 3, 2 and 1 backward, for one query. head, dhead: its head in qkv, dqkv, rows 3C apart. */
static void attention_backward_row(float *dhead, float *dscores, float *dweights,
                                   const float *dout, const float *head, const float *weights,
                                   int64_t t, int64_t C, int64_t hs)
{
    const float scale = attention_scale(hs);
    const float *query = head + t * 3 * C;
    float *dquery = dhead + t * 3 * C;

    for (int64_t s = 0; s <= t; s++) {
        const float *value = head + s * 3 * C + 2 * C;
        float *dvalue = dhead + s * 3 * C + 2 * C;
        const float weight = weights[s];
        float dweight = dweights[s];
        for (int64_t i = 0; i < hs; i++) {
            dweight += value[i] * dout[i];
            dvalue[i] += weight * dout[i];
        }
        dweights[s] = dweight;
    }
    /* The Jacobian diag(a) - a a^T, multiplied out term by term as in the original, which fixes the
     * bits; weights * (dweights - sum(weights * dweights)) would be O(t). */
    for (int64_t s = 0; s <= t; s++) {
        const float weight = weights[s], dweight = dweights[s];
        for (int64_t r = 0; r <= t; r++) {
            const float same = s == r ? 1.0f : 0.0f;
            dscores[r] += weight * (same - weights[r]) * dweight;
        }
    }
    for (int64_t s = 0; s <= t; s++) {
        const float *key = head + s * 3 * C + C;
        float *dkey = dhead + s * 3 * C + C;
        const float dscore = dscores[s];
        for (int64_t i = 0; i < hs; i++) {
            dquery[i] += key[i] * dscore * scale;
            dkey[i] += query[i] * dscore * scale;
        }
    }
}

/* dout: (B, T, C)  qkv: (B, T, 3C)  att: (B, NH, T, T)
 * ->  dqkv: (B, T, 3C)  dpreatt, datt: (B, NH, T, T)
 * A thread takes whole heads: the queries of a head add to the same keys and values, in order. */
void gpt2_attention_backward(float *dqkv, float *dpreatt, float *datt,
                             const float *dout, const float *qkv, const float *att,
                             int64_t B, int64_t T, int64_t C, int64_t NH)
{
    const int64_t hs = C / NH;
    PARALLEL_NESTED_IF(2, B * T * T * C > MIN_PARALLEL_WORK)
    for (int64_t b = 0; b < B; b++) {
        for (int64_t h = 0; h < NH; h++) {
            const int64_t head = b * T * 3 * C + h * hs;
            for (int64_t t = 0; t < T; t++) {
                const int64_t row = ((b * NH + h) * T + t) * T;
                attention_backward_row(dqkv + head, dpreatt + row, datt + row,
                                       dout + (b * T + t) * C + h * hs, qkv + head, att + row,
                                       t, C, hs);
            }
        }
    }
}

/* ---- gelu, residual ------------------------------------------------------------------------ */

/* out = x/2 * (1 + tanh(sqrt(2/pi) * (x + 0.044715 x^3)))          x: (n,)  ->  (n,) */
void gpt2_gelu_forward(float *out, const float *x, int64_t n)
{
    PARALLEL_IF(n > MIN_PARALLEL_WORK)
    for (int64_t i = 0; i < n; i++) {
        const float cube = GPT2_GELU_CUBIC * x[i] * x[i] * x[i];
        out[i] = 0.5f * x[i] * (1.0f + tanhf(GPT2_GELU_SCALE * (x[i] + cube)));
    }
}

/* With a = sqrt(2/pi) * (x + 0.044715 x^3):
 *     dx += ((1 + tanh a)/2 + x/2 * sech^2 a * sqrt(2/pi) * (1 + 3 * 0.044715 x^2)) * dout
 * Where cosh overflows, sech^2 is 1/inf = 0, the right limit: do not compile with
 * -ffinite-math-only. */
void gpt2_gelu_backward(float *dx, const float *dout, const float *x, int64_t n)
{
    PARALLEL_IF(n > MIN_PARALLEL_WORK)
    for (int64_t i = 0; i < n; i++) {
        const float cube = GPT2_GELU_CUBIC * x[i] * x[i] * x[i];
        const float a = GPT2_GELU_SCALE * (x[i] + cube);
        const float cosh_a = coshf(a);
        const float sech2 = 1.0f / (cosh_a * cosh_a);
        const float inner = 1.0f + 3.0f * GPT2_GELU_CUBIC * x[i] * x[i];
        const float slope = 0.5f * (1.0f + tanhf(a))
                          + x[i] * 0.5f * sech2 * GPT2_GELU_SCALE * inner;
        dx[i] += slope * dout[i];
    }
}

/* out = a + b          a, b: (n,)  ->  (n,) */
void gpt2_residual_forward(float *out, const float *a, const float *b, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        out[i] = a[i] + b[i];
    }
}

/* da += dout        db += dout */
void gpt2_residual_backward(float *da, float *db, const float *dout, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        da[i] += dout[i];
        db[i] += dout[i];
    }
}

/* ---- softmax, cross-entropy ---------------------------------------------------------------- */

/* probs = exp(logits - max) / sum(exp(logits - max)) over the first V of Vp; padding gets 0
 * logits: (N, Vp)  ->  (N, Vp)
 * A row far below the floor gives 0/0. */
void gpt2_softmax_forward(float *probs, const float *logits, int64_t N, int64_t V, int64_t Vp)
{
    PARALLEL_IF(N * V > MIN_PARALLEL_WORK)
    for (int64_t n = 0; n < N; n++) {
        const float *row = logits + n * Vp;
        float *to = probs + n * Vp;
        float largest = GPT2_FLOOR, sum = 0.0f;
        for (int64_t i = 0; i < V; i++) {
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
        for (int64_t i = V; i < Vp; i++) {
            to[i] = 0.0f;
        }
    }
}

/* losses = -log(probs[target])          probs: (N, Vp)  targets: (N,)  ->  (N,) */
void gpt2_crossentropy_forward(float *losses, const float *probs, const int32_t *targets,
                               int64_t N, int64_t Vp)
{
    for (int64_t n = 0; n < N; n++) {
        losses[n] = -logf(probs[n * Vp + targets[n]]);
    }
}

/* dlogits[i] += (probs[i] - [i = target]) * dloss          the padding is unchanged
 * dlosses, targets: (N,)  probs: (N, Vp)  ->  (N, Vp) */
void gpt2_crossentropy_softmax_backward(float *dlogits, const float *dlosses, const float *probs,
                                        const int32_t *targets,
                                        int64_t N, int64_t V, int64_t Vp)
{
    PARALLEL_IF(N * V > MIN_PARALLEL_WORK)
    for (int64_t n = 0; n < N; n++) {
        for (int64_t i = 0; i < V; i++) {
            const float hit = i == targets[n] ? 1.0f : 0.0f;
            dlogits[n * Vp + i] += (probs[n * Vp + i] - hit) * dlosses[n];
        }
    }
}

float gpt2_mean_loss(const float *losses, int64_t N)
{
    float sum = 0.0f;
    for (int64_t n = 0; n < N; n++) {
        sum += losses[n];
    }
    return sum / (float)N;
}

#endif
