/* cpu.c - how many threads this process should start: physical cores that we may use, within the
 * container's quota; and how much memory is free. */
#define _GNU_SOURCE // sched_getaffinity
#include "base/cpu.h"

#include <fcntl.h>
#include <sched.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* The beginning of one of the system's files as a text, false if it cannot be read. stdio would
 * need memory. */
static bool read_start(const char *path, char *out, size_t size)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : read(fd, out, size - 1);
    if (fd >= 0)
        close(fd);
    out[n > 0 ? n : 0] = 0;
    return n > 0;
}

/* A core counts once, at the first of its hardware threads that is in the mask. */
static int cores_in_mask(void)
{
    cpu_set_t mask;
    CPU_ZERO(&mask);
    if (sched_getaffinity(0, sizeof mask, &mask))
        return (int)sysconf(_SC_NPROCESSORS_ONLN);
    int n = 0;
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
        char path[96], list[128];
        if (!CPU_ISSET(cpu, &mask))
            continue;
        snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu%d/topology/thread_siblings_list",
                 cpu);
        read_start(path, list, sizeof list);
        int first = cpu, a, b, used;
        for (const char *p = list; sscanf(p, "%d%n", &a, &used) == 1;) { // "0,64" or "0-1"
            p += used;
            b = a;
            if (*p == '-' && sscanf(p + 1, "%d%n", &b, &used) == 1)
                p += 1 + used;
            for (int s = a; s <= b && s < cpu; s++)
                if (s >= 0 && s < CPU_SETSIZE && CPU_ISSET(s, &mask) && s < first)
                    first = s;
            if (*p != ',')
                break;
            p++;
        }
        n += first == cpu;
    }
    return n;
}

/* Lower *best, which is 0 before the first limit, to limit / period, where both are positive. */
static void take_limit(double limit, double period, double *best)
{
    if (limit > 0 && period > 0 && (*best == 0 || limit / period < *best))
        *best = limit / period;
}

/* CPUs that the control group may use at a time, 0 if it sets no limit. Version 2 is looked up from
 * our own group to the root, version 1 at its usual place. */
static double quota(void)
{
    char text[4096], group[400] = "", path[512];
    double best = 0, limit, period;
    if (read_start("/proc/self/cgroup", text, sizeof text))
        for (const char *line = text; *line; line += strcspn(line, "\n"), line += *line != 0)
            if (!strncmp(line, "0::", 3))
                snprintf(group, sizeof group, "%.*s", (int)strcspn(line + 3, "\n"), line + 3);
    for (;;) {
        snprintf(path, sizeof path, "/sys/fs/cgroup%s/cpu.max", strcmp(group, "/") ? group : "");
        if (read_start(path, text, sizeof text) && sscanf(text, "%lf %lf", &limit, &period) == 2)
            take_limit(limit, period, &best);
        char *slash = strrchr(group, '/');
        if (!slash)
            break;
        *slash = 0;
    }
    if (read_start("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", text, sizeof text)
        && sscanf(text, "%lf", &limit) == 1
        && read_start("/sys/fs/cgroup/cpu/cpu.cfs_period_us", text, sizeof text)
        && sscanf(text, "%lf", &period) == 1)
        take_limit(limit, period, &best);
    return best;
}

int cpu_threads(void)
{
    int n = cores_in_mask();
    double limit = quota();
    if (limit > 0 && n > limit)
        n = (int)limit < limit ? (int)limit + 1 : (int)limit;
    return n > 0 ? n : 1;
}

/* The number after a name in a text, 0 where it is not there. */
static unsigned long long number_after(const char *text, const char *name)
{
    unsigned long long n = 0;
    const char *found = strstr(text, name);
    return found && sscanf(found + strlen(name), "%llu", &n) == 1 ? n : 0;
}

size_t cpu_free_memory(void)
{
    char text[4096];
    unsigned long long kb = 0, limit, used;
    if (read_start("/proc/meminfo", text, sizeof text))
        kb = number_after(text, "MemAvailable:");
    if (kb && read_start("/sys/fs/cgroup/memory.max", text, sizeof text)
        && sscanf(text, "%llu", &limit) == 1
        && read_start("/sys/fs/cgroup/memory.current", text, sizeof text)
        && sscanf(text, "%llu", &used) == 1) {
        unsigned long long cached = 0;
        if (read_start("/sys/fs/cgroup/memory.stat", text, sizeof text))
            cached = number_after(text, "\ninactive_file") + number_after(text, "\nactive_file");
        used -= cached < used ? cached : used;
        if (limit < used + kb * 1024)
            kb = limit > used ? (limit - used) / 1024 : 1;
    }
    return (size_t)kb * 1024;
}
