/* checkpoint.c - reader of llama2.c model files, little endian: layouts v0 (no magic) and v1 with
 * float32 matrices, and v2 with int8 matrices and one float32 scale per group of values.
 *
 * read_checkpoint refuses a header that breaks an invariant of the model, naming field and byte.
 */
#ifndef CHECKPOINT_C
#define CHECKPOINT_C

#include "../common/reader.c"
#include "../common/sizes.h"
#include "model.h"

typedef struct {
    llama2_config config;
    llama2_weights weights;
    const char *path;
    unsigned char *bytes;  /* the file; weights point into it */
    float *floats;         /* v2: aligned scales and the float32 embedding; else NULL */
} checkpoint;

/* ---- layouts ------------------------------------------------------------------------------- */

typedef enum {
    EMBEDDING, ATTENTION_NORM, WQ, WK, WV, WO, FFN_NORM, W1, W2, W3, FINAL_NORM,
    ROPE_COS, ROPE_SIN, CLASSIFIER, N_ARRAYS
} array;

static const char *const ARRAY_NAME[N_ARRAYS] = {
    "token_embedding", "attention_norm", "wq", "wk", "wv", "wo", "ffn_norm", "w1", "w2", "w3",
    "final_norm", "rope_cos", "rope_sin", "classifier",
};

enum { N_FIELDS = 7 };

static const char *const FIELD_NAME[N_FIELDS] = {
    "dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "seq_len",
};

/* Offsets of the fields after the first seven: one byte, and an unaligned int32. */
enum { SHARED_CLASSIFIER_AT = 36, GROUP_SIZE_AT = 37 };

/* Header size, offset of the seven fields, and the order of the arrays after the header. */
typedef struct {
    int version, header, fields, n_arrays;
    array order[N_ARRAYS];
} layout;

static const layout V0 = {0, 28, 0, 14, {
    EMBEDDING, ATTENTION_NORM, WQ, WK, WV, WO, FFN_NORM, W1, W2, W3, FINAL_NORM,
    ROPE_COS, ROPE_SIN, CLASSIFIER,
}};
static const layout V1 = {1, 256, 8, 12, {
    ATTENTION_NORM, FFN_NORM, FINAL_NORM, EMBEDDING, WQ, WK, WV, WO, W1, W2, W3, CLASSIFIER,
}};
static const layout V2 = {2, 256, 8, 12, {
    ATTENTION_NORM, FFN_NORM, FINAL_NORM, EMBEDDING, WQ, WK, WV, WO, W1, W2, W3, CLASSIFIER,
}};

static const layout *recognise(const char *path, const unsigned char *head, int64_t size)
{
    const uint32_t magic = size < 4 ? 0 : (uint32_t)int32_at(head);
    const layout *kind = &V0;
    refuse_if_another_kind(path, head, size);
    REFUSE_IF(magic == 0x32346B61,
              "%s: magic = %08" PRIx32 " (byte 0): big-endian file, not supported", path, magic);
    if (magic == 0x616B3432) {
        const int32_t version = size < 8 ? 1 : int32_at(head + 4);
        REFUSE_IF(version != 1 && version != 2,
                  "%s: version = %d (byte 4): must be 1 or 2", path, version);
        kind = version == 1 ? &V1 : &V2;
    }
    if (size < kind->header) {
        const int64_t field = size < kind->fields ? 0 : (size - kind->fields) / 4;
        refuse("%s: %" PRId64 " bytes: header needs %d, ends before %s", path, size, kind->header,
               field < N_FIELDS ? FIELD_NAME[field] : "its last byte");
    }
    return kind;
}

/* ---- header -------------------------------------------------------------------------------- */

/* group_size must divide dim, as the exporter ensures. It does not check hidden_dim, so groups may
 * straddle the rows of w2; such files run as in the original, with a warning. */
static void check_group_size(const char *path, const llama2_config *c)
{
    const int32_t GS = c->group_size;
    REFUSE_IF(GS < 1, "%s: group_size = %d (byte %d): must be at least 1", path, GS, GROUP_SIZE_AT);
    REFUSE_IF(c->dim % GS != 0, "%s: group_size = %d (byte %d): must divide dim = %d", path, GS,
              GROUP_SIZE_AT, c->dim);
    REFUSE_IF(GS > 131072, "%s: group_size = %d (byte %d): must be at most 131072, so that sums "
              "fit 32 bits", path, GS, GROUP_SIZE_AT);
    if (c->hidden_dim % GS != 0) {
        warn("%s: group_size = %d (byte %d) does not divide hidden_dim = %d: w2 was damaged by its "
             "exporter, the results are those of the original", path, GS, GROUP_SIZE_AT, c->hidden_dim);
    }
}

/* The config of a header; refused unless its fields keep every invariant of the model. */
static llama2_config read_config(const char *path, const layout *kind, const unsigned char *head)
{
    int32_t value[N_FIELDS], shared = head[SHARED_CLASSIFIER_AT];
    for (int i = 0; i < N_FIELDS; i++) {
        const int at = kind->fields + 4 * i;
        value[i] = int32_at(head + at);
        if (i == 5 && kind == &V0) {  /* vocab_size: negative without a shared classifier */
            shared = value[i] > 0;
            REFUSE_IF(value[i] == INT32_MIN, "%s: vocab_size = %d (byte %d): magnitude exceeds "
                      "the file", path, value[i], at);
            REFUSE_IF(value[i] == 0, "%s: vocab_size = 0 (byte %d): must not be 0", path, at);
            value[i] = abs(value[i]);
        }
        REFUSE_IF(value[i] < 1,
                  "%s: %s = %d (byte %d): must be at least 1", path, FIELD_NAME[i], value[i], at);
    }
    REFUSE_IF(shared > 1, "%s: shared_classifier = %d (byte %d): must be 0 or 1", path, shared,
              SHARED_CLASSIFIER_AT);
    const int32_t group_size = kind == &V2 ? int32_at(head + GROUP_SIZE_AT) : 0;
    const llama2_config c = {value[0], value[1], value[2], value[3], value[4], value[5], value[6],
                             shared, group_size, value[0] / value[3], LLAMA2_EPS, NULL};
    REFUSE_IF(c.dim % c.n_heads != 0,
              "%s: dim = %d (byte %d): must be a multiple of n_heads = %d", path, c.dim,
              kind->fields, c.n_heads);
    REFUSE_IF(c.n_heads % c.n_kv_heads != 0,
              "%s: n_kv_heads = %d (byte %d): must divide n_heads = %d", path, c.n_kv_heads,
              kind->fields + 16, c.n_heads);
    REFUSE_IF(c.dim / c.n_heads % 2 != 0,
              "%s: head size = %d (dim / n_heads, bytes %d and %d): RoPE needs an even size",
              path, c.dim / c.n_heads, kind->fields, kind->fields + 12);
    REFUSE_IF(c.vocab_size < 2,
              "%s: vocab_size = %d (byte %d): must be at least 2, every text starts with id 1",
              path, c.vocab_size, kind->fields + 20);
    if (kind == &V2) {
        check_group_size(path, &c);
    }
    return c;
}

/* ---- arrays -------------------------------------------------------------------------------- */

/* An array of a file: `count` tensors (one per layer, or one) of n elements each. An int8 tensor
 * is n values followed by n / GS float32 scales, unaligned. */
typedef struct {
    int64_t count, n;
    int is_int8;
} tensors;

static tensors array_tensors(array a, const llama2_config *c)
{
    const int64_t C = c->dim, F = c->hidden_dim, L = c->n_layers, V = c->vocab_size;
    const int64_t hs = C / c->n_heads, KV = hs * c->n_kv_heads;
    const int is_int8 = c->group_size > 0;
    switch (a) {
    case EMBEDDING: return (tensors){1, V * C, is_int8};
    case WQ: case WO: return (tensors){L, C * C, is_int8};
    case WK: case WV: return (tensors){L, KV * C, is_int8};
    case W1: case W2: case W3: return (tensors){L, F * C, is_int8};
    case CLASSIFIER: return (tensors){!c->shared_classifier, V * C, is_int8};
    case ATTENTION_NORM: case FFN_NORM: return (tensors){L, C, 0};
    case FINAL_NORM: return (tensors){1, C, 0};
    case ROPE_COS: case ROPE_SIN: return (tensors){1, c->seq_len * (hs / 2), 0};
    default: return (tensors){0, 0, 0};
    }
}

/* Bytes of one tensor; INT64_MAX on overflow. */
static int64_t tensor_bytes(tensors t, const llama2_config *c)
{
    return t.is_int8 ? size_plus(t.n, size_times(t.n / c->group_size, 4)) : size_times(t.n, 4);
}

/* Fill in the offset of each array (float32 arrays: a multiple of 4) and return the number of bytes
 * to read: the size that the header implies, or the whole file if only part of the RoPE tables,
 * which are never read, is missing. */
static int64_t lay_out(int64_t start[N_ARRAYS], const source *from, const layout *kind,
                       const llama2_config *config)
{
    int64_t need = kind->header;
    int cut = N_ARRAYS;  /* the first array that the file does not hold */
    for (int i = 0; i < kind->n_arrays; i++) {
        const array a = kind->order[i];
        start[a] = need;
        const tensors t = array_tensors(a, config);
        need = size_plus(need, size_times(t.count, tensor_bytes(t, config)));
        cut = need > from->size && cut == N_ARRAYS ? (int)a : cut;
    }
    REFUSE_IF(need == INT64_MAX,
              "%s: %" PRId64 " bytes, but its header needs over 2^63: damaged header?",
              from->path, from->size);
    const int64_t missing = need - from->size;
    if (missing > 0) {
        const int only_rope = cut == ROPE_COS || cut == ROPE_SIN;
        REFUSE_IF(!only_rope || !config->shared_classifier,
                  "%s: %" PRId64 " bytes, but its header needs %" PRId64 " (%" PRId64 " missing, "
                  "from inside %s on): download incomplete?", from->path, from->size, need,
                  missing, ARRAY_NAME[cut]);
        warn("%s: %" PRId64 " bytes of the RoPE tables are missing; they are not needed",
             from->path, missing);
        return from->size;
    }
    if (missing < 0) {
        warn("%s: %" PRId64 " bytes after the last array are ignored", from->path, -missing);
    }
    return need;
}

/* ---- weights ------------------------------------------------------------------------------- */

/* A float32 array in the file's bytes; malloc aligned them for any type. */
static const float *floats_at(const checkpoint *model, int64_t start)
{
    return (const float *)(const void *)(model->bytes + start);
}

/* The matrices of an array. Int8 scales are unaligned in the file: they are copied to *aligned,
 * which is advanced past them. */
static llama2_matrix matrices(const checkpoint *model, array a, int64_t start, float **aligned)
{
    const tensors t = array_tensors(a, &model->config);
    if (!t.is_int8) {
        return (llama2_matrix){.floats = floats_at(model, start), .stride = t.n};
    }
    const int64_t groups = t.n / model->config.group_size;
    const int64_t stride = tensor_bytes(t, &model->config);
    const unsigned char *at = model->bytes + start;
    const llama2_matrix all = {.values = (const int8_t *)at, .scales = *aligned, .stride = stride};
    for (int64_t l = 0; l < t.count; l++) {
        float *scales = *aligned + l * groups;
        memcpy(scales, at + l * stride + t.n, (size_t)groups * sizeof(float));
        for (int64_t g = 0; g < groups; g++) {
            REFUSE_IF(!is_finite(scales[g]),
                      "%s: %s, layer %" PRId64 ", group %" PRId64 ": scale = %f (byte %" PRId64
                      "): must be finite", model->path, ARRAY_NAME[a], l, g, (double)scales[g],
                      start + l * stride + t.n + 4 * g);
        }
    }
    *aligned += t.count * groups;
    return all;
}

/* Floats besides the int8 weights: all scales, then the embedding as float32. */
static int64_t int8_floats(const llama2_config *config)
{
    int64_t floats = array_tensors(EMBEDDING, config).n;
    for (int a = 0; a < N_ARRAYS; a++) {
        const tensors t = array_tensors((array)a, config);
        floats += t.is_int8 ? t.count * (t.n / config->group_size) : 0;
    }
    return floats;
}

static void point_weights(checkpoint *model, const int64_t start[N_ARRAYS])
{
    const llama2_config *config = &model->config;
    llama2_weights *w = &model->weights;
    if (config->group_size > 0) {
        model->floats = allocate(int8_floats(config), sizeof(float), "scales and the embedding");
    }
    float *aligned = model->floats;
    const llama2_matrix embedding = matrices(model, EMBEDDING, start[EMBEDDING], &aligned);
    w->attention_norm = floats_at(model, start[ATTENTION_NORM]);
    w->wq = matrices(model, WQ, start[WQ], &aligned);
    w->wk = matrices(model, WK, start[WK], &aligned);
    w->wv = matrices(model, WV, start[WV], &aligned);
    w->wo = matrices(model, WO, start[WO], &aligned);
    w->ffn_norm = floats_at(model, start[FFN_NORM]);
    w->w1 = matrices(model, W1, start[W1], &aligned);
    w->w2 = matrices(model, W2, start[W2], &aligned);
    w->w3 = matrices(model, W3, start[W3], &aligned);
    w->final_norm = floats_at(model, start[FINAL_NORM]);
    w->classifier = config->shared_classifier
                  ? embedding : matrices(model, CLASSIFIER, start[CLASSIFIER], &aligned);
    w->token_embedding = embedding.floats;
    if (config->group_size > 0) {
        llama2_dequantize(aligned, embedding.values, embedding.scales,
                          array_tensors(EMBEDDING, config).n, config->group_size);
        w->token_embedding = aligned;
    }
}

static checkpoint read_checkpoint(const char *path)
{
    unsigned char head[256] = {0};
    const source from = open_source(path);
    read_exactly(&from, head, from.size < 256 ? from.size : 256);
    const layout *kind = recognise(path, head, from.size);
    const llama2_config config = read_config(path, kind, head);

    int64_t start[N_ARRAYS] = {0};
    const int64_t bytes = lay_out(start, &from, kind, &config);
    unsigned char *file = allocate(bytes, 1, "the checkpoint");
    rewind(from.file);
    read_exactly(&from, file, bytes);
    fclose(from.file);

    checkpoint model = {.config = config, .path = path, .bytes = file};
    point_weights(&model, start);
    return model;
}

#endif
