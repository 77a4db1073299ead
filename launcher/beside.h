/*
 * A plugin's own small file: this client alone. `cni install` puts one under each plugin's name, with the
 * mark below set to 1, and the whole file beside them, as `cni`. So a program that overwrites one plugin
 * (cp -f, cat >) overwrites that one: a link would have led it to the file of all.
 *
 * It does what the client does. Where it needs more, it takes that from `cni` of the same build; if `cni` is
 * of another build, as in the middle of an upgrade, it goes on as that one.
 */

#ifndef BESIDE_H
#define BESIDE_H

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef AT_EMPTY_PATH
#define AT_EMPTY_PATH 0x1000
#endif

/* cni/artifact.py writes the digit. */
static const volatile char stub_mark[] = "cni-stub=0";

static int is_stub(void)
{
    return stub_mark[sizeof stub_mark - 2] == '1';
}

/* Open `cni` in the directory of `path`; -1 if it is not there, or others than we and root may change it:
 * in /tmp, for example, another user may have put it there. */
static int open_in_directory_of(const char *path, size_t size)
{
    static const char name[] = "cni";
    static char beside[4096 + sizeof name];
    struct stat status;
    while (size && path[size - 1] != '/')
        size--;
    if (size > 4096)
        return -1;
    memcpy(beside, path, size);
    memcpy(beside + size, name, sizeof name);
    int fd = (int)syscall(SYS_openat, AT_FDCWD, beside, O_RDONLY | O_CLOEXEC | O_NONBLOCK, 0);
    if (fd < 0)
        return -1;
    if (fstat(fd, &status) == 0 && S_ISREG(status.st_mode)
        && (status.st_uid == 0 || status.st_uid == getauxval(AT_EUID))
        && !(status.st_mode & (S_IWGRP | S_IWOTH)))
        return fd;
    close(fd);
    errno = EPERM;
    return -1;
}

/* Open `cni` beside the small file that was executed by the path `file`; -1 with errno. */
static int open_beside(const char *file)
{
    static char path[4096];
    ssize_t size = readlink("/proc/self/exe", path, sizeof path); /* `file` may be a link elsewhere */
    int fd = size > 0 ? open_in_directory_of(path, (size_t)size) : -1;
    return fd >= 0 ? fd : open_in_directory_of(file, strlen(file));
}

/* Whether the file is a whole built file, of any build: not a stranger's, nor a small one as we are. */
static int is_whole(int fd)
{
    static const char mark[] = "cni-stub=", build[] = "\ncni_build=";
    enum { HEAD = (1 << 20) + 4096, MARK = sizeof mark - 1, LONGEST = sizeof build };
    char *head = malloc(HEAD);
    ssize_t n = head ? pread(fd, head, HEAD, 0) : -1;
    int is_ours = 0, is_small = 0;
    for (ssize_t at = 0; at + LONGEST < n; at++) {
        is_ours |= head[at] == '\n' && memcmp(head + at, build, sizeof build - 1) == 0;
        is_small |= head[at] == 'c' && memcmp(head + at, mark, MARK) == 0 && head[at + MARK] == '1';
    }
    free(head);
    return is_ours && !is_small;
}

/* Go on as the program in `fd`, which is told the name `self`. Returns if that is not possible. */
static void become(int fd, const char *self, char **arguments, char **environment)
{
    static char *alone[2];
    if (!arguments[0])
        arguments = alone;
    arguments[0] = (char *)self; /* the path will be that of a descriptor */
    if (is_whole(fd))
        syscall(SYS_execveat, fd, "", arguments, environment, AT_EMPTY_PATH);
    else
        errno = ENOEXEC;
}

/* What is wrong with `cni`, when nothing became of it; `number` is errno. */
static const char *beside_problem(int number)
{
    switch (number) {
    case ENOENT:
        return "it is missing beside this file: copy it there, too";
    case ENOEXEC:
        return "it is another program, or damaged";
    case EPERM:
        return "others than root may write to it";
    default:
        return strerror(number);
    }
}

#endif
