/* llama2_training.h - Llama 2 in training: both passes as a whole, and with llama2.h and
 * llama2_backward.h the ops that they consist of. The classifier is the token embedding; no dropout.
 *
 *   B batch rows   T time steps   N = B * T rows   the other sizes as in llama2.h
 */
#ifndef LLAMA2_TRAINING_H
#define LLAMA2_TRAINING_H

#include "llama2.h"
#include "llama2_backward.h"

/* What is learned, or its gradient. */
typedef struct {
    float *token_embedding;  /* (V, C)      and classifier */
    float *attention_norm;   /* (L, C) */
    float *wq;               /* (L, C, C)   every matrix is (out, in) */
    float *wk;               /* (L, KV, C) */
    float *wv;               /* (L, KV, C) */
    float *wo;               /* (L, C, C) */
    float *ffn_norm;         /* (L, C) */
    float *w1;               /* (L, F, C)   gate */
    float *w2;               /* (L, C, F)   down */
    float *w3;               /* (L, F, C)   up */
    float *final_norm;       /* (C,) */
} llama2_parameters;

/* What a forward leaves for the backward. */
typedef struct {
    float *cos;            /* (N, hs/2) */
    float *sin;            /* (N, hs/2) */
    float *x;              /* (L + 1, N, C)       the stream: before layer l, and after the last */
    float *attention_in;   /* (L, N, C)           normalised */
    float *q;              /* (L, N, C)           turned */
    float *k;              /* (L, N, KV)          turned */
    float *v;              /* (L, N, KV) */
    float *att;            /* (L, B, NH, T, T)    weights */
    float *attention_out;  /* (L, N, C)           heads abreast */
    float *middle;         /* (L, N, C)           the stream after attention */
    float *ffn_in;         /* (L, N, C)           normalised */
    float *gate;           /* (L, N, F) */
    float *up;             /* (L, N, F) */
    float *hidden;         /* (L, N, F)           after swiglu */
    float *branch;         /* (N, C)              scratch: what is added to the stream next */
    float *final;          /* (N, C)              normalised */
    float *logits;         /* (N, V) */
    float *probs;          /* (N, V) */
    float *losses;         /* (N,)                0 where the target is -1 */
} llama2_activations;

/* Scratch of a backward. Gradients of the activations whose names they have: only one layer's at a
 * time, so there are no layers here. */
typedef struct {
    float *losses;   /* (N,) */
    float *logits;   /* (N, V) */
    float *x;        /* (N, C)         coming down the stream */
    float *normal;   /* (N, C)         of what a norm gave */
    float *part;     /* (N, C)         one matrix's share in that; what goes back into the stream */
    float *q;        /* (N, C) */
    float *k;        /* (N, KV) */
    float *v;        /* (N, KV) */
    float *att;      /* (B, NKV, T) */
    float *gate;     /* (N, F) */
    float *up;       /* (N, F) */
    float *hidden;   /* (N, F) */
} llama2_gradients;

/* From tokens to the loss at each position. tokens: (B, T) in [0, V); targets: (B, T), or -1 */
void llama2_training_forward(llama2_activations *acts, const llama2_config *config,
                             const llama2_parameters *params, const int32_t *tokens,
                             const int32_t *targets, int64_t B, int64_t T);

/* From the activations of a forward with the same tokens and targets to the gradient of
 * dloss * sum(losses), written to grads. */
void llama2_training_backward(llama2_parameters *grads, llama2_gradients *scratch,
                              const llama2_activations *acts, const llama2_config *config,
                              const llama2_parameters *params, const int32_t *tokens,
                              const int32_t *targets, float dloss, int64_t B, int64_t T);

/* Changes whenever a struct or a prototype above, or one of llama2_backward.h, does. */
int32_t llama2_training_abi(void);

#endif
