/* What the annex begins with: the modules in it, as functions that make them. */

struct annex_modules {
    PyObject *(*ssl)(void);
    PyObject *(*unicodedata)(void);
};

/* For main.c: the same functions, which unpack the annex first. */
PyObject *annex_ssl(void);
PyObject *annex_unicodedata(void);
