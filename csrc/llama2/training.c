/* training.c - see training.h: the buffers of training, and both passes in terms of ops.c.
 *
 * Forward and backward are written side by side, block by block: the backward pass is the forward
 * pass read from the bottom up.
 */
#ifndef LLAMA2_TRAINING_C
#define LLAMA2_TRAINING_C

#include "training.h"
#include "model.c"
#include "ops.c"
#include "../common/abi.h"
#include "../common/buffers.h"

typedef struct {
    int64_t B, T, N, C, F, L, NH, NKV, hs, KV, V;
} sizes;

static sizes sizes_of(const llama2_config *config, int64_t B, int64_t T)
{
    const int64_t hs = config->dim / config->n_heads;
    const sizes n = {
        B, T, B * T, config->dim, config->hidden_dim, config->n_layers, config->n_heads,
        config->n_kv_heads, hs, config->n_kv_heads * hs, config->vocab_size,
    };
    return n;
}

/* ---- memory -------------------------------------------------------------------------------- */

enum { ACTIVATIONS = 19, GRADIENTS = 12 };

/* Floats per buffer, in the order of the struct. */
static void activation_sizes(int64_t n[ACTIVATIONS], const llama2_config *config,
                             int64_t B, int64_t T)
{
    const sizes s = sizes_of(config, 1, 1);
    const int64_t N = size_times(B, T), angles = size_times(N, s.hs / 2);
    const int64_t NC = size_times(N, s.C), NV = size_times(N, s.V);
    const int64_t LNC = size_times(s.L, NC), LNKV = size_times(s.L, size_times(N, s.KV));
    const int64_t LNF = size_times(s.L, size_times(N, s.F));
    const int64_t pairs = size_times(s.L, size_times(size_times(N, s.NH), T));
    const int64_t all[ACTIVATIONS] = {
        angles, angles, size_plus(LNC, NC), LNC, LNC, LNKV, LNKV, pairs, LNC, LNC, LNC,
        LNF, LNF, LNF, NC, NC, NV, NV, N,
    };
    memcpy(n, all, sizeof all);
}

static void gradient_sizes(int64_t n[GRADIENTS], const llama2_config *config, int64_t B, int64_t T)
{
    const sizes s = sizes_of(config, 1, 1);
    const int64_t N = size_times(B, T), NC = size_times(N, s.C), NV = size_times(N, s.V);
    const int64_t NKV = size_times(N, s.KV), NF = size_times(N, s.F);
    const int64_t all[GRADIENTS] = {
        N, NV, NC, NC, NC, NC, NKV, NKV, size_times(N, s.NKV), NF, NF, NF,
    };
    memcpy(n, all, sizeof all);
}

int64_t llama2_activation_floats(const llama2_config *config, int64_t B, int64_t T)
{
    int64_t n[ACTIVATIONS];
    activation_sizes(n, config, B, T);
    return total_floats(n, ACTIVATIONS);
}

int64_t llama2_gradient_floats(const llama2_config *config, int64_t B, int64_t T)
{
    int64_t n[GRADIENTS];
    gradient_sizes(n, config, B, T);
    return total_floats(n, GRADIENTS);
}

void llama2_activations_bind(llama2_activations *a, const llama2_config *config, float *memory,
                             int64_t B, int64_t T)
{
    float **buffer[ACTIVATIONS] = {
        &a->cos, &a->sin, &a->x, &a->attention_in, &a->q, &a->k, &a->v, &a->att,
        &a->attention_out, &a->middle, &a->ffn_in, &a->gate, &a->up, &a->hidden, &a->branch,
        &a->final, &a->logits, &a->probs, &a->losses,
    };
    int64_t n[ACTIVATIONS];
    activation_sizes(n, config, B, T);
    bind_buffers(buffer, n, ACTIVATIONS, memory);
}

void llama2_gradients_bind(llama2_gradients *d, const llama2_config *config, float *memory,
                           int64_t B, int64_t T)
{
    float **buffer[GRADIENTS] = {
        &d->losses, &d->logits, &d->x, &d->normal, &d->part, &d->q, &d->k, &d->v, &d->att,
        &d->gate, &d->up, &d->hidden,
    };
    int64_t n[GRADIENTS];
    gradient_sizes(n, config, B, T);
    bind_buffers(buffer, n, GRADIENTS, memory);
}

/* The part of layer l of every tensor that has layers. */
static llama2_parameters parameters_of_layer(const llama2_parameters *params, int64_t l, sizes n)
{
    llama2_parameters p = *params;
    p.attention_norm += l * n.C;
    p.wq += l * n.C * n.C;
    p.wk += l * n.KV * n.C;
    p.wv += l * n.KV * n.C;
    p.wo += l * n.C * n.C;
    p.ffn_norm += l * n.C;
    p.w1 += l * n.F * n.C;
    p.w2 += l * n.C * n.F;
    p.w3 += l * n.F * n.C;
    return p;
}

static llama2_activations activations_of_layer(const llama2_activations *acts, int64_t l, sizes n)
{
    llama2_activations a = *acts;
    a.x += l * n.N * n.C;
    a.attention_in += l * n.N * n.C;
    a.q += l * n.N * n.C;
    a.k += l * n.N * n.KV;
    a.v += l * n.N * n.KV;
    a.att += l * n.B * n.NH * n.T * n.T;
    a.attention_out += l * n.N * n.C;
    a.middle += l * n.N * n.C;
    a.ffn_in += l * n.N * n.C;
    a.gate += l * n.N * n.F;
    a.up += l * n.N * n.F;
    a.hidden += l * n.N * n.F;
    return a;
}

/* ---- one layer ----------------------------------------------------------------------------- */

/* a, p: activations and parameters of this layer. a->x: (N, C)  ->  out: (N, C) */
static void block_forward(float *out, const llama2_activations *a, const llama2_parameters *p,
                          sizes n)
{
    llama2_rmsnorm(a->attention_in, a->x, p->attention_norm, n.N, n.C, LLAMA2_EPS);
    llama2_matmul(a->q, a->attention_in, p->wq, NULL, n.N, n.C, n.C);
    llama2_matmul(a->k, a->attention_in, p->wk, NULL, n.N, n.C, n.KV);
    llama2_matmul(a->v, a->attention_in, p->wv, NULL, n.N, n.C, n.KV);
    llama2_rope(a->q, a->q, a->cos, a->sin, n.N, n.NH, n.hs);
    llama2_rope(a->k, a->k, a->cos, a->sin, n.N, n.NKV, n.hs);
    llama2_attention_forward(a->attention_out, a->att, a->q, a->k, a->v, NULL,
                             n.B, n.T, n.NH, n.NKV, n.hs);
    llama2_matmul(a->branch, a->attention_out, p->wo, NULL, n.N, n.C, n.C);
    llama2_residual(a->middle, a->x, a->branch, n.N, n.C);

    llama2_rmsnorm(a->ffn_in, a->middle, p->ffn_norm, n.N, n.C, LLAMA2_EPS);
    llama2_matmul(a->gate, a->ffn_in, p->w1, NULL, n.N, n.C, n.F);
    llama2_matmul(a->up, a->ffn_in, p->w3, NULL, n.N, n.C, n.F);
    llama2_swiglu(a->hidden, a->gate, a->up, n.N, n.F);
    llama2_matmul(a->branch, a->hidden, p->w2, NULL, n.N, n.F, n.C);
    llama2_residual(out, a->middle, a->branch, n.N, n.C);
}

/* g: gradients of p. d->x: the gradient of the stream after this layer on entry, of the stream
 * before it on return. */
static void block_backward(const llama2_parameters *g, const llama2_gradients *d,
                           const llama2_activations *a, const llama2_parameters *p, sizes n)
{
    llama2_matmul_backward(d->hidden, g->w2, d->x, a->hidden, p->w2, n.N, n.F, n.C);
    llama2_swiglu_backward(d->gate, d->up, d->hidden, a->gate, a->up, n.N * n.F);
    llama2_matmul_backward(d->normal, g->w1, d->gate, a->ffn_in, p->w1, n.N, n.C, n.F);
    llama2_matmul_backward(d->part, g->w3, d->up, a->ffn_in, p->w3, n.N, n.C, n.F);
    llama2_residual(d->normal, d->normal, d->part, n.N, n.C);
    llama2_rmsnorm_backward(d->part, g->ffn_norm, d->normal, a->middle, p->ffn_norm, n.N, n.C);
    llama2_residual(d->x, d->x, d->part, n.N, n.C);

    llama2_matmul_backward(d->normal, g->wo, d->x, a->attention_out, p->wo, n.N, n.C, n.C);
    llama2_attention_backward(d->q, d->k, d->v, d->att, d->normal, a->q, a->k, a->v, a->att, NULL,
                              n.B, n.T, n.NH, n.NKV, n.hs);
    llama2_rope_backward(d->q, d->q, a->cos, a->sin, n.N, n.NH, n.hs);
    llama2_rope_backward(d->k, d->k, a->cos, a->sin, n.N, n.NKV, n.hs);
    llama2_matmul_backward(d->normal, g->wq, d->q, a->attention_in, p->wq, n.N, n.C, n.C);
    llama2_matmul_backward(d->part, g->wk, d->k, a->attention_in, p->wk, n.N, n.C, n.KV);
    llama2_residual(d->normal, d->normal, d->part, n.N, n.C);
    llama2_matmul_backward(d->part, g->wv, d->v, a->attention_in, p->wv, n.N, n.C, n.KV);
    llama2_residual(d->normal, d->normal, d->part, n.N, n.C);
    llama2_rmsnorm_backward(d->part, g->attention_norm, d->normal, a->x, p->attention_norm,
                            n.N, n.C);
    llama2_residual(d->x, d->x, d->part, n.N, n.C);
}

/* ---- the model ----------------------------------------------------------------------------- */

void llama2_training_forward(llama2_activations *acts, const llama2_config *config,
                             const llama2_parameters *params, const int32_t *tokens,
                             const int32_t *targets, int64_t B, int64_t T)
{
    const sizes n = sizes_of(config, B, T);
    const int64_t table = T * (n.hs / 2);

    for (int64_t b = 0; b < B; b++) {  /* every row starts at position 0 */
        llama2_rope_tables(acts->cos + b * table, acts->sin + b * table, NULL, T, n.hs,
                           LLAMA2_ROPE_BASE, 1.0f);
    }
    llama2_embedding(acts->x, tokens, params->token_embedding, n.N, n.C);
    for (int64_t l = 0; l < n.L; l++) {
        const llama2_parameters p = parameters_of_layer(params, l, n);
        const llama2_activations a = activations_of_layer(acts, l, n);
        block_forward(a.x + n.N * n.C, &a, &p, n);
    }
    llama2_rmsnorm(acts->final, acts->x + n.L * n.N * n.C, params->final_norm, n.N, n.C, LLAMA2_EPS);
    llama2_matmul(acts->logits, acts->final, params->token_embedding, NULL, n.N, n.C, n.V);
    llama2_crossentropy_forward(acts->losses, acts->probs, acts->logits, targets, n.N, n.V);
}

void llama2_training_backward(llama2_parameters *grads, llama2_gradients *workspace,
                              const llama2_activations *acts, const llama2_config *config,
                              const llama2_parameters *params, const int32_t *tokens,
                              const int32_t *targets, float dloss, int64_t B, int64_t T)
{
    const sizes n = sizes_of(config, B, T);
    const llama2_gradients *d = workspace;

    for (int64_t i = 0; i < n.N; i++) {
        d->losses[i] = dloss;
    }
    llama2_crossentropy_backward(d->logits, d->losses, acts->probs, targets, n.N, n.V);
    llama2_matmul_backward(d->normal, grads->token_embedding,
                           d->logits, acts->final, params->token_embedding, n.N, n.C, n.V);
    llama2_rmsnorm_backward(d->x, grads->final_norm,
                            d->normal, acts->x + n.L * n.N * n.C, params->final_norm, n.N, n.C);
    for (int64_t l = n.L - 1; l >= 0; l--) {
        const llama2_parameters p = parameters_of_layer(params, l, n);
        const llama2_parameters g = parameters_of_layer(grads, l, n);
        const llama2_activations a = activations_of_layer(acts, l, n);
        block_backward(&g, d, &a, &p, n);
    }
    llama2_embedding_backward(grads->token_embedding, d->x, tokens, n.N, n.C);
}

int64_t llama2_abi(void)
{
    return PYLLM2_ABI;
}

#endif
