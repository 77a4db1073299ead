/* The beginning of the annex, which annex.ld puts at its address. See annex.c. */

#include "Python.h"
#include "annex.h"

extern PyObject *PyInit__ssl(void);
extern PyObject *PyInit_unicodedata(void);

__attribute__((section(".annex_modules"), used)) const struct annex_modules cni_annex_modules = {
    .ssl = PyInit__ssl,
    .unicodedata = PyInit_unicodedata,
};
