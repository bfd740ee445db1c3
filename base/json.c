/* json.c - see json.h. */
#include "base/json.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "base/utf8.h"

/* What stands between the item, key or closing bracket that comes and what came before. */
static void separate(Json *j, bool closing)
{
    bool comma = j->begun && !j->keyed && !closing;
    char text[3];
    size_t n = 0;
    if (comma)
        text[n++] = ',';
    if (j->broken)
        text[n++] = '\n';
    if (n && !j->compact && !closing)
        text[n++] = ' ';
    buf_add(j->out, text, n);
    j->keyed = j->broken = false;
    j->begun = true;
}

static void value(Json *j, const char *text, size_t len)
{
    separate(j, false);
    buf_add(j->out, text, len);
}

static void open_bracket(Json *j, bool object)
{
    value(j, object ? "{" : "[", 1);
    j->begun = false;
    j->is_object = j->is_object << 1 | object;
}

void json_object(Json *j)
{
    open_bracket(j, true);
}

void json_list(Json *j)
{
    open_bracket(j, false);
}

void json_end(Json *j)
{
    separate(j, true);
    buf_add(j->out, j->is_object & 1 ? "}" : "]", 1);
    j->is_object >>= 1;
}

Json *json_key(Json *j, const char *name)
{
    return json_key_str(j, (Str){name, strlen(name)});
}

Json *json_key_str(Json *j, Str name)
{
    json_string(j, name);
    buf_add(j->out, ": ", j->compact ? 1 : 2);
    j->keyed = true;
    return j;
}

Json *json_break(Json *j)
{
    j->broken = true;
    return j;
}

void json_string(Json *j, Str s)
{
    static const char escaped[] = "\"\\\b\f\n\r\t", letters[] = "\"\\bfnrt";
    Buf *out = j->out;
    value(j, "\"", 1);
    for (size_t i = 0, len; i < s.len; i += len) {
        const char *p = s.ptr + i;
        uint32_t cp;
        len = utf8_decode(p, s.ptr + s.len, &cp);
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
    }
    buf_add(out, "\"", 1);
}

void json_text(Json *j, const char *s)
{
    json_string(j, (Str){s, strlen(s)});
}

void json_buf(Json *j, const Buf *b)
{
    json_string(j, (Str){b->ptr, b->len});
    j->out->failed |= b->failed;
}

void json_hex(Json *j, const Buf *bytes)
{
    static const char digits[] = "0123456789abcdef";
    value(j, "\"", 1);
    for (size_t i = 0; i < bytes->len; i++) {
        unsigned char b = (unsigned char)bytes->ptr[i];
        buf_add(j->out, (char[]){digits[b >> 4], digits[b & 15]}, 2);
    }
    buf_add(j->out, "\"", 1);
    j->out->failed |= bytes->failed;
}

void json_int(Json *j, int64_t v)
{
    char text[32];
    value(j, text, (size_t)snprintf(text, sizeof text, "%" PRId64, v));
}

void json_bytes(Json *j, const Buf *bytes)
{
    json_list(j);
    for (size_t i = 0; i < bytes->len; i++)
        json_int(j, (unsigned char)bytes->ptr[i]);
    json_end(j);
    j->out->failed |= bytes->failed;
}

void json_null(Json *j)
{
    value(j, "null", 4);
}

void json_raw(Json *j, Str json)
{
    value(j, json.ptr, json.len);
}

void json_bool(Json *j, bool v)
{
    value(j, v ? "true" : "false", v ? 4 : 5);
}

void json_number(Json *j, double v)
{
    char text[32];
    if (isfinite(v))
        value(j, text, (size_t)snprintf(text, sizeof text, "%.9g", v));
    else
        value(j, "null", 4);
}

void json_ints(Json *j, const int *v, int n)
{
    bool compact = j->compact;
    json_list(j);
    j->compact = false;
    for (int i = 0; i < n; i++)
        json_int(j, v[i]);
    j->compact = compact;
    json_end(j);
}
