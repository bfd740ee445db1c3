/* file.c - texts read whole, results that appear complete or not at all. Contracts are in
 * file.h. */
#include "base/file.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---- reading --------------------------------------------------------------------------------- */

static int too_large(Err *e)
{
    return err_set(e, EXIT_USAGE, "this is too large; a text may have at most %d bytes", TEXT_MAX);
}

/* The rest of a descriptor. A signal that interrupts the waiting is looked at and, if it asks for
 * no end, forgotten. */
static int read_all(int fd, const atomic_int *stop, Buf *out, Err *e)
{
    char chunk[1 << 16];
    struct stat st;
    off_t at = lseek(fd, 0, SEEK_CUR), room = (off_t)(TEXT_MAX - out->len);
    if (at >= 0 && !fstat(fd, &st) && S_ISREG(st.st_mode) && st.st_size - at > room)
        return too_large(e);
    while (!*stop) {
        ssize_t n = read(fd, chunk, sizeof chunk);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return n < 0 ? err_errno(e, "cannot read") : 0;
        if (out->len + (size_t)n > TEXT_MAX)
            return too_large(e);
        buf_add(out, chunk, (size_t)n);
        if (out->failed)
            return err_set(e, EXIT_MEMORY, "out of memory while reading");
    }
    e->code = EXIT_OK;
    return -1;
}

const char *file_shown(const char *path)
{
    return strcmp(path, "-") ? path : "standard input";
}

int file_read(const char *path, const atomic_int *stop, Buf *out, Err *e)
{
    bool is_stdin = !strcmp(path, "-");
    int fd = is_stdin ? STDIN_FILENO : -1;
    while (fd < 0 && !*stop && (fd = open(path, O_RDONLY | O_CLOEXEC)) < 0 && errno == EINTR)
        ;
    int rc = fd < 0 ? err_errno(e, "cannot read") : read_all(fd, stop, out, e);
    if (rc)
        err_prefix(e, file_shown(path));
    if (fd >= 0 && !is_stdin)
        close(fd);
    return rc;
}

/* ---- what a signal handler finds ------------------------------------------------------------- */

/* A temporary file, whose name is the text, or a mapped one, whose error line it is. */
struct Held {
    Held *_Atomic next;
    const char *base; // NULL: a temporary file
    size_t size;
    char text[];
};

/* Global because a signal handler has no other way to them. The list is changed by one thread, and
 * read by a handler that ends the program: it says so in `ending` first, and from then on no entry
 * is freed. */
static Held *_Atomic held;
static atomic_bool ending;

static Held *new_held(size_t size)
{
    Held *h = size > SIZE_MAX - sizeof *h ? NULL : mem_zalloc(1, sizeof *h + size);
    if (!h)
        errno = ENOMEM;
    return h;
}

static void enter(Held *h)
{
    atomic_store(&h->next, atomic_load(&held));
    atomic_store(&held, h);
}

static void wait_for_the_end(void)
{
    for (;;)
        pause();
}

void file_let_go(Held *h)
{
    if (!h)
        return;
    Held *_Atomic *at = &held;
    while (atomic_load(at) != h)
        at = &atomic_load(at)->next;
    atomic_store(at, atomic_load(&h->next));
    if (atomic_load(&ending))
        wait_for_the_end();
    free(h);
}

Held *file_hold_map(const char *path, const void *base, size_t size)
{
    static const char format[] =
        "%s%s: %s: the file was cut, or its disk failed, while it was read\n";
    char name[200];
    const char *program = program_name();
    str_escape((Str){path, strlen(path)}, name, sizeof name);
    const char *clear = isatty(STDERR_FILENO) ? "\r\033[K" : ""; // of a line of progress
    size_t n = sizeof format + strlen(clear) + strlen(program) + strlen(name);
    Held *h = new_held(n);
    if (!h)
        return NULL;
    snprintf(h->text, n, format, clear, program, name);
    h->base = base;
    h->size = size;
    enter(h);
    return h;
}

void file_abandon(void)
{
    sigset_t all;
    sigfillset(&all);
    sigprocmask(SIG_BLOCK, &all, NULL); // another one on this thread would wait for this one
    if (atomic_exchange(&ending, true))
        wait_for_the_end();
    for (Held *h = atomic_load(&held); h; h = atomic_load(&h->next))
        if (!h->base)
            unlink(h->text);
}

const char *file_lost(const void *address)
{
    for (Held *h = atomic_load(&held); h; h = atomic_load(&h->next))
        if (h->base && (uintptr_t)address - (uintptr_t)h->base < h->size)
            return h->text;
    return NULL;
}

/* ---- mapping --------------------------------------------------------------------------------- */

static int map_descriptor(FileMap *m, int fd, const char *path, const char *what, bool writable,
                          Err *e)
{
    struct stat st;
    if (fstat(fd, &st))
        return err_errno(e, "cannot open");
    if (S_ISDIR(st.st_mode))
        return err_set(e, EXIT_IO, "got a folder, want %s", what);
    if (!S_ISREG(st.st_mode))
        return err_set(e, EXIT_IO,
                       "got a pipe or device, want a regular file (it is mapped into "
                       "memory)");
    if (st.st_size == 0)
        return 0;
    m->size = (size_t)st.st_size;
    void *base = mmap(NULL, m->size, PROT_READ | (writable ? PROT_WRITE : 0), MAP_PRIVATE, fd, 0);
    if (base == MAP_FAILED)
        return err_errno(e, "cannot map");
    m->base = base;
    m->held = file_hold_map(path, base, m->size);
    return m->held ? 0 : err_set(e, EXIT_MEMORY, "out of memory");
}

int file_map(FileMap *m, const char *path, const char *what, bool writable, Err *e)
{
    *m = (FileMap){0};
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); // not waiting for a pipe's writer
    if (fd < 0)
        return err_errno(e, "cannot open");
    int rc = map_descriptor(m, fd, path, what, writable, e);
    close(fd);
    if (rc)
        file_unmap(m);
    return rc;
}

void file_unmap(FileMap *m)
{
    file_let_go(m->held);
    if (m->base)
        munmap(m->base, m->size);
    *m = (FileMap){0};
}

/* ---- names ----------------------------------------------------------------------------------- */

/* The descriptor that a name stands for, -1 for none. */
static int named_descriptor(const char *path)
{
    char *end;
    if (!strcmp(path, "-") || !strcmp(path, "/dev/stdout"))
        return STDOUT_FILENO;
    if (!strcmp(path, "/dev/stderr"))
        return STDERR_FILENO;
    long fd = !strncmp(path, "/dev/fd/", 8) ? strtol(path + 8, &end, 10) : -1;
    return fd >= 0 && fd < 1 << 20 && end != path + 8 && !*end ? (int)fd : -1;
}

bool out_is_direct(const char *path)
{
    struct stat st;
    return named_descriptor(path) >= 0
        || (!stat(path, &st) && !S_ISREG(st.st_mode) && !S_ISDIR(st.st_mode));
}

/* Bytes of the folder in a name, with its slash; 0 for the present one. */
static size_t folder_len(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash ? (size_t)(slash - path) + 1 : 0;
}

/* "folder of base" + name, freed by the caller; NULL with errno. */
static char *beside(const char *base, const char *name)
{
    size_t n = folder_len(base), size = n + strlen(name) + 1;
    char *out = mem_alloc(size, 1);
    if (!out) {
        errno = ENOMEM;
        return NULL;
    }
    memcpy(out, base, n);
    memcpy(out + n, name, size - n);
    return out;
}

/* What a name leads to through symbolic links, whether it is there or not; freed by the caller,
 * NULL with errno. */
static char *follow(const char *path)
{
    enum { MAX_LINKS = 40 }; // as Linux has it
    char *name = beside("", path), link[PATH_MAX];
    for (int i = 0; name && i < MAX_LINKS; i++) {
        ssize_t n = readlink(name, link, sizeof link - 1);
        if (n < 0 && (errno == EINVAL || errno == ENOENT)) // no link, or not there
            return name;
        char *next = NULL;
        int error = errno;
        if (n >= 0) {
            link[n] = 0;
            next = beside(*link == '/' ? "" : name, link);
            error = errno;
        }
        free(name);
        name = next;
        errno = error;
    }
    if (name) {
        free(name);
        errno = ELOOP;
    }
    return NULL;
}

static bool same_inode(const char *a, const char *b)
{
    struct stat x, y;
    return !stat(a, &x) && !stat(b, &y) && x.st_dev == y.st_dev && x.st_ino == y.st_ino;
}

/* Whether two names have the same last part and lie in one folder. */
static bool same_place(const char *a, const char *b)
{
    char *in_a = beside(a, "."), *in_b = beside(b, ".");
    bool same = in_a && in_b && !strcmp(a + folder_len(a), b + folder_len(b))
             && same_inode(in_a, in_b);
    free(in_a);
    free(in_b);
    return same;
}

bool out_same(const char *a, const char *b)
{
    if (out_is_direct(a) || out_is_direct(b))
        return false;
    char *to_a = follow(a), *to_b = follow(b);
    bool same = same_inode(a, b) || (to_a && to_b && same_place(to_a, to_b));
    free(to_a);
    free(to_b);
    return same;
}

/* ---- results --------------------------------------------------------------------------------- */

int out_error(const OutFile *o, Err *e)
{
    err_errno(e, "cannot write");
    return err_prefix(e, o->path);
}

/* Give a new file the owner and the permissions of the old one. Where the group cannot be kept, the
 * file's group gets what everybody gets. */
static void keep_access(int fd, const struct stat *old)
{
    struct stat st;
    mode_t mode = old->st_mode & 0777;
    if (fchown(fd, old->st_uid, old->st_gid) && fchown(fd, (uid_t)-1, old->st_gid)
        && (fstat(fd, &st) || st.st_gid != old->st_gid))
        mode = (mode & 0707) | (mode & 07) << 3;
    fchmod(fd, mode);
}

/* A new file of a name that is not taken, in the folder of o->target. The name is entered before
 * the file is there, so that no signal comes between. */
static int make_temporary(OutFile *o, mode_t mode)
{
    size_t n = folder_len(o->target), size = n + 40; // with two numbers
    for (int i = 0; i < 1000; i++) {
        o->held = new_held(size);
        if (!o->held)
            return -1;
        snprintf(o->held->text, size, "%.*s.attn.%ld.%d.part", (int)n, o->target, (long)getpid(),
                 i);
        enter(o->held);
        int fd = open(o->held->text, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, mode);
        if (fd >= 0)
            return fd;
        int error = errno;
        file_let_go(o->held);
        o->held = NULL;
        errno = error;
        if (error != EEXIST)
            break;
    }
    return -1;
}

static int open_replacement(OutFile *o)
{
    struct stat old;
    o->target = *o->path ? follow(o->path) : (errno = ENOENT, NULL);
    if (!o->target)
        return -1;
    bool replaces = !stat(o->target, &old);
    if (replaces && access(o->target, W_OK)) // what may not be written is not replaced either
        return -1;
    int fd = make_temporary(o, replaces ? 0600 : 0666);
    if (fd < 0)
        return -1;
    o->temporary = o->held->text;
    if (replaces)
        keep_access(fd, &old);
    o->f = fdopen(fd, "wb");
    if (!o->f)
        close(fd);
    return o->f ? 0 : -1;
}

int out_open(OutFile *o, const char *path, Err *e)
{
    *o = (OutFile){.path = path};
    struct stat st;
    int fd = named_descriptor(path), copy = fd < 0 ? -1 : fcntl(fd, F_DUPFD_CLOEXEC, 3);
    if (copy >= 0)
        o->f = fdopen(copy, "wb");
    else if (fd < 0 && !stat(path, &st) && !S_ISREG(st.st_mode))
        o->f = fopen(path, "wb"); // a folder fails
    else if (fd < 0)
        open_replacement(o);
    if (o->f)
        return 0;
    bool folder = errno == EACCES && o->target && !access(o->target, W_OK);
    err_errno(e, folder ? "cannot put a new file into its folder" : "cannot write");
    err_prefix(e, path);
    if (copy >= 0)
        close(copy);
    out_discard(o);
    return -1;
}

int out_finish(OutFile *o, Err *e)
{
    if (!o->f)
        return 0;
    bool failed = ferror(o->f) || fflush(o->f);
    int error = errno;
    if (fclose(o->f) && !failed) {
        failed = true;
        error = errno;
    }
    o->f = NULL;
    errno = error;
    return failed ? out_error(o, e) : 0;
}

int out_commit(OutFile *o, Err *e)
{
    if (out_finish(o, e))
        return -1;
    if (o->temporary && rename(o->temporary, o->target))
        return out_error(o, e);
    o->temporary = NULL;
    out_discard(o);
    return 0;
}

void out_discard(OutFile *o)
{
    if (o->f)
        fclose(o->f);
    if (o->temporary)
        unlink(o->temporary);
    file_let_go(o->held);
    free(o->target);
    *o = (OutFile){0};
}
