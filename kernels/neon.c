/* neon.c - the kernel table for AArch64, whose every machine has NEON. */
#include "kernels/vec_neon.h"
#include "kernels/vector.inc"

const Kernels kernels_neon = {.name = "neon", PORTABLE_KERNELS, VECTOR_KERNELS};
