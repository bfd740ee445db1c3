/* kernels_add.h - y += a b for attention, written once against a small vector vocabulary: b in floats, halves, bytes or pairs of
 * bfloat16s.
 *
 * Lanes run along the width and k ascends, so rows may be grouped in any way. Of pairs k counts pairs, and a float of `a` stands for
 * one.
 *
 * The includer has included kernels_gemm.h and defines, beside what that asks for:
 *   v_set1(f) v_store_n(p, v, n)    n < VL
 *   v_load_f16_n(p, n) v_load_i8(p)
 *   ADD_ROWS x ADD_VECS       tile
 */
/* Of what the factors consist. BF16_PAIRS: pairs of bfloat16s, in both, and `a` is theirs too. */
typedef enum { FLOATS, HALVES, BYTES, BF16_PAIRS } Items;

INLINE size_t item_size(const Items items)
{
    return items == HALVES ? 2 : items == BYTES ? 1 : 4;
}

/* VL items, or the first n of them and zeros. */
INLINE V load_items(const Items items, const char *p)
{
    return items == HALVES ? v_load_f16((const uint16_t *)(const void *)p)
         : items == BYTES ? v_load_i8((const int8_t *)p) : v_load((const float *)(const void *)p);
}

INLINE V load_items_n(const Items items, const char *p, size_t n)
{
    int8_t rest[VL] = {0};
    if (items != BYTES)
        return items == HALVES ? v_load_f16_n((const uint16_t *)(const void *)p, n) : v_load_n((const float *)(const void *)p, n);
    memcpy(rest, p, n);
    return v_load_i8(rest);
}

/* One tile of gemm_add: `rows` rows and `vecs` vectors of the width; `last` lanes of the last vector count (VL = all). */
INLINE void add_tile(const int rows, const int vecs, const Items items, const int partial, size_t n, const float *a,
                     size_t lda, const char *b, size_t ldb, float *y, size_t ldy, size_t last)
{
    V acc[ADD_ROWS][ADD_VECS];
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int v = 0; v < vecs; v++) {
            const float *p = y + (size_t)r * ldy + (size_t)v * VL;
            acc[r][v] = partial ? v_load_n(p, last) : v_load(p);
        }
    for (size_t k = 0; k < n; k++) {
        V m[ADD_VECS];
        UNROLL for (int v = 0; v < vecs; v++) {
            const char *p = b + (k * ldb + (size_t)v * VL) * item_size(items);
            m[v] = partial ? load_items_n(items, p, last) : load_items(items, p);
        }
        UNROLL for (int r = 0; r < rows; r++) {
            V s = v_set1(a[(size_t)r * lda + k]);
            UNROLL for (int v = 0; v < vecs; v++)
                acc[r][v] = items == BF16_PAIRS ? v_fma_pairs(s, m[v], acc[r][v]) : v_fma(s, m[v], acc[r][v]);
        }
    }
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int v = 0; v < vecs; v++) {
            float *p = y + (size_t)r * ldy + (size_t)v * VL;
            if (partial)
                v_store_n(p, acc[r][v], last);
            else
                v_store(p, acc[r][v]);
        }
}

/* All rows of one strip of the width. */
INLINE void add_strip(const int vecs, const Items items, const int partial, size_t rows, size_t n, const float *a,
                      size_t lda, const char *b, size_t ldb, float *y, size_t ldy, size_t last)
{
    size_t r = 0;
    for (; r + ADD_ROWS <= rows; r += ADD_ROWS)
        add_tile(ADD_ROWS, vecs, items, partial, n, a + r * lda, lda, b, ldb, y + r * ldy, ldy, last);
    for (int left = (int)(rows - r), take; left; left -= take, r += (size_t)take) { // b is read once for several
        take = ADD_ROWS > 4 && left >= 4 ? 4 : ADD_ROWS > 3 && left >= 3 ? 3 : left >= 2 ? 2 : 1;
        if (take == 4)
            add_tile(ADD_ROWS < 4 ? 1 : 4, vecs, items, partial, n, a + r * lda, lda, b, ldb, y + r * ldy, ldy, last);
        else if (take == 3)
            add_tile(3, vecs, items, partial, n, a + r * lda, lda, b, ldb, y + r * ldy, ldy, last);
        else if (take == 2)
            add_tile(2, vecs, items, partial, n, a + r * lda, lda, b, ldb, y + r * ldy, ldy, last);
        else
            add_tile(1, vecs, items, partial, n, a + r * lda, lda, b, ldb, y + r * ldy, ldy, last);
    }
}

INLINE void add_any(const Items items, size_t rows, size_t n, size_t width, const float *a, size_t lda, const char *b,
                    size_t ldb, float *y, size_t ldy)
{
    size_t size = item_size(items), i = 0;
    for (; i + ADD_VECS * VL <= width; i += ADD_VECS * VL)
        add_strip(ADD_VECS, items, 0, rows, n, a, lda, b + i * size, ldb, y + i, ldy, VL);
    for (; i + VL <= width; i += VL)
        add_strip(1, items, 0, rows, n, a, lda, b + i * size, ldb, y + i, ldy, VL);
    if (i < width)
        add_strip(1, items, 1, rows, n, a, lda, b + i * size, ldb, y + i, ldy, width - i);
}
