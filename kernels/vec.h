/* vec.h - what the vectors of all instruction sets share, and what each of vec_avx2.h, vec_avx512.h
 * and vec_neon.h provides for the loops in *.inc.
 *
 * V is a vector of VL floats, I one of VL uint32_t; between them operators and casts are the
 * compiler's own. Bytes are 16 bytes on every instruction set, plain C included. v_ functions work
 * on V, i_ on I, rows_ read one place of VL consecutive rows of a matrix. NaN: v_max(a, b) is NaN
 * where b is; v_zero_below(v, x, f) is 0 where x < f and v elsewhere. Sums over lanes add halves of
 * the vector until one lane is left, in v_sums(), which sums VL vectors to one lane each, in the
 * same order as in v_sum().
 *
 * _n: only the first n < VL items are read or written, the other lanes are 0.
 */
#ifndef VEC_H
#define VEC_H

#include "base/blocks.h"

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")

typedef uint8_t Bytes __attribute__((vector_size(16)));

INLINE Bytes bytes_load(const void *p) // at any address
{
    Bytes b;
    memcpy(&b, p, sizeof b);
    return b;
}

/* Every two bytes shifted as one number: what crosses between them is the caller's to mask. */
INLINE Bytes bytes_right(Bytes b, int n)
{
    typedef uint16_t Words __attribute__((vector_size(16)));
    return (Bytes)((Words)b >> n);
}

INLINE Bytes bytes_left(Bytes b, int n)
{
    typedef uint16_t Words __attribute__((vector_size(16)));
    return (Bytes)((Words)b << n);
}

#endif
