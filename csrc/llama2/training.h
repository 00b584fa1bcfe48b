/* training.h - Llama 2 training: parameters, activations and both passes. The classifier is the
 * token embedding; no dropout.
 *
 *   the sizes and conventions are those of model.h, with N = B * T
 */
#ifndef LLAMA2_TRAINING_H
#define LLAMA2_TRAINING_H

#include "model.h"

/* The parameters, or their gradients. */
typedef struct {
    float *token_embedding;  /* (V, C), also the classifier */
    float *attention_norm;   /* (L, C) */
    float *wq;               /* (L, C, C); every matrix is (out, in) */
    float *wk;               /* (L, KV, C) */
    float *wv;               /* (L, KV, C) */
    float *wo;               /* (L, C, C) */
    float *ffn_norm;         /* (L, C) */
    float *w1;               /* (L, F, C), gate */
    float *w2;               /* (L, C, F), down */
    float *w3;               /* (L, F, C), up */
    float *final_norm;       /* (C,) */
} llama2_parameters;

/* What a forward pass keeps for the backward pass. */
typedef struct {
    float *cos;            /* (N, hs/2) */
    float *sin;            /* (N, hs/2) */
    float *x;              /* (L + 1, N, C) residual stream before each layer and after the last */
    float *attention_in;   /* (L, N, C) normalised */
    float *q;              /* (L, N, C) after rotation */
    float *k;              /* (L, N, KV) after rotation */
    float *v;              /* (L, N, KV) */
    float *att;            /* (L, B, NH, T, T) attention weights */
    float *attention_out;  /* (L, N, C) heads side by side */
    float *middle;         /* (L, N, C) residual stream after attention */
    float *ffn_in;         /* (L, N, C) normalised */
    float *gate;           /* (L, N, F) */
    float *up;             /* (L, N, F) */
    float *hidden;         /* (L, N, F) after swiglu */
    float *branch;         /* (N, C) workspace: the output that is added to the stream next */
    float *final;          /* (N, C) normalised */
    float *logits;         /* (N, V) */
    float *probs;          /* (N, V) */
    float *losses;         /* (N,) 0 where the target is -1 */
} llama2_activations;

/* Workspace of a backward pass: the gradients of the activations of the same names, one layer at a
 * time. */
typedef struct {
    float *losses;   /* (N,) */
    float *logits;   /* (N, V) */
    float *x;        /* (N, C) of the residual stream */
    float *normal;   /* (N, C) of the output of a norm */
    float *part;     /* (N, C) the share of one matrix in that; the gradient of a norm's input */
    float *q;        /* (N, C) */
    float *k;        /* (N, KV) */
    float *v;        /* (N, KV) */
    float *att;      /* (B, NKV, T) */
    float *gate;     /* (N, F) */
    float *up;       /* (N, F) */
    float *hidden;   /* (N, F) */
} llama2_gradients;

/* Floats that the activations, or the workspace, of (B, T) tokens take; INT64_MAX on overflow. */
int64_t llama2_activation_floats(const llama2_config *config, int64_t B, int64_t T);
int64_t llama2_gradient_floats(const llama2_config *config, int64_t B, int64_t T);

/* Point every buffer into memory, which holds that many floats. */
void llama2_activations_bind(llama2_activations *acts, const llama2_config *config, float *memory,
                             int64_t B, int64_t T);
void llama2_gradients_bind(llama2_gradients *grads, const llama2_config *config, float *memory,
                           int64_t B, int64_t T);

/* The loss at each position. tokens: (B, T) in [0, V)  targets: (B, T), or -1: ignored */
void llama2_training_forward(llama2_activations *acts, const llama2_config *config,
                             const llama2_parameters *params, const int32_t *tokens,
                             const int32_t *targets, int64_t B, int64_t T);

/* The gradient of dloss * sum(losses), written to grads, from the activations of a forward pass
 * over the same tokens and targets. */
void llama2_training_backward(llama2_parameters *grads, llama2_gradients *workspace,
                              const llama2_activations *acts, const llama2_config *config,
                              const llama2_parameters *params, const int32_t *tokens,
                              const int32_t *targets, float dloss, int64_t B, int64_t T);

/* The hash of the headers that this library was built from. */
int64_t llama2_abi(void);

#endif
