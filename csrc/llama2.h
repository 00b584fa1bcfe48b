/* llama2.h - the operations of the Llama 2 forward pass, one function each, and the pass itself.
 *
 * Everything is row-major, and float32 unless it says int8; sizes are int64_t. Arguments come as
 * outputs, inputs, sizes.
 * Nothing here allocates, prints, exits or keeps state of its own; pointers and sizes are trusted,
 * so check them before you call.
 *
 *   T tokens in this call   P = pos + T cached positions   S cache length   V vocabulary
 *   C channels (dim)        F feed-forward width           L layers         OC output channels
 *   NH query heads          NKV key/value heads            hs = C / NH      KV = NKV * hs
 *   GS group size: int8 elements that share a scale
 *
 * The strict build, -O2 -ffp-contract=off, adds in one fixed order and defines the right bits.
 */
#ifndef LLAMA2_H
#define LLAMA2_H

#include <stdint.h>

/* ---- ops ----------------------------------------------------------------------------------- */

void llama2_embedding(float *out, const int32_t *tokens, const float *table, int64_t T, int64_t C);

void llama2_rmsnorm(float *out, const float *x, const float *weight, int64_t T, int64_t C);

void llama2_matmul(float *out, const float *x, const float *w, int64_t T, int64_t C, int64_t OC);

/* The definition of matmul, three plain loops: same bits in the strict build, only slower. */
void llama2_matmul_naive(float *out, const float *x, const float *w,
                         int64_t T, int64_t C, int64_t OC);

void llama2_rope_tables(float *cos, float *sin, int64_t S, int64_t hs);

void llama2_rope(float *out, const float *x, const float *cos, const float *sin,
                 int64_t T, int64_t N, int64_t hs);

void llama2_softmax(float *out, const float *x, int64_t T, int64_t C);

void llama2_attention(float *out, float *att, const float *q, const float *k, const float *v,
                      int64_t T, int64_t P, int64_t NH, int64_t NKV, int64_t hs);

void llama2_residual(float *out, const float *x, const float *y, int64_t T, int64_t C);

void llama2_swiglu(float *out, const float *gate, const float *up, int64_t T, int64_t F);

/* ---- int8 ops: value * scale, one scale to GS neighbours ------------------------------------- */

void llama2_quantize(int8_t *values, float *scales, const float *x,
                     int64_t T, int64_t C, int64_t GS);

void llama2_dequantize(float *out, const int8_t *values, const float *scales,
                       int64_t n, int64_t GS);

void llama2_matmul_q8(float *out, const int8_t *x, const float *x_scales,
                      const int8_t *w, const float *w_scales,
                      int64_t T, int64_t C, int64_t OC, int64_t GS);

/* ---- the model ----------------------------------------------------------------------------- */

typedef struct {
    int32_t dim;                /* C */
    int32_t hidden_dim;         /* F */
    int32_t n_layers;           /* L */
    int32_t n_heads;            /* NH, divides C; C / NH is even */
    int32_t n_kv_heads;         /* NKV, divides NH */
    int32_t vocab_size;         /* V, always positive here */
    int32_t seq_len;            /* the context the model was trained for */
    int32_t shared_classifier;  /* 1: the classifier is the token embedding */
    int32_t group_size;         /* GS of int8 matrices, 1 or more; 0: they are float32 */
} llama2_config;

/* Matrices (OC, C) of all layers, or one: float32, or int8 with floor(OC * C / GS) scales each. */
typedef struct {
    const float *floats;   /* (L, OC, C), or NULL */
    const int8_t *values;  /* (L, OC, C), or NULL */
    const float *scales;   /* (L, floor(OC * C / GS)), layers without a gap */
    int64_t stride;        /* from one layer to the next, in floats or values; OC * C or more */
} llama2_matrix;

typedef struct {
    const float *token_embedding;  /* (V, C) */
    const float *attention_norm;   /* (L, C) */
    llama2_matrix wq;              /* (L, C, C); every matrix is (out, in) */
    llama2_matrix wk;              /* (L, KV, C) */
    llama2_matrix wv;              /* (L, KV, C) */
    llama2_matrix wo;              /* (L, C, C) */
    const float *ffn_norm;         /* (L, C) */
    llama2_matrix w1;              /* (L, F, C), gate */
    llama2_matrix w2;              /* (L, C, F), down */
    llama2_matrix w3;              /* (L, F, C), up */
    const float *final_norm;       /* (C,) */
    llama2_matrix classifier;      /* (V, C); the embedding once more if that is shared */
} llama2_weights;

/* The caches carry over from call to call. The rest is scratch of one call; it is left as it was
 * after the last layer, for whoever wants to look. */
typedef struct {
    int64_t cache_length;  /* S: positions the caches hold, at most seq_len */
    int64_t max_tokens;    /* the largest T of one call */
    float *key_cache;      /* (L, S, KV), keys after rotation */
    float *value_cache;    /* (L, S, KV) */
    float *x;              /* (T, C) residual stream */
    float *y;              /* (T, C) normalised x */
    float *q;              /* (T, C) queries after rotation */
    float *o;              /* (T, C) heads side by side */
    float *proj;           /* (T, C) wo applied to o */
    float *gate;           /* (T, F) */
    float *up;             /* (T, F) */
    float *hidden;         /* (T, F) after swiglu */
    float *ffn;            /* (T, C) w2 applied to hidden */
    float *att;            /* (NH, P) weights of the last query */
    float *cos;            /* (T, hs/2) of the positions of this call */
    float *sin;            /* (T, hs/2) */
    float *input_scales;   /* (T, C or F / GS) of what was quantised last, before a product */
    int8_t *input_values;  /* (T, C or F) */
} llama2_state;

/* Floats that a state for S positions and calls of up to T tokens needs; INT64_MAX if too many. */
int64_t llama2_state_floats(const llama2_config *config, int64_t S, int64_t T);

/* Point every buffer of the state into memory, which holds llama2_state_floats floats. */
void llama2_state_bind(llama2_state *state, const llama2_config *config, float *memory,
                       int64_t S, int64_t T);

/* Feed T tokens at positions pos .. pos+T-1. logits: (T, V) if every_token, else (V,) of the last
 * token, or NULL if nobody wants them. The caches must hold positions 0 .. pos-1. */
void llama2_forward(float *logits, llama2_state *state, const llama2_config *config,
                    const llama2_weights *weights, const int32_t *tokens,
                    int64_t T, int64_t pos, int32_t every_token);

/* Changes whenever a struct or a prototype above does. */
int32_t llama2_abi(void);

#endif
