/*
 * The embedded interpreter: starts CPython for our own modules, which are frozen into it, and nothing
 * else. The native client (launcher/client.c) maps this program behind itself and jumps to it.
 *
 * There is no Python command line, no environment variable is looked at, no path is computed, and no
 * file is opened before a module asks for one. sys.path is empty: what is not frozen does not exist,
 * and is not looked for. Collecting garbage is off until cni.embedded switches it on.
 *
 * At build time it is started once as `snapshot OUTPUT MODULE...`, to write the snapshot from which
 * requests begin (snapshot.c, docs/self-contained.md).
 */

#define PY_SSIZE_T_CLEAN
#include "Python.h"
#include "internal/pycore_code.h"
#include "internal/pycore_pystate.h"
#include "internal/pycore_runtime.h"
#include "annex.h"
#include "snapshot.h"
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <unistd.h>

extern PyObject *PyInit__cni_embedded(void);
extern PyObject *PyInit__core(void); /* msgspec */
extern void suspect_damage(void);    /* native.c */
extern int _PySignal_Renew(void);         /* patches/renew.diff */
extern PyStatus _Py_RenewStreams(void);

/* The argv[0] that asks for a snapshot; no plugin or command is called so. */
static const char RECORDING[] = "record the snapshot";

/* --- failing ------------------------------------------------------------------------------------ */

static int is_request;  /* a runtime waits for the specification's error object */
static int is_answered; /* and something is on stdout */
static int has_begun;   /* our first module runs */

extern ssize_t __real_write(int fd, const void *data, size_t size);
ssize_t __wrap_write(int fd, const void *data, size_t size)
{
    is_answered |= fd == 1;
    return __real_write(fd, data, size);
}

/* Tell the runtime that the interpreter has not started, and end the process. Needs no memory. */
static void complain(const char *where, const char *why) __attribute__((noreturn));
static void complain(const char *where, const char *why)
{
    char text[1024];
    int n = snprintf(text, sizeof text,
                     "{\n    \"code\": 999,\n    \"msg\": \"cannot start: the interpreter has not begun\",\n"
                     "    \"details\": \"%.200s: %.200s; memory is short, or a security policy (seccomp, SELinux) "
                     "refuses a system call\"\n}\n",
                     where, why);
    for (char *at = text; at < text + n; at++)
        if (*at == '\\')
            *at = '/';
    if (write(1, text, (size_t)n) < 0)
        _exit(1);
    _exit(1);
}

/* In the place of CPython's (--wrap), which is called wherever it cannot start or go on after fork(2), and
 * has some lines for a programmer. */
extern void __real_Py_ExitStatusException(PyStatus status) __attribute__((noreturn));
void __wrap_Py_ExitStatusException(PyStatus status)
{
    if (PyStatus_IsError(status) && is_request && !is_answered)
        complain(status.func ? status.func : "start", status.err_msg ? status.err_msg : "unknown");
    __real_Py_ExitStatusException(status);
}

/* The same where CPython cannot even go on to its end. */
extern void __real__Py_FatalErrorFunc(const char *function, const char *text) __attribute__((noreturn));
void __wrap__Py_FatalErrorFunc(const char *function, const char *text)
{
    if (is_request && !is_answered) {
        suspect_damage();
        complain(function, text);
    }
    __real__Py_FatalErrorFunc(function, text);
}

/* CPython prints the exception before it says that it cannot start. */
extern void __real__PyErr_Print(PyThreadState *tstate);
void __wrap__PyErr_Print(PyThreadState *tstate)
{
    if (is_request && !has_begun)
        PyErr_Clear();
    else
        __real__PyErr_Print(tstate);
}

/* It prints its paths when it does not find its codecs: there are none. */
void __wrap__Py_DumpPathConfig(PyThreadState *tstate)
{
    (void)tstate;
}

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

enum { HASH_SEED = 1 };

/* So much is executed unnoted (patches/unnoted.diff): more than most requests do, and a few milliseconds of
 * one that goes on for long. */
enum { UNNOTED_STEPS = 1 << 15 };

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

/* Nothing is imported from any path. Below the prefix are messages in the user's language
 * (share/locale); an empty one would be the current directory, where others may have put them. */
static void set_paths(PyConfig *config, const char *executable)
{
    set_text(config, &config->program_name, executable);
    set_text(config, &config->executable, executable);
    set_text(config, &config->base_executable, executable);
    set_text(config, &config->prefix, "/usr");
    set_text(config, &config->exec_prefix, "/usr");
    set_text(config, &config->base_prefix, "/usr");
    set_text(config, &config->base_exec_prefix, "/usr");
    config->module_search_paths_set = 1; /* to nothing */
}

static void initialize(int argc, char **argv, const char *self, int is_same_each_time)
{
    PyPreConfig before;
    PyConfig config;
    char room[PATH_MAX + 1];
    if (PyImport_AppendInittab("_cni_embedded", PyInit__cni_embedded) < 0
        || PyImport_AppendInittab("msgspec._core", PyInit__core) < 0
        || PyImport_AppendInittab("_ssl", annex_ssl) < 0
        || PyImport_AppendInittab("unicodedata", annex_unicodedata) < 0)
        check(PyStatus_NoMemory());
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
#ifdef CNI_TRAINING
    is_same_each_time = 1;
#endif
    config.use_hash_seed = is_same_each_time;
    config.hash_seed = is_same_each_time ? HASH_SEED : 0;
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

/* End the process with the exception that was raised. */
static void must(int succeeded)
{
    if (succeeded)
        return;
    suspect_damage();
    if (is_request && !is_answered) {
        PyObject *kind = PyErr_Occurred();
        complain("start", kind ? ((PyTypeObject *)kind)->tp_name : "unknown");
    }
    PyErr_Print();
    exit(1);
}

/* Call cni.embedded.main(); returns the exit code. */
static int run(void)
{
    PyObject *module = PyImport_ImportModule("cni.embedded");
    must(module != NULL);
    has_begun = 1;
    PyObject *result = PyObject_CallMethod(module, "main", NULL);
    if (result)
        return (int)PyLong_AsLong(result);
    if (PyErr_ExceptionMatches(PyExc_KeyboardInterrupt)) {
        PyErr_Print();
        signal(SIGINT, SIG_DFL);
        raise(SIGINT);
    }
    must(PyErr_ExceptionMatches(PyExc_SystemExit));
    PyErr_Print(); /* ends the process */
    return 1;
}

/* --- the snapshot ------------------------------------------------------------------------------- */

/* Start, import `names`, and write the snapshot to `path`; returns the exit code. */
static int record(const char *path, char **names)
{
    char *arguments[] = {"cni", NULL};
    snapshot_begin();
    initialize(1, arguments, "/cni", 1);
    PyObject *list = PyList_New(0);
    must(list != NULL);
    for (; *names; names++) {
        PyObject *name = PyUnicode_FromString(*names);
        must(name && PyList_Append(list, name) == 0);
        Py_DECREF(name);
    }
    PyObject *module = PyImport_ImportModule("cni.embedded");
    must(module != NULL);
    PyObject *result = PyObject_CallMethod(module, "prepare", "N", list);
    must(result != NULL);
    Py_DECREF(result);
    Py_DECREF(module);
    /* What was this process's and is nobody else's. */
    PyThreadState *tstate = PyThreadState_Get();
    tstate->thread_id = tstate->native_thread_id = _PyRuntime.main_thread = 0;
    _PyRuntime.gilstate.autoTSSkey = (Py_tss_t)Py_tss_NEEDS_INIT;
    _Py_UnnotedSteps = UNNOTED_STEPS;
    immortal_begin();
    pools_use_up();
    snapshot_make_room();
    return snapshot_write(path) < 0;
}

static PyObject *texts(int count, char **from)
{
    PyObject *list = PyList_New(0);
    for (int i = 0; list && i < count; i++) {
        PyObject *text = PyUnicode_DecodeFSDefault(from[i]);
        must(text && PyList_Append(list, text) == 0);
        Py_DECREF(text);
    }
    must(list != NULL);
    return list;
}

static void set_sys(const char *name, PyObject *value)
{
    must(value && PySys_SetObject(name, value) == 0);
    Py_DECREF(value);
}

/* posix.environ, which os.environ looks into: made as posixmodule.c makes it. */
static void renew_environ(void)
{
    extern char **environ;
    PyObject *module = PyImport_ImportModule("posix");
    must(module != NULL);
    PyObject *variables = PyDict_GetItemString(PyModule_GetDict(module), "environ");
    must(variables != NULL);
    PyDict_Clear(variables);
    for (char **variable = environ; variable && *variable; variable++) {
        const char *separator = strchr(*variable, '=');
        if (!separator)
            continue;
        PyObject *key = PyBytes_FromStringAndSize(*variable, separator - *variable);
        PyObject *value = PyBytes_FromString(separator + 1);
        must(key && value && PyDict_SetDefault(variables, key, value));
        Py_DECREF(key);
        Py_DECREF(value);
    }
    Py_DECREF(module);
}

/* What belongs to this process, and not to the one that wrote the snapshot. The C library's part is not
 * in the snapshot (snapshot.c). The rest is that of a child after fork(2), and what a new program has on
 * top of that: the handlers of signals, the standard streams, arguments, environment, time zone. */
static void renew(int argc, char **argv, const char *self)
{
    char room[PATH_MAX + 1];
    PyThreadState *tstate = PyThreadState_Get();
    tstate->thread_id = PyThread_get_thread_ident();
    if (PyThread_tss_create(&_PyRuntime.gilstate.autoTSSkey) != 0
        || PyThread_tss_set(&_PyRuntime.gilstate.autoTSSkey, tstate) != 0)
        check(PyStatus_NoMemory());
    PyOS_AfterFork_Child(); /* thread, locks, pending signals; os.register_at_fork */
    must(_PySignal_Renew() == 0);
    check(_Py_RenewStreams());
    PyObject *arguments = texts(argc, argv);
    PyObject *path = PyUnicode_DecodeFSDefault(self);
    must(path && PyList_SetItem(arguments, 0, path) == 0);
    set_sys("orig_argv", PySequence_List(arguments));
    set_sys("argv", arguments);
    self = absolute(self, room, sizeof room);
    set_sys("executable", PyUnicode_DecodeFSDefault(self));
    set_sys("_base_executable", PyUnicode_DecodeFSDefault(self));
    renew_environ();
    PyObject *module = PyImport_ImportModule("time");
    PyObject *result = module ? PyObject_CallMethod(module, "tzset", NULL) : NULL;
    must(result != NULL);
    Py_DECREF(result);
    Py_DECREF(module);
}

int main(int argc, char **argv)
{
    const char *self = (const char *)getauxval(AT_EXECFN);
    if (!self)
        self = argc ? argv[0] : "cni";
    if (argc > 2 && strcmp(argv[0], RECORDING) == 0)
        return record(argv[1], argv + 2);
    is_request = argc < 2 && getenv("CNI_COMMAND") && *getenv("CNI_COMMAND");
    if (snapshot_is_resumed())
        renew(argc, argv, self);
    else
        initialize(argc, argv, self, 0);
    int code = run();
    if (Py_FinalizeEx() < 0)
        code = 120;
    return code;
}
