/*
 * The annex: modules in C that few processes use, with what they need (OpenSSL), compressed in the image.
 *
 * A static program can load no library. But it lies at a fixed address, so code can be linked against it
 * beforehand, for a fixed address of its own (annex.ld, tools/interpreter/annex.py). The first import of
 * one of its modules unpacks it there. A process that imports none pays nothing: no page, no memory.
 */

#define PY_SSIZE_T_CLEAN
#include "Python.h"
#include "annex.h"
#include <errno.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <zlib.h>

#ifndef MAP_FIXED_NOREPLACE
#define MAP_FIXED_NOREPLACE 0x100000 /* Linux 4.17 */
#endif

/* tools/interpreter/annex.py fills it in; annex_room.s has the room. */
struct annex {
    char magic[16];
    uint64_t packed;  /* bytes of `data` */
    uint64_t filled;  /* bytes that they become */
    uint64_t code;    /* of these, how many are code and constants, in whole pages */
    uint64_t size;    /* bytes of memory: zeros are behind what is filled */
    unsigned char data[];
};
extern const volatile struct annex cni_annex_room;

static PyObject *refuse(const char *what, const char *why)
{
    return PyErr_Format(PyExc_ImportError, "%s: %s", what, why);
}

/* Unpack it, unless that was done; NULL with ImportError if that cannot be. The GIL is held. */
static const struct annex_modules *load(void)
{
    static const struct annex_modules *loaded;
    static const char in_use[] = "its addresses are in use";
    const volatile struct annex *annex = &cni_annex_room;
    void *wanted = (void *)(uintptr_t)CNI_ANNEX;
    if (loaded)
        return loaded;
    void *start = mmap(wanted, annex->size, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
    if (start == MAP_FAILED) {
        refuse("it cannot be mapped", errno == EEXIST ? in_use : strerror(errno));
        return NULL;
    }
    const char *problem = NULL;
    uLongf filled = annex->filled;
    if (start != wanted) /* a kernel before 4.17 */
        problem = in_use;
    else if (uncompress(start, &filled, (const unsigned char *)annex->data, annex->packed) != Z_OK
             || filled != annex->filled)
        problem = "this program's file is damaged";
    else if (mprotect(start, annex->code, PROT_READ | PROT_EXEC) < 0)
        problem = errno == EACCES || errno == EPERM
                      ? "a security policy of this system forbids code that was unpacked"
                      : strerror(errno);
    if (problem) {
        munmap(start, annex->size);
        refuse("it cannot be mapped", problem);
        return NULL;
    }
    __builtin___clear_cache(start, (char *)start + annex->code);
    return loaded = start;
}

PyObject *annex_ssl(void)
{
    const struct annex_modules *modules = load();
    return modules ? modules->ssl() : NULL;
}

PyObject *annex_unicodedata(void)
{
    const struct annex_modules *modules = load();
    return modules ? modules->unicodedata() : NULL;
}
