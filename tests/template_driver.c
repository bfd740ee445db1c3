/* template_driver.c - chat templates for tests/test_template.py.
 *
 * Standard input has a JSON object a line: "template", "messages", and maybe "tools", "variables",
 * "texts" (names and strings of the tokenizer), "prompt" (add_generation_prompt) and "now". Each
 * becomes a line: {"text": ..., "parts": [[end, special], ...]} or {"error": ..., "code": N}.
 */
#include "base/file.h"
#include "base/json.h"
#include "text/template.h"

#include <stdlib.h>
#include <string.h>

/* The value of a member as a document of its own; it views the member's text. */
static const JsonDoc *part(const JsonDoc *d, const char *name, JsonDoc *out, Err *e)
{
    const JsonNode *n = json_member(d, d->nodes, name);
    return n && n->type != JSON_NULL && !json_parse(out, n->raw, e) ? out : NULL;
}

static int render(const JsonDoc *d, Rendered *out, Err *e)
{
    JsonDoc messages = {0}, tools = {0}, variables = {0}, names = {0};
    TemplateText texts[16];
    TemplateInput in = {.texts = texts};
    char keys[16][64];
    const JsonNode *source = json_member(d, d->nodes, "template"),
                   *prompt = json_member(d, d->nodes, "prompt"),
                   *now = json_member(d, d->nodes, "now");
    in.messages = part(d, "messages", &messages, e);
    in.tools = part(d, "tools", &tools, e);
    in.variables = part(d, "variables", &variables, e);
    if (part(d, "texts", &names, e))
        for (const JsonNode *n = json_first(&names, names.nodes); n && in.n_texts < 16;
             n = json_next(&names, names.nodes, n)) {
            snprintf(keys[in.n_texts], sizeof keys[0], "%.*s", (int)n->key.len, n->key.ptr);
            texts[in.n_texts] = (TemplateText){keys[in.n_texts], n->string};
            in.n_texts++;
        }
    in.add_generation_prompt = prompt && prompt->type == JSON_TRUE;
    in.now = now ? now->number : 0;
    Template *t = template_open(source->string, e);
    int rc = t ? template_render(t, &in, out, e) : -1;
    template_close(t);
    json_doc_free(&messages);
    json_doc_free(&tools);
    json_doc_free(&variables);
    json_doc_free(&names);
    return rc;
}

static void print_result(const Rendered *out, const Err *e)
{
    Buf line = {0};
    Json j = {.out = &line};
    json_object(&j);
    if (e) {
        json_text(json_key(&j, "error"), e->text);
        json_int(json_key(&j, "code"), e->code);
    } else {
        json_string(json_key(&j, "text"), (Str){out->text.ptr, out->text.len});
        json_list(json_key(&j, "parts"));
        for (size_t i = 0; i < out->n_parts; i++) {
            json_list(&j);
            json_int(&j, (int64_t)out->parts[i].end);
            json_bool(&j, out->parts[i].special);
            json_end(&j);
        }
        json_end(&j);
    }
    json_end(&j);
    buf_text(&line, "\n");
    fwrite(line.ptr, 1, line.len, stdout);
    fflush(stdout);
    buf_free(&line);
}

int main(void)
{
    char *line = NULL;
    size_t cap = 0;
    for (ssize_t n; (n = getline(&line, &cap, stdin)) > 0;) {
        Err e = {0};
        JsonDoc d = {0};
        Rendered out = {0};
        if (json_parse(&d, (Str){line, (size_t)n}, &e)) {
            fprintf(stderr, "template_driver: %s\n", e.text);
            return 1;
        }
        print_result(&out, render(&d, &out, &e) ? &e : NULL);
        rendered_free(&out);
        json_doc_free(&d);
    }
    free(line);
    return 0;
}
