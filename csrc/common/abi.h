/* abi.h - the number that NAME_abi() returns: a hash of the headers that the library was built
 * from. pyllm2/compiling/c_build.py passes it to the compiler and compares it after loading. */
#ifndef ABI_H
#define ABI_H

#include <stdint.h>

#ifndef PYLLM2_ABI
#define PYLLM2_ABI 0  /* a stand-alone program */
#endif

#endif
