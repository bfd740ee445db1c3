/* kernels_rows.h - reading blocks of VL rows of a quantised matrix at once. */

/* Where VL rows are read: a pointer to each fourth one, so that all addresses need few registers. The empty asm keeps
 * the compiler from making other ones of its own. */
typedef struct {
    const uint8_t *p[VL / 4];
    size_t stride, stride3;
} Rows;

#define KEEP(x) __asm__("" : "+r"(x))

INLINE Rows rows_at(const uint8_t *p, size_t stride)
{
    Rows r = {.stride = stride, .stride3 = stride * 3};
    KEEP(r.stride3);
    UNROLL for (size_t i = 0; i < VL / 4; i++) {
        r.p[i] = p + 4 * i * stride;
        KEEP(r.p[i]);
    }
    return r;
}

INLINE void rows_skip(Rows *r, size_t bytes)
{
    UNROLL for (size_t i = 0; i < VL / 4; i++) {
        r->p[i] += bytes;
        KEEP(r->p[i]);
    }
    KEEP(r->stride);
    KEEP(r->stride3);
}

/* Row i of the four from p. */
INLINE const uint8_t *row_of(const Rows *r, const uint8_t *p, int i)
{
    return i == 0 ? p : i == 1 ? p + r->stride : i == 2 ? p + 2 * r->stride : p + r->stride3;
}

/* Two bytes of four rows, put together in general registers, which have time to spare. */
INLINE long long four_words(const Rows *r, int four, size_t at)
{
    uint64_t x = 0;
    UNROLL for (int i = 3; i >= 0; i--) {
        x = x << 16 | load_u16(row_of(r, r->p[four], i) + at);
        KEEP(x);
    }
    return (long long)x;
}
