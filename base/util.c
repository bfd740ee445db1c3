/* util.c - errors, checked sizes, memory, text and the clock. Contracts are in util.h. */
#define _GNU_SOURCE // program_invocation_short_name
#include "base/util.h"

#include <ctype.h>
#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "base/utf8.h"

int err_set(Err *e, int code, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    e->code = code;
    vsnprintf(e->text, sizeof e->text, fmt, ap);
    va_end(ap);
    return -1;
}

int err_errno(Err *e, const char *what)
{
    int error = errno;
    return err_set(e, error == ENOMEM ? EXIT_MEMORY : EXIT_IO, "%s: %s", what, strerror(error));
}

int err_prefix(Err *e, const char *prefix)
{
    Err old = *e;
    char name[200];
    str_escape((Str){prefix, strlen(prefix)}, name, sizeof name);
    int n = snprintf(e->text, sizeof e->text, "%s: ", *name ? name : "\"\"");
    snprintf(e->text + n, sizeof e->text - (size_t)n, "%.*s", (int)(sizeof e->text - (size_t)n - 1),
             old.text);
    return -1;
}

const char *program_name(void)
{
    const char *name = program_invocation_short_name, *p = name;
    while (isalnum((unsigned char)*p) || (p > name && *p && strchr("+-._", *p)))
        p++;
    return *name && !*p ? name : "run";
}

bool str_eq(Str a, const char *b)
{
    return a.len == strlen(b) && memcmp(a.ptr, b, a.len) == 0;
}

bool str_listed(Str s, const char *list)
{
    for (size_t len; *list; list += len + (list[len] == ' ')) {
        len = strcspn(list, " ");
        if (len == s.len && memcmp(list, s.ptr, len) == 0)
            return true;
    }
    return false;
}

int str_cmp(Str a, Str b)
{
    size_t n = a.len < b.len ? a.len : b.len;
    int c = n ? memcmp(a.ptr, b.ptr, n) : 0;
    return c ? c : (a.len > b.len) - (a.len < b.len);
}

char *str_escape(Str s, char *out, size_t size)
{
    size_t n = 0;
    for (size_t i = 0; i < s.len;) {
        uint32_t cp;
        size_t len = utf8_decode(s.ptr + i, s.ptr + s.len, &cp);
        bool moves = (cp >= 0x2028 && cp <= 0x202e)
                  || (cp >= 0x2066 && cp <= 0x2069); // to another line or direction
        bool plain = cp >= 0x20 && cp != '"' && cp != '\\' && !(cp >= 0x7f && cp < 0xa0) && !moves
                  && !(cp & UTF8_INVALID);
        if (n + 8 >= size) { // room for one more escape and the dots is gone
            if (n + 4 <= size)
                n += (size_t)snprintf(out + n, size - n, "...");
            break;
        }
        if (plain) {
            memcpy(out + n, s.ptr + i, len);
            n += len;
        } else {
            for (size_t j = 0; j < len && n + 5 <= size; j++)
                n += (size_t)snprintf(out + n, size - n, "\\x%02x", (unsigned char)s.ptr[i + j]);
        }
        i += len;
    }
    out[n < size ? n : size - 1] = 0;
    return out;
}

bool size_add(size_t a, size_t b, size_t *out)
{
    if (a > SIZE_MAX - b)
        return false;
    *out = a + b;
    return true;
}

bool size_mul(size_t a, size_t b, size_t *out)
{
    if (b && a > SIZE_MAX / b)
        return false;
    *out = a * b;
    return true;
}

bool size_align(size_t a, size_t alignment, size_t *out)
{
    size_t up;
    if (!size_add(a, alignment - 1, &up))
        return false;
    *out = up & ~(alignment - 1);
    return true;
}

void *mem_grow(void *p, size_t n, size_t size)
{
    size_t bytes;
    if (!size_mul(n, size, &bytes)) {
        errno = ENOMEM;
        return NULL;
    }
    return realloc(p, bytes ? bytes : 1);
}

void *mem_alloc(size_t n, size_t size)
{
    return mem_grow(NULL, n, size);
}

bool mem_double(void *items, size_t n, size_t *cap, size_t size)
{
    size_t want = *cap < SIZE_MAX / 2 && 2 * *cap > n ? 2 * *cap : n < SIZE_MAX - 64 ? n + 64 : n;
    void *old;
    memcpy(&old, items, sizeof old); // a pointer of any type
    void *grown = mem_grow(old, want, size);
    if (!grown)
        return false;
    memcpy(items, &grown, sizeof grown);
    *cap = want;
    return true;
}

void *mem_zalloc(size_t n, size_t size)
{
    return n && size ? calloc(n, size) : calloc(1, 1);
}

void *arena_reserve(Arena *a, size_t n, size_t size)
{
    size_t bytes, end;
    if (a->overflow || !size_mul(n, size, &bytes) || !size_align(bytes, 64, &bytes)
        || !size_add(a->used, bytes, &end) || (a->base && end > a->size)) {
        a->overflow = true;
        return NULL;
    }
    void *p = a->base ? a->base + a->used : NULL;
    a->used = end;
    return p;
}

int arena_commit(Arena *a, Err *e)
{
    if (a->overflow)
        return err_set(e, EXIT_MEMORY,
                       "memory: the sizes asked for do not fit this machine's address space");
    a->size = a->used ? a->used : 64;
    a->used = 0;
    void *p = mmap(NULL, a->size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) {
        size_t mb = a->size >> 20;
        a->size = 0;
        return err_set(e, EXIT_MEMORY,
                       "memory: cannot get %zu MB for the context; a smaller -c needs less", mb);
    }
#ifdef MADV_HUGEPAGE
    madvise(p, a->size, MADV_HUGEPAGE); // fewer misses of the address cache; a system that refuses
                                        // loses only speed
#endif
    a->base = p;
    return 0;
}

void arena_free(Arena *a)
{
    if (a->base)
        munmap(a->base, a->size);
    *a = (Arena){0};
}

void buf_add(Buf *b, const void *bytes, size_t len)
{
    size_t need;
    b->failed = b->failed || !size_add(b->len, len, &need) || !size_add(need, 1, &need)
             || !mem_room(&b->ptr, need, &b->cap, 1);
    if (b->failed)
        return;
    if (len)
        memcpy(b->ptr + b->len, bytes, len);
    b->len += len;
    b->ptr[b->len] = 0;
}

void buf_text(Buf *b, const char *text)
{
    buf_add(b, text, strlen(text));
}

void buf_free(Buf *b)
{
    free(b->ptr);
    *b = (Buf){0};
}

double clock_seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}
