/*
 * What a process that goes on from a snapshot allocates would lie in the gaps of the snapshot, where one object
 * was freed here and one there: nearly each would be a page that the kernel has to copy. So the gaps are used up
 * before the snapshot is written, and a later process gets pools of its own, page by page.
 */

#define PY_SSIZE_T_CLEAN
#include "Python.h"
#include "snapshot.h"
#include <stdint.h>

enum { POOL = 4096, HEADER = 48, ALIGNMENT = 16, LARGEST = 512 }; /* of Objects/obmalloc.c, patches/unnoted.diff */

/* Whether this is the first block of its pool, and nothing is behind the second. */
static int is_first(const char *block, size_t size)
{
    const char *pool = (const char *)((uintptr_t)block & -(uintptr_t)POOL);
    const char *at = pool + HEADER + 2 * size;
    if (block != pool + HEADER)
        return 0;
    while (at < pool + POOL && !*at)
        at++;
    return at >= pool + POOL;
}

void pools_use_up(void)
{
    for (size_t size = ALIGNMENT; size <= LARGEST; size += ALIGNMENT) {
        char *block;
        do
            block = PyObject_Malloc(size);
        while (block && !is_first(block, size));
    }
}
