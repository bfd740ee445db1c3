/* avx2.c - the kernel table for AVX2 with FMA and F16C. Compiled with these flags; run only after a
 * check. */
#include "kernels/vec_avx2.h"
#include "kernels/vector.inc"

const Kernels kernels_avx2 = {.name = "avx2", PORTABLE_KERNELS, VECTOR_KERNELS};
