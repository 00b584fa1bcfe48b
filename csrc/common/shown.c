/* shown.c - the filter of printed text. */
#ifndef SHOWN_C
#define SHOWN_C

#include <ctype.h>  /* in the "C" locale: setlocale is not called */
#include <stdint.h>

/* Whether a piece is printed: a single byte only if printable ASCII or whitespace. */
static int is_shown(const unsigned char *text, int32_t length)
{
    return length > 1 || (length == 1 && (isprint(text[0]) || isspace(text[0])));
}

#endif
