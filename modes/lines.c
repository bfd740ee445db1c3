/* lines.c - see lines.h. */
#include "modes/lines.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/file.h"

enum { READ_SIZE = 1 << 16, MAX_LINE = 1 << 29 };

int lines_open(Lines *l, const char *path, const atomic_int *stop, Err *e)
{
    bool standard = !strcmp(path, "-");
    struct stat st;
    *l = (Lines){.fd = STDIN_FILENO, .path = file_shown(path), .stop = stop};
    if (!standard)
        l->fd = open(path, O_RDONLY);
    if (l->fd < 0)
        return err_errno(e, path);
    l->start = lseek(l->fd, 0, SEEK_CUR);
    if (!fstat(l->fd, &st) && S_ISREG(st.st_mode))
        l->size = st.st_size - l->start;
    return 0;
}

double lines_expect(const Lines *l)
{
    if (l->at_end)
        return l->n;
    return l->end && l->size >= l->end ? (double)l->n * (double)l->size / (double)l->end : 0;
}

bool lines_rewind(Lines *l)
{
    struct stat st;
    if (fstat(l->fd, &st) || !S_ISREG(st.st_mode) || lseek(l->fd, l->start, SEEK_SET) < 0)
        return false;
    l->buf.len = l->begin = l->searched = 0;
    l->at_end = false;
    l->n = 0;
    l->end = 0;
    return true;
}

void lines_close(Lines *l)
{
    if (l->fd > STDIN_FILENO)
        close(l->fd);
    buf_free(&l->buf);
}

/* Read what is there. 1, 0 for nothing yet, -1; the end of the stream counts as something. */
static int fill(Lines *l, bool wait, Err *e)
{
    struct pollfd p = {.fd = l->fd, .events = POLLIN};
    char bytes[READ_SIZE];
    int ready;
    while ((ready = poll(&p, 1, wait ? 100 : 0)) <= 0)
        if (!wait || *l->stop || (ready < 0 && errno != EINTR))
            return 0;
    ssize_t n = read(l->fd, bytes, sizeof bytes);
    if (n < 0)
        return errno == EINTR || errno == EAGAIN ? 0 : err_errno(e, l->path);
    l->at_end = n == 0;
    if (l->begin)
        memmove(l->buf.ptr, l->buf.ptr + l->begin, l->buf.len - l->begin);
    l->buf.len -= l->begin;
    l->searched -= l->begin;
    l->begin = 0;
    buf_add(&l->buf, bytes, (size_t)n);
    if (l->buf.failed || l->buf.len > MAX_LINE)
        return err_set(e, l->buf.failed ? EXIT_MEMORY : EXIT_IO,
                       "%s: line %d is too long, want at most %d MB", l->path, l->n + 1,
                       MAX_LINE >> 20);
    return 1;
}

int lines_next(Lines *l, bool wait, Str *line, Err *e)
{
    for (;;) {
        char *from = l->buf.ptr ? l->buf.ptr + l->searched : NULL;
        char *found = from ? memchr(from, '\n', l->buf.len - l->searched) : NULL;
        size_t end = found ? (size_t)(found - l->buf.ptr) : l->buf.len;
        if (found || (l->at_end && l->buf.len > l->begin)) {
            *line = (Str){l->buf.ptr + l->begin, end - l->begin};
            if (found && line->len && line->ptr[line->len - 1] == '\r')
                line->len--;
            size_t next = found ? end + 1 : end;
            l->end += (off_t)(next - l->begin);
            l->begin = l->searched = next;
            l->whole = found != NULL;
            l->n++;
            return 1;
        }
        l->searched = l->buf.len;
        if (l->at_end)
            return 0;
        int rc = fill(l, wait, e);
        if (rc <= 0)
            return rc;
    }
}
