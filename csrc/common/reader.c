/* reader.c - error messages, memory allocation and file input of the stand-alone programs.
 *
 * Include it before any system header: it defines POSIX feature macros.
 */
#ifndef READER_C
#define READER_C

#ifndef _POSIX_C_SOURCE
#define _POSIX_C_SOURCE 200809L  /* open, fstat, fdopen, clock_gettime */
#endif
#ifndef _FILE_OFFSET_BITS
#define _FILE_OFFSET_BITS 64     /* files past 2 GiB on 32-bit systems */
#endif

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#ifdef __GNUC__
#define LIKE_PRINTF __attribute__((format(printf, 1, 2)))
#define NEVER_RETURNS __attribute__((noreturn))
#else
#define LIKE_PRINTF
#define NEVER_RETURNS
#endif

/* ---- messages and memory ------------------------------------------------------------------- */

#ifndef PROGRAM
#define PROGRAM "run"  /* name in messages; another program defines it before this include */
#endif

/* Print one line "PROGRAM: KIND: ...". Control bytes, which file names may contain, become "?". */
static void print_message(const char *kind, const char *format, va_list args)
{
    char line[2048];
    vsnprintf(line, sizeof line, format, args);
    for (char *c = line; *c != '\0'; c++) {
        if ((unsigned char)*c < 0x20 || *c == 0x7f) {
            *c = '?';
        }
    }
    fprintf(stderr, PROGRAM ": %s: %s\n", kind, line);
}

LIKE_PRINTF NEVER_RETURNS static void refuse(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    print_message("error", format, args);
    va_end(args);
    exit(EXIT_FAILURE);
}

#define REFUSE_IF(condition, ...) do { if (condition) refuse(__VA_ARGS__); } while (0)

LIKE_PRINTF static void warn(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    print_message("warning", format, args);
    va_end(args);
}

static void *allocate(int64_t count, size_t item, const char *purpose)
{
    void *memory = NULL;
    if ((uint64_t)count <= SIZE_MAX / 2 / item) {
        memory = malloc(count > 0 ? (size_t)count * item : 1);
    }
    REFUSE_IF(memory == NULL, "not enough memory: %s needs %.0f MB", purpose,
              (double)count * (double)item / 1e6 + 1.0);
    return memory;
}

static inline float *allocate_zeros(int64_t count, const char *purpose)
{
    float *floats = allocate(count, sizeof(float), purpose);
    memset(floats, 0, (size_t)count * sizeof(float));
    return floats;
}

/* ---- files --------------------------------------------------------------------------------- */

typedef struct {
    const char *path;
    FILE *file;
    int64_t size;  /* bytes */
} source;

/* Open a regular file. With O_NONBLOCK, opening a FIFO returns at once, and it is refused. */
static source open_source(const char *path)
{
    struct stat info;
    const int descriptor = open(path, O_RDONLY | O_NONBLOCK);
    REFUSE_IF(descriptor < 0 || fstat(descriptor, &info) != 0, "%s: %s", path, strerror(errno));
    REFUSE_IF(S_ISDIR(info.st_mode), "%s: is a folder, expected a file", path);
    REFUSE_IF(!S_ISREG(info.st_mode), "%s: is not a regular file", path);
    const source from = {path, fdopen(descriptor, "rb"), (int64_t)info.st_size};
    REFUSE_IF(from.file == NULL, "%s: %s", path, strerror(errno));
    return from;
}

static void read_exactly(const source *from, void *to, int64_t bytes)
{
    REFUSE_IF(fread(to, 1, (size_t)bytes, from->file) != (size_t)bytes, "%s: %s", from->path,
              ferror(from->file) ? strerror(errno) : "became shorter while it was read");
}

static int32_t int32_at(const unsigned char *bytes)
{
    int32_t value;
    memcpy(&value, bytes, sizeof value);
    return value;
}

/* Refuse files of other kinds that are commonly saved as .bin, recognised by their first bytes. */
static void refuse_if_another_kind(const char *path, const unsigned char *head, int64_t n)
{
    static const struct {
        const char *bytes, *kind;
    } known[] = {
        {"version https://git-lfs", "a Git LFS pointer: fetch the file itself with git lfs pull"},
        {"<!DOCTYPE", "an HTML page: download the raw file"},
        {"<!doctype", "an HTML page: download the raw file"},
        {"<html", "an HTML page: download the raw file"},
        {"\x1f\x8b\x08", "a gzip archive: unpack it first"},
        {"PK\x03\x04", "a zip archive or a PyTorch checkpoint: export it first"},
        {"GGUF", "a GGUF file, which this program does not read"},
    };
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++) {
        const size_t length = strlen(known[i].bytes);
        REFUSE_IF(n >= (int64_t)length && memcmp(head, known[i].bytes, length) == 0,
                  "%s: looks like %s", path, known[i].kind);
    }
    /* 80 02 00 00 is dim = 640; in a pickle an opcode follows the protocol number */
    REFUSE_IF(n >= 3 && head[0] == 0x80 && head[1] >= 2 && head[1] <= 5 && head[2] != 0,
              "%s: looks like a pickle, which is never opened: export it first", path);
}

/* ---- floats by their bits, independent of -ffinite-math-only -------------------------------- */

static uint32_t magnitude_bits(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits & 0x7FFFFFFF;
}

static inline int is_finite(float x)
{
    return magnitude_bits(x) < 0x7F800000;
}

static inline int is_nan(float x)
{
    return magnitude_bits(x) > 0x7F800000;
}

#endif
