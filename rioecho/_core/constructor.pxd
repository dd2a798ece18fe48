# The name of a class in the TypeErrors of its constructor: Rio() takes ..., where Cython says __cinit__() takes ...

cdef extern from *:
    """
    static newfunc rio_cython_new; /* of the one class of this module */

    /* Put the name of the class in front of the pending TypeError in place of Cython's name. */
    static void rio_name_error(PyTypeObject *type)
    {
        static const char cython[] = "__cinit__";
        const char *name = strrchr(type->tp_name, '.');
        PyObject *kind, *error, *trace, *text = NULL, *named = NULL;
        const char *message;
        PyErr_Fetch(&kind, &error, &trace);
        if (error != NULL && (text = PyObject_Str(error)) != NULL && (message = PyUnicode_AsUTF8(text)) != NULL
            && strncmp(message, cython, sizeof cython - 1) == 0)
            named = PyUnicode_FromFormat("%s%s", name == NULL ? type->tp_name : name + 1, message + sizeof cython - 1);
        PyErr_Clear();
        if (named == NULL)
            PyErr_Restore(kind, error, trace);
        else {
            PyErr_SetObject(PyExc_TypeError, named);
            Py_DECREF(named);
            Py_XDECREF(kind);
            Py_XDECREF(error);
            Py_XDECREF(trace);
        }
        Py_XDECREF(text);
    }

    static PyObject *rio_named_new(PyTypeObject *type, PyObject *arguments, PyObject *options)
    {
        PyObject *made = rio_cython_new(type, arguments, options);
        if (made == NULL && PyErr_ExceptionMatches(PyExc_TypeError))
            rio_name_error(type);
        return made;
    }

    static void rio_name_constructor(PyObject *type)
    {
        PyTypeObject *named = (PyTypeObject *)type;
        if (named->tp_new != rio_named_new) { /* else the module is executed again */
            rio_cython_new = named->tp_new;
            named->tp_new = rio_named_new;
        }
    }
    """
    # Call it once, after the definition of the class: one of a module, since the original is remembered here.
    void name_constructor "rio_name_constructor"(object type)
