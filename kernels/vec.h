/* vec.h - the vocabulary of the loops in *.inc, and the part of it that is the same for all
 * instruction sets; vec_avx2.h, vec_avx512.h and vec_neon.h provide the rest. Operators and casts
 * between vectors are the compiler's own.
 *
 *   V, I, Signed, Bytes     vectors of VL float, uint32_t, int32_t; of 16 bytes
 *   GEMM_TILE_ROWS ...      the sizes of tiles: what fits the registers
 *   v_load v_store i_load i_store v_load_f16 v_load_bf16 v_load_i8     at any address; with _n
 *                           only the first n < VL items, the other lanes become 0
 *   v_set1 i_set1           the same in every lane
 *   v_fma(a, b, c)          a b + c, rounded once; v_fma_pairs, if HAVE_PAIRS: of pairs of bf16
 *   v_max(a, b)             NaN where b is
 *   v_zero_below(v, x, f)   0 where x < f, else v
 *   v_sum(v)                halves of v are added until one lane is left
 *   v_sums(x)               lane i is v_sum(x[i])
 *   v_largest(v)            the largest lane
 *   v_from_int(x)           each lane as a signed number
 *   v_from_f16(x)           the low half of each lane as f16
 *   i_lookup(table, x)      each byte is an index; bytes_lookup: the same for Bytes
 *   i_spread(x)             bits 0 to 3 of each lane as bit 4 of its bytes 0 to 3
 *   i_opaque(x)             x, of which the compiler is to know nothing
 *   dot_four(x, j)          activations 4j to 4j + 3 of x, in every lane
 *   dot_begin(sum), dot_add(part, w, four, bits), dot_end(sum, part)     sum += the products of
 *                           four bytes a lane, w of so many bits; at most dot_steps(bits) dot_add()
 *   rows_f16(r, at), rows_u16, rows_u32     what is `at` bytes into each of VL rows: see rows.inc
 *   rows_16(r, at, out), rows_32   so many bytes: lane i of out[j] is bytes 4j to 4j + 3 of row i
 */
#ifndef VEC_H
#define VEC_H

#include "base/blocks.h"

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")

typedef uint8_t Bytes __attribute__((vector_size(16)));
typedef uint16_t Words __attribute__((vector_size(16)));

INLINE Bytes bytes_load(const void *p) // at any address
{
    Bytes b;
    memcpy(&b, p, sizeof b);
    return b;
}

INLINE void bytes_store(void *p, Bytes b) // at any address
{
    memcpy(p, &b, sizeof b);
}

/* Two bytes are shifted as one number: what crosses between them is the caller's to mask. */
INLINE Bytes bytes_right(Bytes b, int n)
{
    return (Bytes)((Words)b >> n);
}

INLINE Bytes bytes_left(Bytes b, int n)
{
    return (Bytes)((Words)b << n);
}

#endif
