/* shown.c - which pieces of text a program prints. */
#ifndef SHOWN_C
#define SHOWN_C

#include <ctype.h>  /* in the "C" locale, since nobody calls setlocale */
#include <stdint.h>

/* A lone byte is shown only if it is printable ASCII or blank; longer pieces always are. */
static int is_shown(const unsigned char *text, int32_t length)
{
    return length > 1 || (length == 1 && (isprint(text[0]) || isspace(text[0])));
}

#endif
