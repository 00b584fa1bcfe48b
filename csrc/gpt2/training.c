/* training.c - see training.h: the layout of the activations, and both passes.
 *
 * Forward and backward are written side by side, block by block: the backward pass is the forward
 * pass read from the bottom up.
 */
#ifndef GPT2_TRAINING_C
#define GPT2_TRAINING_C

#include "training.h"
#include "model.c"
#include "ops.c"
#include "../common/abi.h"

/* ---- memory -------------------------------------------------------------------------------- */

enum { ACTIVATIONS = 23 };

/* Floats per buffer, in the order of the struct. */
static void activation_sizes(int64_t n[ACTIVATIONS], const gpt2_config *config,
                             int64_t B, int64_t T)
{
    const int64_t C = config->channels, L = config->num_layers, NH = config->num_heads;
    const int64_t BT = size_times(B, T), BTC = size_times(BT, C);
    const int64_t LBT = size_times(L, BT), LBTC = size_times(L, BTC);
    const int64_t pairs = size_times(size_times(LBT, NH), T);
    const int64_t BTVp = size_times(BT, config->padded_vocab_size);
    const int64_t sizes[ACTIVATIONS] = {
        BTC, LBTC, LBT, LBT, size_times(3, LBTC), LBTC, pairs, pairs, LBTC, LBTC,
        LBTC, LBT, LBT, size_times(4, LBTC), size_times(4, LBTC), LBTC, LBTC,
        BTC, BT, BT, BTVp, BTVp, BT,
    };
    memcpy(n, sizes, sizeof sizes);
}

int64_t gpt2_activation_floats(const gpt2_config *config, int64_t B, int64_t T)
{
    int64_t n[ACTIVATIONS];
    activation_sizes(n, config, B, T);
    return total_floats(n, ACTIVATIONS);
}

void gpt2_activations_bind(gpt2_activations *a, const gpt2_config *config, float *memory,
                           int64_t B, int64_t T)
{
    float **buffer[ACTIVATIONS] = {
        &a->encoded, &a->ln1, &a->ln1_mean, &a->ln1_rstd, &a->qkv, &a->atty, &a->preatt, &a->att,
        &a->attproj, &a->residual2, &a->ln2, &a->ln2_mean, &a->ln2_rstd, &a->fch, &a->fch_gelu,
        &a->fcproj, &a->residual3, &a->lnf, &a->lnf_mean, &a->lnf_rstd, &a->logits, &a->probs,
        &a->losses,
    };
    int64_t n[ACTIVATIONS];
    activation_sizes(n, config, B, T);
    bind_buffers(buffer, n, ACTIVATIONS, memory);
}

/* The part of layer l of every tensor that has layers. */
static gpt2_parameters parameters_of_layer(const gpt2_parameters *params, int64_t l, int64_t C)
{
    gpt2_parameters p = *params;
    p.ln1w += l * C;
    p.ln1b += l * C;
    p.qkvw += l * 3 * C * C;
    p.qkvb += l * 3 * C;
    p.attprojw += l * C * C;
    p.attprojb += l * C;
    p.ln2w += l * C;
    p.ln2b += l * C;
    p.fcw += l * 4 * C * C;
    p.fcb += l * 4 * C;
    p.fcprojw += l * C * 4 * C;
    p.fcprojb += l * C;
    return p;
}

static gpt2_activations activations_of_layer(const gpt2_activations *acts, int64_t l,
                                             int64_t B, int64_t T, int64_t C, int64_t NH)
{
    const int64_t N = B * T;
    gpt2_activations a = *acts;
    a.ln1 += l * N * C;
    a.ln1_mean += l * N;
    a.ln1_rstd += l * N;
    a.qkv += l * N * 3 * C;
    a.atty += l * N * C;
    a.preatt += l * B * NH * T * T;
    a.att += l * B * NH * T * T;
    a.attproj += l * N * C;
    a.residual2 += l * N * C;
    a.ln2 += l * N * C;
    a.ln2_mean += l * N;
    a.ln2_rstd += l * N;
    a.fch += l * N * 4 * C;
    a.fch_gelu += l * N * 4 * C;
    a.fcproj += l * N * C;
    a.residual3 += l * N * C;
    return a;
}

/* The input of layer l: the encoded tokens, or the output of layer l-1. */
static float *layer_input(const gpt2_activations *acts, int64_t l, int64_t N, int64_t C)
{
    return l == 0 ? acts->encoded : acts->residual3 + (l - 1) * N * C;
}

/* ---- one layer ----------------------------------------------------------------------------- */

/* a, p: activations and parameters of this layer. in: (B, T, C)  ->  a->residual3: (B, T, C) */
static void block_forward(const gpt2_activations *a, const float *in, const gpt2_parameters *p,
                          int64_t B, int64_t T, int64_t C, int64_t NH)
{
    const int64_t N = B * T;
    gpt2_layernorm_forward(a->ln1, a->ln1_mean, a->ln1_rstd, in, p->ln1w, p->ln1b, N, C);
    gpt2_matmul_forward(a->qkv, a->ln1, p->qkvw, p->qkvb, N, C, 3 * C);
    gpt2_attention_forward(a->atty, a->preatt, a->att, a->qkv, B, T, C, NH, 0);
    gpt2_matmul_forward(a->attproj, a->atty, p->attprojw, p->attprojb, N, C, C);
    gpt2_residual_forward(a->residual2, in, a->attproj, N * C);

    gpt2_layernorm_forward(a->ln2, a->ln2_mean, a->ln2_rstd, a->residual2, p->ln2w, p->ln2b, N, C);
    gpt2_matmul_forward(a->fch, a->ln2, p->fcw, p->fcb, N, C, 4 * C);
    gpt2_gelu_forward(a->fch_gelu, a->fch, N * 4 * C);
    gpt2_matmul_forward(a->fcproj, a->fch_gelu, p->fcprojw, p->fcprojb, N, 4 * C, C);
    gpt2_residual_forward(a->residual3, a->residual2, a->fcproj, N * C);
}

/* g, d: gradients of p and a; din: of in. The stream forks at each residual: the gradient through
 * the branch and its layernorm is added to the gradient along the stream. */
static void block_backward(const gpt2_parameters *g, const gpt2_activations *d, float *din,
                           const gpt2_activations *a, const float *in, const gpt2_parameters *p,
                           int64_t B, int64_t T, int64_t C, int64_t NH)
{
    const int64_t N = B * T;
    gpt2_residual_backward(d->residual2, d->fcproj, d->residual3, N * C);
    gpt2_matmul_backward(d->fch_gelu, g->fcprojw, g->fcprojb,
                         d->fcproj, a->fch_gelu, p->fcprojw, N, 4 * C, C);
    gpt2_gelu_backward(d->fch, d->fch_gelu, a->fch, N * 4 * C);
    gpt2_matmul_backward(d->ln2, g->fcw, g->fcb, d->fch, a->ln2, p->fcw, N, C, 4 * C);
    gpt2_layernorm_backward(d->residual2, g->ln2w, g->ln2b,
                            d->ln2, a->residual2, p->ln2w, a->ln2_mean, a->ln2_rstd, N, C);

    gpt2_residual_backward(din, d->attproj, d->residual2, N * C);
    gpt2_matmul_backward(d->atty, g->attprojw, g->attprojb,
                         d->attproj, a->atty, p->attprojw, N, C, C);
    gpt2_attention_backward(d->qkv, d->preatt, d->att, d->atty, a->qkv, a->att, B, T, C, NH);
    gpt2_matmul_backward(d->ln1, g->qkvw, g->qkvb, d->qkv, a->ln1, p->qkvw, N, C, 3 * C);
    gpt2_layernorm_backward(din, g->ln1w, g->ln1b,
                            d->ln1, in, p->ln1w, a->ln1_mean, a->ln1_rstd, N, C);
}

/* ---- the model ----------------------------------------------------------------------------- */

void gpt2_forward(gpt2_activations *acts, const gpt2_config *config, const gpt2_parameters *params,
                  const int32_t *tokens, const int32_t *targets, int64_t B, int64_t T)
{
    const int64_t L = config->num_layers, NH = config->num_heads, C = config->channels;
    const int64_t V = config->vocab_size, Vp = config->padded_vocab_size, N = B * T;

    gpt2_encoder_forward(acts->encoded, tokens, params->wte, params->wpe, B, T, C);
    for (int64_t l = 0; l < L; l++) {
        const gpt2_parameters p = parameters_of_layer(params, l, C);
        const gpt2_activations a = activations_of_layer(acts, l, B, T, C, NH);
        block_forward(&a, layer_input(acts, l, N, C), &p, B, T, C, NH);
    }
    gpt2_layernorm_forward(acts->lnf, acts->lnf_mean, acts->lnf_rstd,
                           layer_input(acts, L, N, C), params->lnfw, params->lnfb, N, C);
    gpt2_matmul_forward(acts->logits, acts->lnf, params->wte, NULL, N, C, Vp);
    gpt2_softmax_forward(acts->probs, acts->logits, N, V, Vp);
    if (targets != NULL) {
        gpt2_crossentropy_forward(acts->losses, acts->probs, targets, N, Vp);
    }
}

void gpt2_backward(gpt2_parameters *grads, gpt2_activations *dacts, const gpt2_activations *acts,
                   const gpt2_config *config, const gpt2_parameters *params,
                   const int32_t *tokens, const int32_t *targets, float dloss,
                   int64_t B, int64_t T)
{
    const int64_t L = config->num_layers, NH = config->num_heads, C = config->channels;
    const int64_t V = config->vocab_size, Vp = config->padded_vocab_size, N = B * T;

    for (int64_t n = 0; n < N; n++) {
        dacts->losses[n] = dloss;
    }
    gpt2_crossentropy_softmax_backward(dacts->logits, dacts->losses, acts->probs, targets,
                                       N, V, Vp);
    gpt2_matmul_backward(dacts->lnf, grads->wte, NULL,
                         dacts->logits, acts->lnf, params->wte, N, C, Vp);
    gpt2_layernorm_backward(layer_input(dacts, L, N, C), grads->lnfw, grads->lnfb, dacts->lnf,
                            layer_input(acts, L, N, C), params->lnfw,
                            acts->lnf_mean, acts->lnf_rstd, N, C);
    for (int64_t l = L - 1; l >= 0; l--) {
        const gpt2_parameters p = parameters_of_layer(params, l, C);
        const gpt2_parameters g = parameters_of_layer(grads, l, C);
        const gpt2_activations a = activations_of_layer(acts, l, B, T, C, NH);
        const gpt2_activations d = activations_of_layer(dacts, l, B, T, C, NH);
        block_backward(&g, &d, layer_input(dacts, l, N, C), &a, layer_input(acts, l, N, C), &p,
                       B, T, C, NH);
    }
    gpt2_encoder_backward(grads->wte, grads->wpe, dacts->encoded, tokens, B, T, C);
}

int64_t gpt2_abi(void)
{
    return PYLLM2_ABI;
}

#endif
