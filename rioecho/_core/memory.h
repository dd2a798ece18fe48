/* Memory: the last byte of a value in it, mapped pages, and bytes objects that are filled before anybody sees them. */
#ifndef RIOECHO_MEMORY_H
#define RIOECHO_MEMORY_H

#include "compat.h"

/* Find the last byte of this value, as memrchr(3) does, which not every system has. */
static inline const void *rio_memrchr(const void *data, int byte, size_t n)
{
#ifdef __linux__
    return memrchr(data, byte, n);
#else
    const unsigned char *p = (const unsigned char *)data + n;
    while (p != (const unsigned char *)data)
        if (*--p == (unsigned char)byte)
            return p;
    return NULL;
#endif
}

#ifndef MAP_ANONYMOUS
#define MAP_ANONYMOUS MAP_ANON
#endif

/* Memory mapped in whole pages. Freeing it returns it to the system at once, whereas malloc keeps what is freed below
 * the top of its heap. RIO_MAPPED(n) is the minimum size in bytes to map: with AddressSanitizer, which checks only
 * malloc's memory, nothing is mapped. */
#ifdef __SANITIZE_ADDRESS__
#define RIO_ADDRESS_SANITIZER
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) /* clang */
#define RIO_ADDRESS_SANITIZER
#endif
#endif
#ifdef RIO_ADDRESS_SANITIZER
#define RIO_MAPPED(n) SIZE_MAX
#else
#define RIO_MAPPED(n) ((size_t)(n))
#endif

static inline char *rio_pages_get(size_t n)
{
    void *data = mmap(NULL, n, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return data == MAP_FAILED ? NULL : (char *)data;
}

static inline void rio_pages_give(char *data, size_t n)
{
    (void)munmap(data, n);
}

/* Resize a mapping. Returns NULL, with the mapping unchanged, if there is no memory. */
static inline char *rio_pages_resize(char *data, size_t before, size_t n)
{
#ifdef MREMAP_MAYMOVE /* Linux: no byte is copied */
    void *moved = mremap(data, before, n, MREMAP_MAYMOVE);
    return moved == MAP_FAILED ? NULL : (char *)moved;
#else
    char *moved = rio_pages_get(n);
    if (moved != NULL) {
        memcpy(moved, data, before < n ? before : n);
        rio_pages_give(data, before);
    }
    return moved;
#endif
}

/* Bytes objects as memory: a result is filled before anybody sees it. Its only reference is then represented by the
 * address of its bytes, which these functions take and return. They need the GIL. */

static inline PyObject *rio_bytes_object(char *data)
{
    return (PyObject *)(data - offsetof(PyBytesObject, ob_sval));
}

/* Release the object. */
static inline void rio_bytes_give(char *data)
{
    Py_DECREF(rio_bytes_object(data));
}

/* Hand over the reference that a pointer represents. Cython counts one more for any other pointer that becomes an
 * object, and drops the first one again: of the few instructions of a call that finds its bytes, that is many. NULL
 * stands for an exception that is set. */
static inline PyObject *rio_taken(PyObject *object)
{
    return object;
}

/* Truncate the object to n bytes without resizing its memory. */
static inline void rio_bytes_end(char *data, Py_ssize_t n)
{
    Py_SET_SIZE((PyVarObject *)rio_bytes_object(data), n);
    data[n] = '\0';
}

/* Resize the object to n bytes. Returns the new address; NULL, with the object unchanged, if there is no memory
 * (_PyBytes_Resize would free it). */
static inline char *rio_bytes_resize(char *data, Py_ssize_t n)
{
#ifdef Py_TRACE_REFS
    (void)data, (void)n; /* this build keeps all objects in a list, so they must not move */
    return NULL;
#else
    size_t size = offsetof(PyBytesObject, ob_sval) + (size_t)n + 1;
    PyObject *resized = (PyObject *)PyObject_Realloc(rio_bytes_object(data), size);
    if (resized == NULL)
        return NULL;
    data = PyBytes_AS_STRING(resized);
    rio_bytes_end(data, n);
    return data;
#endif
}

#endif
