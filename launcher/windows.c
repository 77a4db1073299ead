/* win-bridge.exe, win-overlay.exe, host-local.exe, static.exe: copies of one program, which starts
   Python on the plugins that lie beside it.

       <directory>\win-bridge.exe
       <directory>\cni-lib\run.py                the plugins
       <directory>\cni-lib\python\python.exe     the interpreter, if there; else the one on PATH

   Its own path is the first argument, and says which plugin is meant. Standard input, output and
   error, the environment and the exit code are Python's. If we are ended, so is Python. */
#include <windows.h>
#include <wchar.h>

#define LONGEST 32768 /* what Windows allows for paths and command lines */

static wchar_t self[LONGEST], directory[LONGEST], python[LONGEST], command[LONGEST];

static int fail(const char *what, const char *advice) {
    char text[1024];
    DWORD written;
    BOOL runtime = GetEnvironmentVariableW(L"CNI_COMMAND", NULL, 0) != 0;
    const char *form = runtime ? "{\n    \"code\": 999,\n    \"msg\": \"%s (error %lu)\",\n"
                                 "    \"details\": \"%s\"\n}\n"
                               : "cni: %s (error %lu): %s\n";
    int length = wsprintfA(text, form, what, GetLastError(), advice);
    HANDLE out = GetStdHandle(runtime ? STD_OUTPUT_HANDLE : STD_ERROR_HANDLE);
    WriteFile(out, text, (DWORD)length, &written, NULL);
    return 1;
}

/* What follows the program's name in our own command line. */
static const wchar_t *arguments(void) {
    const wchar_t *rest = GetCommandLineW();
    BOOL quoted = FALSE;
    for (; *rest && (quoted || (*rest != L' ' && *rest != L'\t')); rest++)
        if (*rest == L'"') quoted = !quoted;
    return rest;
}

static BOOL find_python(void) {
    if (wcslen(directory) + 32 >= LONGEST) return FALSE;
    wcscpy(python, directory);
    wcscat(python, L"\\cni-lib\\python\\python.exe");
    if (GetFileAttributesW(python) != INVALID_FILE_ATTRIBUTES) return TRUE;
    return SearchPathW(NULL, L"python.exe", NULL, LONGEST, python, NULL) != 0;
}

/* Python's path needs a slash before run.py, which is where it looks for its directory. */
static BOOL compose(void) {
    const wchar_t *parts[] = {L"\"", python, L"\" -I -S \"", directory, L"\\cni-lib/run.py\" \"",
                              self, L"\"", arguments()};
    size_t length = 1;
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        length += wcslen(parts[i]);
        if (length > LONGEST) return FALSE;
        wcscat(command, parts[i]);
    }
    return TRUE;
}

int wmain(void) {
    DWORD length = GetModuleFileNameW(NULL, self, LONGEST), code = 1;
    if (!length || length >= LONGEST) return fail("cannot find out our own path", "");
    wcscpy(directory, self);
    *wcsrchr(directory, L'\\') = 0;
    if (!find_python())
        return fail("python.exe not found",
                    "put Python 3.11 or newer into cni-lib\\\\python beside the plugins, or on PATH");
    if (!compose()) return fail("the command line is too long", "");

    HANDLE job = CreateJobObjectW(NULL, NULL);
    JOBOBJECT_EXTENDED_LIMIT_INFORMATION limits;
    ZeroMemory(&limits, sizeof limits);
    limits.BasicLimitInformation.LimitFlags = JOB_OBJECT_LIMIT_KILL_ON_JOB_CLOSE;
    SetInformationJobObject(job, JobObjectExtendedLimitInformation, &limits, sizeof limits);

    STARTUPINFOW start;
    PROCESS_INFORMATION process;
    ZeroMemory(&start, sizeof start);
    start.cb = sizeof start;
    start.dwFlags = STARTF_USESTDHANDLES;
    start.hStdInput = GetStdHandle(STD_INPUT_HANDLE);
    start.hStdOutput = GetStdHandle(STD_OUTPUT_HANDLE);
    start.hStdError = GetStdHandle(STD_ERROR_HANDLE);
    HANDLE handles[] = {start.hStdInput, start.hStdOutput, start.hStdError};
    for (int i = 0; i < 3; i++)
        SetHandleInformation(handles[i], HANDLE_FLAG_INHERIT, HANDLE_FLAG_INHERIT);
    if (!CreateProcessW(python, command, NULL, NULL, TRUE, CREATE_SUSPENDED, NULL, NULL, &start,
                        &process))
        return fail("cannot start python.exe", "");
    AssignProcessToJobObject(job, process.hProcess);
    ResumeThread(process.hThread);
    WaitForSingleObject(process.hProcess, INFINITE);
    GetExitCodeProcess(process.hProcess, &code);
    return (int)code;
}
