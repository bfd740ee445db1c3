/* fuzz_template.c - an input is a template, messages and variables, with a byte FF between them.
 * What is rendered has parts that follow each other up to its end. */
#include "fuzz.h"

#include <string.h>

#include "text/template.h"

static Str field(Str *rest)
{
    const char *end = rest->len ? memchr(rest->ptr, 0xff, rest->len) : NULL;
    Str s = {rest->ptr, end ? (size_t)(end - rest->ptr) : rest->len};
    rest->ptr += s.len + (end != NULL);
    rest->len -= s.len + (end != NULL);
    return s;
}

static void check(const Rendered *out)
{
    size_t end = 0;
    for (size_t i = 0; i < out->n_parts; i++) {
        MUST(out->parts[i].end > end);
        end = out->parts[i].end;
    }
    MUST(end == out->text.len);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char chat[] = "[{\"role\": \"user\", \"content\": \"Hi\"}]";
    Str rest = {(const char *)data, size};
    Err e = {0};
    JsonDoc messages = {0}, variables = {0}, usual = {0};
    Rendered out = {0};
    Template *t = template_open(field(&rest), &e);
    MUST(t || *e.text);
    bool read = !json_parse(&messages, field(&rest), &e),
         more = !json_parse(&variables, field(&rest), &e);
    MUST(!json_parse(&usual, (Str){chat, sizeof chat - 1}, &e));
    TemplateInput in = {.messages = read ? &messages : &usual,
                        .variables = more ? &variables : NULL,
                        .max_steps = 1 << 20};
    e.text[0] = 0;
    if (t && template_render(t, &in, &out, &e))
        MUST(*e.text || e.code == EXIT_USAGE);
    else if (t)
        check(&out);
    rendered_free(&out);
    template_close(t);
    json_doc_free(&messages);
    json_doc_free(&variables);
    json_doc_free(&usual);
    return 0;
}
