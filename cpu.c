/* cpu.c - how many threads this process should start: physical cores that we may use, within the container's quota. */
#define _GNU_SOURCE // sched_getaffinity
#include "cpu.h"

#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* A core counts once, at the first of its hardware threads that is in the mask. */
static int cores_in_mask(void)
{
    cpu_set_t mask;
    CPU_ZERO(&mask);
    if (sched_getaffinity(0, sizeof mask, &mask))
        return (int)sysconf(_SC_NPROCESSORS_ONLN);
    int n = 0;
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
        char path[96], list[128] = "";
        if (!CPU_ISSET(cpu, &mask))
            continue;
        snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu%d/topology/thread_siblings_list", cpu);
        FILE *f = fopen(path, "r");
        if (f && !fgets(list, sizeof list, f))
            list[0] = 0;
        if (f)
            fclose(f);
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

/* CPUs that the control group may use at a time, 0 if it sets no limit. Version 2 is looked up from our own group to
 * the root, version 1 at its usual place. */
static double quota(void)
{
    char line[512], group[400] = "", path[512];
    double best = 0;
    FILE *f = fopen("/proc/self/cgroup", "r");
    while (f && fgets(line, sizeof line, f))
        if (!strncmp(line, "0::", 3))
            snprintf(group, sizeof group, "%.*s", (int)strcspn(line + 3, "\n"), line + 3);
    if (f)
        fclose(f);
    for (;;) {
        double limit, period;
        snprintf(path, sizeof path, "/sys/fs/cgroup%s/cpu.max", strcmp(group, "/") ? group : "");
        if ((f = fopen(path, "r"))) {
            if (fscanf(f, "%lf %lf", &limit, &period) == 2 && period > 0 && (best == 0 || limit / period < best))
                best = limit / period;
            fclose(f);
        }
        char *slash = strrchr(group, '/');
        if (!slash)
            break;
        *slash = 0;
    }
    double limit = -1, period = 0;
    if ((f = fopen("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "r"))) {
        if (fscanf(f, "%lf", &limit) != 1)
            limit = -1;
        fclose(f);
    }
    if ((f = fopen("/sys/fs/cgroup/cpu/cpu.cfs_period_us", "r"))) {
        if (fscanf(f, "%lf", &period) != 1)
            period = 0;
        fclose(f);
    }
    if (limit > 0 && period > 0 && (best == 0 || limit / period < best))
        best = limit / period;
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
