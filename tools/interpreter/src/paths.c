/* Takes the place of CPython's Modules/getpath.c: main.c has set every path already. */

#include "Python.h"
#include "internal/pycore_initconfig.h"
#include "internal/pycore_pathconfig.h"

PyStatus _PyConfig_InitPathConfig(PyConfig *config, int compute_path_config)
{
    (void)config;
    (void)compute_path_config;
    return PyStatus_Ok();
}
