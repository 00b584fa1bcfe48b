/* model.h - a GPT-2 model: configuration and parameters.
 *
 *   S positions that wpe has   L layers   the other sizes are those of ops.h
 */
#ifndef GPT2_MODEL_H
#define GPT2_MODEL_H

#include <stdint.h>

/* In the order of the fields of a checkpoint. */
typedef struct {
    int32_t max_seq_len;        /* S */
    int32_t vocab_size;         /* V */
    int32_t num_layers;         /* L */
    int32_t num_heads;          /* NH, divides C */
    int32_t channels;           /* C */
    int32_t padded_vocab_size;  /* Vp */
} gpt2_config;

/* The parameters, their gradients or their moments: contiguous, in this order. */
typedef struct {
    float *wte;       /* (Vp, C) token embedding, also the classifier */
    float *wpe;       /* (S, C) position embedding */
    float *ln1w;      /* (L, C) */
    float *ln1b;      /* (L, C) */
    float *qkvw;      /* (L, 3C, C); every matrix is (out, in) */
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

/* The number of parameters; INT64_MAX on overflow. */
int64_t gpt2_parameter_floats(const gpt2_config *config);

/* Point every tensor into memory, which holds that many floats. */
void gpt2_parameters_bind(gpt2_parameters *params, const gpt2_config *config, float *memory);

#endif
