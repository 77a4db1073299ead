/*
 * _cni_embedded: the calls that our modules make through ctypes where there is a dynamic C library. A
 * static program can load none. Each raises OSError, and returns what the kernel says, as it is.
 */

#define PY_SSIZE_T_CLEAN
#define _GNU_SOURCE
#include "Python.h"
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
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

static PyMethodDef methods[] = {
    {"attach_filter", native_attach_filter, METH_VARARGS, NULL},
    {"capget", native_capget, METH_O, NULL},
    {"fstatfs", native_fstatfs, METH_O, NULL},
    {"madvise", native_madvise, METH_VARARGS, NULL},
    {"open_by_handle", native_open_by_handle, METH_VARARGS, NULL},
    {"prctl", native_prctl, METH_VARARGS, NULL},
    {"setns", native_setns, METH_VARARGS, NULL},
    {"statx", native_statx, METH_VARARGS, NULL},
    {"unshare", native_unshare, METH_O, NULL},
    {"suspect_damage", native_suspect_damage, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_cni_embedded", NULL, -1, methods};

PyMODINIT_FUNC PyInit__cni_embedded(void)
{
    return PyModule_Create(&module);
}
