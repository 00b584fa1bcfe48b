/* training.h - GPT-2: activations of a batch, and both passes. Inference is the forward pass. */
#ifndef GPT2_TRAINING_H
#define GPT2_TRAINING_H

#include "model.h"
#include "ops.h"

/* What a forward pass keeps for the backward pass, or the gradients of it: contiguous, in this
 * order. */
typedef struct {
    float *encoded;    /* (B, T, C) input of the first layer */
    float *ln1;        /* (L, B, T, C) */
    float *ln1_mean;   /* (L, B, T) */
    float *ln1_rstd;   /* (L, B, T) */
    float *qkv;        /* (L, B, T, 3C) */
    float *atty;       /* (L, B, T, C) attention output, heads side by side */
    float *preatt;     /* (L, B, NH, T, T) scores; not written above the diagonal */
    float *att;        /* (L, B, NH, T, T) weights */
    float *attproj;    /* (L, B, T, C) */
    float *residual2;  /* (L, B, T, C) residual stream after attention */
    float *ln2;        /* (L, B, T, C) */
    float *ln2_mean;   /* (L, B, T) */
    float *ln2_rstd;   /* (L, B, T) */
    float *fch;        /* (L, B, T, 4C) */
    float *fch_gelu;   /* (L, B, T, 4C) */
    float *fcproj;     /* (L, B, T, C) */
    float *residual3;  /* (L, B, T, C) residual stream after the layer */
    float *lnf;        /* (B, T, C) */
    float *lnf_mean;   /* (B, T) */
    float *lnf_rstd;   /* (B, T) */
    float *logits;     /* (B, T, Vp) */
    float *probs;      /* (B, T, Vp), 0 in the padding */
    float *losses;     /* (B, T) */
} gpt2_activations;

/* Floats that the activations of (B, T) tokens take; INT64_MAX on overflow. */
int64_t gpt2_activation_floats(const gpt2_config *config, int64_t B, int64_t T);

/* Point every buffer into memory, which holds that many floats. */
void gpt2_activations_bind(gpt2_activations *acts, const gpt2_config *config, float *memory,
                           int64_t B, int64_t T);

/* Logits and probabilities, and the loss at each position unless targets is NULL.
 * tokens, targets: (B, T) in [0, V) */
void gpt2_forward(gpt2_activations *acts, const gpt2_config *config, const gpt2_parameters *params,
                  const int32_t *tokens, const int32_t *targets, int64_t B, int64_t T);

/* The gradient of dloss * sum(losses), added to grads, from the activations of a forward pass over
 * the same targets; dloss = 1 / (B * T) gives that of the mean loss. dacts is added to as well:
 * pass zeros. */
void gpt2_backward(gpt2_parameters *grads, gpt2_activations *dacts, const gpt2_activations *acts,
                   const gpt2_config *config, const gpt2_parameters *params,
                   const int32_t *tokens, const int32_t *targets, float dloss,
                   int64_t B, int64_t T);

/* The hash of the headers that this library was built from. */
int64_t gpt2_abi(void);

#endif
