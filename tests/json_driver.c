/* json_driver.c - JSON texts through base/json_read.c, for tests/test_json_reader.py.
 *
 * Standard input: texts, each after its length as 4 bytes, little-endian. One line for each: the
 * error line after "! ", or the value as words between spaces. A value is a letter (n, f, t, #, s,
 * [ or { by its type), the offset and length of its bytes in the text, its key in hexadecimal
 * digits after "k", and of a number the double and the whole number that it is ("-": none), of a
 * string its bytes after "s", of a list or object the items and a closing "]".
 */
#include <inttypes.h>
#include <stdlib.h>

#include "base/json_read.h"

static void hex(char mark, Str s)
{
    putchar(mark);
    for (size_t i = 0; i < s.len; i++)
        printf("%02x", (unsigned char)s.ptr[i]);
    putchar(' ');
}

static void show(const JsonDoc *d, const JsonNode *n, const char *text)
{
    int64_t whole;
    printf("%c %zu %zu ", "nft#s[{"[n->type], (size_t)(n->raw.ptr - text), n->raw.len);
    hex('k', n->key);
    if (n->type == JSON_NUMBER) {
        printf("%a ", n->number);
        if (json_integer(n, INT64_MIN, INT64_MAX, &whole))
            printf("%" PRId64 " ", whole);
        else
            printf("- ");
    }
    if (n->type == JSON_STRING)
        hex('s', n->string);
    if (n->type != JSON_LIST && n->type != JSON_OBJECT)
        return;
    for (const JsonNode *item = json_first(d, n); item; item = json_next(d, n, item))
        show(d, item, text);
    printf("] ");
}

int main(void)
{
    unsigned char head[4];
    while (fread(head, 1, 4, stdin) == 4) {
        size_t len = head[0] | (size_t)head[1] << 8 | (size_t)head[2] << 16 | (size_t)head[3] << 24;
        char *text = malloc(len ? len : 1); // of the exact size, for the address sanitizer
        JsonDoc d;
        Err e;
        if (!text || fread(text, 1, len, stdin) != len)
            return EXIT_IO;
        if (json_parse(&d, (Str){text, len}, &e))
            printf("! %s", e.text);
        else
            show(&d, d.nodes, text);
        putchar('\n');
        json_doc_free(&d);
        free(text);
    }
    return 0;
}
