/* utf8.c - reading and writing UTF-8. Contracts are in utf8.h. */
#include "base/utf8.h"

#include <stdbool.h>

size_t utf8_decode(const char *p, const char *end, uint32_t *cp)
{
    const unsigned char *s = (const unsigned char *)p;
    size_t left = (size_t)(end - p);
    size_t len = s[0] < 0x80 ? 1
               : s[0] < 0xc2 ? 0
               : s[0] < 0xe0 ? 2
               : s[0] < 0xf0 ? 3
               : s[0] < 0xf5 ? 4
                             : 0;
    *cp = s[0];
    if (len == 1)
        return 1;
    if (len && len <= left) {
        uint32_t v = s[0] & (0x7fu >> len);
        size_t i = 1;
        for (; i < len && (s[i] & 0xc0) == 0x80; i++)
            v = v << 6 | (s[i] & 0x3f);
        bool too_small = (len == 3 && v < 0x800) || (len == 4 && v < 0x10000);
        if (i == len && !too_small && v <= 0x10ffff && (v < 0xd800 || v > 0xdfff)) {
            *cp = v;
            return len;
        }
    }
    *cp = UTF8_INVALID | s[0];
    return 1;
}

size_t utf8_encode(uint32_t cp, char out[4])
{
    if (cp < 0x80) {
        out[0] = (char)cp;
        return 1;
    }
    size_t len = cp < 0x800 ? 2 : cp < 0x10000 ? 3 : 4;
    for (size_t i = len - 1; i > 0; i--, cp >>= 6)
        out[i] = (char)(0x80 | (cp & 0x3f));
    out[0] = (char)((0xf00u >> len & 0xff & ~(0xffu >> len)) | cp);
    return len;
}

size_t utf8_complete(const char *p, size_t len)
{
    /* Look at the last one to three bytes for a lead byte whose sequence is still open. */
    for (size_t back = 1; back <= 3 && back <= len; back++) {
        unsigned char c = (unsigned char)p[len - back];
        if ((c & 0xc0) == 0x80)
            continue;
        size_t want = c >= 0xf0 && c < 0xf5 ? 4
                    : c >= 0xe0 && c < 0xf0 ? 3
                    : c >= 0xc2 && c < 0xe0 ? 2
                                            : 1;
        return want > back ? len - back : len;
    }
    return len;
}

bool utf8_valid(const char *p, size_t len)
{
    uint32_t cp = 0;
    for (size_t i = 0; i < len && !(cp & UTF8_INVALID);)
        i += utf8_decode(p + i, p + len, &cp);
    return !(cp & UTF8_INVALID);
}
