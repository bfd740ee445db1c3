/* dotprod.c - the kernel table for AArch64 with dot products. Compiled with these flags; run only
 * after a check. */
#include "kernels/vec_neon.h"
#include "kernels/vector.inc"

const Kernels kernels_dotprod = {.name = "dotprod", PORTABLE_KERNELS, VECTOR_KERNELS};
