/* sampler.c - the next token id from logits: temperature, then argmax, multinomial or top-p.
 *
 * Probabilities are summed in ascending order, because a random number is compared with the sums.
 */
#ifndef SAMPLER_C
#define SAMPLER_C

#include "../common/reader.c"
#include "../common/draw.c"
#include "ops.h"

typedef struct {
    float p;
    int32_t id;
} candidate;

typedef struct {
    float temperature, topp;
    uint64_t random;        /* state of xorshift64* */
    candidate *candidates;  /* (V,) workspace */
} sampler;

/* The index of the maximum; the first one of several. */
static int32_t argmax(const float *x, int32_t n)
{
    int32_t best = 0;
    for (int32_t i = 1; i < n; i++) {
        if (x[i] > x[best]) {
            best = i;
        }
    }
    return best;
}

/* Descending probability, then ascending id. */
static int by_p_then_id(const void *left, const void *right)
{
    const candidate *a = left, *b = right;
    return a->p != b->p ? (a->p < b->p) - (a->p > b->p) : (a->id > b->id) - (a->id < b->id);
}

/* A draw from the smallest set of most probable ids whose sum exceeds topp. */
static int32_t sample_top_p(const float *p, int32_t V, float topp, float coin, candidate *c)
{
    /* ids below this probability cannot be in the set, so they are not sorted */
    const float cutoff = V > 1 ? (1.0f - topp) / (float)(V - 1) : 2.0f;
    int32_t n = 0, last = 0;
    for (int32_t i = 0; i < V; i++) {
        if (p[i] >= cutoff) {
            c[n].p = p[i];
            c[n++].id = i;
        }
    }
    if (n == 0) {  /* a flat distribution and a topp below any probability: the best id alone */
        return argmax(p, V);
    }
    qsort(c, (size_t)n, sizeof *c, by_p_then_id);
    float mass = c[0].p;
    while (mass <= topp && last < n - 1) {
        mass += c[++last].p;
    }
    const float target = coin * mass;
    float sum = 0.0f;
    for (int32_t i = 0; i < last; i++) {
        sum += c[i].p;
        if (target < sum) {
            return c[i].id;
        }
    }
    return c[last].id;
}

/* The id that follows position pos. Overwrites the logits. */
static int32_t sample(sampler *s, float *logits, int32_t V, int64_t pos)
{
    if (s->temperature == 0.0f) {
        return argmax(logits, V);
    }
    for (int32_t i = 0; i < V; i++) {
        logits[i] /= s->temperature;
    }
    llama2_softmax(logits, logits, 1, V);
    const float coin = next_coin(&s->random);
    if (s->topp <= 0.0f || s->topp >= 1.0f) {
        return multinomial(logits, V, coin);
    }
    REFUSE_IF(is_nan(logits[0]),  /* a NaN makes every probability NaN */
              "non-finite probabilities at position %" PRId64 ": temperature = %g is too small",
              pos, (double)s->temperature);
    return sample_top_p(logits, V, s->topp, coin, s->candidates);
}

#endif
