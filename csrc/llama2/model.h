/* model.h - Llama 2 inference: configuration, weights, cache, buffers and the forward pass.
 *
 *   L layers   F feed-forward width   Q = NH * hs   KV = NKV * hs   P = pos + T
 *   the other sizes and the conventions are those of ops.h
 */
#ifndef LLAMA2_MODEL_H
#define LLAMA2_MODEL_H

#include "ops.h"

typedef struct {
    int32_t dim;                /* C */
    int32_t hidden_dim;         /* F */
    int32_t n_layers;           /* L */
    int32_t n_heads;            /* NH */
    int32_t n_kv_heads;         /* NKV, divides NH */
    int32_t vocab_size;         /* V, always positive here */
    int32_t seq_len;            /* context length that the model was trained for */
    int32_t shared_classifier;  /* 1: the classifier is the token embedding */
    int32_t group_size;         /* GS of int8 matrices, at least 1; 0: matrices are float32 */
    int32_t head_size;          /* hs, even; C / NH in llama2.c */
    float norm_epsilon;         /* 1e-5 in llama2.c */
    const int32_t *windows;     /* (L,), see llama2_attention; NULL in llama2.c */
} llama2_config;

/* The matrices (OC, C) of all layers, or a single one: float32, int8 with OC * C / GS scales, or
 * blocks of GGUF, of a kind of its own for each layer. */
typedef struct {
    const float *floats;   /* (L, OC, C), or NULL */
    const int8_t *values;  /* (L, OC, C), or NULL */
    const float *scales;   /* (L, OC * C / GS), contiguous */
    int64_t stride;        /* from one layer to the next, in floats or values; at least OC * C */
    const uint8_t *blocks; /* of all layers, or NULL */
    const int64_t *starts; /* (L,) byte of blocks where a layer begins, a multiple of 4 */
    const int32_t *kinds;  /* (L,) as of llama2_matmul_packed; 0: float32 */
} llama2_matrix;

typedef struct {
    const float *token_embedding;  /* (V, C), or NULL */
    const uint8_t *packed_embedding;  /* (V, C) in blocks of one kind, if the other is NULL */
    int32_t embedding_kind;
    const float *attention_norm;   /* (L, C) */
    llama2_matrix wq;              /* (L, Q, C); every matrix is (out, in) */
    llama2_matrix wk;              /* (L, KV, C) */
    llama2_matrix wv;              /* (L, KV, C) */
    llama2_matrix wo;              /* (L, C, Q) */
    const float *ffn_norm;         /* (L, C) */
    llama2_matrix w1;              /* (L, F, C), gate */
    llama2_matrix w2;              /* (L, C, F), down */
    llama2_matrix w3;              /* (L, F, C), up */
    const float *final_norm;       /* (C,) */
    llama2_matrix classifier;      /* (V, C); the token embedding if shared_classifier */
    /* What llama2.c does not have; NULL: not there. */
    const float *bq;               /* (L, Q), biases of the products with wq, wk ... */
    const float *bk;               /* (L, KV) */
    const float *bv;               /* (L, KV) */
    const float *bo;               /* (L, C) */
    const float *b1;               /* (L, F) */
    const float *b2;               /* (L, C) */
    const float *b3;               /* (L, F) */
    const float *q_norm;           /* (L, hs), norms of each head of queries and keys */
    const float *k_norm;           /* (L, hs) */
} llama2_weights;

/* Keys and values of the positions so far; carries over from call to call. */
typedef struct {
    int64_t positions;  /* S, at most seq_len */
    float *keys;        /* (L, S, KV), after rotation */
    float *values;      /* (L, S, KV) */
    float *cos;         /* (S, hs/2), see llama2_rope_tables */
    float *sin;         /* (S, hs/2) */
} llama2_cache;

/* Buffers of one call. After it they hold what the last layer left there. */
typedef struct {
    int64_t max_tokens;    /* the largest T of a call */
    float *x;              /* (T, C) residual stream */
    float *y;              /* (T, C) normalised x */
    float *q;              /* (T, Q) queries after rotation */
    float *o;              /* (T, Q) attention output, heads side by side */
    float *proj;           /* (T, C) o @ wo.T */
    float *gate;           /* (T, F) */
    float *up;             /* (T, F) */
    float *hidden;         /* (T, F) after swiglu */
    float *ffn;            /* (T, C) hidden @ w2.T */
    float *att;            /* (NH, P) weights of the last query */
    float *input_scales;   /* (T, C / GS) or (T, F / GS): the latest quantised matmul input */
    int8_t *input_values;  /* (T, C) or (T, F) */
} llama2_state;

/* Floats that a cache of S positions takes; INT64_MAX on overflow. */
int64_t llama2_cache_floats(const llama2_config *config, int64_t S);

/* Point the cache into memory, which holds that many floats, and fill in run.c's rotations. */
void llama2_cache_bind(llama2_cache *cache, const llama2_config *config, float *memory, int64_t S);

/* Floats that a state for a cache of S positions and calls of at most T tokens takes. */
int64_t llama2_state_floats(const llama2_config *config, int64_t S, int64_t T);

/* Point every buffer of the state into memory, which holds that many floats. */
void llama2_state_bind(llama2_state *state, const llama2_config *config, float *memory,
                       int64_t S, int64_t T);

/* Process T tokens at positions pos .. pos+T-1, given a cache that holds positions 0 .. pos-1.
 * logits: (T, V) if every_token, else (V,) of the last token, or NULL for none. */
void llama2_forward(float *logits, llama2_state *state, llama2_cache *cache,
                    const llama2_config *config, const llama2_weights *weights,
                    const int32_t *tokens, int64_t T, int64_t pos, int32_t every_token);

#endif
