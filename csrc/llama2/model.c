/* model.c - see model.h: the buffers of inference, and the forward pass in terms of ops.c. */
#ifndef LLAMA2_MODEL_C
#define LLAMA2_MODEL_C

#include "model.h"
#include "ops.c"
#include "../common/buffers.h"

/* ---- memory -------------------------------------------------------------------------------- */

int64_t llama2_cache_floats(const llama2_config *config, int64_t S)
{
    const int64_t hs = config->head_size, KV = hs * config->n_kv_heads;
    const int64_t rows = size_times(size_times(config->n_layers, S), KV);
    return size_times(2, size_plus(rows, size_times(S, hs / 2)));
}

void llama2_cache_bind(llama2_cache *cache, const llama2_config *config, float *memory, int64_t S)
{
    const int64_t hs = config->head_size, rows = config->n_layers * S * config->n_kv_heads * hs;
    cache->positions = S;
    cache->keys = memory;
    cache->values = cache->keys + rows;
    cache->cos = cache->values + rows;
    cache->sin = cache->cos + S * (hs / 2);
    llama2_rope_tables(cache->cos, cache->sin, NULL, S, hs, LLAMA2_ROPE_BASE, 1.0f);
}

enum { STATE_BUFFERS = 11 };

/* Floats per buffer, in the order of the struct. The int8 values come last, four per float. */
static void state_sizes(int64_t n[STATE_BUFFERS + 1], const llama2_config *config,
                        int64_t S, int64_t T)
{
    const int64_t C = config->dim, F = config->hidden_dim, GS = config->group_size;
    const int64_t Q = (int64_t)config->n_heads * config->head_size, wider = C > F ? C : F;
    const int64_t widest = wider > Q ? wider : Q;
    const int64_t TC = size_times(T, C), TF = size_times(T, F), TQ = size_times(T, Q);
    const int64_t sizes[STATE_BUFFERS + 1] = {
        TC, TC, TQ, TQ, TC, TF, TF, TF, TC, size_times(config->n_heads, S),
        GS > 0 ? size_times(T, widest / GS) : 0,
        GS > 0 ? size_times(T, widest / 4 + 1) : 0,
    };
    memcpy(n, sizes, sizeof sizes);
}

int64_t llama2_state_floats(const llama2_config *config, int64_t S, int64_t T)
{
    int64_t n[STATE_BUFFERS + 1];
    state_sizes(n, config, S, T);
    return total_floats(n, STATE_BUFFERS + 1);
}

void llama2_state_bind(llama2_state *state, const llama2_config *config, float *memory,
                       int64_t S, int64_t T)
{
    float **buffer[STATE_BUFFERS] = {
        &state->x, &state->y, &state->q, &state->o, &state->proj, &state->gate, &state->up,
        &state->hidden, &state->ffn, &state->att, &state->input_scales,
    };
    int64_t n[STATE_BUFFERS + 1];
    state_sizes(n, config, S, T);
    state->max_tokens = T;
    state->input_values = (int8_t *)bind_buffers(buffer, n, STATE_BUFFERS, memory);
}

/* ---- the forward pass ---------------------------------------------------------------------- */

/* The input of one or more matrix products: x, and x quantised if the matrices are int8. */
typedef struct {
    const float *x;       /* (T, C) */
    const int8_t *values; /* (T, C) */
    const float *scales;  /* (T, C / GS) */
    int64_t T, C, GS;
} operand;

static operand quantized_once(llama2_state *s, const float *x, int64_t T, int64_t C, int64_t GS)
{
    const operand in = {x, s->input_values, s->input_scales, T, C, GS};
    if (GS > 0) {
        llama2_quantize(s->input_values, s->input_scales, x, T, C, GS);
    }
    return in;
}

/* out = x @ w[l].T + b[l]          b: (L, OC), or NULL  ->  (T, OC)
 * Models with int8 matrices have no biases. */
static void product(float *out, const operand *in, const llama2_matrix *w, const float *b,
                    int64_t l, int64_t OC)
{
    const int64_t T = in->T, C = in->C, GS = in->GS;
    const float *bias = b != NULL ? b + l * OC : NULL;
    if (w->blocks != NULL && w->kinds[l] != 0) {
        llama2_matmul_packed(out, in->x, w->blocks + w->starts[l], w->kinds[l], bias, T, C, OC);
    } else if (w->blocks != NULL) {
        const void *layer = w->blocks + w->starts[l];
        llama2_matmul(out, in->x, layer, bias, T, C, OC);
    } else if (GS > 0) {
        llama2_matmul_q8(out, in->values, in->scales, w->values + l * w->stride,
                         w->scales + l * (OC * C / GS), T, C, OC, GS);
    } else {
        llama2_matmul(out, in->x, w->floats + l * w->stride, bias, T, C, OC);
    }
}

static void embed(float *out, const int32_t *tokens, const llama2_weights *w, int64_t T, int64_t C)
{
    if (w->token_embedding != NULL) {
        llama2_embedding(out, tokens, w->token_embedding, T, C);
        return;
    }
    const int32_t kind = w->embedding_kind;
    for (int64_t t = 0; t < T; t++) {
        const uint8_t *row = w->packed_embedding + tokens[t] * llama2_packed_bytes(kind, C);
        llama2_dequantize_packed(out + t * C, row, kind, 1, C);
    }
}

void llama2_forward(float *logits, llama2_state *state, llama2_cache *cache,
                    const llama2_config *config, const llama2_weights *weights,
                    const int32_t *tokens, int64_t T, int64_t pos, int32_t every_token)
{
    const int64_t C = config->dim, F = config->hidden_dim, L = config->n_layers;
    const int64_t NH = config->n_heads, NKV = config->n_kv_heads, V = config->vocab_size;
    const int64_t hs = config->head_size, Q = NH * hs, KV = NKV * hs;
    const int64_t S = cache->positions, P = pos + T, GS = config->group_size;
    const float *cos = cache->cos + pos * (hs / 2), *sin = cache->sin + pos * (hs / 2);
    const float eps = config->norm_epsilon;
    llama2_state *s = state;
    const llama2_weights *w = weights;

    embed(s->x, tokens, w, T, C);

    for (int64_t l = 0; l < L; l++) {
        float *keys = cache->keys + l * S * KV;      /* (S, KV), rows below pos are filled */
        float *values = cache->values + l * S * KV;
        float *k = keys + pos * KV;                  /* (T, KV), written in place */
        float *v = values + pos * KV;
        const int64_t window = config->windows != NULL ? config->windows[l] : 0;

        llama2_rmsnorm(s->y, s->x, w->attention_norm + l * C, T, C, eps);
        const operand y = quantized_once(s, s->y, T, C, GS);
        product(s->q, &y, &w->wq, w->bq, l, Q);
        product(k, &y, &w->wk, w->bk, l, KV);
        product(v, &y, &w->wv, w->bv, l, KV);
        if (w->q_norm != NULL) {
            llama2_rmsnorm(s->q, s->q, w->q_norm + l * hs, T * NH, hs, eps);
            llama2_rmsnorm(k, k, w->k_norm + l * hs, T * NKV, hs, eps);
        }
        llama2_rope(s->q, s->q, cos, sin, T, NH, hs);
        llama2_rope(k, k, cos, sin, T, NKV, hs);
        llama2_attention(s->o, s->att, s->q, keys, values, T, P, NH, NKV, hs, window);
        const operand o = quantized_once(s, s->o, T, Q, GS);
        product(s->proj, &o, &w->wo, w->bo, l, C);
        llama2_residual(s->x, s->x, s->proj, T, C);

        llama2_rmsnorm(s->y, s->x, w->ffn_norm + l * C, T, C, eps);
        const operand z = quantized_once(s, s->y, T, C, GS);
        product(s->gate, &z, &w->w1, w->b1, l, F);
        product(s->up, &z, &w->w3, w->b3, l, F);
        llama2_swiglu(s->hidden, s->gate, s->up, T, F);
        const operand hidden = quantized_once(s, s->hidden, T, F, GS);
        product(s->ffn, &hidden, &w->w2, w->b2, l, C);
        llama2_residual(s->x, s->x, s->ffn, T, C);
    }

    llama2_rmsnorm(s->y, s->x, w->final_norm, T, C, eps);
    if (logits != NULL) {
        const int64_t first = every_token ? 0 : T - 1;
        const operand y = quantized_once(s, s->y + first * C, T - first, C, GS);
        product(logits, &y, &w->classifier, NULL, 0, V);
    }
}

#endif
