/* checkpoint.c - reader and writer of GPT-2 model files, version 3 (float32).
 *
 * File layout: the header, whose numbers 2 to 7 are the fields of gpt2_config in order, then the 16
 * tensors of gpt2_parameters in order, each with all its layers.
 */
#ifndef GPT2_CHECKPOINT_C
#define GPT2_CHECKPOINT_C

#include "header.c"
#include "model.c"

#include <unistd.h>  /* fsync */

typedef struct {
    gpt2_config config;
    gpt2_parameters params;
    int64_t n;      /* number of parameters */
    float *floats;  /* (n,): params point into it */
} gpt2_checkpoint;

enum { GPT2_FIELDS = 6, GPT2_FIRST_FIELD = 2 };

static const char *const GPT2_FIELD[GPT2_FIELDS] = {
    "max_seq_len", "vocab_size", "num_layers", "num_heads", "channels", "padded_vocab_size",
};

static const char *const GPT2_TENSOR[PARAMETERS] = {
    "wte", "wpe", "ln1w", "ln1b", "qkvw", "qkvb", "attprojw", "attprojb",
    "ln2w", "ln2b", "fcw", "fcb", "fcprojw", "fcprojb", "lnfw", "lnfb",
};

/* ---- reading ------------------------------------------------------------------------------- */

/* The config of a header; refused unless its fields keep every invariant of the model. */
static gpt2_config config_of_header(const char *path, const int32_t field[HEADER_FIELDS])
{
    const int32_t *f = field + GPT2_FIRST_FIELD;
    const gpt2_config c = {f[0], f[1], f[2], f[3], f[4], f[5]};
    REFUSE_IF(field[1] == 5, "%s: version = 5 (byte 4): bfloat16, must be 3 (float32)", path);
    REFUSE_IF(field[1] != 3, "%s: version = %d (byte 4): must be 3", path, field[1]);
    for (int i = 0; i < GPT2_FIELDS; i++) {
        REFUSE_IF(f[i] < 1, "%s: %s = %d (byte %d): must be at least 1", path, GPT2_FIELD[i], f[i],
                  4 * (GPT2_FIRST_FIELD + i));
    }
    REFUSE_IF(c.padded_vocab_size < c.vocab_size,
              "%s: padded_vocab_size = %d (byte 28): must be at least vocab_size = %d", path,
              c.padded_vocab_size, c.vocab_size);
    REFUSE_IF(c.channels % c.num_heads != 0,
              "%s: channels = %d (byte 24): must be a multiple of num_heads = %d", path,
              c.channels, c.num_heads);
    return c;
}

/* The name of the tensor that parameter *i belongs to; *i becomes the index inside it. */
static const char *tensor_at(const gpt2_config *config, int64_t *i)
{
    int64_t n[PARAMETERS];
    int tensor = 0;
    parameter_sizes(n, config);
    while (tensor + 1 < PARAMETERS && *i >= n[tensor]) {
        *i -= n[tensor++];
    }
    return GPT2_TENSOR[tensor];
}

/* The number of parameters; refused unless the file has the size that its header implies. */
static int64_t count_parameters(const source *from, const gpt2_config *config)
{
    const int64_t n = gpt2_parameter_floats(config);
    const int64_t need = size_plus(HEADER_BYTES, size_times(n, sizeof(float)));
    REFUSE_IF(need == INT64_MAX,
              "%s: %" PRId64 " bytes, but its header needs over 2^63: damaged header?", from->path,
              from->size);
    if (from->size < need) {
        int64_t i = (from->size - HEADER_BYTES) / (int64_t)sizeof(float);
        refuse("%s: %" PRId64 " bytes, but its header needs %" PRId64 " (%" PRId64 " missing, from "
               "inside %s on): download incomplete?", from->path, from->size, need,
               need - from->size, tensor_at(config, &i));
    }
    REFUSE_IF(from->size > need, "%s: %" PRId64 " bytes after the last tensor (which ends at byte %"
              PRId64 "): not a file of this shape", from->path, from->size - need, need);
    return n;
}

static gpt2_checkpoint read_gpt2_checkpoint(const char *path)
{
    int32_t field[HEADER_FIELDS];
    const source from = open_source(path);
    read_header(field, &from, MAGIC_MODEL);
    gpt2_checkpoint model = {.config = config_of_header(path, field)};
    model.n = count_parameters(&from, &model.config);
    model.floats = allocate(model.n, sizeof(float), "the model");
    read_exactly(&from, model.floats, model.n * (int64_t)sizeof(float));
    fclose(from.file);
    for (int64_t i = 0; i < model.n; i++) {
        if (!is_finite(model.floats[i])) {
            int64_t place = i;
            const char *name = tensor_at(&model.config, &place);
            refuse("%s: %s, element %" PRId64 " = %f (byte %" PRId64 "): must be finite", path,
                   name, place, (double)model.floats[i], HEADER_BYTES + 4 * i);
        }
    }
    gpt2_parameters_bind(&model.params, &model.config, model.floats);
    return model;
}

/* ---- writing ------------------------------------------------------------------------------- */

/* Open PATH.part for writing. It is renamed to PATH when complete. */
static FILE *open_part(const char *path, char *part, size_t capacity)
{
    struct stat info;
    REFUSE_IF(stat(path, &info) == 0 && !S_ISREG(info.st_mode), "%s: is not a regular file", path);
    const int length = snprintf(part, capacity, "%s.part", path);
    REFUSE_IF(length >= (int)capacity, "%s: name too long", path);
    FILE *file = fopen(part, "wb");
    REFUSE_IF(file == NULL, "%s: %s", part, strerror(errno));
    return file;
}

/* Check before training that the model can be written after it. */
static void try_to_write(const char *path)
{
    char part[4096];
    fclose(open_part(path, part, sizeof part));
    remove(part);
}

static void write_gpt2_checkpoint(const char *path, const gpt2_checkpoint *model)
{
    const gpt2_config *c = &model->config;
    const int32_t field[HEADER_FIELDS] = {
        MAGIC_MODEL, 3, c->max_seq_len, c->vocab_size, c->num_layers, c->num_heads, c->channels,
        c->padded_vocab_size,
    };
    char part[4096];
    FILE *file = open_part(path, part, sizeof part);
    int done = fwrite(field, sizeof field, 1, file) == 1;
    done = done && fwrite(model->floats, sizeof(float), (size_t)model->n, file) == (size_t)model->n;
    done = done && fflush(file) == 0 && fsync(fileno(file)) == 0;
    done = fclose(file) == 0 && done;
    if (!done || rename(part, path) != 0) {
        const int reason = errno;
        remove(part);
        refuse("%s: %s", path, strerror(reason));
    }
}

#endif
