/* kernels_int8.h - products of quantised weights with activations in signed bytes, written once for every format and
 * instruction set against a small vector vocabulary.
 *
 * One lane is one row of W. A format's unit function turns one block of VL rows into groups of 32 values: eight vectors
 * of four bytes a lane, and floats for scale and min. A group is either multiplied at once with a few columns (decoding:
 * the weights pass through registers once) or kept in a panel that all columns use (prefill). Sums over a group are
 * exact integers; groups are added in ascending order with one fma each (and one for the min), so one column and many,
 * one row and many give the same bits.
 *
 * The includer defines, beside what kernels_simd.h asks for:
 *   VI                        a vector of VL 32-bit integers
 *   i_set1 i_load(p) i_store(p, v) i_and i_or i_xor i_add i_sub i_mul i_shl(v, n) i_shr(v, n) i_sar(v, n)    32-bit lanes
 *   i_lookup(table, v)        bytes of a table of 16
 *   i_float(v)  i_halves(v)   each lane as a float; the low half of each lane as an IEEE half
 *   v_words(r, at)            IEEE halves of VL rows (kernels_rows.h), `at` bytes from where they are
 *   i_dwords(r, at)           four bytes of VL rows
 *   i_columns(r, at, t)       16 bytes of VL rows -> four vectors, lane i of t[j] = bytes 4j .. 4j + 3 of row i
 *   i_columns2(r, at, t)      32 bytes -> eight
 *   DOT_STEPS(bits)           how many dot() of weights of so many bits may be added up before flush()
 *   Fours fours(p, j)         four activations, p[4j] .. p[4j + 3], for every lane
 *   Part dot_start(sum) dot(part, w, x, bits) flush(sum, part)    sum += products of four bytes a lane
 *   WIDE                      128: 8-bit weights are multiplied unsigned, with 128 added; 0: as signed bytes
 *   Q_COLS                    columns of a tile of 2 VL rows
 */

enum { FEW = 4, MIN_PANEL = 6 }; // columns multiplied at once without a panel, and from how many on one is made

/* What is known of a format when it is compiled. w = scale (q - 2^shift) [+ min], q of so many bits. */
typedef struct {
    int halves; // scales a group: 1, or 2 of 16 values each
    int has_min, bits;
    int shift; // -1: q is signed, or unsigned without an offset
} Form;

typedef struct {
    VI q[8];
    V scale[2], min[2];
} Group;

/* Where groups go: into a panel (cols = 0), or into the sums of a few columns. */
typedef struct {
    V *panel; // next vector of these rows; those of two row groups alternate
    const Block8 *x[FEW];
    V acc[FEW];
    const uint8_t *next; // what is fetched while these rows are read
    size_t step;         // bytes of it with each group
} Sink;

#define FORM_VECTORS(f) (8 + (f).halves * (1 + (f).has_min))

/* The integer sums' start, minus the offset's share. */
INLINE VI start_sum(const Form f, const Block8 *x, const int half)
{
    int32_t minus = f.halves == 1 ? x->minus_sum : half == 0 ? x->minus_low : x->minus_sum - x->minus_low;
    return f.shift < 0 ? i_set1(0) : i_shl(i_set1(minus), f.shift);
}

INLINE V scaled_sum(const Form f, const Block8 *x, const int half)
{
    if (f.halves == 1)
        return v_set1(x->scaled_sum);
    return v_set1(-x->scale * (float)(half == 0 ? x->minus_low : x->minus_sum - x->minus_low));
}

INLINE int32_t load_i32(const int8_t *p)
{
    int32_t x;
    memcpy(&x, p, 4);
    return x;
}

/* sum += four vectors of weights times 16 activations. */
INLINE VI dot_four(const int bits, VI sum, const VI *w, const int8_t *x)
{
    Part part = dot_start(sum);
    UNROLL for (int j = 0; j < 4; j++) {
        if (j && j % DOT_STEPS(bits) == 0)
            part = dot_start(sum);
        part = dot(part, w[j], fours(x, j), bits);
        if ((j + 1) % DOT_STEPS(bits) == 0 || j == 3)
            sum = flush(sum, part);
    }
    return sum;
}

INLINE void sink(const int cols, Sink *s, const Form f, const Group *g)
{
    for (size_t line = 0; line < s->step; line += 64)
        __builtin_prefetch(s->next + line, 0, 2);
    s->next += s->step;
    if (!cols) {
        UNROLL for (int j = 0; j < 8; j++)
            i_store(s->panel + 2 * j, g->q[j]);
        UNROLL for (int h = 0; h < f.halves; h++) {
            v_store((float *)(s->panel + 2 * (8 + h)), g->scale[h]);
            if (f.has_min)
                v_store((float *)(s->panel + 2 * (8 + f.halves + h)), g->min[h]);
        }
        s->panel += 2 * FORM_VECTORS(f);
        return;
    }
    UNROLL for (int c = 0; c < cols; c++) {
        const Block8 *x = s->x[c]++;
        UNROLL for (int h = 0; h < f.halves; h++) {
            VI sum = dot_four(f.bits, start_sum(f, x, h), g->q + 4 * h, x->q + 16 * h);
            if (f.halves == 1) // two chains are faster than one
                sum = i_add(sum, dot_four(f.bits, i_set1(0), g->q + 4, x->q + 16));
            s->acc[c] = v_fma(i_float(sum), v_mul(g->scale[h], v_set1(x->scale)), s->acc[c]);
            if (f.has_min)
                s->acc[c] = v_fma(g->min[h], scaled_sum(f, x, h), s->acc[c]);
        }
    }
}

/* ---- formats ----------------------------------------------------------------------------------------------- */

INLINE V high_halves(VI v)
{
    return i_halves(i_shr(v, 16));
}

#define NIBBLES i_set1(0x0f0f0f0f)

/* 16 bytes of nibbles: the low ones are values 0..15, the high ones 16..31. */
INLINE void put_nibbles(Group *g, const VI t[4])
{
    UNROLL for (int j = 0; j < 4; j++) {
        g->q[j] = i_and(t[j], NIBBLES);
        g->q[j + 4] = i_and(i_shr(t[j], 4), NIBBLES);
    }
}

/* Bit i of h is bit 4 of value i: four bits are copied 7 bits apart, of which every eighth stays. */
INLINE void put_fifth_bits(Group *g, VI h)
{
    UNROLL for (int j = 0; j < 8; j++) {
        VI four = i_and(i_shr(h, 4 * j), i_set1(15));
        g->q[j] = i_or(g->q[j], i_and(i_mul(four, i_set1(0x02040810)), i_set1(0x10101010)));
    }
}

static const Form form_q8_0 = {1, 0, 8, WIDE ? 7 : -1};
INLINE void unit_q8_0(const int cols, const Rows *r, Sink *s)
{
    Group g;
    g.scale[0] = v_words(r, 0);
    i_columns2(r, 2, g.q);
    UNROLL for (int j = 0; WIDE > 0 && j < 8; j++)
        g.q[j] = i_xor(g.q[j], i_set1((int)0x80808080));
    sink(cols, s, form_q8_0, &g);
}

static const Form form_q4_0 = {1, 0, 4, 3};
INLINE void unit_q4_0(const int cols, const Rows *r, Sink *s)
{
    Group g;
    VI t[4];
    g.scale[0] = v_words(r, 0);
    i_columns(r, 2, t);
    put_nibbles(&g, t);
    sink(cols, s, form_q4_0, &g);
}

static const Form form_q4_1 = {1, 1, 4, -1};
INLINE void unit_q4_1(const int cols, const Rows *r, Sink *s)
{
    Group g;
    VI t[4], d = i_dwords(r, 0);
    g.scale[0] = i_halves(d);
    g.min[0] = high_halves(d);
    i_columns(r, 4, t);
    put_nibbles(&g, t);
    sink(cols, s, form_q4_1, &g);
}

static const Form form_q5_0 = {1, 0, 5, 4};
INLINE void unit_q5_0(const int cols, const Rows *r, Sink *s)
{
    Group g;
    VI t[4];
    g.scale[0] = v_words(r, 0);
    i_columns(r, 6, t);
    put_nibbles(&g, t);
    put_fifth_bits(&g, i_dwords(r, 2));
    sink(cols, s, form_q5_0, &g);
}

static const Form form_q5_1 = {1, 1, 5, -1};
INLINE void unit_q5_1(const int cols, const Rows *r, Sink *s)
{
    Group g;
    VI head[4], t[4];
    i_columns(r, 0, head);
    g.scale[0] = i_halves(head[0]);
    g.min[0] = high_halves(head[0]);
    i_columns(r, 8, t);
    put_nibbles(&g, t);
    put_fifth_bits(&g, head[1]);
    sink(cols, s, form_q5_1, &g);
}

/* Indices into iq4_values -> the values. */
INLINE void put_iq4(Group *g)
{
    UNROLL for (int j = 0; j < 8; j++) {
        g->q[j] = i_lookup(iq4_values, g->q[j]);
        if (WIDE)
            g->q[j] = i_xor(g->q[j], i_set1((int)0x80808080));
    }
}

static const Form form_iq4_nl = {1, 0, 8, WIDE ? 7 : -1};
INLINE void unit_iq4_nl(const int cols, const Rows *r, Sink *s)
{
    Group g;
    VI t[4];
    g.scale[0] = v_words(r, 0);
    i_columns(r, 2, t);
    put_nibbles(&g, t);
    put_iq4(&g);
    sink(cols, s, form_iq4_nl, &g);
}

/* Byte `at` of each lane, unsigned, as a float. */
INLINE V byte_float(VI v, const int at)
{
    return i_float(i_and(i_shr(v, 8 * at), i_set1(255)));
}

static const Form form_q2_k = {2, 1, 2, -1};
INLINE void unit_q2_k(const int cols, const Rows *r, Sink *s)
{
    VI scales[4], q[8], d = i_dwords(r, 80);
    V scale = i_halves(d), min = v_sub(v_zero(), high_halves(d));
    i_columns(r, 0, scales);
    for (int half = 0; half < 2; half++) {
        i_columns2(r, 16 + 32 * half, q);
        UNROLL for (int i = 0; i < 4; i++) { // group 4 half + i: bytes 2i and 2i + 1 of the half's eight scales
            Group g;
            VI both = i_shr(half ? scales[2 + i / 2] : scales[i / 2], 16 * (i % 2));
            UNROLL for (int h = 0; h < 2; h++) {
                g.scale[h] = v_mul(scale, byte_float(i_and(both, NIBBLES), h));
                g.min[h] = v_mul(min, byte_float(i_and(i_shr(both, 4), NIBBLES), h));
            }
            UNROLL for (int j = 0; j < 8; j++)
                g.q[j] = i_and(i_shr(q[j], 2 * i), i_set1(0x03030303));
            sink(cols, s, form_q2_k, &g);
        }
    }
}

static const Form form_q3_k = {2, 0, 3, 2};
INLINE void unit_q3_k(const int cols, const Rows *r, Sink *s)
{
    VI high[8], q[8], t[4], scales[4];
    i_columns(r, 94, t); // two bytes more in front than the 14 of scales and d, so none behind
    VI a = i_or(i_shr(t[0], 16), i_shl(t[1], 16)), b = i_or(i_shr(t[1], 16), i_shl(t[2], 16));
    VI c = i_or(i_shr(t[2], 16), i_shl(t[3], 16)), top = i_set1(0x30303030);
    V d = high_halves(t[3]);
    scales[0] = i_or(i_and(a, NIBBLES), i_and(i_shl(c, 4), top));
    scales[1] = i_or(i_and(b, NIBBLES), i_and(i_shl(c, 2), top));
    scales[2] = i_or(i_and(i_shr(a, 4), NIBBLES), i_and(c, top));
    scales[3] = i_or(i_and(i_shr(b, 4), NIBBLES), i_and(i_shr(c, 2), top));
    i_columns2(r, 0, high);
    for (int half = 0; half < 2; half++) {
        i_columns2(r, 32 + 32 * half, q);
        UNROLL for (int i = 0; i < 4; i++) {
            Group g;
            VI both = i_shr(half ? scales[2 + i / 2] : scales[i / 2], 16 * (i % 2));
            UNROLL for (int h = 0; h < 2; h++)
                g.scale[h] = v_mul(d, v_sub(byte_float(both, h), v_set1(32)));
            UNROLL for (int j = 0; j < 8; j++) {
                VI bit = i_and(half ? i_shr(high[j], i + 4) : i_shr(high[j], i), i_set1(0x01010101));
                g.q[j] = i_or(i_and(i_shr(q[j], 2 * i), i_set1(0x03030303)), i_shl(bit, 2));
            }
            sink(cols, s, form_q3_k, &g);
        }
    }
}

/* The head of Q4_K and Q5_K: d, dmin, and eight 6-bit scales and mins. */
typedef struct {
    V scale, min;
    VI scales[2], mins[2]; // four bytes a lane
} HeadK4;

INLINE HeadK4 head_k4(const Rows *r)
{
    VI t[4], low = i_set1(0x3f3f3f3f), top = i_set1(0x30303030);
    i_columns(r, 0, t);
    return (HeadK4){i_halves(t[0]), v_sub(v_zero(), high_halves(t[0])),
                    {i_and(t[1], low), i_or(i_and(t[3], NIBBLES), i_and(i_shr(t[1], 2), top))},
                    {i_and(t[2], low), i_or(i_and(i_shr(t[3], 4), NIBBLES), i_and(i_shr(t[2], 2), top))}};
}

/* Scale and min of group 2 pair + i. */
INLINE void scale_k4(Group *g, const HeadK4 *h, int pair, const int i)
{
    VI s = pair < 2 ? h->scales[0] : h->scales[1], m = pair < 2 ? h->mins[0] : h->mins[1];
    g->scale[0] = v_mul(h->scale, byte_float(pair % 2 ? i_shr(s, 16) : s, i));
    g->min[0] = v_mul(h->min, byte_float(pair % 2 ? i_shr(m, 16) : m, i));
}

static const Form form_q4_k = {1, 1, 4, -1};
INLINE void unit_q4_k(const int cols, const Rows *r, Sink *s)
{
    HeadK4 head = head_k4(r);
    for (int pair = 0; pair < 4; pair++) {
        VI q[8];
        i_columns2(r, 16 + 32 * pair, q);
        UNROLL for (int i = 0; i < 2; i++) {
            Group g;
            scale_k4(&g, &head, pair, i);
            UNROLL for (int j = 0; j < 8; j++)
                g.q[j] = i_and(i_shr(q[j], 4 * i), NIBBLES);
            sink(cols, s, form_q4_k, &g);
        }
    }
}

static const Form form_q5_k = {1, 1, 5, -1};
INLINE void unit_q5_k(const int cols, const Rows *r, Sink *s)
{
    HeadK4 head = head_k4(r);
    VI high[8];
    i_columns2(r, 16, high);
    for (int pair = 0; pair < 4; pair++) {
        VI q[8];
        i_columns2(r, 48 + 32 * pair, q);
        UNROLL for (int i = 0; i < 2; i++) {
            Group g;
            scale_k4(&g, &head, pair, i);
            UNROLL for (int j = 0; j < 8; j++) {
                VI bit = i_and(i_shr(high[j], i), i_set1(0x01010101));
                g.q[j] = i_or(i_and(i_shr(q[j], 4 * i), NIBBLES), i_shl(bit, 4));
            }
            sink(cols, s, form_q5_k, &g);
        }
        UNROLL for (int j = 0; j < 8; j++)
            high[j] = i_shr(high[j], 2);
    }
}

static const Form form_q6_k = {2, 0, 6, 5};
INLINE void unit_q6_k(const int cols, const Rows *r, Sink *s)
{
    VI scales[4];
    V d = v_words(r, 208);
    i_columns(r, 192, scales);
    for (int half = 0; half < 2; half++) {
        VI low[16], high[8];
        UNROLL for (int j = 0; j < 2; j++)
            i_columns2(r, 64 * half + 32 * j, low + 8 * j);
        i_columns2(r, 128 + 32 * half, high);
        UNROLL for (int i = 0; i < 4; i++) { // 32 values: low bytes 32 (i % 2), their low or high nibbles; high bits 2i
            Group g;
            VI both = i_shl(half ? scales[2 + i / 2] : scales[i / 2], 16 * (1 - i % 2));
            g.scale[0] = v_mul(d, i_float(i_sar(i_shl(both, 8), 24)));
            g.scale[1] = v_mul(d, i_float(i_sar(both, 24)));
            UNROLL for (int j = 0; j < 8; j++) {
                VI q = i_and(i_shr(low[8 * (i % 2) + j], 4 * (i / 2)), NIBBLES);
                g.q[j] = i_or(q, i_shl(i_and(i_shr(high[j], 2 * i), i_set1(0x03030303)), 4));
            }
            sink(cols, s, form_q6_k, &g);
        }
    }
}

static const Form form_iq4_xs = {1, 0, 8, WIDE ? 7 : -1};
INLINE void unit_iq4_xs(const int cols, const Rows *r, Sink *s)
{
    VI head = i_dwords(r, 0), low = i_dwords(r, 4), high = i_shr(head, 16);
    V d = i_halves(head);
    for (int i = 0; i < 8; i++) {
        Group g;
        VI t[4], scale = i_or(i_and(low, i_set1(15)), i_shl(i_and(high, i_set1(3)), 4));
        g.scale[0] = v_mul(d, i_float(i_sub(scale, i_set1(32))));
        i_columns(r, 8 + 16 * i, t);
        put_nibbles(&g, t);
        put_iq4(&g);
        sink(cols, s, form_iq4_xs, &g);
        low = i_shr(low, 4);
        high = i_shr(high, 2);
    }
}

/* ---- products ---------------------------------------------------------------------------------------------- */

typedef void Unit(const int cols, const Rows *r, Sink *s);

/* A panel of 2 VL rows with `cols` columns of n_groups groups -> acc. */
INLINE void panel_tile(const int cols, const Form f, size_t n_groups, const V *panel, const Block8 *x, V acc[2][Q_COLS])
{
    const int per_half = 8 / f.halves;
    UNROLL for (int c = 0; c < cols; c++)
        acc[0][c] = acc[1][c] = v_zero();
    for (size_t g = 0; g < n_groups; g++, panel += 2 * FORM_VECTORS(f), x++)
        UNROLL for (int h = 0; h < f.halves; h++) {
            VI sum[2][Q_COLS];
            Part part[2][Q_COLS];
            UNROLL for (int c = 0; c < cols; c++)
                sum[0][c] = sum[1][c] = start_sum(f, x + (size_t)c * n_groups, h);
            UNROLL for (int j = 0; j < per_half; j++) {
                VI w0 = i_load(panel + 2 * (h * 4 + j)), w1 = i_load(panel + 2 * (h * 4 + j) + 1);
                UNROLL for (int c = 0; c < cols; c++) {
                    Fours four = fours(x[(size_t)c * n_groups].q, h * 4 + j);
                    if (j % DOT_STEPS(f.bits) == 0) {
                        part[0][c] = dot_start(sum[0][c]);
                        part[1][c] = dot_start(sum[1][c]);
                    }
                    part[0][c] = dot(part[0][c], w0, four, f.bits);
                    part[1][c] = dot(part[1][c], w1, four, f.bits);
                    if ((j + 1) % DOT_STEPS(f.bits) == 0 || j + 1 == per_half) {
                        sum[0][c] = flush(sum[0][c], part[0][c]);
                        sum[1][c] = flush(sum[1][c], part[1][c]);
                    }
                }
            }
            UNROLL for (int r = 0; r < 2; r++) {
                V scale = v_load((const float *)(panel + 2 * (8 + h) + r));
                UNROLL for (int c = 0; c < cols; c++)
                    acc[r][c] = v_fma(i_float(sum[r][c]), v_mul(scale, v_set1(x[(size_t)c * n_groups].scale)), acc[r][c]);
                if (f.has_min) {
                    V min = v_load((const float *)(panel + 2 * (8 + f.halves + h) + r));
                    UNROLL for (int c = 0; c < cols; c++)
                        acc[r][c] = v_fma(min, scaled_sum(f, x + (size_t)c * n_groups, h), acc[r][c]);
                }
            }
        }
}

/* The first n lanes of v. */
INLINE void put(float *y, V v, size_t n)
{
    if (n >= VL)
        v_store(y, v);
    else if (n)
        v_store_n(y, v, n);
}

/* Rows that a vector can be read from: p itself, or, of fewer than VL rows, a copy that repeats the last. */
INLINE const uint8_t *padded_rows(const uint8_t *p, size_t rows, size_t row_bytes, uint8_t *copy)
{
    if (rows >= VL)
        return p;
    for (size_t r = 0; r < VL; r++)
        memcpy(copy + r * row_bytes, p + (r < rows ? r : rows - 1) * row_bytes, row_bytes);
    return copy;
}

/* At most VL rows with `cols` columns at once. While they are read the rows behind them are fetched. */
INLINE void few_columns(const int cols, Unit *unit, size_t block, size_t block_bytes, size_t n, const uint8_t *p,
                        const uint8_t *next, size_t row_bytes, Sink *s)
{
    Rows r = rows_at(p, row_bytes);
    s->next = next;
    s->step = VL * block_bytes * 32 / block;
    for (size_t i = 0; i < n / block; i++) {
        unit(cols, &r, s);
        rows_skip(&r, block_bytes);
    }
}

/* All of gemm_q8 for one format: rows in twos of VL. */
INLINE void any_columns(Unit *unit, const Form f, size_t block, size_t block_bytes, size_t rows, size_t cols, size_t n,
                        const uint8_t *w, size_t row_bytes, const Block8 *x, float *y, size_t ldy, void *scratch)
{
    size_t n_groups = n / 32, c;
    uint8_t *copy = (uint8_t *)scratch + n * 4 * VL; // behind the panel
    for (size_t r = 0; r < rows && cols < MIN_PANEL; r += VL) {
        const uint8_t *from = w + r * row_bytes, *p = padded_rows(from, rows - r, row_bytes, copy);
        for (c = 0; c < cols;) {
            Sink s = {.acc = {v_zero(), v_zero(), v_zero(), v_zero()}};
            size_t wide = cols - c == 1 ? 1 : cols - c < FEW ? cols - c : FEW;
            for (size_t i = 0; i < FEW; i++)
                s.x[i] = x + (i < wide ? c + i : c) * n_groups;
            if (wide == 1)
                few_columns(1, unit, block, block_bytes, n, p, from + VL * row_bytes + AHEAD, row_bytes, &s);
            else
                few_columns(FEW, unit, block, block_bytes, n, p, from + VL * row_bytes + AHEAD, row_bytes, &s);
            for (size_t i = 0; i < wide; i++, c++)
                put(y + c * ldy + r, s.acc[i], rows - r);
        }
    }
    for (size_t r = 0; r < rows && cols >= MIN_PANEL; r += 2 * VL) {
        size_t left = rows - r, second = left > VL ? VL : 0; // a missing second group is the first again
        for (size_t i = 0; i < 2; i++) {
            Sink s = {.panel = (V *)scratch + i};
            size_t at = r + i * second;
            few_columns(0, unit, block, block_bytes, n, padded_rows(w + at * row_bytes, rows - at, row_bytes, copy),
                        w + (at + VL) * row_bytes + AHEAD, row_bytes, &s);
        }
        V acc[2][Q_COLS];
        for (c = 0; c + Q_COLS <= cols; c += Q_COLS) {
            panel_tile(Q_COLS, f, n_groups, scratch, x + c * n_groups, acc);
            UNROLL for (int i = 0; i < Q_COLS; i++) {
                put(y + (c + (size_t)i) * ldy + r, acc[0][i], left);
                put(y + (c + (size_t)i) * ldy + r + second, acc[1][i], left - second);
            }
        }
        for (; c < cols; c++) {
            panel_tile(1, f, n_groups, scratch, x + c * n_groups, acc);
            put(y + c * ldy + r, acc[0][0], left);
            put(y + c * ldy + r + second, acc[1][0], left - second);
        }
    }
}

#define GEMM_Q8(format, block, block_bytes)                                                                            \
    static void gemm_##format(size_t rows, size_t cols, size_t n, const void *w, size_t row_bytes, const Block8 *x,     \
                              float *y, size_t ldy, void *scratch)                                                     \
    {                                                                                                                  \
        any_columns(unit_##format, form_##format, block, block_bytes, rows, cols, n, w, row_bytes, x, y, ldy, scratch); \
    }

GEMM_Q8(q8_0, 32, 34)
GEMM_Q8(q4_0, 32, 18)
GEMM_Q8(q4_1, 32, 20)
GEMM_Q8(q5_0, 32, 22)
GEMM_Q8(q5_1, 32, 24)
GEMM_Q8(iq4_nl, 32, 18)
GEMM_Q8(q2_k, 256, 84)
GEMM_Q8(q3_k, 256, 110)
GEMM_Q8(q4_k, 256, 144)
GEMM_Q8(q5_k, 256, 176)
GEMM_Q8(q6_k, 256, 210)
GEMM_Q8(iq4_xs, 256, 136)

#define GEMM_Q8_TABLE \
    {[TYPE_Q8_0] = gemm_q8_0, [TYPE_Q4_0] = gemm_q4_0, [TYPE_Q4_1] = gemm_q4_1, [TYPE_Q5_0] = gemm_q5_0, \
     [TYPE_Q5_1] = gemm_q5_1, [TYPE_Q2_K] = gemm_q2_k, [TYPE_Q3_K] = gemm_q3_k, [TYPE_Q4_K] = gemm_q4_k, \
     [TYPE_Q5_K] = gemm_q5_k, [TYPE_Q6_K] = gemm_q6_k, [TYPE_IQ4_NL] = gemm_iq4_nl, [TYPE_IQ4_XS] = gemm_iq4_xs}
