/* gpt2.h - the operations of GPT-2 training, forward and backward, and both passes as a whole.
 *
 * Everything is row-major float32; tokens are int32; sizes are int64_t. Arguments come as outputs,
 * inputs, sizes. Nothing here allocates, prints, exits or keeps state of its own; pointers and
 * sizes are trusted, so check them before you call.
 *
 *   B batch rows     T time steps   N = B * T rows       S positions that wpe has, T <= S
 *   C channels       NH heads       hs = C / NH          L layers
 *   V vocabulary     Vp the same padded, V <= Vp         OC output channels
 *
 * A forward overwrites its outputs. A backward ADDS to its outputs: a tensor that is used twice
 * gets both gradients, and whoever wants a gradient by itself clears the outputs before.
 *
 * The strict build, -O2 -ffp-contract=off, adds in one fixed order and defines the right bits.
 */
#ifndef GPT2_H
#define GPT2_H

#include <stdint.h>

/* ---- ops: in the order of pyllm2/gpt2/ops.py, formulas in gpt2_ops.c -------------------------- */

void gpt2_encoder_forward(float *out, const int32_t *tokens, const float *wte, const float *wpe,
                          int64_t B, int64_t T, int64_t C);
void gpt2_encoder_backward(float *dwte, float *dwpe, const float *dout, const int32_t *tokens,
                           int64_t B, int64_t T, int64_t C);

/* mean, rstd: (N,), kept for the backward */
void gpt2_layernorm_forward(float *out, float *mean, float *rstd,
                            const float *x, const float *w, const float *b, int64_t N, int64_t C);
void gpt2_layernorm_backward(float *dx, float *dw, float *db, const float *dout, const float *x,
                             const float *w, const float *mean, const float *rstd,
                             int64_t N, int64_t C);

/* w: (OC, C)   b: (OC,) or NULL, and then db NULL too */
void gpt2_matmul_forward(float *out, const float *x, const float *w, const float *b,
                         int64_t N, int64_t C, int64_t OC);
void gpt2_matmul_backward(float *dx, float *dw, float *db, const float *dout, const float *x,
                          const float *w, int64_t N, int64_t C, int64_t OC);

/* The definition of matmul_forward, plain loops: same bits in the strict build, only slower. */
void gpt2_matmul_forward_naive(float *out, const float *x, const float *w, const float *b,
                               int64_t N, int64_t C, int64_t OC);

/* qkv: (B, P, 3C)   out: (B, P - first, C)   preatt, att: (B, NH, P - first, P)
 * Queries are those from position `first` on; 0 in training. Scores of later positions are not
 * written to preatt; their weights in att are 0. */
void gpt2_attention_forward(float *out, float *preatt, float *att, const float *qkv,
                            int64_t B, int64_t P, int64_t C, int64_t NH, int64_t first);

/* dqkv: (B, T, 3C)   dpreatt, datt: (B, NH, T, T), gradients of what lies between; they too are
 * added to, so they hold zeros before the call unless that is meant. */
void gpt2_attention_backward(float *dqkv, float *dpreatt, float *datt,
                             const float *dout, const float *qkv, const float *att,
                             int64_t B, int64_t T, int64_t C, int64_t NH);

void gpt2_gelu_forward(float *out, const float *x, int64_t n);
void gpt2_gelu_backward(float *dx, const float *dout, const float *x, int64_t n);

void gpt2_residual_forward(float *out, const float *a, const float *b, int64_t n);
void gpt2_residual_backward(float *da, float *db, const float *dout, int64_t n);

/* logits, probs: (N, Vp) */
void gpt2_softmax_forward(float *probs, const float *logits, int64_t N, int64_t V, int64_t Vp);

/* losses: (N,)   targets: (N,) in [0, V) */
void gpt2_crossentropy_forward(float *losses, const float *probs, const int32_t *targets,
                               int64_t N, int64_t Vp);
void gpt2_crossentropy_softmax_backward(float *dlogits, const float *dlosses, const float *probs,
                                        const int32_t *targets,
                                        int64_t N, int64_t V, int64_t Vp);

/* (sum of losses, in order) / N */
float gpt2_mean_loss(const float *losses, int64_t N);

/* ---- the model ----------------------------------------------------------------------------- */

/* In the order of the fields of a checkpoint. */
typedef struct {
    int32_t max_seq_len;        /* S */
    int32_t vocab_size;         /* V */
    int32_t num_layers;         /* L */
    int32_t num_heads;          /* NH, divides C */
    int32_t channels;           /* C */
    int32_t padded_vocab_size;  /* Vp */
} gpt2_config;

/* What is learned, or its gradient, or a moment of it: one after the other in one memory. */
typedef struct {
    float *wte;       /* (Vp, C)      token embedding, and classifier */
    float *wpe;       /* (S, C)       position embedding */
    float *ln1w;      /* (L, C) */
    float *ln1b;      /* (L, C) */
    float *qkvw;      /* (L, 3C, C)   every matrix is (out, in) */
    float *qkvb;      /* (L, 3C) */
    float *attprojw;  /* (L, C, C) */
    float *attprojb;  /* (L, C) */
    float *ln2w;      /* (L, C) */
    float *ln2b;      /* (L, C) */
    float *fcw;       /* (L, 4C, C) */
    float *fcb;       /* (L, 4C) */
    float *fcprojw;   /* (L, C, 4C) */
    float *fcprojb;   /* (L, C) */
    float *lnfw;      /* (C,) */
    float *lnfb;      /* (C,) */
} gpt2_parameters;

/* What a forward leaves, or the gradient of it: one after the other in one memory. */
typedef struct {
    float *encoded;    /* (B, T, C)         tokens and positions: what the first layer gets */
    float *ln1;        /* (L, B, T, C) */
    float *ln1_mean;   /* (L, B, T) */
    float *ln1_rstd;   /* (L, B, T) */
    float *qkv;        /* (L, B, T, 3C) */
    float *atty;       /* (L, B, T, C)      heads side by side */
    float *preatt;     /* (L, B, NH, T, T)  scores; above the diagonal never written */
    float *att;        /* (L, B, NH, T, T)  weights */
    float *attproj;    /* (L, B, T, C) */
    float *residual2;  /* (L, B, T, C)      the stream after attention */
    float *ln2;        /* (L, B, T, C) */
    float *ln2_mean;   /* (L, B, T) */
    float *ln2_rstd;   /* (L, B, T) */
    float *fch;        /* (L, B, T, 4C) */
    float *fch_gelu;   /* (L, B, T, 4C) */
    float *fcproj;     /* (L, B, T, C) */
    float *residual3;  /* (L, B, T, C)      the stream after the layer */
    float *lnf;        /* (B, T, C) */
    float *lnf_mean;   /* (B, T) */
    float *lnf_rstd;   /* (B, T) */
    float *logits;     /* (B, T, Vp) */
    float *probs;      /* (B, T, Vp)        padding 0 */
    float *losses;     /* (B, T) */
} gpt2_activations;

/* Floats that the parameters, or the activations of (B, T) tokens, take; INT64_MAX if too many. */
int64_t gpt2_parameter_floats(const gpt2_config *config);
int64_t gpt2_activation_floats(const gpt2_config *config, int64_t B, int64_t T);

/* Point every tensor into memory, which holds that many floats. */
void gpt2_parameters_bind(gpt2_parameters *params, const gpt2_config *config, float *memory);
void gpt2_activations_bind(gpt2_activations *acts, const gpt2_config *config, float *memory,
                           int64_t B, int64_t T);

/* From tokens to probabilities, and to the loss at each position if there are targets (or NULL).
 * tokens, targets: (B, T) in [0, V) */
void gpt2_forward(gpt2_activations *acts, const gpt2_config *config, const gpt2_parameters *params,
                  const int32_t *tokens, const int32_t *targets, int64_t B, int64_t T);

/* From the activations of a forward with the same targets to the gradient of dloss * sum(losses);
 * 1/(B*T) makes that the mean loss. Adds to grads. dacts is added to as well: zeros before. */
void gpt2_backward(gpt2_parameters *grads, gpt2_activations *dacts, const gpt2_activations *acts,
                   const gpt2_config *config, const gpt2_parameters *params,
                   const int32_t *tokens, const int32_t *targets, float dloss,
                   int64_t B, int64_t T);

/* Changes whenever a struct or a prototype above does. */
int32_t gpt2_abi(void);

#endif
