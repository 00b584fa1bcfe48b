/* llama2.c - see llama2.h. Read it beside ops.py: same names, same order, loops written out.
 *
 * Every sum runs over ascending indices from +0 and is rounded at each step. OpenMP, where the
 * compiler has it, hands out rows and heads but never splits a sum, so it changes no bit.
 */
#ifndef LLAMA2_C
#define LLAMA2_C

#include "llama2.h"
#include "parallel.h"
#include "sizes.h"

#include <math.h>
#include <string.h>

/* ---- ops ----------------------------------------------------------------------------------- */

/* out[t] = table[tokens[t]]          tokens: (T,)  table: (V, C)  ->  (T, C) */
void llama2_embedding(float *out, const int32_t *tokens, const float *table, int64_t T, int64_t C)
{
    for (int64_t t = 0; t < T; t++) {
        memcpy(out + t * C, table + tokens[t] * C, (size_t)C * sizeof(float));
    }
}

/* out = weight * (x / sqrt(mean(x^2) + 1e-5))          x: (T, C)  weight: (C,)  ->  (T, C)
 * One division makes the reciprocal, then two products in this order. */
void llama2_rmsnorm(float *out, const float *x, const float *weight, int64_t T, int64_t C)
{
    for (int64_t t = 0; t < T; t++) {
        const float *row = x + t * C;
        float squares = 0.0f;
        for (int64_t c = 0; c < C; c++) {
            squares += row[c] * row[c];
        }
        float scale = 1.0f / sqrtf(squares / (float)C + 1e-5f);
        for (int64_t c = 0; c < C; c++) {
            out[t * C + c] = weight[c] * (scale * row[c]);
        }
    }
}

/* out = x @ w.T          x: (T, C)  w: (OC, C)  ->  (T, OC) */
void llama2_matmul_naive(float *out, const float *x, const float *w,
                         int64_t T, int64_t C, int64_t OC)
{
    for (int64_t t = 0; t < T; t++) {
        PARALLEL_IF(C * OC > WORTH_THREADS)
        for (int64_t o = 0; o < OC; o++) {
            float sum = 0.0f;
            for (int64_t c = 0; c < C; c++) {
                sum += w[o * C + c] * x[t * C + c];
            }
            out[t * OC + o] = sum;
        }
    }
}

/* sum[i] = one . four[i*stride ...]: four separate sums, so that `one` is loaded once for all and
 * a processor that waits for one addition can work on the other three. */
static inline void dot4(float sum[4], const float *one, const float *four,
                        int64_t stride, int64_t C)
{
    const float *a = four, *b = a + stride, *c = b + stride, *d = c + stride;
    float sum_a = 0.0f, sum_b = 0.0f, sum_c = 0.0f, sum_d = 0.0f;
    for (int64_t i = 0; i < C; i++) {
        sum_a += one[i] * a[i];
        sum_b += one[i] * b[i];
        sum_c += one[i] * c[i];
        sum_d += one[i] * d[i];
    }
    sum[0] = sum_a, sum[1] = sum_b, sum[2] = sum_c, sum[3] = sum_d;
}

enum { BLOCK = 64 };  /* tokens, a multiple of 4 */

/* The same products as the naive form, each still one sum in order, taken four at a time.
 * T >= 4: four tokens share a row of w, so w, the large one, is read from memory once; and once
 * more for every block of tokens, so that where there are thousands these stay in the cache.
 * Leftover tokens: four rows of w share x. The rows are a quarter of w apart because the memory
 * system fetches ahead in four distant places better than in one. */
void llama2_matmul(float *out, const float *x, const float *w, int64_t T, int64_t C, int64_t OC)
{
#ifdef LLAMA2_PLAIN_MATMUL  /* for timing only: the original's loops, a row at a time */
    llama2_matmul_naive(out, x, w, T, C, OC);
#else
    const int64_t fours = T / 4 * 4;
    for (int64_t first = 0; first < fours; first += BLOCK) {
        const int64_t end = first + BLOCK < fours ? first + BLOCK : fours;
        PARALLEL_IF((end - first) * C * OC > WORTH_THREADS)
        for (int64_t o = 0; o < OC; o++) {
            for (int64_t t = first; t < end; t += 4) {
                float sum[4];
                dot4(sum, w + o * C, x + t * C, C, C);
                for (int64_t i = 0; i < 4; i++) {
                    out[(t + i) * OC + o] = sum[i];
                }
            }
        }
    }
    const int64_t quarter = OC / 4;
    for (int64_t t = fours; t < T; t++) {
        PARALLEL_IF(C * OC > WORTH_THREADS)
        for (int64_t o = 0; o < quarter; o++) {
            float sum[4];
            dot4(sum, x + t * C, w + o * C, quarter * C, C);
            for (int64_t i = 0; i < 4; i++) {
                out[t * OC + o + i * quarter] = sum[i];
            }
        }
        llama2_matmul_naive(out + t * OC + 4 * quarter, x + t * C, w + 4 * quarter * C,
                            1, C, OC - 4 * quarter);
    }
#endif
}

/* cos, sin of angle = position / 10000^(h/hs), h = 0, 2, 4 ..., for positions pos .. pos+T-1.
 * Power, quotient and angle are each rounded to float32 first: far out, that decides the bits. */
static void rope_rows(float *cos, float *sin, int64_t pos, int64_t T, int64_t hs)
{
    for (int64_t i = 0; i < hs / 2; i++) {
        float freq = 1.0f / powf(10000.0f, (float)(2 * i) / (float)hs);
        for (int64_t t = 0; t < T; t++) {
            float angle = (float)(pos + t) * freq;
            cos[t * (hs / 2) + i] = cosf(angle);
            sin[t * (hs / 2) + i] = sinf(angle);
        }
    }
}

/* The angles of every position          ->  cos, sin: (S, hs/2) each */
void llama2_rope_tables(float *cos, float *sin, int64_t S, int64_t hs)
{
    rope_rows(cos, sin, 0, S, hs);
}

/* Rotate each neighbouring pair (a, b) of a head by its angle: (a cos - b sin, a sin + b cos)
 * x: (T, N, hs)  cos, sin: (T, hs/2)  ->  (T, N, hs); out may be x itself. */
void llama2_rope(float *out, const float *x, const float *cos, const float *sin,
                 int64_t T, int64_t N, int64_t hs)
{
    for (int64_t t = 0; t < T; t++) {
        for (int64_t n = 0; n < N; n++) {
            const float *from = x + (t * N + n) * hs;
            float *to = out + (t * N + n) * hs;
            for (int64_t i = 0; i < hs / 2; i++) {
                float a = from[2 * i], b = from[2 * i + 1];
                float c = cos[t * (hs / 2) + i], s = sin[t * (hs / 2) + i];
                to[2 * i] = a * c - b * s;
                to[2 * i + 1] = a * s + b * c;
            }
        }
    }
}

/* out = exp(x - max(x)) / sum(exp(x - max(x))), row by row          x: (T, C)  ->  (T, C)
 * out may be x itself. */
void llama2_softmax(float *out, const float *x, int64_t T, int64_t C)
{
    for (int64_t t = 0; t < T; t++) {
        const float *row = x + t * C;
        float *to = out + t * C;
        float largest = row[0], sum = 0.0f;
        for (int64_t c = 1; c < C; c++) {
            if (row[c] > largest) {
                largest = row[c];
            }
        }
        for (int64_t c = 0; c < C; c++) {
            to[c] = expf(row[c] - largest);
            sum += to[c];
        }
        for (int64_t c = 0; c < C; c++) {
            to[c] /= sum;
        }
    }
}

/* out = softmax(q k^T / sqrt(hs)) v, head by head; query t sees the keys up to its own position
 * q: (T, NH, hs)  k, v: (P, NKV, hs)  ->  (T, NH*hs)
 * att: (NH, P) scratch. Head h reads key/value head h / (NH/NKV). */
void llama2_attention(float *out, float *att, const float *q, const float *k, const float *v,
                      int64_t T, int64_t P, int64_t NH, int64_t NKV, int64_t hs)
{
    const float root = sqrtf((float)hs);
    PARALLEL_IF(T * P * NH * hs > WORTH_THREADS)
    for (int64_t h = 0; h < NH; h++) {
        const float *k_head = k + h / (NH / NKV) * hs;
        const float *v_head = v + h / (NH / NKV) * hs;
        float *a = att + h * P;
        for (int64_t t = 0; t < T; t++) {
            const float *query = q + (t * NH + h) * hs;
            float *o = out + (t * NH + h) * hs;
            const int64_t seen = P - T + t + 1;

            /* pass 1: how well the query matches each key */
            for (int64_t p = 0; p < seen; p++) {
                const float *key = k_head + p * NKV * hs;
                float score = 0.0f;
                for (int64_t i = 0; i < hs; i++) {
                    score += query[i] * key[i];
                }
                a[p] = score / root;
            }
            /* pass 2: matches to weights */
            llama2_softmax(a, a, 1, seen);
            /* pass 3: weighted sum of the values, oldest position first */
            for (int64_t i = 0; i < hs; i++) {
                o[i] = 0.0f;
            }
            for (int64_t p = 0; p < seen; p++) {
                const float *value = v_head + p * NKV * hs;
                for (int64_t i = 0; i < hs; i++) {
                    o[i] += a[p] * value[i];
                }
            }
        }
    }
}

/* out = x + y          x, y: (T, C)  ->  (T, C); out may be x itself. */
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
        float sigmoid = 1.0f / (1.0f + expf(-gate[i]));
        out[i] = gate[i] * sigmoid * up[i];
    }
}

/* ---- int8 ops ------------------------------------------------------------------------------ */

/* max|x|. Without the sign, floats are ordered as their bits are when read as integers, with NaN
 * above everything: so nothing hides it. */
static float largest_magnitude(const float *x, int64_t n)
{
    int32_t largest = 0;
    for (int64_t i = 0; i < n; i++) {
        int32_t bits;
        memcpy(&bits, x + i, sizeof bits);
        bits &= 0x7FFFFFFF;
        largest = bits > largest ? bits : largest;
    }
    float magnitude;
    memcpy(&magnitude, &largest, sizeof magnitude);
    return magnitude;
}

/* values = round(x / scale), half away from zero, at most 127; scale = max|x| / 127
 * x: (T, C)  ->  values: (T, C)  scales: (T, C / GS)
 * A group of zeros has scale 0 and values 0. What follows the last whole group of a row is 0. */
void llama2_quantize(int8_t *values, float *scales, const float *x,
                     int64_t T, int64_t C, int64_t GS)
{
    const int64_t groups = C / GS;
    for (int64_t t = 0; t < T; t++) {
        for (int64_t g = 0; g < groups; g++) {
            const float *from = x + t * C + g * GS;
            int8_t *to = values + t * C + g * GS;
            const float scale = largest_magnitude(from, GS) / 127.0f;
            scales[t * groups + g] = scale;
            if (!(scale > 0.0f)) {  /* NaN, too: its product is NaN whatever the values are */
                memset(to, 0, (size_t)GS);
                continue;
            }
            for (int64_t i = 0; i < GS; i++) {
                float quotient = from[i] / scale;
                /* a subnormal scale may be far too small; infinity / infinity is not a number */
                quotient = quotient > 127.0f ? 127.0f : quotient < -127.0f ? -127.0f : quotient;
                quotient = quotient == quotient ? quotient : 0.0f;
                /* towards zero, then by what is left: adding a half first would round, too */
                const int32_t whole = (int32_t)quotient;
                const float rest = quotient - (float)whole;
                to[i] = (int8_t)(whole + (rest >= 0.5f) - (rest <= -0.5f));
            }
        }
        memset(values + t * C + groups * GS, 0, (size_t)(C - groups * GS));
    }
}

/* out = value * scale          values, out: (n,)  scales: (n / GS,); past the last group 0 */
void llama2_dequantize(float *out, const int8_t *values, const float *scales,
                       int64_t n, int64_t GS)
{
    for (int64_t g = 0; g < n / GS; g++) {
        for (int64_t i = g * GS; i < (g + 1) * GS; i++) {
            out[i] = (float)values[i] * scales[g];
        }
    }
    for (int64_t i = n / GS * GS; i < n; i++) {
        out[i] = 0.0f;
    }
}

/* One row of w with one row of x, group after group. The integer sums are exact up to a GS of
 * 132104; the float ones are rounded at each step. */
static inline float dot_q8(const int8_t *x, const float *x_scales,
                           const int8_t *w, const float *w_scales, int64_t groups, int64_t GS)
{
    float sum = 0.0f;
    for (int64_t g = 0; g < groups; g++) {
        int32_t dot = 0;
        for (int64_t i = g * GS; i < (g + 1) * GS; i++) {
            dot += x[i] * w[i];
        }
        sum += (float)dot * w_scales[g] * x_scales[g];
    }
    return sum;
}

/* out = x @ w.T, group by group: (sum of integers) * scale of w * scale of x
 * x: (T, C)  x_scales: (T, C / GS)  w: (OC, C)  w_scales: (OC * C / GS,)  ->  (T, OC)
 * The groups of w are those of the flattened matrix. Where GS does not divide C they straddle its
 * rows, and then as in the original the products of a row leave out the last C % GS inputs and
 * take the scale of the group that their first element is in. */
void llama2_matmul_q8(float *out, const int8_t *x, const float *x_scales,
                      const int8_t *w, const float *w_scales,
                      int64_t T, int64_t C, int64_t OC, int64_t GS)
{
    const int64_t groups = C / GS;
    PARALLEL_IF(T * C * OC > WORTH_THREADS)
    for (int64_t o = 0; o < OC; o++) {
        const int8_t *row = w + o * C;
        const float *row_scales = w_scales + o * C / GS;  /* floor((o*C + g*GS) / GS) is this + g */
        for (int64_t t = 0; t < T; t++) {
            const int8_t *in = x + t * C;
            const float *in_scales = x_scales + t * groups;
            /* the usual sizes as constants: then the compiler unrolls a group into a few vectors */
            out[t * OC + o] = GS == 64 ? dot_q8(in, in_scales, row, row_scales, groups, 64)
                            : GS == 32 ? dot_q8(in, in_scales, row, row_scales, groups, 32)
                            : dot_q8(in, in_scales, row, row_scales, groups, GS);
        }
    }
}

/* ---- state --------------------------------------------------------------------------------- */

enum { STATE_BUFFERS = 15 };

/* Floats in each buffer, in the order of the struct; the int8 values come last, four to a float. */
static void state_sizes(int64_t n[STATE_BUFFERS + 1], const llama2_config *config,
                        int64_t S, int64_t T)
{
    const int64_t C = config->dim, F = config->hidden_dim, GS = config->group_size;
    const int64_t widest = C > F ? C : F;
    const int64_t hs = C / config->n_heads;
    const int64_t cache = size_times(size_times(config->n_layers, S), config->n_kv_heads * hs);
    const int64_t TC = size_times(T, C), TF = size_times(T, F);
    const int64_t sizes[STATE_BUFFERS + 1] = {
        cache, cache, TC, TC, TC, TC, TC, TF, TF, TF, TC,
        size_times(config->n_heads, S), size_times(T, hs / 2), size_times(T, hs / 2),
        GS > 0 ? size_times(T, widest / GS) : 0,
        GS > 0 ? size_times(T, widest / 4 + 1) : 0,
    };
    memcpy(n, sizes, sizeof sizes);
}

int64_t llama2_state_floats(const llama2_config *config, int64_t S, int64_t T)
{
    int64_t n[STATE_BUFFERS + 1], total = 0;
    state_sizes(n, config, S, T);
    for (int i = 0; i <= STATE_BUFFERS; i++) {
        total = size_plus(total, n[i]);
    }
    return total;
}

void llama2_state_bind(llama2_state *state, const llama2_config *config, float *memory,
                       int64_t S, int64_t T)
{
    float **buffer[STATE_BUFFERS] = {
        &state->key_cache, &state->value_cache, &state->x, &state->y, &state->q, &state->o,
        &state->proj, &state->gate, &state->up, &state->hidden, &state->ffn,
        &state->att, &state->cos, &state->sin, &state->input_scales,
    };
    int64_t n[STATE_BUFFERS + 1];
    state_sizes(n, config, S, T);
    state->cache_length = S;
    state->max_tokens = T;
    for (int i = 0; i < STATE_BUFFERS; i++) {
        *buffer[i] = memory;
        memory += n[i];
    }
    state->input_values = (int8_t *)memory;
}

/* ---- the forward pass ---------------------------------------------------------------------- */

/* What one or more products start from: x, and beside it x quantised if the matrices are. */
typedef struct {
    const float *x;       /* (T, C) */
    const int8_t *values; /* (T, C) */
    const float *scales;  /* (T, C / GS) */
    int64_t T, C, GS;
} input;

static input product_input(llama2_state *s, const float *x, int64_t T, int64_t C, int64_t GS)
{
    const input in = {x, s->input_values, s->input_scales, T, C, GS};
    if (GS > 0) {
        llama2_quantize(s->input_values, s->input_scales, x, T, C, GS);
    }
    return in;
}

/* out = x @ w[l].T          ->  (T, OC) */
static void product(float *out, const input *in, const llama2_matrix *w, int64_t l, int64_t OC)
{
    const int64_t T = in->T, C = in->C, GS = in->GS;
    if (GS > 0) {
        llama2_matmul_q8(out, in->values, in->scales, w->values + l * w->stride,
                         w->scales + l * (OC * C / GS), T, C, OC, GS);
    } else {
        llama2_matmul(out, in->x, w->floats + l * w->stride, T, C, OC);
    }
}

void llama2_forward(float *logits, llama2_state *state, const llama2_config *config,
                    const llama2_weights *weights, const int32_t *tokens,
                    int64_t T, int64_t pos, int32_t every_token)
{
    const int64_t C = config->dim, F = config->hidden_dim, L = config->n_layers;
    const int64_t NH = config->n_heads, NKV = config->n_kv_heads, V = config->vocab_size;
    const int64_t hs = C / NH, KV = NKV * hs, S = state->cache_length, P = pos + T;
    const int64_t GS = config->group_size;
    llama2_state *s = state;
    const llama2_weights *w = weights;

    llama2_embedding(s->x, tokens, w->token_embedding, T, C);
    rope_rows(s->cos, s->sin, pos, T, hs);  /* once a call; every layer and head turns alike */

    for (int64_t l = 0; l < L; l++) {
        float *keys = s->key_cache + l * S * KV;      /* (S, KV), rows below pos already filled */
        float *values = s->value_cache + l * S * KV;
        float *k = keys + pos * KV;                   /* (T, KV), written in place */
        float *v = values + pos * KV;

        llama2_rmsnorm(s->y, s->x, w->attention_norm + l * C, T, C);
        const input y = product_input(s, s->y, T, C, GS);
        product(s->q, &y, &w->wq, l, C);
        product(k, &y, &w->wk, l, KV);
        product(v, &y, &w->wv, l, KV);
        llama2_rope(s->q, s->q, s->cos, s->sin, T, NH, hs);
        llama2_rope(k, k, s->cos, s->sin, T, NKV, hs);
        llama2_attention(s->o, s->att, s->q, keys, values, T, P, NH, NKV, hs);
        const input o = product_input(s, s->o, T, C, GS);
        product(s->proj, &o, &w->wo, l, C);
        llama2_residual(s->x, s->x, s->proj, T, C);

        llama2_rmsnorm(s->y, s->x, w->ffn_norm + l * C, T, C);
        const input z = product_input(s, s->y, T, C, GS);
        product(s->gate, &z, &w->w1, l, F);
        product(s->up, &z, &w->w3, l, F);
        llama2_swiglu(s->hidden, s->gate, s->up, T, F);
        const input hidden = product_input(s, s->hidden, T, F, GS);
        product(s->ffn, &hidden, &w->w2, l, C);
        llama2_residual(s->x, s->x, s->ffn, T, C);
    }

    llama2_rmsnorm(s->y, s->x, w->final_norm, T, C);
    if (logits != NULL) {
        const int64_t first = every_token ? 0 : T - 1;
        const input y = product_input(s, s->y + first * C, T - first, C, GS);
        product(logits, &y, &w->classifier, 0, V);
    }
}

int32_t llama2_abi(void)
{
    return 2;
}

#endif
