/* chat_format.c - a model's chat template and what it is given. Contracts are in chat_format.h. */
#include "modes/chat_format.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/file.h"
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

/* The model's template in *out; -1: it has none, or the key is no text. */
static int model_template(const Options *o, const Gguf *g, Str *out, Err *e)
{
    static const char key[] = "tokenizer.chat_template",
                      with_tools[] = "tokenizer.chat_template.tool_use";
    int found = o->tools ? gguf_str(g, with_tools, out, e) : 0;
    if (!found)
        found = gguf_str(g, key, out, e);
    if (!found)
        err_set(e, EXIT_MODEL, "key %s: not in the file; --chat-template FILE gives one", key);
    return found == 1 ? 0 : err_prefix(e, o->model);
}

static int open_template(ChatFormat *f, const Options *o, const Gguf *g, Err *e)
{
    Str source;
    if (!o->chat_template) {
        if (model_template(o, g, &source, e))
            return -1;
        f->chat = template_open(source, e);
        return f->chat ? 0 : err_prefix(e, o->model);
    }
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
    buf_free(&f->template_text);
    buf_free(&f->tools_text);
    json_doc_free(&f->tools);
    json_doc_free(&f->variables);
    *f = (ChatFormat){0};
}

int chat_format_render(const ChatFormat *f, const JsonDoc *messages, Rendered *out, Err *e)
{
    TemplateInput in = f->input;
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    in.messages = messages;
    in.now = (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
    return template_render(f->chat, &in, out, e);
}
