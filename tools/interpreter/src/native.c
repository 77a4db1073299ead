/*
 * _cni_embedded: the calls that our modules make through ctypes where there is a dynamic C library. A
 * static program can load none. Each raises OSError, and returns what the kernel says, as it is.
 */

#define PY_SSIZE_T_CLEAN
#define _GNU_SOURCE
#include "Python.h"
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <unistd.h>

static PyObject *failed(void)
{
    return PyErr_SetFromErrno(PyExc_OSError);
}

/* setns(fd, kind): setns(2). */
static PyObject *native_setns(PyObject *self, PyObject *arguments)
{
    int fd, kind;
    if (!PyArg_ParseTuple(arguments, "ii", &fd, &kind))
        return NULL;
    if (setns(fd, kind) < 0)
        return failed();
    Py_RETURN_NONE;
}

/* unshare(kind): unshare(2). */
static PyObject *native_unshare(PyObject *self, PyObject *argument)
{
    int kind = _PyLong_AsInt(argument);
    if (kind == -1 && PyErr_Occurred())
        return NULL;
    if (unshare(kind) < 0)
        return failed();
    Py_RETURN_NONE;
}

/* prctl(option, value): prctl(2) with one value; what it returns. */
static PyObject *native_prctl(PyObject *self, PyObject *arguments)
{
    int option;
    unsigned long value;
    if (!PyArg_ParseTuple(arguments, "ik", &option, &value))
        return NULL;
    int result = prctl(option, value, 0UL, 0UL, 0UL);
    return result < 0 ? failed() : PyLong_FromLong(result);
}

/* fstatfs(fd): f_type of fstatfs(2). */
static PyObject *native_fstatfs(PyObject *self, PyObject *argument)
{
    struct statfs status;
    int fd = _PyLong_AsInt(argument);
    if (fd == -1 && PyErr_Occurred())
        return NULL;
    if (fstatfs(fd, &status) < 0)
        return failed();
    return PyLong_FromUnsignedLong((unsigned long)status.f_type);
}

/* capget(pid): the six words of data of capget(2), version 3, as bytes. */
static PyObject *native_capget(PyObject *self, PyObject *argument)
{
    uint32_t header[2] = {0x20080522, 0}, data[6] = {0};
    int pid = _PyLong_AsInt(argument);
    if (pid == -1 && PyErr_Occurred())
        return NULL;
    header[1] = (uint32_t)pid;
    if (syscall(SYS_capget, header, data) < 0)
        return failed();
    return PyBytes_FromStringAndSize((const char *)data, sizeof data);
}

/* statx(fd, mask): struct statx of an open file, as bytes. */
static PyObject *native_statx(PyObject *self, PyObject *arguments)
{
    char data[256];
    int fd;
    unsigned int mask;
    if (!PyArg_ParseTuple(arguments, "iI", &fd, &mask))
        return NULL;
    if (syscall(SYS_statx, fd, "", 0x1000 /* AT_EMPTY_PATH */, mask, data) < 0)
        return failed();
    return PyBytes_FromStringAndSize(data, sizeof data);
}

/* madvise(start, size, advice): madvise(2). */
static PyObject *native_madvise(PyObject *self, PyObject *arguments)
{
    unsigned long start, size;
    int advice;
    if (!PyArg_ParseTuple(arguments, "kki", &start, &size, &advice))
        return NULL;
    if (madvise((void *)start, size, advice) < 0)
        return failed();
    Py_RETURN_NONE;
}

/* attach_filter(fd, program): a socket filter (SO_ATTACH_FILTER), as the bytes of its struct
 * sock_filter array. */
static PyObject *native_attach_filter(PyObject *self, PyObject *arguments)
{
    struct {
        unsigned short count;
        const void *code;
    } program;
    const char *code;
    Py_ssize_t size;
    int fd;
    if (!PyArg_ParseTuple(arguments, "iy#", &fd, &code, &size))
        return NULL;
    program.count = (unsigned short)(size / 8);
    program.code = code;
    if (setsockopt(fd, SOL_SOCKET, 26 /* SO_ATTACH_FILTER */, &program, sizeof program) < 0)
        return failed();
    Py_RETURN_NONE;
}

/* Have the native client compare the file with its checksum. It has a handler for signals of programs
 * that crash; it ends the process if the file is damaged, and returns if not. */
void suspect_damage(void)
{
    struct sigaction action;
    if (sigaction(SIGABRT, NULL, &action) == 0 && action.sa_handler != SIG_DFL)
        raise(SIGABRT);
}

/* suspect_damage(): see cni/damage.py. */
static PyObject *native_suspect_damage(PyObject *self, PyObject *nothing)
{
    suspect_damage();
    Py_RETURN_NONE;
}

/* open_by_handle(mount, handle, flags): open_by_handle_at(2) with the bytes of a struct file_handle. */
static PyObject *native_open_by_handle(PyObject *self, PyObject *arguments)
{
    const char *handle;
    Py_ssize_t size;
    int mount, flags;
    if (!PyArg_ParseTuple(arguments, "iy#i", &mount, &handle, &size, &flags))
        return NULL;
    long fd = syscall(SYS_open_by_handle_at, mount, handle, flags);
    return fd < 0 ? failed() : PyLong_FromLong(fd);
}

/* --- visits ------------------------------------------------------------------------------------- */

/* What needs another network namespace is done there by a child, so that this process never leaves its
 * own. The executor (cni/netns/executor.py) is a copy of the interpreter: it can run anything, and to
 * copy the page tables takes longer than most requests. A visitor shares our memory, as the child of
 * vfork(2) does, and can do two things: make a socket, and take steps with kernel parameters (steps.h).
 * We stand still until it has ended. It runs no Python, and writes to nothing but `visitors_room`.
 *
 * What it has to say comes over a socket and not in our memory: where vfork is emulated by fork (valgrind,
 * qemu), it does not share that. Whatever goes wrong, there is no answer, and the executor does the work. */

static int open_cloexec(const char *path, int flags)
{
    return open(path, flags | O_CLOEXEC);
}

#include "steps.h"

enum { MOST_OPTIONS = 8, ANSWER = 1 << 16, STACK = 32 << 10 };

struct visit {
    int netns, channel;
    const char *job; /* steps, or NULL: make a socket */
    size_t size;
    int family, kind, protocol;
    const int *options; /* level, name, value */
    size_t count;
};

static char visitors_room[ANSWER + STACK] __attribute__((aligned(16)));

/* Send `size` bytes of the room, and a descriptor unless it is negative. */
static void send_answer(int channel, size_t size, int fd)
{
    union {
        char data[CMSG_SPACE(sizeof(int))];
        struct cmsghdr header;
    } control = {.header = {.cmsg_len = CMSG_LEN(sizeof(int)), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS}};
    struct iovec part = {visitors_room, size};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    if (fd >= 0) {
        memcpy(CMSG_DATA(&control.header), &fd, sizeof fd);
        message.msg_control = control.data;
        message.msg_controllen = sizeof control.data;
    }
    sendmsg(channel, &message, MSG_NOSIGNAL | MSG_DONTWAIT); /* nobody reads before we have ended */
}

static void make_socket(const struct visit *wanted)
{
    int fd = socket(wanted->family, wanted->kind | SOCK_CLOEXEC, wanted->protocol);
    if (fd < 0)
        return;
    /* as cni.kernel.netlink.set_options: an older kernel lacks some */
    for (size_t i = 0; i < wanted->count; i++) {
        const int *option = wanted->options + 3 * i;
        setsockopt(fd, option[0], option[1], &option[2], sizeof option[2]);
    }
    visitors_room[0] = 's';
    send_answer(wanted->channel, 1, fd);
}

static int visitor(void *argument)
{
    const struct visit *wanted = argument;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (setns(wanted->netns, CLONE_NEWNET) < 0)
        _exit(1);
    if (wanted->job)
        send_answer(wanted->channel, perform_job(wanted->job, wanted->size, visitors_room, ANSWER), -1);
    else
        make_socket(wanted);
    _exit(0);
}

/* Have a visitor do it: the size of its answer, in `visitors_room`, and `fd`; 0 if there is none. */
static size_t visit(struct visit *wanted, int *fd)
{
    int pair[2];
    sigset_t all, before;
    union {
        char data[CMSG_SPACE(sizeof(int))];
        struct cmsghdr header;
    } control;
    *fd = -1;
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0)
        return 0;
    wanted->channel = pair[1];
    sigfillset(&all); /* a handler of ours would run in both */
    sigprocmask(SIG_BLOCK, &all, &before);
    char *top = visitors_room + sizeof visitors_room;
    int pid = clone(visitor, top, CLONE_VM | CLONE_VFORK | SIGCHLD, wanted);
    while (pid > 0 && waitpid(pid, NULL, 0) < 0 && errno == EINTR)
        ;
    sigprocmask(SIG_SETMASK, &before, NULL);
    struct iovec part = {visitors_room, ANSWER};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1,
                             .msg_control = control.data, .msg_controllen = sizeof control.data};
    ssize_t size = pid < 0 ? 0 : recvmsg(pair[0], &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    close(pair[0]);
    close(pair[1]);
    struct cmsghdr *header = size > 0 ? CMSG_FIRSTHDR(&message) : NULL;
    if (header && header->cmsg_level == SOL_SOCKET && header->cmsg_type == SCM_RIGHTS)
        memcpy(fd, CMSG_DATA(header), sizeof *fd);
    return size > 0 && visitors_room[0] == 's' ? (size_t)size : 0;
}

/* visit_socket(netns, family, kind, protocol, options): the descriptor of a socket that is in the
 * namespace `netns`; `options` are ints, three each: level, name, value. None if it cannot be made. */
static PyObject *native_visit_socket(PyObject *self, PyObject *arguments)
{
    struct visit wanted = {0};
    const char *options;
    Py_ssize_t size;
    int fd, room[3 * MOST_OPTIONS];
    if (!PyArg_ParseTuple(arguments, "iiiiy#", &wanted.netns, &wanted.family, &wanted.kind, &wanted.protocol,
                          &options, &size))
        return NULL;
    if (size < 0 || (size_t)size > sizeof room)
        return PyErr_Format(PyExc_ValueError, "too many options");
    memcpy(room, options, (size_t)size);
    wanted.options = room;
    wanted.count = (size_t)size / (3 * sizeof *room);
    if (!visit(&wanted, &fd) || fd < 0)
        Py_RETURN_NONE;
    return PyLong_FromLong(fd);
}

/* visit_steps(netns, job): the answer to a job of steps.h in the namespace `netns`; None if there is
 * none. */
static PyObject *native_visit_steps(PyObject *self, PyObject *arguments)
{
    struct visit wanted = {0};
    Py_ssize_t size;
    int fd;
    if (!PyArg_ParseTuple(arguments, "iy#", &wanted.netns, &wanted.job, &size))
        return NULL;
    wanted.size = (size_t)size;
    size_t have = visit(&wanted, &fd);
    if (!have)
        Py_RETURN_NONE;
    return PyBytes_FromStringAndSize(visitors_room, (Py_ssize_t)have);
}

/* --- requests that are sent by another process ---------------------------------------------------- */

/* The kernel answers some netlink requests, such as that of deleting a link, only after an RCU grace period,
 * and their sender sleeps until then. So a child sends them. It shares our memory, as a visitor does, but we go
 * on meanwhile: so it runs only what is below, which does not touch errno, for that is ours. */

enum { APART_MESSAGE = 256, APART_STACK = 8 << 10 };

static struct {
    volatile pid_t running; /* not 0 until the kernel says that the child has ended */
    int fd;
    size_t size;
    char message[APART_MESSAGE];
    char stack[APART_STACK] __attribute__((aligned(16)));
} apart;

/* A system call with what it returns: a negative number is an error. */
static long raw_call(long number, long a, long b, long c, long d, long e, long f)
{
#if defined(__x86_64__)
    long result;
    register long r10 __asm__("r10") = d, r8 __asm__("r8") = e, r9 __asm__("r9") = f;
    __asm__ volatile("syscall" : "=a"(result) : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return result;
#elif defined(__aarch64__)
    register long x8 __asm__("x8") = number, x0 __asm__("x0") = a, x1 __asm__("x1") = b, x2 __asm__("x2") = c;
    register long x3 __asm__("x3") = d, x4 __asm__("x4") = e, x5 __asm__("x5") = f;
    __asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5) : "memory");
    return x0;
#else
#error "system calls of this architecture"
#endif
}

static int sender(void *nothing)
{
    (void)nothing;
    raw_call(SYS_prctl, PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0, 0);
    raw_call(SYS_write, apart.fd, (long)apart.message, (long)apart.size, 0, 0, 0);
    raw_call(SYS_exit, 0, 0, 0, 0, 0, 0);
    return 0;
}

/* send_apart(fd, message): have a child send it; the child's process id, or None if that is not possible, as
 * while another one runs. */
static PyObject *native_send_apart(PyObject *self, PyObject *arguments)
{
    const char *message;
    Py_ssize_t size;
    int fd;
    sigset_t all, before;
    if (!PyArg_ParseTuple(arguments, "iy#", &fd, &message, &size))
        return NULL;
    if ((size_t)size > sizeof apart.message)
        return PyErr_Format(PyExc_ValueError, "too long");
    if (apart.running)
        Py_RETURN_NONE;
    apart.running = 1;
    apart.fd = fd;
    memcpy(apart.message, message, (size_t)size);
    apart.size = (size_t)size;
    sigfillset(&all); /* a handler of ours would run there, in our memory; the child keeps the mask */
    sigprocmask(SIG_BLOCK, &all, &before);
    int flags = CLONE_VM | CLONE_CHILD_CLEARTID | SIGCHLD;
    int pid = clone(sender, apart.stack + sizeof apart.stack, flags, NULL, NULL, NULL, &apart.running);
    sigprocmask(SIG_SETMASK, &before, NULL);
    if (pid < 0) {
        apart.running = 0;
        Py_RETURN_NONE;
    }
    return PyLong_FromLong(pid);
}

static PyMethodDef methods[] = {
    {"attach_filter", native_attach_filter, METH_VARARGS, NULL},
    {"capget", native_capget, METH_O, NULL},
    {"fstatfs", native_fstatfs, METH_O, NULL},
    {"madvise", native_madvise, METH_VARARGS, NULL},
    {"open_by_handle", native_open_by_handle, METH_VARARGS, NULL},
    {"prctl", native_prctl, METH_VARARGS, NULL},
    {"send_apart", native_send_apart, METH_VARARGS, NULL},
    {"setns", native_setns, METH_VARARGS, NULL},
    {"statx", native_statx, METH_VARARGS, NULL},
    {"unshare", native_unshare, METH_O, NULL},
    {"suspect_damage", native_suspect_damage, METH_NOARGS, NULL},
    {"visit_socket", native_visit_socket, METH_VARARGS, NULL},
    {"visit_steps", native_visit_steps, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_cni_embedded", NULL, -1, methods};

PyMODINIT_FUNC PyInit__cni_embedded(void)
{
    return PyModule_Create(&module);
}
