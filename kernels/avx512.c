/* avx512.c - the kernel table for AVX-512 (F, BW, VL, DQ, VNNI). Compiled with these flags; run
 * only after a check. */
#include "kernels/vec_avx512.h"
#include "kernels/vector.inc"

const Kernels kernels_avx512 = {.name = "avx512", PORTABLE_KERNELS, VECTOR_KERNELS};
