/* header.c - the header of llm.c files: 256 little-endian int32 numbers, the first a magic number
 * that identifies the kind of file, the second a version.
 */
#ifndef GPT2_HEADER_C
#define GPT2_HEADER_C

#include "../common/reader.c"

enum { HEADER_FIELDS = 256, HEADER_BYTES = 4 * HEADER_FIELDS };

enum {
    MAGIC_MODEL = 20240326,
    MAGIC_DEBUG_STATE = 20240327,
    MAGIC_TOKENIZER = 20240328,
    MAGIC_TOKENS = 20240520,
    MAGIC_CHOICES = 20240522,
    MAGIC_STATE = 20240527,
    MAGIC_TOKENS_LLAMA3 = 20240801,
};

static const char *kind_of_file(int32_t magic)
{
    switch (magic) {
    case MAGIC_MODEL: return "a GPT-2 model";
    case MAGIC_DEBUG_STATE: return "a debug state";
    case MAGIC_TOKENIZER: return "a GPT-2 tokenizer";
    case MAGIC_TOKENS: return "a token shard";
    case MAGIC_CHOICES: return "a multiple-choice file";
    case MAGIC_STATE: return "an optimizer state";
    case MAGIC_TOKENS_LLAMA3: return "a token shard for Llama 3";
    default: return NULL;
    }
}

/* Read the header; refused unless it has this magic number. Leaves the file at its end. */
static void read_header(int32_t field[HEADER_FIELDS], const source *from, int32_t magic)
{
    unsigned char head[HEADER_BYTES] = {0};
    const int64_t n = from->size < HEADER_BYTES ? from->size : HEADER_BYTES;
    read_exactly(from, head, n);
    for (int i = 0; i < HEADER_FIELDS; i++) {
        field[i] = int32_at(head + 4 * i);
    }
    if (field[0] != magic) {
        const char *found = kind_of_file(field[0]);
        refuse_if_another_kind(from->path, head, n);
        REFUSE_IF(n >= 4, "%s: magic = %d (byte 0): must be %d, %s%s%s", from->path, field[0],
                  magic, kind_of_file(magic), found != NULL ? ", and this is " : "",
                  found != NULL ? found : "");
    }
    REFUSE_IF(n < HEADER_BYTES, "%s: %" PRId64 " bytes: header needs %d", from->path, n,
              HEADER_BYTES);
}

#endif
