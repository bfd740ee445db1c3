/* dequantize_driver.c - reads blocks of a type on standard input, writes floats: dequantize_driver
 * TABLE TYPE BYTES */
#include <stdlib.h>

#include "kernels/kernels.h"

int main(int argc, char **argv)
{
    Err e;
    const Kernels *k = argc == 4 ? kernels_select(argv[1], &e) : NULL;
    uint32_t type = argc == 4 ? (uint32_t)atoi(argv[2]) : 0;
    size_t bytes = argc == 4 ? (size_t)atol(argv[3]) : 0;
    if (!k || type >= TYPE_COUNT || !k->dequantize[type])
        return 2;
    size_t n = bytes / type_info(type)->bytes * type_info(type)->block;
    char *src = malloc(bytes);
    float *dst = malloc(n * sizeof *dst);
    if (!src || !dst || fread(src, 1, bytes, stdin) != bytes)
        return 1;
    k->dequantize[type](src, dst, n);
    return fwrite(dst, sizeof *dst, n, stdout) == n ? 0 : 1;
}
