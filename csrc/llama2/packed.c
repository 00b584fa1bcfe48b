/* packed.c - matrices in the blocks of GGUF: small integers, with a scale per block.
 *
 * A block is expanded into a buffer and multiplied from there, by every row of x. The strict build
 * rounds each number to float32 and adds in ascending order: matmul of the expanded matrix, bit by
 * bit. The layouts are stated in pyllm2/formats/gguf_blocks.py.
 */
#ifndef LLAMA2_PACKED_C
#define LLAMA2_PACKED_C

#include "ops.h"
#include "../common/parallel.h"

#include <stddef.h>
#include <string.h>

enum { Q4_0 = 2, Q4_1 = 3, Q5_0 = 6, Q5_1 = 7, Q8_0 = 8, Q4_K = 12, Q5_K = 13, Q6_K = 14 };
enum { SUPER = 256 };  /* numbers of a block in K; the others have 32 */

static int64_t block_numbers(int32_t kind)
{
    return kind == Q4_K || kind == Q5_K || kind == Q6_K ? SUPER : 32;
}

static int64_t block_bytes(int32_t kind)
{
    switch (kind) {
    case Q4_0: return 18;
    case Q4_1: return 20;
    case Q5_0: return 22;
    case Q5_1: return 24;
    case Q8_0: return 34;
    case Q4_K: return 144;
    case Q5_K: return 176;
    case Q6_K: return 210;
    default: return 0;
    }
}

/* Numbers in so many bytes of blocks; 0 for another kind, or a part of a block. */
int64_t llama2_packed_numbers(int32_t kind, int64_t bytes)
{
    const int64_t one = block_bytes(kind);
    return one > 0 && bytes % one == 0 ? bytes / one * block_numbers(kind) : 0;
}

int64_t llama2_packed_bytes(int32_t kind, int64_t numbers)
{
    return numbers / block_numbers(kind) * block_bytes(kind);
}

/* The IEEE half in two bytes. Its exponent and fraction, as those of a float, are off by 2^112. */
static float half(const uint8_t *b)
{
    const uint32_t bits = (uint32_t)b[0] | (uint32_t)b[1] << 8;
    uint32_t magnitude = (bits & 0x7FFF) << 13;
    float value;
    if ((bits & 0x7C00) == 0x7C00) {  /* infinity or NaN */
        magnitude |= 0x7F800000;
        memcpy(&value, &magnitude, sizeof value);
    } else {
        memcpy(&value, &magnitude, sizeof value);
        value *= 0x1p112f;
    }
    return bits & 0x8000 ? -value : value;
}

/* ---- one block ----------------------------------------------------------------------------- */

static void expand_q8_0(float *restrict out, const uint8_t *restrict b)
{
    const float d = half(b);
    for (int i = 0; i < 32; i++) {
        out[i] = d * (float)(int8_t)b[2 + i];
    }
}

/* Sixteen bytes of two numbers each: the lower four bits are numbers 0 to 15. */
static void expand_q4_0(float *restrict out, const uint8_t *restrict b)
{
    const float d = half(b);
    for (int i = 0; i < 16; i++) {
        out[i] = d * (float)((b[2 + i] & 15) - 8);
        out[i + 16] = d * (float)((b[2 + i] >> 4) - 8);
    }
}

static void expand_q4_1(float *restrict out, const uint8_t *restrict b)
{
    const float d = half(b), m = half(b + 2);
    for (int i = 0; i < 16; i++) {
        out[i] = d * (float)(b[4 + i] & 15) + m;
        out[i + 16] = d * (float)(b[4 + i] >> 4) + m;
    }
}

/* The fifth bits are 32 bits by themselves. */
static void expand_q5_0(float *restrict out, const uint8_t *restrict b)
{
    const float d = half(b);
    const uint32_t fifth = b[2] | (uint32_t)b[3] << 8 | (uint32_t)b[4] << 16 | (uint32_t)b[5] << 24;
    for (int i = 0; i < 16; i++) {
        out[i] = d * (float)((int)((b[6 + i] & 15) | (fifth >> i & 1) << 4) - 16);
        out[i + 16] = d * (float)((int)((b[6 + i] >> 4) | (fifth >> (i + 16) & 1) << 4) - 16);
    }
}

static void expand_q5_1(float *restrict out, const uint8_t *restrict b)
{
    const float d = half(b), m = half(b + 2);
    const uint32_t fifth = b[4] | (uint32_t)b[5] << 8 | (uint32_t)b[6] << 16 | (uint32_t)b[7] << 24;
    for (int i = 0; i < 16; i++) {
        out[i] = d * (float)((int)((b[8 + i] & 15) | (fifth >> i & 1) << 4)) + m;
        out[i + 16] = d * (float)((int)((b[8 + i] >> 4) | (fifth >> (i + 16) & 1) << 4)) + m;
    }
}

/* Scale or minimum j of eight, six bits each in 12 bytes: the first four in the lower six bits of
 * four bytes, the others in half a byte and the upper two bits that the first four leave.
 * upper: 0 for scales, 4 for minimums */
static int six_bits(const uint8_t *packed, int j, int upper)
{
    if (j < 4) {
        return packed[upper + j] & 63;
    }
    const int lower_four = upper == 0 ? packed[8 + j - 4] & 15 : packed[8 + j - 4] >> 4;
    return lower_four | packed[upper + j - 4] >> 6 << 4;
}

/* Q4_K, and Q5_K with the fifth bits of number i of every group in byte i. */
static void expand_with_minimum(float *restrict out, const uint8_t *restrict b,
                                const uint8_t *restrict fifth, const uint8_t *restrict lower)
{
    const float d = half(b), dmin = half(b + 2);
    for (int j = 0; j < 8; j++) {
        const float scale = d * (float)six_bits(b + 4, j, 0);
        const float minimum = dmin * (float)six_bits(b + 4, j, 4);
        for (int i = 0; i < 32; i++) {
            int q = lower[32 * (j / 2) + i] >> 4 * (j % 2) & 15;
            if (fifth != NULL) {
                q |= (fifth[i] >> j & 1) << 4;
            }
            out[32 * j + i] = scale * (float)q - minimum;
        }
    }
}

/* Half a block of 128 numbers has 64 bytes of lower bits and 32 of upper ones. */
static void expand_q6_k(float *restrict out, const uint8_t *restrict b)
{
    const float d = half(b + 208);
    for (int j = 0; j < 16; j++) {
        const int h = j / 8, first = 16 * (j % 8);  /* of the group, in its half */
        const float scale = d * (float)(int8_t)b[192 + j];
        const uint8_t *lower = b + 64 * h + first % 64, *upper = b + 128 + 32 * h + first % 32;
        for (int i = 0; i < 16; i++) {
            const int q = (lower[i] >> 4 * (first / 64) & 15)
                        | (upper[i] >> 2 * (first / 32) & 3) << 4;
            out[16 * j + i] = scale * (float)(q - 32);
        }
    }
}

/* ---- rows ---------------------------------------------------------------------------------- */

/* n numbers of one row, whole blocks */
static void expand(float *out, const uint8_t *blocks, int32_t kind, int64_t n)
{
    const int64_t numbers = block_numbers(kind), bytes = block_bytes(kind);
    for (int64_t k = 0; k < n / numbers; k++) {
        const uint8_t *b = blocks + k * bytes;
        float *to = out + k * numbers;
        switch (kind) {
        case Q4_0: expand_q4_0(to, b); break;
        case Q4_1: expand_q4_1(to, b); break;
        case Q5_0: expand_q5_0(to, b); break;
        case Q5_1: expand_q5_1(to, b); break;
        case Q8_0: expand_q8_0(to, b); break;
        case Q4_K: expand_with_minimum(to, b, NULL, b + 16); break;
        case Q5_K: expand_with_minimum(to, b, b + 16, b + 48); break;
        case Q6_K: expand_q6_k(to, b); break;
        default: break;
        }
    }
}

/* w: (OC, bytes of a row)  ->  (OC, C) */
void llama2_dequantize_packed(float *out, const uint8_t *w, int32_t kind, int64_t OC, int64_t C)
{
    const int64_t row = llama2_packed_bytes(kind, C);
    PARALLEL_FOR(o, OC, OC * C > MIN_PARALLEL_WORK, expand(out + o * C, w + o * row, kind, C))
}

/* One row of w with every row of x, SUPER numbers at a time. */
static void row_packed(float *out, const float *x, const uint8_t *row, int32_t kind,
                       int64_t T, int64_t C, int64_t OC)
{
    float numbers[SUPER];
    for (int64_t t = 0; t < T; t++) {
        out[t * OC] = 0.0f;
    }
    for (int64_t first = 0; first < C; first += SUPER) {
        const int64_t n = C - first < SUPER ? C - first : SUPER;
        expand(numbers, row + llama2_packed_bytes(kind, first), kind, n);
        for (int64_t t = 0; t < T; t++) {
            const float *in = x + t * C + first;
            float sum = out[t * OC];
            for (int64_t i = 0; i < n; i++) {
                sum += numbers[i] * in[i];
            }
            out[t * OC] = sum;
        }
    }
}

/* The same sums for four rows, a quarter of w apart: they share each load of x, and the memory
 * prefetches four streams. */
static void four_rows_packed(float *out, const float *x, const uint8_t *row, int32_t kind,
                             int64_t T, int64_t C, int64_t OC)
{
    const int64_t quarter = OC / 4, apart = quarter * llama2_packed_bytes(kind, C);
    float numbers[4][SUPER];
    for (int64_t t = 0; t < T; t++) {
        for (int64_t r = 0; r < 4; r++) {
            out[t * OC + r * quarter] = 0.0f;
        }
    }
    for (int64_t first = 0; first < C; first += SUPER) {
        const int64_t n = C - first < SUPER ? C - first : SUPER;
        for (int64_t r = 0; r < 4; r++) {
            expand(numbers[r], row + r * apart + llama2_packed_bytes(kind, first), kind, n);
        }
        for (int64_t t = 0; t < T; t++) {
            const float *in = x + t * C + first;
            float *to = out + t * OC;
            float a = to[0], b = to[quarter], c = to[2 * quarter], d = to[3 * quarter];
            for (int64_t i = 0; i < n; i++) {
                a += numbers[0][i] * in[i];
                b += numbers[1][i] * in[i];
                c += numbers[2][i] * in[i];
                d += numbers[3][i] * in[i];
            }
            to[0] = a, to[quarter] = b, to[2 * quarter] = c, to[3 * quarter] = d;
        }
    }
}

/* out = x @ w.T + b      x: (T, C)  w: (OC, bytes of a row)  b: (OC,) or NULL  ->  (T, OC) */
void llama2_matmul_packed(float *out, const float *x, const uint8_t *w, int32_t kind,
                          const float *b, int64_t T, int64_t C, int64_t OC)
{
    const int64_t row = llama2_packed_bytes(kind, C);
    PARALLEL_FOR(o, OC / 4, T * C * OC > MIN_PARALLEL_WORK,
                 four_rows_packed(out + o, x, w + o * row, kind, T, C, OC))
    for (int64_t o = OC / 4 * 4; o < OC; o++) {
        row_packed(out + o, x, w + o * row, kind, T, C, OC);
    }
    for (int64_t t = 0; b != NULL && t < T; t++) {
        for (int64_t o = 0; o < OC; o++) {
            out[t * OC + o] += b[o];
        }
    }
}

#endif
