/* kernels/dotprod.c - the kernel table for AArch64 with dot products. Compiled with that flag; run
 * only after a check. */
#define DOTPROD
#include "kernels/neon.c"
