/* A libFuzzer program that runs a target of tests/fuzz/targets.py, named by RIOECHO_FUZZ_TARGET, in an embedded Python.
 *
 * The extension modules are built with RIOECHO_BUILD=fuzz: they report to libFuzzer, in this program, which branches
 * an input takes. What a target raises is printed and aborts, so that libFuzzer keeps the input. .ci/steps/fuzz builds
 * and runs it; PYTHONPATH names the folders of the installed package and of the tests.
 */
#include <Python.h>

#include <stdint.h>
#include <stdlib.h>

static PyObject *target;

static void fail(void)
{
    PyErr_Print();
    abort();
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    const char *name = getenv("RIOECHO_FUZZ_TARGET");
    PyObject *module, *targets;
    PyConfig config;
    PyStatus status;

    (void)argc;
    (void)argv;
    PyConfig_InitPythonConfig(&config);
    config.parse_argv = 0;             /* the arguments are libFuzzer's */
    config.install_signal_handlers = 0; /* so are SIGINT and SIGTERM */
    status = Py_InitializeFromConfig(&config);
    PyConfig_Clear(&config);
    if (PyStatus_Exception(status))
        Py_ExitStatusException(status);
    module = PyImport_ImportModule("fuzz.targets");
    targets = module ? PyObject_GetAttrString(module, "TARGETS") : NULL;
    target = targets ? PyMapping_GetItemString(targets, name ? name : "") : NULL;
    if (target == NULL)
        fail();
    Py_DECREF(targets);
    Py_DECREF(module);
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    PyObject *input = PyBytes_FromStringAndSize((const char *)data, (Py_ssize_t)size);
    PyObject *result = input ? PyObject_CallOneArg(target, input) : NULL;

    if (result == NULL)
        fail();
    Py_DECREF(result);
    Py_DECREF(input);
    return 0;
}
