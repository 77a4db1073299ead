/* Windows' vmcompute.dll, computenetwork.dll and ole32.dll, as far as our plugins call them.

   This is only the border: texts are UTF-16 with 16-bit units, GUIDs are structures, and what is
   handed out is counted until it is freed. Networks and endpoints are kept by the test
   (tests/harness/hns.py), which every function asks. One file makes each library: the macro says
   which. The test that CORE is loaded into owns the counters. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define API __attribute__((visibility("default")))
typedef uint16_t wchar;
typedef int32_t hresult;

struct reply {
    char *text;   /* UTF-8, or none; ours to free */
    char *record; /* the error record, likewise */
    void *handle;
};

extern hresult emulated_ask(const char *function, void *handle, const uint8_t *guid,
                            const wchar *const *texts, int count, struct reply *reply);
extern wchar *emulated_text(char *utf8);
extern void emulated_free(void *text);

#ifdef CORE
typedef hresult (*backend)(const char *function, void *handle, const char *guid,
                           const char *first, const char *second, const char *third,
                           struct reply *reply);
static backend answer;
static long live;
static long bad_frees;

static void *handed[4096];

API void emulated_backend(backend function) { answer = function; }
API long emulated_live(void) { return live; }
API long emulated_bad_frees(void) { return bad_frees; }
API char *emulated_string(const char *utf8) { return strdup(utf8); }

/* Strict: an unpaired surrogate is an error. */
static char *utf8_of(const wchar *text) {
    size_t length = 0, at = 0;
    while (text[length]) length++;
    char *out = malloc(length * 3 + 1);
    for (size_t i = 0; i < length; i++) {
        uint32_t c = text[i];
        if (c >= 0xD800 && c < 0xE000) {
            uint32_t low = i + 1 < length ? text[i + 1] : 0;
            if (c >= 0xDC00 || low < 0xDC00 || low >= 0xE000) {
                free(out);
                return NULL;
            }
            c = 0x10000 + ((c - 0xD800) << 10) + (low - 0xDC00);
            i++;
        }
        if (c < 0x80) out[at++] = (char)c;
        else if (c < 0x800) out[at++] = (char)(0xC0 | c >> 6), out[at++] = (char)(0x80 | (c & 63));
        else if (c < 0x10000) {
            out[at++] = (char)(0xE0 | c >> 12);
            out[at++] = (char)(0x80 | (c >> 6 & 63)), out[at++] = (char)(0x80 | (c & 63));
        } else {
            out[at++] = (char)(0xF0 | c >> 18), out[at++] = (char)(0x80 | (c >> 12 & 63));
            out[at++] = (char)(0x80 | (c >> 6 & 63)), out[at++] = (char)(0x80 | (c & 63));
        }
    }
    out[at] = 0;
    return out;
}

/* Frees `utf8`. */
API wchar *emulated_text(char *utf8) {
    if (!utf8) return NULL;
    size_t length = strlen(utf8), at = 0;
    wchar *out = malloc((length + 1) * sizeof *out);
    for (const uint8_t *p = (const uint8_t *)utf8; *p;) {
        uint32_t c = *p++;
        int more = c >= 0xF0 ? 3 : c >= 0xE0 ? 2 : c >= 0xC0 ? 1 : 0;
        if (more) c &= 0x3F >> more;
        while (more--) c = c << 6 | (*p++ & 0x3F);
        if (c >= 0x10000) {
            out[at++] = (wchar)(0xD800 + ((c - 0x10000) >> 10));
            out[at++] = (wchar)(0xDC00 + ((c - 0x10000) & 0x3FF));
        } else out[at++] = (wchar)c;
    }
    out[at++] = 0;
    free(utf8);
    out = realloc(out, at * sizeof *out);
    for (int i = 0; i < 4096; i++)
        if (!handed[i]) {
            handed[i] = out;
            live++;
            return out;
        }
    abort();
}

API void emulated_free(void *text) {
    if (!text) return;
    for (int i = 0; i < 4096; i++)
        if (handed[i] == text) {
            handed[i] = NULL;
            live--;
            free(text);
            return;
        }
    bad_frees++;
}

API hresult emulated_ask(const char *function, void *handle, const uint8_t *guid,
                         const wchar *const *texts, int count, struct reply *reply) {
    char *utf8[3] = {0}, hex[37] = "";
    hresult result = (hresult)0x80070057; /* a parameter is wrong */
    for (int i = 0; i < count; i++)
        if (!texts[i] || !(utf8[i] = utf8_of(texts[i]))) goto out;
    if (guid) {
        /* Three little-endian numbers and eight bytes, as in guiddef.h. */
        static const int order[] = {3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15};
        char *p = hex;
        for (int i = 0; i < 16; i++) {
            if (i == 4 || i == 6 || i == 8 || i == 10) *p++ = '-';
            *p++ = "0123456789abcdef"[guid[order[i]] >> 4];
            *p++ = "0123456789abcdef"[guid[order[i]] & 15];
        }
        *p = 0;
    }
    if (answer) result = answer(function, handle, hex, utf8[0], utf8[1], utf8[2], reply);
out:
    for (int i = 0; i < 3; i++) free(utf8[i]);
    return result;
}
#endif

#if defined(VMCOMPUTE) || defined(COMPUTENETWORK)
static hresult ask(const char *function, void *in, const void *guid, const wchar *const *texts,
                   int count, void **handle, wchar **text, wchar **record) {
    struct reply reply = {0};
    hresult result = emulated_ask(function, in, guid, texts, count, &reply);
    wchar *said = emulated_text(reply.text), *why = emulated_text(reply.record);
    if (handle) *handle = reply.handle;
    if (text) *text = said;
    else emulated_free(said);
    if (record) *record = why;
    else emulated_free(why);
    return result;
}
#define TEXTS(...) (const wchar *const[]){__VA_ARGS__}
#endif

#ifdef OLE32
API void CoTaskMemFree(void *text) { emulated_free(text); }
#endif

#ifdef VMCOMPUTE
API hresult HNSCall(const wchar *method, const wchar *path, const wchar *object, wchar **out) {
    return ask("HNSCall", 0, 0, TEXTS(method, path, object), 3, 0, out, 0);
}
API hresult HcsOpenComputeSystem(const wchar *id, void **system, wchar **record) {
    return ask("HcsOpenComputeSystem", 0, 0, TEXTS(id), 1, system, 0, record);
}
API hresult HcsModifyComputeSystem(void *system, const wchar *document, wchar **record) {
    return ask("HcsModifyComputeSystem", system, 0, TEXTS(document), 1, 0, 0, record);
}
API hresult HcsCloseComputeSystem(void *system) {
    return ask("HcsCloseComputeSystem", system, 0, 0, 0, 0, 0, 0);
}
#endif

#ifdef COMPUTENETWORK
#define KIND(kind) \
    API hresult HcnEnumerate##kind##s(const wchar *query, wchar **out, wchar **record) { \
        return ask("HcnEnumerate" #kind "s", 0, 0, TEXTS(query), 1, 0, out, record); \
    } \
    API hresult HcnOpen##kind(const void *id, void **handle, wchar **record) { \
        return ask("HcnOpen" #kind, 0, id, 0, 0, handle, 0, record); \
    } \
    API hresult HcnQuery##kind##Properties(void *handle, const wchar *query, wchar **out, \
                                           wchar **record) { \
        return ask("HcnQuery" #kind "Properties", handle, 0, TEXTS(query), 1, 0, out, record); \
    } \
    API hresult HcnModify##kind(void *handle, const wchar *document, wchar **record) { \
        return ask("HcnModify" #kind, handle, 0, TEXTS(document), 1, 0, 0, record); \
    } \
    API hresult HcnDelete##kind(const void *id, wchar **record) { \
        return ask("HcnDelete" #kind, 0, id, 0, 0, 0, 0, record); \
    } \
    API hresult HcnClose##kind(void *handle) { \
        return ask("HcnClose" #kind, handle, 0, 0, 0, 0, 0, 0); \
    }
KIND(Network)
KIND(Endpoint)
KIND(Namespace)
API hresult HcnCreateEndpoint(void *network, const void *id, const wchar *document, void **handle,
                              wchar **record) {
    return ask("HcnCreateEndpoint", network, id, TEXTS(document), 1, handle, 0, record);
}
#endif
