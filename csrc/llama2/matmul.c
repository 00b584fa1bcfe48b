/* matmul.c - the matrix products of ops.h: float32, forward and backward, and int8.
 *
 * Every sum runs over ascending indices from +0 and is rounded at each step, in the naive loops
 * and in the fast ones.
 */
#ifndef LLAMA2_MATMUL_C
#define LLAMA2_MATMUL_C

#include "ops.h"
#include "../common/parallel.h"

#include <stddef.h>
#include <string.h>

/* ---- float32 ------------------------------------------------------------------------------- */

/* out = x @ w.T + b          x: (T, C)  w: (OC, C)  b: (OC,) or NULL  ->  (T, OC) */
void llama2_matmul_naive(float *out, const float *x, const float *w, const float *b,
                         int64_t T, int64_t C, int64_t OC)
{
    for (int64_t t = 0; t < T; t++) {
        PARALLEL_IF(C * OC > MIN_PARALLEL_WORK)
        for (int64_t o = 0; o < OC; o++) {
            float sum = 0.0f;
            for (int64_t c = 0; c < C; c++) {
                sum += w[o * C + c] * x[t * C + c];
            }
            out[t * OC + o] = b != NULL ? sum + b[o] : sum;
        }
    }
}

/* sum[i] = one . four[i*stride ...]: four independent sums. `one` is loaded once for all four, and
 * the additions of one sum hide the latency of the others. */
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

/* Element o of each quarter of a row of out. */
static inline void quarter_rows(float *out, const float *x, const float *w, int64_t o,
                                int64_t quarter, int64_t C)
{
    float sum[4];
    dot4(sum, x, w + o * C, quarter * C, C);
    for (int64_t i = 0; i < 4; i++) {
        out[o + i * quarter] = sum[i];
    }
}

/* out += b, row by row          out: (T, OC)  b: (OC,) */
static void add_bias(float *out, const float *b, int64_t T, int64_t OC)
{
    for (int64_t t = 0; t < T; t++) {
        for (int64_t o = 0; o < OC; o++) {
            out[t * OC + o] += b[o];
        }
    }
}

enum { BLOCK = 64 };  /* tokens, a multiple of 4 */

/* The same sums as the naive loops, each in order, four at a time.
 * T >= 4: four tokens share a row of w, so w, the large operand, is read once per block of tokens;
 * a block of x stays in the cache.
 * Remaining tokens: four rows of w share x. The rows are a quarter of w apart because the hardware
 * prefetches four distant streams better than one. */
void llama2_matmul(float *out, const float *x, const float *w, const float *b,
                   int64_t T, int64_t C, int64_t OC)
{
#ifdef LLAMA2_PLAIN_MATMUL  /* the loops of run.c, for timing only */
    llama2_matmul_naive(out, x, w, b, T, C, OC);
#else
    const int64_t fours = T / 4 * 4;
    for (int64_t first = 0; first < fours; first += BLOCK) {
        const int64_t end = first + BLOCK < fours ? first + BLOCK : fours;
        PARALLEL_IF((end - first) * C * OC > MIN_PARALLEL_WORK)
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
        PARALLEL_FOR(o, quarter, C * OC > MIN_PARALLEL_WORK,
                     quarter_rows(out + t * OC, x + t * C, w, o, quarter, C))
        if (4 * quarter < OC) {
            llama2_matmul_naive(out + t * OC + 4 * quarter, x + t * C, w + 4 * quarter * C, NULL,
                                1, C, OC - 4 * quarter);
        }
    }
    if (b != NULL) {
        add_bias(out, b, T, OC);
    }
#endif
}

/* ---- float32, backward --------------------------------------------------------------------- */

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

/* DEPTH rows are summed into every output before the next rows are read. */
enum { DEPTH = 256, TILE_ROWS = 8, TILE_COLUMNS = 32 };

/* out[i,c] += sum_k a[i * row + k * step] * rows[k,c], k ascending, for one tile of out that fits
 * in registers. The tile is 32 columns wide so that compilers vectorise it. out, rows: (.., C) */
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

/* The same for `columns` of one row of out, in memory: the remainder of the tiles. */
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
 * dx uses a = dout, dw uses a = dout transposed. */
static void sums_of_rows(float *out, const float *a, int64_t row, int64_t step, const float *rows,
                         int64_t M, int64_t K, int64_t C)
{
    memset(out, 0, (size_t)(M * C) * sizeof(float));
    for (int64_t first = 0; first < K; first += DEPTH) {
        const int64_t depth = K - first < DEPTH ? K - first : DEPTH;
        const float *from = rows + first * C;
        PARALLEL_IF(M * depth * C > MIN_PARALLEL_WORK)
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

/* ---- int8 ---------------------------------------------------------------------------------- */

/* max|x|. With the sign bit cleared, floats order like their bits as integers, and NaN is above
 * every number: a NaN always shows. */
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
 * A group of zeros has scale 0 and values 0. Elements after the last whole group of a row get 0. */
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
            if (!(scale > 0.0f)) {  /* also NaN: value * NaN is NaN whatever the values are */
                memset(to, 0, (size_t)GS);
                continue;
            }
            for (int64_t i = 0; i < GS; i++) {
                float quotient = from[i] / scale;
                /* a subnormal scale is inexact, and infinity / infinity is NaN */
                quotient = quotient > 127.0f ? 127.0f : quotient < -127.0f ? -127.0f : quotient;
                quotient = quotient == quotient ? quotient : 0.0f;
                /* truncate, then look at the remainder: adding 0.5 first would round the sum */
                const int32_t whole = (int32_t)quotient;
                const float rest = quotient - (float)whole;
                to[i] = (int8_t)(whole + (rest >= 0.5f) - (rest <= -0.5f));
            }
        }
        memset(values + t * C + groups * GS, 0, (size_t)(C - groups * GS));
    }
}

/* out = value * scale          values, out: (n,)  scales: (n / GS,); 0 after the last group */
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

/* One row of w with one row of x, group by group. The integer sums are exact for GS <= 132104;
 * the float sum is rounded at each step. */
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

/* One row of w with every row of x: see llama2_matmul_q8. */
static inline void row_q8(float *out, const int8_t *x, const float *x_scales,
                          const int8_t *w, const float *w_scales,
                          int64_t o, int64_t T, int64_t C, int64_t OC, int64_t GS)
{
    const int64_t groups = C / GS;
    const int8_t *row = w + o * C;
    const float *row_scales = w_scales + o * C / GS;  /* [g] is floor((o*C + g*GS) / GS) */
    for (int64_t t = 0; t < T; t++) {
        const int8_t *in = x + t * C;
        const float *in_scales = x_scales + t * groups;
        /* common sizes as constants, so that the compiler unrolls a group into few vectors */
        out[t * OC + o] = GS == 64 ? dot_q8(in, in_scales, row, row_scales, groups, 64)
                        : GS == 32 ? dot_q8(in, in_scales, row, row_scales, groups, 32)
                        : dot_q8(in, in_scales, row, row_scales, groups, GS);
    }
}

/* out = x @ w.T, group by group: (integer sum) * scale of w * scale of x
 * x: (T, C)  x_scales: (T, C / GS)  w: (OC, C)  w_scales: (OC * C / GS,)  ->  (T, OC)
 * The groups of w are those of the flattened matrix. Where GS does not divide C, groups straddle
 * rows; as in the original, a row then leaves out its last C % GS inputs, and each group takes the
 * scale of the group that its first element is in. */
void llama2_matmul_q8(float *out, const int8_t *x, const float *x_scales,
                      const int8_t *w, const float *w_scales,
                      int64_t T, int64_t C, int64_t OC, int64_t GS)
{
    PARALLEL_FOR(o, OC, T * C * OC > MIN_PARALLEL_WORK,
                 row_q8(out, x, x_scales, w, w_scales, o, T, C, OC, GS))
}

#endif
