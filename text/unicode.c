/* unicode.c - what characters are. Contracts are in unicode.h. */
#include "text/unicode.h"

#include "base/utf8.h"
#include "text/unicode_tables.h"

/* General categories by their number in unicode_category. */
enum { LU, LL, LT, LM, LO, ND = 8, ZS = 22, ZL, ZP, CC, CW, CATEGORY_BITS = 31, BERT_UNIT = 64 };

static int table_entry(uint32_t cp)
{
    return cp > 0x10ffff
             ? 28 // Cs
             : unicode_category_data[unicode_category_index[cp / UNICODE_BLOCK] * UNICODE_BLOCK
                                     + cp % UNICODE_BLOCK];
}

static int category(uint32_t cp)
{
    return table_entry(cp) & CATEGORY_BITS;
}

bool unicode_space(uint32_t cp)
{
    if (cp < 128)
        return cp == ' ' || (cp >= '\t' && cp <= '\r') || (cp >= 0x1c && cp <= 0x1f);
    int c = category(cp);
    return c == ZS || c == ZL || c == ZP || cp == 0x85;
}

bool unicode_printable(uint32_t cp)
{
    return cp == ' ' || category(cp) < ZS;
}

bool unicode_letter(uint32_t cp)
{
    return category(cp) <= LO;
}

bool unicode_decimal(uint32_t cp)
{
    return category(cp) == ND;
}

bool unicode_upper_is(uint32_t cp)
{
    return category(cp) == LU;
}

bool unicode_lower_is(uint32_t cp)
{
    return category(cp) == LL;
}

/* False: none of the rows is for it. */
static bool mapped(uint32_t cp, const int32_t rows[][4], int n, uint32_t *out)
{
    for (int i = 0; i < n; i++) {
        const int32_t *row = rows[i], c = (int32_t)cp;
        if (c >= row[0] && c <= row[1] && (c - row[0]) % row[2] == 0) {
            *out = (uint32_t)(c + row[3]);
            return true;
        }
    }
    return false;
}

static bool changed(uint32_t cp, LetterCase to, uint32_t out[3], int *n)
{
    enum { N_SPECIAL = sizeof unicode_case_special / sizeof *unicode_case_special };
    for (size_t i = 0; i < N_SPECIAL; i++) {
        const uint32_t *row = unicode_case_special[i];
        if (row[0] != to || row[1] != cp)
            continue;
        for (*n = 0; *n < 3 && row[2 + *n]; ++*n)
            out[*n] = row[2 + *n];
        return true;
    }
    *n = 1;
    return mapped(cp, unicode_cases + unicode_case_starts[to],
                  unicode_case_starts[to + 1] - unicode_case_starts[to], out);
}

int unicode_case(uint32_t cp, LetterCase to, uint32_t out[3])
{
    int n = 1;
    out[0] = cp;
    if (cp < 128) {
        bool upper = cp >= 'A' && cp <= 'Z', lower = cp >= 'a' && cp <= 'z';
        out[0] = to == CASE_LOWER ? (upper ? cp + 32 : cp) : lower ? cp - 32 : cp;
    } else if (cp <= 0x10ffff && !changed(cp, to, out, &n) && to == CASE_TITLE) {
        changed(cp, CASE_UPPER, out, &n);
    }
    return n;
}

BertClass unicode_bert(uint32_t cp)
{
    return (BertClass)(table_entry(cp) / BERT_UNIT);
}

bool unicode_bert_space(uint32_t cp)
{
    int c = category(cp);
    return cp == ' ' || cp == '\t' || cp == '\n' || cp == '\r' || (c >= ZS && c <= ZP);
}

int unicode_bert_lower(uint32_t cp, uint32_t out[3])
{
    enum { N_NEWER = sizeof unicode_newer_lower / sizeof *unicode_newer_lower };
    return mapped(cp, unicode_newer_lower, N_NEWER, out) ? 1 : unicode_case(cp, CASE_LOWER, out);
}
