/* json.c - see json.h. */
#include "base/json.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "base/utf8.h"

void json_string(Buf *out, Str s)
{
    static const char escaped[] = "\"\\\b\f\n\r\t", letters[] = "\"\\bfnrt";
    const char *end = s.ptr + s.len;
    buf_add(out, "\"", 1);
    for (const char *p = s.ptr; p < end;) {
        uint32_t cp;
        size_t len = utf8_decode(p, end, &cp);
        const char *found = cp && cp < 128 ? strchr(escaped, (int)cp) : NULL;
        char text[8];
        if (found)
            buf_add(out, (char[]){'\\', letters[found - escaped]}, 2);
        else if (cp < 0x20 || cp == 0x7f)
            buf_add(out, text, (size_t)snprintf(text, sizeof text, "\\u%04x", (unsigned)cp));
        else if (cp & UTF8_INVALID)
            buf_add(out, "\xef\xbf\xbd", 3);
        else
            buf_add(out, p, len);
        p += len;
    }
    buf_add(out, "\"", 1);
}

void json_hex(Buf *out, Str bytes)
{
    char digits[3];
    buf_add(out, "\"", 1);
    for (size_t i = 0; i < bytes.len; i++) {
        snprintf(digits, sizeof digits, "%02x", (unsigned char)bytes.ptr[i]);
        buf_add(out, digits, 2);
    }
    buf_add(out, "\"", 1);
}

void json_int(Buf *out, int64_t v)
{
    char text[32];
    buf_add(out, text, (size_t)snprintf(text, sizeof text, "%" PRId64, v));
}

void json_ints(Buf *out, const int *v, int n)
{
    buf_text(out, "[");
    for (int i = 0; i < n; i++) {
        buf_text(out, i ? ", " : "");
        json_int(out, v[i]);
    }
    buf_text(out, "]");
}

void json_float(Buf *out, float v)
{
    char text[32];
    if (!isfinite(v))
        buf_add(out, "null", 4);
    else
        buf_add(out, text, (size_t)snprintf(text, sizeof text, "%.9g", (double)v));
}
