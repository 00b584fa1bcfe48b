/* model.c - see model.h: the layout of the parameters in memory. */
#ifndef GPT2_MODEL_C
#define GPT2_MODEL_C

#include "model.h"
#include "../common/buffers.h"

#include <string.h>

enum { PARAMETERS = 16 };

/* Floats per tensor, in the order of the struct. */
static void parameter_sizes(int64_t n[PARAMETERS], const gpt2_config *config)
{
    const int64_t C = config->channels, L = config->num_layers;
    const int64_t LC = size_times(L, C), LCC = size_times(LC, C);
    const int64_t sizes[PARAMETERS] = {
        size_times(config->padded_vocab_size, C), size_times(config->max_seq_len, C),
        LC, LC, size_times(3, LCC), size_times(3, LC), LCC, LC,
        LC, LC, size_times(4, LCC), size_times(4, LC), size_times(4, LCC), LC,
        C, C,
    };
    memcpy(n, sizes, sizeof sizes);
}

int64_t gpt2_parameter_floats(const gpt2_config *config)
{
    int64_t n[PARAMETERS];
    parameter_sizes(n, config);
    return total_floats(n, PARAMETERS);
}

void gpt2_parameters_bind(gpt2_parameters *p, const gpt2_config *config, float *memory)
{
    float **tensors[PARAMETERS] = {
        &p->wte, &p->wpe, &p->ln1w, &p->ln1b, &p->qkvw, &p->qkvb, &p->attprojw, &p->attprojb,
        &p->ln2w, &p->ln2b, &p->fcw, &p->fcb, &p->fcprojw, &p->fcprojb, &p->lnfw, &p->lnfb,
    };
    int64_t n[PARAMETERS];
    parameter_sizes(n, config);
    bind_buffers(tensors, n, PARAMETERS, memory);
}

#endif
