/* synthesise.c - simple stories written by a chat model, to train tales.bin on.
 *
 *     make build/synthesise
 *     build/synthesise SmolLM2-135M-Instruct.Q4_1.gguf STORIES SEED >> stories.txt
 *
 * Asks for stories about a random character, place, event and thing, N_SEQS of them at a time as
 * sequences of one batch, and prints each before a line <|endoftext|>. A text that was not finished
 * is cut at its last sentence, and what is said about the story behind it is cut off. Texts that
 * repeat themselves, are short, where nobody speaks or that hold anything but plain prose are left
 * out. The seed decides everything. train.py takes the file beside the fairy tales.
 */
#include <stdlib.h>
#include <string.h>

#include "base/cpu.h"
#include "model.h"
#include "generate/sampler.h"

enum { N_SEQS = 48, MAX_TOKENS = 340, MIN_WORDS = 60 };

static const char *const who[] = {"a little fox",
                                  "a brave mouse",
                                  "a shy rabbit",
                                  "an old bear",
                                  "a young girl named Anna",
                                  "a boy named Tom",
                                  "two sisters",
                                  "a small duck",
                                  "a kind farmer",
                                  "a lonely king",
                                  "a princess",
                                  "a poor woodcutter",
                                  "a clever cat",
                                  "a sleepy dog",
                                  "a tiny bird",
                                  "a grandmother",
                                  "a baker",
                                  "a lost lamb",
                                  "a proud rooster",
                                  "a fisherman and his wife",
                                  "a little witch",
                                  "a giant who is afraid of the dark",
                                  "a hedgehog",
                                  "a frog",
                                  "a wolf who wants friends",
                                  "a tailor",
                                  "a miller's son",
                                  "a goose girl",
                                  "three brothers",
                                  "a donkey",
                                  "a squirrel",
                                  "an owl",
                                  "a shepherd",
                                  "a little dragon",
                                  "a queen",
                                  "an ant and a beetle",
                                  "a turtle",
                                  "a soldier coming home",
                                  "a mermaid",
                                  "a little boy and his grandfather"};
static const char *const where[] = {
    "in the forest",    "by the sea",           "in a small village", "on a farm",
    "in the mountains", "at the river",         "in a castle",        "in the snow",
    "in a garden",      "on a rainy day",       "at the market",      "at night under the stars",
    "in a cave",        "on an island",         "in a field of corn", "at the mill",
    "in spring",        "by the fire in winter"};
static const char *const how[] = {"who learns to share",
                                  "who tells a lie and is sorry",
                                  "who helps a stranger",
                                  "who gets lost and finds the way home",
                                  "who makes a new friend",
                                  "who is afraid but tries",
                                  "who finds something",
                                  "who loses something and looks for it",
                                  "who wants to be brave",
                                  "who says sorry to a friend",
                                  "who keeps a promise",
                                  "who is greedy and learns a lesson",
                                  "who is kind to someone poor",
                                  "who plays a trick",
                                  "who solves a riddle",
                                  "who works hard",
                                  "who has a birthday",
                                  "who helps a sick friend",
                                  "who wants to fly",
                                  "who cannot sleep"};
static const char *const what[] = {
    "a red hat",   "a golden key",     "a magic stone",  "a loaf of bread", "a silver bell",
    "a lost ball", "a broken cart",    "a warm coat",    "a big apple",     "a pot of honey",
    "a letter",    "a lantern",        "a boat",         "a secret door",   "a kite",
    "a music box", "a basket of eggs", "a ring",         "a blue feather",  "a bag of seeds",
    "an old book", "a pair of shoes",  "a wooden spoon", "a drum",          "a mirror",
    "a snowflake", "a cake",           "a blanket",      "a coin",          "a flower"};
static const char *const beginnings[] = {"Once upon a time, there was",
                                         "Once upon a time there lived",
                                         "One day,",
                                         "Long ago, there was",
                                         "There once was",
                                         "Once,",
                                         "In a land far away, there lived",
                                         "One morning,",
                                         "It was a cold day.",
                                         "One sunny day,"};

/* One story in the making. */
typedef struct {
    TokenList ids;
    uint64_t random;
    Buf text;
    int token, n_tokens; // to be run next; made so far
    bool live;
} Story;

static uint64_t random_state;

static size_t random_below(size_t n)
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (size_t)(random_state >> 33) % n;
}

#define PICK(list) list[random_below(sizeof list / sizeof *list)]

static const SamplerParams sampling = {.temp = 0.65f,
                                       .top_k = 50,
                                       .top_p = 0.92f,
                                       .min_p = 0.08f,
                                       .repeat_penalty = 1.06f,
                                       .presence_penalty = 0.15f,
                                       .frequency_penalty = 0.1f,
                                       .repeat_last_n = 96};

/* The story's next token, from the logits of its last one. */
static int pick(Story *st, Sampler *sampler, float *logits)
{
    return sampler_pick(sampler, &sampling, &st->random, st->ids.ids, st->ids.n, logits);
}

/* Empty sequence `i`, run a new prompt in it and choose the first token. */
static int begin(Story *st, const Tokenizer *t, Session *s, Sampler *sampler, int i, Err *e)
{
    const char *start = PICK(beginnings);
    char prompt[800];
    TokenList ids = {0};
    int n = snprintf(prompt, sizeof prompt,
                     "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, "
                     "trained by Hugging Face<|im_end|>\n<|im_start|>user\n"
                     "Write a short story for young children about %s %s %s. There is "
                     "%s in it. Use simple words, short sentences and some "
                     "dialogue.<|im_end|>\n<|im_start|>assistant\n%s",
                     PICK(who), PICK(where), PICK(how), PICK(what), start);
    st->ids.n = 0; // penalties look at the story alone
    st->random = random_state;
    if (tokenizer_encode(t, prompt, (size_t)n, ENCODE_SPECIAL, &ids, e))
        return -1;
    cache_truncate(&s->cache, i, 0);
    int rc = forward_span(s, &(Span){.seq = i, .n = (int)ids.n, .tokens = ids.ids}, e);
    tokens_free(&ids);
    st->text.len = 0;
    buf_add(&st->text, start, strlen(start));
    st->n_tokens = 0;
    st->live = true;
    st->token = rc < 0 ? -1 : pick(st, sampler, s->logits);
    return st->token < 0 ? -1 : 0;
}

/* Cut an unfinished text behind its last full stop (or ! ?, or the quotation mark behind one). */
static void cut(Buf *b)
{
    size_t n = b->len;
    while (n && !strchr(".!?", b->ptr[n - 1]))
        n--;
    b->len = n + (n < b->len && b->ptr[n] == '"');
    b->ptr[b->len] = 0;
}

/* Curly quotes and dashes -> ASCII, runs of blank lines -> one; false if anything else is not plain
 * prose. */
static bool plain(Buf *b)
{
    static const char *const from[] = {"\u2018", "\u2019", "\u201c", "\u201d",
                                       "\u2013", "\u2014", "\u2026"};
    static const char *const to[] = {"'", "'", "\"", "\"",
                                     "-", "-", "..."}; // never longer than what they replace
    size_t n = 0;
    for (size_t i = 0; i < b->len;) {
        size_t f = 0, len = 1;
        while (f < 7 && strncmp(b->ptr + i, from[f], 3))
            f++;
        if (f < 7) {
            len = 3;
            memmove(b->ptr + n, to[f], strlen(to[f]));
            n += strlen(to[f]);
        } else if ((b->ptr[i] & 0x80) || strchr("*#[]{}<>|_0123456789", b->ptr[i])) {
            return false;
        } else if (!(n && b->ptr[n - 1] == '\n' && (b->ptr[i] == '\n' || b->ptr[i] == ' '))) {
            b->ptr[n++] = b->ptr[i];
        }
        i += len;
    }
    while (n && (b->ptr[n - 1] == '\n' || b->ptr[n - 1] == ' '))
        n--;
    b->len = n;
    b->ptr[n] = 0;
    return !strstr(b->ptr, "AI ") && !strstr(b->ptr, "Title");
}

/* Cut off a last paragraph that speaks about the story instead of telling it. */
static void cut_moral(Buf *b)
{
    static const char *const signs[] = {"story", "message", "moral", "lesson", "remind", "teaches"};
    char *last = strrchr(b->ptr, '\n');
    for (size_t i = 0; last && i < sizeof signs / sizeof *signs; i++)
        if (strstr(last, signs[i])) {
            *last = 0;
            b->len = (size_t)(last - b->ptr);
            return;
        }
}

/* Somebody speaks in it, it is long enough, and of its runs of three words at least nine in ten
 * occur once only. */
static bool varied(const Buf *b)
{
    enum { MOST = 600 };
    uint64_t word[MOST], seen[MOST];
    size_t n = 0, repeats = 0;
    for (const char *p = b->ptr; *p && n < MOST;) {
        uint64_t h = 14695981039346656037u; // FNV-1a
        p += strspn(p, " \n");
        size_t len = strcspn(p, " \n");
        for (size_t i = 0; i < len; i++)
            h = (h ^ (unsigned char)p[i]) * 1099511628211u;
        if (len)
            word[n++] = h;
        p += len;
    }
    if (n < MIN_WORDS || !strchr(b->ptr, '"'))
        return false;
    for (size_t i = 0; i + 2 < n; i++) {
        seen[i] = word[i] * 3 + word[i + 1] * 5 + word[i + 2] * 7;
        for (size_t j = 0; j < i; j++)
            if (seen[j] == seen[i]) {
                repeats++;
                break;
            }
    }
    return repeats * 10 <= n;
}

int main(int argc, char **argv)
{
    static Story stories[N_SEQS];
    Span spans[N_SEQS];
    Threads threads;
    Model m;
    Session s;
    Sampler sampler;
    Err e = {0};
    if (argc != 4) {
        fprintf(stderr, "usage: synthesise MODEL STORIES SEED >> stories.txt\n");
        return EXIT_USAGE;
    }
    long wanted = atol(argv[2]), kept = 0, left_out = 0;
    random_state = strtoull(argv[3], NULL, 10);
    SessionParams p = {.seq_len = 512,
                       .n_seqs = N_SEQS,
                       .max_batch = 512,
                       .max_logits = N_SEQS,
                       .threads = &threads,
                       .kv_type = KV_F16,
                       .kernels = kernels_select(NULL, &e)};
    threads_init(&threads, cpu_threads(), NULL);
    int rc = model_open(&m, argv[1], true, &e) || session_init(&s, &m.decoder, &p, &e)
          || sampler_init(&sampler, m.decoder.config.vocab_size, s.k, &e);
    while (!rc && kept < wanted) {
        for (int i = 0; !rc && i < N_SEQS; i++) {
            Story *st = &stories[i];
            if (!st->live)
                rc = begin(st, m.tokenizer, &s, &sampler, i, &e);
            rc = rc ? rc : tokens_add(&st->ids, st->token, &e);
            tokenizer_bytes(m.tokenizer, st->token, false, &st->text);
            spans[i] = (Span){.seq = i, .n = 1, .tokens = &st->token};
        }
        if (rc || forward(&s, &(Batch){spans, N_SEQS}, &e) < 0) {
            rc = -1;
            break;
        }
        for (int i = 0; i < N_SEQS; i++) {
            Story *st = &stories[i];
            st->token = pick(st, &sampler,
                             s.logits + (size_t)i * (size_t)m.decoder.config.vocab_size);
            bool ended = tokenizer_is_end(m.tokenizer, st->token);
            if (!ended && ++st->n_tokens < MAX_TOKENS)
                continue;
            st->live = false;
            if (!ended)
                cut(&st->text);
            bool good = plain(&st->text);
            cut_moral(&st->text);
            if (good && varied(&st->text)) {
                if (kept++ < wanted)
                    printf("%s\n<|endoftext|>\n", st->text.ptr);
            } else {
                left_out++;
            }
            fprintf(stderr, "\r%ld stories, %ld left out", kept, left_out);
        }
        fflush(stdout);
    }
    fprintf(stderr, "\n");
    if (rc)
        fprintf(stderr, "synthesise: %s\n", e.text);
    return rc ? e.code : ferror(stdout) ? EXIT_IO : EXIT_OK;
}
