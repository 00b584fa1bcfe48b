/* loader.c - the data loader: token shards and the batches of training.
 *
 * Shard layout: the header, whose third number is the number of tokens, then each token as uint16.
 * A loader divides a shard into samples of B * T tokens per process. A batch reads one token more
 * than its sample, for the last target. Tokens after the last whole sample are not used.
 */
#ifndef GPT2_LOADER_C
#define GPT2_LOADER_C

#include "header.c"
#include "../common/mersenne.c"

#include <glob.h>

typedef struct {
    int64_t B, T;              /* rows and length of a batch */
    int64_t rank, processes;   /* this process takes slice `rank` of every sample */
    int shuffle;               /* random order of shards and of the samples in each */
    int32_t vocab_size;        /* upper bound of token ids */
    glob_t paths;              /* of the shards, sorted */
    int64_t num_tokens;        /* in all shards, unused ones included */
    mersenne random;
    int32_t *shard_order;      /* (shards,) */
    int32_t *sample_order;     /* (samples,) of the open shard, or NULL: ascending */
    int64_t shard;             /* index in shard_order of the open shard */
    int64_t sample, samples;   /* the next sample, and the number of samples in the shard */
    source from;               /* the open shard; file is NULL before the first */
    unsigned char *bytes;      /* (B * T + 1) tokens as stored in the file */
    int32_t *tokens;           /* (B * T + 1,): inputs, and targets one position later */
} loader;

/* Tokens between the starts of two samples. */
static int64_t sample_stride(const loader *l)
{
    return l->processes * l->B * l->T;
}

/* Open a shard; *n becomes its number of tokens, refused if too few for one sample. */
static source open_shard(const char *path, const loader *l, int64_t *n)
{
    const source from = open_source(path);
    int32_t field[HEADER_FIELDS];
    read_header(field, &from, MAGIC_TOKENS);
    *n = field[2];
    const int64_t bytes = HEADER_BYTES + 2 * *n;
    REFUSE_IF(field[1] != 1, "%s: version = %d (byte 4): must be 1", path, field[1]);
    REFUSE_IF(*n < 1, "%s: tokens = %d (byte 8): must be at least 1", path, field[2]);
    REFUSE_IF(from.size != bytes,
              "%s: tokens = %d (byte 8): needs %" PRId64 " bytes, the file has %" PRId64, path,
              field[2], bytes, from.size);
    REFUSE_IF(*n <= sample_stride(l),
              "%s: tokens = %d (byte 8): must be at least %" PRId64 " for B = %" PRId64
              ", T = %" PRId64, path, field[2], sample_stride(l) + 1, l->B, l->T);
    return from;
}

/* 0, 1, 2, ... */
static void identity(int32_t *items, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        items[i] = (int32_t)i;
    }
}

/* Move to a sample of the shard at an index of shard_order. Leaves sample_order unchanged. */
static void loader_seek(loader *l, int64_t shard, int64_t sample)
{
    int64_t n;
    if (l->from.file != NULL) {
        fclose(l->from.file);
    }
    l->shard = shard;
    l->sample = sample;
    l->from = open_shard(l->paths.gl_pathv[l->shard_order[shard]], l, &n);
    l->samples = (n - 1) / sample_stride(l);
}

/* Move to the start of a shard and draw a new order of its samples. */
static void begin_shard(loader *l, int64_t shard)
{
    loader_seek(l, shard, 0);
    if (l->shuffle) {
        free(l->sample_order);
        l->sample_order = allocate(l->samples, sizeof(int32_t), "the order of samples");
        identity(l->sample_order, l->samples);
        mersenne_shuffle(l->sample_order, l->samples, &l->random);
    }
}

/* Start an epoch. Each epoch shuffles the order of shards of the epoch before. */
static void loader_reset(loader *l)
{
    if (l->shuffle) {
        mersenne_shuffle(l->shard_order, (int64_t)l->paths.gl_pathc, &l->random);
    }
    begin_shard(l, 0);
}

/* Read the next batch into l->tokens, from the next shard or epoch after the last sample. */
static void loader_next(loader *l)
{
    if (l->sample >= l->samples) {
        if (l->shard + 1 < (int64_t)l->paths.gl_pathc) {
            begin_shard(l, l->shard + 1);
        } else {
            loader_reset(l);
        }
    }
    const int64_t n = l->B * l->T + 1;
    const int64_t sample = l->shuffle ? l->sample_order[l->sample] : l->sample;
    const int64_t first = sample * sample_stride(l) + l->rank * l->B * l->T;
    REFUSE_IF(fseeko(l->from.file, (off_t)(HEADER_BYTES + 2 * first), SEEK_SET) != 0, "%s: %s",
              l->from.path, strerror(errno));
    read_exactly(&l->from, l->bytes, 2 * n);
    for (int64_t i = 0; i < n; i++) {
        l->tokens[i] = l->bytes[2 * i] | l->bytes[2 * i + 1] << 8;
        REFUSE_IF(l->tokens[i] >= l->vocab_size,
                  "%s: token %" PRId64 " = %d (byte %" PRId64 "): must be below vocab_size = %d",
                  l->from.path, first + i, l->tokens[i], HEADER_BYTES + 2 * (first + i),
                  l->vocab_size);
    }
    l->sample++;
}

/* Initialise a loader over the shards that match a pattern, and check each. The caller has set B,
 * T, rank, processes, shuffle and vocab_size of `l`; the rest is zero. */
static void open_loader(loader *l, const char *pattern)
{
    /* a pattern without a match is opened as a file name, for the error message of the system */
    REFUSE_IF(glob(pattern, GLOB_NOCHECK, NULL, &l->paths) != 0, "%s: cannot list the files",
              pattern);
    const int64_t shards = (int64_t)l->paths.gl_pathc;
    for (int64_t i = 0; i < shards; i++) {
        int64_t n;
        fclose(open_shard(l->paths.gl_pathv[i], l, &n).file);
        l->num_tokens += n;
    }
    l->shard_order = allocate(shards, sizeof(int32_t), "the order of shards");
    identity(l->shard_order, shards);
    l->bytes = allocate(l->B * l->T + 1, 2, "a batch");
    l->tokens = allocate(l->B * l->T + 1, sizeof(int32_t), "a batch");
    mersenne_seed(&l->random, (uint32_t)(42 + l->rank));
    loader_reset(l);
}

static void close_loader(loader *l)
{
    fclose(l->from.file);
    globfree(&l->paths);
    free(l->shard_order);
    free(l->sample_order);
    free(l->bytes);
    free(l->tokens);
}

#endif
