/* render.c - the mode --render: a conversation as the model's chat template writes it. */
#include "base/file.h"
#include "base/json.h"
#include "modes/chat_format.h"
#include "modes/modes.h"

/* With --json the text, and its ids as --chat would give them to the model. */
static int add_object(const Tokenizer *t, const Rendered *r, Buf *out, Err *e)
{
    TokenList ids = {0};
    Json j = {.out = out};
    const char *text = r->text.ptr ? r->text.ptr : "";
    if (tokenizer_encode_parts(t, text, r->text.len, r->parts, r->n_parts, 0, &ids, e)) {
        tokens_free(&ids);
        return -1;
    }
    json_object(&j);
    json_string(json_key(&j, "text"), (Str){text, r->text.len});
    json_list(json_key(&j, "ids"));
    for (size_t i = 0; i < ids.n; i++)
        json_int(&j, ids.ids[i]);
    json_end(&j);
    json_end(&j);
    buf_text(out, "\n");
    tokens_free(&ids);
    return 0;
}

static int print_rendered(const Options *o, const Gguf *g, const Rendered *r, Err *e)
{
    Buf object = {0};
    const Buf *out = o->json ? &object : &r->text;
    Tokenizer *t = o->json ? model_tokenizer(g, e) : NULL;
    int rc = 0;
    if (o->json)
        rc = !t || add_object(t, r, &object, e) ? err_prefix(e, o->model) : 0;
    if (!rc && out->failed)
        rc = err_set(e, EXIT_MEMORY, "out of memory for the text");
    if (!rc)
        rc = modes_print(out->ptr, out->len, e);
    tokenizer_close(t);
    buf_free(&object);
    return rc;
}

int render_mode(const Options *o, Err *e)
{
    Gguf file;
    ChatFormat format;
    Buf text = {0};
    JsonDoc messages = {0};
    Rendered rendered = {0};
    if (gguf_open(&file, o->model, e))
        return -1;
    int rc = chat_format_open(&format, o, &file, e)
          || modes_read_json(o->messages, &text, &messages, e)
          || (chat_format_render(&format, &messages, &rendered, e)
              && err_prefix(e, file_shown(o->messages)))
          || print_rendered(o, &file, &rendered, e);
    rendered_free(&rendered);
    json_doc_free(&messages);
    buf_free(&text);
    chat_format_close(&format);
    gguf_close(&file);
    return rc ? -1 : 0;
}
