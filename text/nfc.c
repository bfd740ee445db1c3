/* nfc.c - Unicode normal forms C and D. Contracts are in nfc.h. */
#include "text/nfc.h"

#include <stdlib.h>
#include <string.h>

#include "base/utf8.h"
#include "text/unicode_tables.h"

/* 0 for a starter that NFC leaves alone, 255 for one it may change or join to the one before, else
 * the class. */
static unsigned ccc_or_attention(uint32_t cp)
{
    if (cp < 0x300 || cp > 0x10ffff)
        return 0;
    size_t block = unicode_ccc_index[cp / UNICODE_BLOCK];
    return unicode_ccc_data[block * UNICODE_BLOCK + cp % UNICODE_BLOCK];
}

static unsigned ccc(uint32_t cp)
{
    unsigned c = ccc_or_attention(cp);
    return c == 255 ? 0 : c;
}

enum {
    HANGUL = 0xac00,
    HANGUL_L = 0x1100,
    HANGUL_V = 0x1161,
    HANGUL_T = 0x11a7,
    N_L = 19,
    N_V = 21,
    N_T = 28
};
enum { N_PAIRS = sizeof unicode_pairs / sizeof *unicode_pairs };

typedef struct {
    uint32_t *cp;
    size_t n, cap;
} Points;

static int no_memory(Err *e)
{
    return err_set(e, EXIT_MEMORY, "out of memory while normalising the text");
}

static bool points_add(Points *p, uint32_t cp)
{
    if (!mem_room(&p->cp, p->n + 1, &p->cap, sizeof *p->cp))
        return false;
    p->cp[p->n++] = cp;
    return true;
}

static bool decompose(Points *out, uint32_t cp)
{
    uint32_t s = cp - HANGUL;
    if (cp >= HANGUL && s < N_L * N_V * N_T) {
        bool ok = points_add(out, HANGUL_L + s / (N_V * N_T))
               && points_add(out, HANGUL_V + s / N_T % N_V);
        return ok && (s % N_T == 0 || points_add(out, HANGUL_T + s % N_T));
    }
    for (size_t lo = 0, hi = cp < 0xc0 ? 0 : N_PAIRS; lo < hi;) {
        size_t mid = (lo + hi) / 2;
        const uint32_t *p = unicode_pairs[mid];
        if (p[0] == cp) // the first part may decompose again
            return decompose(out, p[1]) && (p[2] == 0 || decompose(out, p[2]));
        if (p[0] < cp)
            lo = mid + 1;
        else
            hi = mid;
    }
    return points_add(out, cp);
}

/* The character that `a` and `b` make together, or 0. */
static uint32_t compose(uint32_t a, uint32_t b)
{
    if (a - HANGUL_L < N_L && b - HANGUL_V < N_V)
        return HANGUL + ((a - HANGUL_L) * N_V + (b - HANGUL_V)) * N_T;
    if (a - HANGUL < N_L * N_V * N_T && (a - HANGUL) % N_T == 0 && b - HANGUL_T - 1 < N_T - 1)
        return a + (b - HANGUL_T);
    for (size_t lo = 0, hi = N_PAIRS; lo < hi;) {
        size_t mid = (lo + hi) / 2;
        const uint32_t *p = unicode_pairs[unicode_pairs_by_parts[mid]];
        if (p[1] == a && p[2] == b)
            return p[3] ? p[0] : 0;
        if (p[1] < a || (p[1] == a && p[2] < b))
            lo = mid + 1;
        else
            hi = mid;
    }
    return 0;
}

/* Stable sort by class of every run of characters with a class: insertion, but merging halves where
 * a run is long (a text may be one run of marks). */
static void sort_marks(uint32_t *cp, size_t n, uint32_t *scratch)
{
    if (n < 16) {
        for (size_t i = 1; i < n; i++)
            for (size_t j = i; j > 0 && ccc(cp[j - 1]) > ccc(cp[j]); j--) {
                uint32_t t = cp[j];
                cp[j] = cp[j - 1];
                cp[j - 1] = t;
            }
        return;
    }
    size_t half = n / 2, i = 0, j = half, k = 0;
    sort_marks(cp, half, scratch);
    sort_marks(cp + half, n - half, scratch);
    while (i < half && j < n)
        scratch[k++] = ccc(cp[j]) < ccc(cp[i]) ? cp[j++] : cp[i++];
    while (i < half)
        scratch[k++] = cp[i++];
    memcpy(cp, scratch, k * sizeof *cp); // what is left of the second half is in place
}

/* Compose in place (Unicode Standard, D117): a character joins the last starter unless one between
 * them has the same class or a higher one, or is a starter. */
static void compose_all(Points *p)
{
    size_t starter = SIZE_MAX, n = 0;
    unsigned last = 0; // class of the last character kept after the starter
    for (size_t i = 0; i < p->n; i++) {
        uint32_t cp = p->cp[i];
        unsigned class = ccc(cp);
        bool blocked = n > 0 && starter != SIZE_MAX && n - 1 != starter
                    && (last == 0 || last >= class);
        uint32_t joined = starter != SIZE_MAX && !blocked ? compose(p->cp[starter], cp) : 0;
        if (joined) {
            p->cp[starter] = joined;
            continue;
        }
        if (class == 0)
            starter = n;
        last = class;
        p->cp[n++] = cp;
    }
    p->n = n;
}

/* Bring one stretch of a text to normal form C, or without `composed` to D. */
static bool add_stretch(const char *text, size_t len, bool composed, Points *points,
                        Points *scratch, Buf *out)
{
    const char *end = text + len;
    uint32_t cp;
    points->n = scratch->n = 0;
    for (const char *p = text; p < end;) {
        p += utf8_decode(p, end, &cp);
        if (!(cp & UTF8_INVALID ? points_add(points, cp) : decompose(points, cp)))
            return false;
    }
    while (scratch->n < points->n)
        if (!points_add(scratch, 0))
            return false;
    for (size_t i = 0, j; i < points->n; i = j + (j == i)) {
        for (j = i; j < points->n && ccc(points->cp[j]);)
            j++;
        sort_marks(points->cp + i, j - i, scratch->cp);
    }
    if (composed)
        compose_all(points);
    for (size_t i = 0; i < points->n; i++) {
        char c[4] = {(char)(points->cp[i] & 0xff)};
        buf_add(out, c, points->cp[i] & UTF8_INVALID ? 1 : utf8_encode(points->cp[i], c));
    }
    return !out->failed;
}

/* A starter that NFC leaves alone joins nothing before it, and neither does what it decomposes to;
 * so each such starter begins a stretch of its own, and only those with other characters after it
 * are touched. */
int nfc(const char *text, size_t len, Buf *out, Err *e)
{
    const char *end = text + len, *from = text, *starter = text; // what is before `from` is in *out
    Points points = {0}, scratch = {0};
    bool changed = false, ok = true;
    for (const char *p = text; p < end && ok;) {
        uint32_t cp = (unsigned char)*p;
        size_t n = cp < 0x80 ? 1 : utf8_decode(p, end, &cp);
        if (!ccc_or_attention(cp)) {
            starter = p;
            p += n;
            continue;
        }
        do {
            p += n;
            n = p < end ? utf8_decode(p, end, &cp) : 0;
        } while (n && ccc_or_attention(cp));
        buf_add(out, from, (size_t)(starter - from));
        ok = add_stretch(starter, (size_t)(p - starter), true, &points, &scratch, out);
        from = starter = p;
        changed = true;
    }
    if (changed && ok)
        buf_add(out, from, (size_t)(end - from));
    ok = ok && !out->failed;
    free(points.cp);
    free(scratch.cp);
    return !ok ? no_memory(e) : changed;
}

/* ASCII characters do not change, nor does what stands on one side of them move to the other. */
int nfd(const char *text, size_t len, Buf *out, Err *e)
{
    Points points = {0}, scratch = {0};
    bool ok = true;
    for (size_t i = 0, to; i < len && ok; i = to) {
        bool ascii = (unsigned char)text[i] < 0x80;
        for (to = i; to < len && ((unsigned char)text[to] < 0x80) == ascii;)
            to++;
        if (ascii)
            buf_add(out, text + i, to - i);
        else
            ok = add_stretch(text + i, to - i, false, &points, &scratch, out);
    }
    ok = ok && !out->failed;
    free(points.cp);
    free(scratch.cp);
    return ok ? 0 : no_memory(e);
}
