/*
 * A disk that is full while a file exists: preloaded into PostgreSQL by test_full_disk.py.
 *
 * FULL_DISK_FLAG names that file; what stands in it is part of the paths that find no room ("/base/" for tables and
 * indexes, "/pg_wal/" for the log). As on a real disk, what lies in allocated blocks can still be overwritten.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

static int no_room(int file, off_t end)
{
    char full[64], link[64], path[PATH_MAX];
    struct stat now;
    const char *flag = getenv("FULL_DISK_FLAG");
    int saved = errno;
    int opened = flag ? open(flag, O_RDONLY | O_CLOEXEC) : -1;
    ssize_t length;

    if (opened < 0) {
        errno = saved;
        return 0;
    }
    length = read(opened, full, sizeof full - 1);
    close(opened);
    if (length <= 0)
        return 0;
    full[length] = '\0';
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    length = readlink(link, path, sizeof path - 1);
    if (length <= 0)
        return 0;
    path[length] = '\0';
    errno = saved;
    return strstr(path, full) && fstat(file, &now) == 0 && end > now.st_size;
}

#define REAL(name) ((__typeof__(&name)) dlsym(RTLD_NEXT, #name))

ssize_t pwrite(int file, const void *data, size_t size, off_t offset)
{
    if (no_room(file, offset + (off_t) size)) {
        errno = ENOSPC;
        return -1;
    }
    return REAL(pwrite)(file, data, size, offset);
}

ssize_t pwritev(int file, const struct iovec *parts, int count, off_t offset)
{
    off_t end = offset;

    for (int part = 0; part < count; part++)
        end += (off_t) parts[part].iov_len;
    if (no_room(file, end)) {
        errno = ENOSPC;
        return -1;
    }
    return REAL(pwritev)(file, parts, count, offset);
}

int posix_fallocate(int file, off_t offset, off_t size)
{
    return no_room(file, offset + size) ? ENOSPC : REAL(posix_fallocate)(file, offset, size);
}
