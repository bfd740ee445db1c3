/* chat_format.c - a model's chat template and what it is given. Contracts are in chat_format.h. */
#include "modes/chat_format.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/file.h"
#include "base/json.h"
#include "modes/modes.h"

/* What the names of special tokens are in a file and in a template. Those that the file has not
 * are undefined there, as in transformers. */
static const struct {
    const char *key, *name;
} special[CHAT_TEXTS] = {{"tokenizer.ggml.bos_token_id", "bos_token"},
                         {"tokenizer.ggml.eos_token_id", "eos_token"},
                         {"tokenizer.ggml.unknown_token_id", "unk_token"},
                         {"tokenizer.ggml.padding_token_id", "pad_token"},
                         {"tokenizer.ggml.seperator_token_id", "sep_token"}, // so spelled
                         {"tokenizer.ggml.cls_token_id", "cls_token"},
                         {"tokenizer.ggml.mask_token_id", "mask_token"}};

static int open_texts(ChatFormat *f, const Gguf *g, Err *e)
{
    const GgufKey *tokens = gguf_key(g, "tokenizer.ggml.tokens");
    bool listed = tokens && tokens->is_array && tokens->type == GGUF_STRING;
    Str *pieces = listed ? gguf_strings(tokens) : NULL;
    if (listed && !pieces)
        return err_set(e, EXIT_MEMORY, "out of memory for the vocabulary");
    for (size_t i = 0; i < CHAT_TEXTS; i++) {
        uint32_t id;
        Err unused; // of another type: no such token
        if (pieces && gguf_u32(g, special[i].key, &id, &unused) == 1 && id < tokens->n)
            f->texts[f->input.n_texts++] = (TemplateText){special[i].name, pieces[id]};
    }
    free(pieces);
    return 0;
}

/* The model's template under a key in *out: 1; 0: it has none; -1 and an Err. */
static int model_template(const Gguf *g, const char *key, Template **out, Err *e)
{
    Str source;
    int found = gguf_str(g, key, &source, e);
    if (found == 1)
        *out = template_open(source, e);
    return found == 1 && !*out ? -1 : found;
}

/* Those that may be needed: lines of a batch have tools or not. */
static int open_model_templates(ChatFormat *f, const Options *o, const Gguf *g, Err *e)
{
    static const char key[] = "tokenizer.chat_template",
                      with_tools[] = "tokenizer.chat_template.tool_use";
    bool batch = o->mode == MODE_BATCH || o->mode == MODE_SCORE;
    int n = o->tools || batch ? model_template(g, with_tools, &f->chat_tools, e) : 0;
    if (!n || (n > 0 && batch && !o->tools))
        n = n | model_template(g, key, &f->chat, e);
    if (!n)
        err_set(e, EXIT_MODEL, "key %s: not in the file; --chat-template FILE gives one", key);
    return n > 0 ? 0 : -1;
}

static int open_template(ChatFormat *f, const Options *o, const Gguf *g, Err *e)
{
    Str source;
    if (!o->chat_template)
        return open_model_templates(f, o, g, e) ? err_prefix(e, o->model) : 0;
    if (file_read(o->chat_template, &stop_signal, &f->template_text, e))
        return -1;
    source = (Str){f->template_text.ptr ? f->template_text.ptr : "", f->template_text.len};
    f->chat = template_open(source, e);
    if (!f->chat && e->code == EXIT_MODEL)
        e->code = EXIT_USAGE;
    return f->chat ? 0 : err_prefix(e, o->chat_template);
}

int chat_format_open(ChatFormat *f, const Options *o, const Gguf *g, Err *e)
{
    *f = (ChatFormat){.input = {.add_generation_prompt = !o->no_generation_prompt}};
    f->input.texts = f->texts;
    if (open_template(f, o, g, e) || open_texts(f, g, e))
        return -1;
    if (o->tools) {
        if (modes_read_json(o->tools, &f->tools_text, &f->tools, e))
            return -1;
        f->input.tools = &f->tools;
    }
    if (o->chat_variables) {
        Str text = {o->chat_variables, strlen(o->chat_variables)};
        if (json_parse(&f->variables, text, e))
            return err_prefix(e, "--chat-template-kwargs");
        f->input.variables = &f->variables;
    }
    return 0;
}

void chat_format_close(ChatFormat *f)
{
    template_close(f->chat);
    template_close(f->chat_tools);
    buf_free(&f->template_text);
    buf_free(&f->tools_text);
    json_doc_free(&f->tools);
    json_doc_free(&f->variables);
    *f = (ChatFormat){0};
}

/* The text of what `in` says, at the present time. */
static int render(const ChatFormat *f, TemplateInput in, Rendered *out, Err *e)
{
    const Template *t = in.tools && f->chat_tools ? f->chat_tools : f->chat;
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    in.now = (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
    if (!t)
        return err_set(e, EXIT_MODEL, "the model's chat template is for conversations with tools");
    if (!template_render(t, &in, out, e))
        return 0;
    if (f->template_text.len && e->code == EXIT_MODEL) // it is not the model's
        e->code = EXIT_USAGE;
    return -1;
}

int chat_format_render(const ChatFormat *f, const JsonDoc *messages, Rendered *out, Err *e)
{
    TemplateInput in = f->input;
    in.messages = messages;
    return render(f, in, out, e);
}

int chat_format_read(const ChatFormat *f, const Conversation *c, Rendered *out, Err *e)
{
    JsonDoc messages = {0}, tools = {0}, variables = {0};
    TemplateInput in = f->input;
    in.messages = &messages;
    in.tools = c->tools.len ? &tools : in.tools;
    in.variables = c->variables.len ? &variables : in.variables;
    int rc = json_parse(&messages, c->messages, e)
          || (c->tools.len && json_parse(&tools, c->tools, e))
          || (c->variables.len && json_parse(&variables, c->variables, e)) || render(f, in, out, e);
    json_doc_free(&messages);
    json_doc_free(&tools);
    json_doc_free(&variables);
    return rc ? -1 : 0;
}

int chat_format_encode(const Tokenizer *t, const Rendered *r, TokenList *ids, Err *e)
{
    const char *text = r->text.ptr ? r->text.ptr : "";
    if (tokenizer_encode_parts(t, text, r->text.len, r->parts, r->n_parts, 0, ids, e))
        return -1;
    return ids->n ? 0 : err_set(e, EXIT_USAGE, "the conversation is empty, want some text");
}

void chat_format_message(Buf *out, const char *role, Str content)
{
    Json j = {.out = out};
    json_object(&j);
    json_text(json_key(&j, "role"), role);
    json_string(json_key(&j, "content"), content);
    json_end(&j);
}
