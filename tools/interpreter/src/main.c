/*
 * The embedded interpreter: starts CPython for our own modules, which are frozen into it, and nothing
 * else. The native client (launcher/client.c) maps this program behind itself and jumps to it.
 *
 * There is no Python command line, no environment variable is looked at, no path is computed, and no
 * file is opened before a module asks for one. sys.path is empty: what is not frozen does not exist,
 * and is not looked for. Collecting garbage is off until cni.embedded switches it on.
 */

#define PY_SSIZE_T_CLEAN
#include "Python.h"
#include <limits.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <unistd.h>

extern PyObject *PyInit__cni_embedded(void);
extern PyObject *PyInit__core(void); /* msgspec */
extern void suspect_damage(void);    /* native.c */

/* End the process with what CPython says. */
static void give_up(PyStatus status) __attribute__((noreturn));
static void give_up(PyStatus status)
{
    suspect_damage();
    Py_ExitStatusException(status);
}

static void check(PyStatus status)
{
    if (PyStatus_Exception(status))
        give_up(status);
}

/* The path that was executed, made absolute: what a restart executes. */
static const char *absolute(const char *path, char *room, size_t size)
{
    if (*path == '/' || !getcwd(room, size))
        return path;
    size_t have = strlen(room);
    if (have + strlen(path) + 2 > size)
        return path;
    room[have] = '/';
    strcpy(room + have + 1, path);
    return room;
}

static void set_text(PyConfig *config, wchar_t **place, const char *text)
{
    check(PyConfig_SetBytesString(config, place, text));
}

/* Paths that exist nowhere, so that nothing is looked for. */
static void set_paths(PyConfig *config, const char *executable)
{
    set_text(config, &config->program_name, executable);
    set_text(config, &config->executable, executable);
    set_text(config, &config->base_executable, executable);
    set_text(config, &config->prefix, "");
    set_text(config, &config->exec_prefix, "");
    set_text(config, &config->base_prefix, "");
    set_text(config, &config->base_exec_prefix, "");
    config->module_search_paths_set = 1; /* to nothing */
}

static void initialize(int argc, char **argv, const char *self)
{
    PyPreConfig before;
    PyConfig config;
    char room[PATH_MAX + 1];
    PyPreConfig_InitIsolatedConfig(&before);
    before.utf8_mode = 1;
    check(Py_PreInitialize(&before));
    PyConfig_InitIsolatedConfig(&config);
    config.site_import = 0;
    config.write_bytecode = 0;
    config.install_signal_handlers = 1;
    config.pathconfig_warnings = 0;
    config.parse_argv = 0;
    config._init_main = 0;
#ifdef CNI_TRAINING /* each run is the same */
    config.use_hash_seed = 1;
#endif
    char **arguments = malloc(sizeof *arguments * ((size_t)argc + 1));
    if (!arguments)
        check(PyStatus_NoMemory());
    arguments[0] = (char *)self;
    for (int i = 1; i < argc; i++)
        arguments[i] = argv[i];
    check(PyConfig_SetBytesArgv(&config, argc ? argc : 1, arguments));
    set_paths(&config, absolute(self, room, sizeof room));
    check(Py_InitializeFromConfig(&config));
    PyGC_Disable();
    check(_Py_InitializeMain());
    PyConfig_Clear(&config);
    free(arguments);
}

/* Call cni.embedded.main(); returns the exit code. */
static int run(void)
{
    PyObject *module = PyImport_ImportModule("cni.embedded");
    PyObject *result = module ? PyObject_CallMethod(module, "main", NULL) : NULL;
    if (result)
        return (int)PyLong_AsLong(result);
    if (PyErr_ExceptionMatches(PyExc_KeyboardInterrupt)) {
        PyErr_Print();
        signal(SIGINT, SIG_DFL);
        raise(SIGINT);
    }
    if (!PyErr_ExceptionMatches(PyExc_SystemExit))
        suspect_damage();
    PyErr_Print(); /* ends the process for SystemExit */
    return 1;
}

int main(int argc, char **argv)
{
    const char *self = (const char *)getauxval(AT_EXECFN);
    if (!self)
        self = argc ? argv[0] : "cni";
    if (PyImport_AppendInittab("_cni_embedded", PyInit__cni_embedded) < 0
        || PyImport_AppendInittab("msgspec._core", PyInit__core) < 0)
        return 1;
    initialize(argc, argv, self);
    int code = run();
    if (Py_FinalizeEx() < 0)
        code = 120;
    return code;
}
