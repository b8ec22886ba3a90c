/* posix.h - the calls of POSIX that the programs make, and what stands in for them on Windows (mingw-w64) and in WebAssembly (WASI).
 *
 * Where a file cannot be mapped it is read into memory; where there are no symbolic links, permissions or pages, the calls do nothing.
 */
#ifndef POSIX_H
#define POSIX_H

#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#if !defined(_WIN32)
#include <poll.h>
#include <sys/mman.h>
#endif

#if defined(__wasi__) || defined(_WIN32)
#define fchmod(file, mode) 0
#define posix_madvise(at, len, advice) 0
#define mprotect(at, len, protection) 0 /* what was read into memory can be written */
#define SA_RESETHAND 0
struct sigaction {
    void (*sa_handler)(int);
    int sa_flags;
};
static inline int sigaction(int number, const struct sigaction *now, struct sigaction *before) {
    (void)before;
    return signal(number, now->sa_handler) == SIG_ERR ? -1 : 0;
}
#endif

#if defined(_WIN32)
#include <stdio.h>
#include <stdlib.h>

#define O_NOFOLLOW O_BINARY /* of these two every file that is opened here has one */
#define O_NONBLOCK O_BINARY
#define SIGPIPE SIGTERM
#define POLLIN 1
struct pollfd {
    int fd;
    short events;
};
static inline int poll(struct pollfd *asked, unsigned n, int wait) { return (void)asked, (void)n, (void)wait, 0; } /* nothing has come yet, as far as one can tell */
#define PROT_READ 0
#define MAP_PRIVATE 0
#define MAP_FAILED NULL
#define POSIX_MADV_RANDOM 0
#define _SC_PAGESIZE 0
#define sysconf(name) 4096
#define fsync(file) 0
#define mkdir(path, mode) mkdir(path)
#define readlink(path, to, size) ((void)(path), (void)(to), (ssize_t)-1)
#define PROT_WRITE 0
#define munmap(at, len) free(at)
#define rename(from, to) (remove(to), rename(from, to)) /* which here does not replace a file */

static inline void *read_whole(int file, size_t len) {
    char *at = malloc(len);
    size_t done = 0;
    for (int n = 1; at && n > 0 && done < len; done += n > 0 ? (size_t)n : 0) n = read(file, at + done, len - done < 1 << 30 ? (unsigned)(len - done) : 1u << 30);
    if (done == len) return at;
    free(at);
    return MAP_FAILED;
}
#define mmap(at, len, protection, flags, file, offset) read_whole(file, len)
#endif

#endif
