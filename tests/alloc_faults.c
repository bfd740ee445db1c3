/* alloc_faults.c - a library for LD_PRELOAD that lets one allocation fail: that number FAIL_AT
 * (from 1) after main() has begun, and with FAIL_ALL=1 every later one, too. FAIL_LOG=FILE gets the
 * number of allocations when the program ends.
 *
 * Allocations are malloc, calloc, realloc and its relatives, those of the C library for itself
 * included, and mmap(). For glibc, whose own functions have a second name. A child made by fork()
 * goes on counting for itself.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

extern void *__libc_malloc(size_t);
extern void *__libc_calloc(size_t, size_t);
extern void *__libc_realloc(void *, size_t);
extern void *__libc_memalign(size_t, size_t);

static atomic_long calls;
static long fail_at;
static int fail_all, on;
static int (*real_main)(int, char **, char **);

static int fails(void)
{
    long n = on ? atomic_fetch_add(&calls, 1) + 1 : 0;
    if (!n || !fail_at || (n != fail_at && !(fail_all && n > fail_at)))
        return 0;
    errno = ENOMEM;
    return 1;
}

void *malloc(size_t n)
{
    return fails() ? NULL : __libc_malloc(n);
}

void *calloc(size_t n, size_t size)
{
    return fails() ? NULL : __libc_calloc(n, size);
}

void *realloc(void *p, size_t n)
{
    return fails() ? NULL : __libc_realloc(p, n);
}

void *memalign(size_t alignment, size_t n)
{
    return fails() ? NULL : __libc_memalign(alignment, n);
}

void *aligned_alloc(size_t alignment, size_t n)
{
    return memalign(alignment, n);
}

int posix_memalign(void **p, size_t alignment, size_t n)
{
    void *q = memalign(alignment, n);
    if (q)
        *p = q;
    return q ? 0 : ENOMEM;
}

void *mmap(void *address, size_t n, int protection, int flags, int fd, off_t offset)
{
    if (fails())
        return MAP_FAILED;
    return (void *)syscall(SYS_mmap, address, n, protection, flags, fd, offset);
}

void *mmap64(void *address, size_t n, int protection, int flags, int fd, off64_t offset)
{
    return mmap(address, n, protection, flags, fd, offset);
}

static int counted_main(int argc, char **argv, char **env)
{
    on = 1;
    return real_main(argc, argv, env);
}

typedef int Main(int, char **, char **);
typedef void Hook(void);

int __libc_start_main(Main *start, int argc, char **argv, Hook *init, Hook *fini, Hook *rtld_fini,
                      void *stack_end)
{
    int (*next)(Main *, int, char **, Hook *, Hook *, Hook *, void *);
    *(void **)&next = dlsym(RTLD_NEXT, "__libc_start_main");
    const char *at = getenv("FAIL_AT"), *all = getenv("FAIL_ALL");
    fail_at = at ? atol(at) : 0;
    fail_all = all && *all == '1';
    real_main = start;
    return next(counted_main, argc, argv, init, fini, rtld_fini, stack_end);
}

__attribute__((destructor)) static void tell(void)
{
    const char *path = getenv("FAIL_LOG");
    char text[32];
    on = 0;
    int fd = path ? open(path, O_WRONLY | O_CREAT | O_TRUNC, 0666) : -1;
    int n = snprintf(text, sizeof text, "%ld\n", (long)calls);
    if (fd >= 0 && write(fd, text, (size_t)n) == n)
        close(fd);
}
