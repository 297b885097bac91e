/* module.c: vggnet._cuda, which opens the CUDA libraries and hands the backend's table to vggnet._C. vggnet/cuda.py uses it. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "host.h"

extern const struct vgg_backend vgg_cuda_backend;

PyDoc_STRVAR(open_doc, "open(cublas, cudnn)\n--\n\n"
                       "Find devices and open the libraries by their file names or paths.\n\n"
                       "Returns\n-------\n"
                       "str or None\n"
                       "    Why no device can be used.");

static PyObject *py_open(PyObject *module, PyObject *args)
{
    const char *cublas, *cudnn;
    char reason[256];
    (void)module;
    if (!PyArg_ParseTuple(args, "ss:open", &cublas, &cudnn))
        return NULL;
    const char *failure;
    PyThreadState *thread = PyEval_SaveThread();
    failure = vgg_cuda_open(cublas, cudnn, reason, sizeof reason);
    PyEval_RestoreThread(thread);
    if (!failure)
        Py_RETURN_NONE;
    return PyUnicode_FromString(failure);
}

PyDoc_STRVAR(capsule_doc, "backend_capsule()\n--\n\n"
                          "The table as a \"vggnet.backend\" capsule, for vggnet._C.register_backend.");

static PyObject *py_capsule(PyObject *module, PyObject *unused)
{
    (void)module, (void)unused;
    return PyCapsule_New((void *)(uintptr_t)&vgg_cuda_backend, "vggnet.backend", NULL);
}

PyDoc_STRVAR(symbols_doc, "symbols()\n--\n\n"
                          "Library and name of each function that is looked up at run time.");

static PyObject *py_symbols(PyObject *module, PyObject *unused)
{
    (void)module, (void)unused;
    PyObject *list = PyList_New(0);
    const char *library, *name;
    for (size_t i = 0; list && vgg_cuda_symbol(i, &library, &name); i++) {
        PyObject *pair = Py_BuildValue("(ss)", library, name);
        int failed = pair ? PyList_Append(list, pair) : -1;
        Py_XDECREF(pair);
        if (failed)
            Py_CLEAR(list);
    }
    return list;
}

PyDoc_STRVAR(set_stream_doc, "set_stream(device, stream)\n--\n\n"
                             "Make a cudaStream_t, as an int, the calling thread's on a device; returns the one before.");

static PyObject *py_set_stream(PyObject *module, PyObject *args)
{
    int device;
    PyObject *object;
    (void)module;
    if (!PyArg_ParseTuple(args, "iO:set_stream", &device, &object))
        return NULL;
    void *stream = PyLong_AsVoidPtr(object);
    if (!stream && PyErr_Occurred())
        return NULL;
    if (device < 0 || device >= vgg_cuda_count()) {
        PyErr_Format(PyExc_ValueError, "set_stream: device is %d; expected 0..%d", device, vgg_cuda_count() - 1);
        return NULL;
    }
    PyObject *before = PyLong_FromVoidPtr((void *)vgg_cuda_stream(device));
    if (before)
        vgg_cuda_set_stream(device, (cudaStream_t)stream);
    return before;
}

static PyMethodDef functions[] = {
    {"open", py_open, METH_VARARGS, open_doc},
    {"backend_capsule", py_capsule, METH_NOARGS, capsule_doc},
    {"symbols", py_symbols, METH_NOARGS, symbols_doc},
    {"set_stream", py_set_stream, METH_VARARGS, set_stream_doc},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot slots[] = {{0, NULL}};

static PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "vggnet._cuda",
    .m_doc = "The CUDA backend of vggnet.",
    .m_size = 0,
    .m_methods = functions,
    .m_slots = slots,
};

PyMODINIT_FUNC PyInit__cuda(void)
{
    return PyModuleDef_Init(&definition);
}
