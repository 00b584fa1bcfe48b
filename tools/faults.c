/* Fails one system call: preloaded into a command by tools/faults.py.
 *
 * FAULT_FOLDER: only files below this folder count    FAULT_CALL: open, read, write, fsync, rename
 * or close    FAULT_AT: number of the call that fails    FAULT_ERRNO    FAULT_MARK: a file that is
 * made when it fails */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

#define REAL(name) ((__typeof__(&name)) dlsym(RTLD_NEXT, #name))

static int below(const char *path) {
    const char *folder = getenv("FAULT_FOLDER");
    char whole[2 * PATH_MAX];
    if (folder == NULL || path == NULL) return 0;
    if (path[0] == '/') {
        snprintf(whole, sizeof whole, "%s", path);
    } else {
        char here[PATH_MAX];
        if (getcwd(here, sizeof here) == NULL) return 0;
        snprintf(whole, sizeof whole, "%s/%s", here, path);
    }
    size_t n = strlen(folder);
    return strncmp(whole, folder, n) == 0 && (whole[n] == '/' || whole[n] == 0);
}

static int counts(const char *call, const char *path) {
    static int done;
    const char *wanted = getenv("FAULT_CALL"), *at = getenv("FAULT_AT");
    if (wanted == NULL || at == NULL || strcmp(wanted, call) != 0 || !below(path)) return 0;
    if (__sync_add_and_fetch(&done, 1) != atoi(at)) return 0;
    const char *mark = getenv("FAULT_MARK"), *number = getenv("FAULT_ERRNO");
    if (mark != NULL) {
        int descriptor = REAL(creat)(mark, 0600);
        if (descriptor >= 0) REAL(close)(descriptor);
    }
    errno = number == NULL ? EIO : atoi(number);
    return 1;
}

static int counts_descriptor(const char *call, int descriptor) {
    char name[64], path[PATH_MAX];
    if (descriptor <= 2) return 0;
    snprintf(name, sizeof name, "/proc/self/fd/%d", descriptor);
    ssize_t n = readlink(name, path, sizeof path - 1);
    if (n < 0) return 0;
    path[n] = 0;
    return counts(call, path);
}

#define MODE(flags)                                            \
    mode_t mode = 0;                                           \
    if ((flags) & (O_CREAT | O_TMPFILE)) {                     \
        va_list rest;                                          \
        va_start(rest, flags);                                 \
        mode = va_arg(rest, mode_t);                           \
        va_end(rest);                                          \
    }

int open(const char *path, int flags, ...) {
    MODE(flags)
    return counts("open", path) ? -1 : REAL(open)(path, flags, mode);
}

int open64(const char *path, int flags, ...) {
    MODE(flags)
    return counts("open", path) ? -1 : REAL(open64)(path, flags, mode);
}

int openat(int folder, const char *path, int flags, ...) {
    MODE(flags)
    return counts("open", path) ? -1 : REAL(openat)(folder, path, flags, mode);
}

int openat64(int folder, const char *path, int flags, ...) {
    MODE(flags)
    return counts("open", path) ? -1 : REAL(openat64)(folder, path, flags, mode);
}

ssize_t read(int descriptor, void *data, size_t n) {
    return counts_descriptor("read", descriptor) ? -1 : REAL(read)(descriptor, data, n);
}

ssize_t pread(int descriptor, void *data, size_t n, off_t at) {
    return counts_descriptor("read", descriptor) ? -1 : REAL(pread)(descriptor, data, n, at);
}

ssize_t pread64(int descriptor, void *data, size_t n, off64_t at) {
    return counts_descriptor("read", descriptor) ? -1 : REAL(pread64)(descriptor, data, n, at);
}

ssize_t write(int descriptor, const void *data, size_t n) {
    return counts_descriptor("write", descriptor) ? -1 : REAL(write)(descriptor, data, n);
}

ssize_t writev(int descriptor, const struct iovec *parts, int n) {
    return counts_descriptor("write", descriptor) ? -1 : REAL(writev)(descriptor, parts, n);
}

int fsync(int descriptor) {
    return counts_descriptor("fsync", descriptor) ? -1 : REAL(fsync)(descriptor);
}

int rename(const char *from, const char *to) {
    return counts("rename", to) ? -1 : REAL(rename)(from, to);
}

int close(int descriptor) {
    int failed = counts_descriptor("close", descriptor);
    int number = errno, result = REAL(close)(descriptor);
    if (!failed) return result;
    errno = number;
    return -1;
}
