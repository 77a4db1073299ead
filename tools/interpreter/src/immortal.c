/*
 * The objects of a snapshot are never freed, so nobody has to count references to them. Counting would write
 * to them, and the kernel would copy a page for each group of objects that a request only looks at. So
 * they get a count that Py_INCREF and Py_DECREF leave alone (patches/immortal.diff): half of the pages
 * that a request writes to are then not written to.
 *
 * What is not found from the collector's lists stays an object like any other, which is right, too.
 */

#define PY_SSIZE_T_CLEAN
#include "Python.h"
#include "internal/pycore_gc.h"
#include "internal/pycore_interp.h"
#include "snapshot.h"
#include <sys/mman.h>

enum { ROOM = 1 << 22 };
static PyObject **found; /* objects whose references are not followed yet */
static size_t count;

static int mark(PyObject *object, void *context)
{
    (void)context;
    if (!object || !snapshot_has(object) || _Py_IS_IMMORTAL(object))
        return 0;
    if (count == ROOM)
        Py_FatalError("there are too many objects for a snapshot");
    object->ob_refcnt = _Py_IMMORTAL_COUNT;
    found[count++] = object;
    return 0;
}

static void mark_each(PyObject **objects, size_t number)
{
    for (size_t i = 0; i < number; i++)
        mark(objects[i], NULL);
}

/* The collector knows nothing of code objects, and does not follow static types. */
static void mark_within(PyObject *object)
{
    PyTypeObject *type = Py_TYPE(object);
    mark((PyObject *)type, NULL);
    if (type->tp_traverse && (!type->tp_is_gc || type->tp_is_gc(object)))
        type->tp_traverse(object, mark, NULL);
    if (PyCode_Check(object)) {
        PyCodeObject *code = (PyCodeObject *)object;
        PyObject *parts[] = {code->co_consts,           code->co_names,    code->co_exceptiontable,
                             code->co_localsplusnames,  code->co_filename, code->co_localspluskinds,
                             code->co_name,             code->co_qualname, code->co_linetable};
        mark_each(parts, sizeof parts / sizeof *parts);
    }
    if (PyType_Check(object) && !(((PyTypeObject *)object)->tp_flags & Py_TPFLAGS_HEAPTYPE)) {
        PyTypeObject *of = (PyTypeObject *)object;
        PyObject *parts[] = {of->tp_dict,  of->tp_bases,      of->tp_mro,
                             of->tp_cache, of->tp_subclasses, (PyObject *)of->tp_base};
        mark_each(parts, sizeof parts / sizeof *parts);
    }
}

static void mark_in(struct gc_generation *generation)
{
    PyGC_Head *head = &generation->head;
    for (PyGC_Head *each = _PyGCHead_NEXT(head); each != head; each = _PyGCHead_NEXT(each))
        mark((PyObject *)(each + 1), NULL);
}

void immortal_begin(void)
{
    struct _gc_runtime_state *collector = &PyInterpreterState_Get()->gc;
    found = mmap(NULL, ROOM * sizeof *found, PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (found == MAP_FAILED)
        Py_FatalError("there is no memory to look at all objects");
    mark_in(&collector->permanent_generation);
    for (int i = 0; i < NUM_GENERATIONS; i++)
        mark_in(&collector->generations[i]);
    while (count)
        mark_within(found[--count]);
    munmap(found, ROOM * sizeof *found);
    found = NULL;
}
