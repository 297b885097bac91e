/* module.c: vggnet._cuda, which opens the CUDA libraries and hands the backend's table to vggnet._C. vggnet/cuda.py uses it. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "host.h"

extern const struct vgg_backend vgg_cuda_backend;

static PyObject *reason_or_none(const char *reason)
{
    if (!reason)
        Py_RETURN_NONE;
    return PyUnicode_DecodeLocale(reason, "surrogateescape");
}

PyDoc_STRVAR(find_devices_doc, "find_devices()\n--\n\n"
                               "Ask the driver for devices.\n\n"
                               "Returns\n-------\n"
                               "str or None\n"
                               "    Why there is none.");

static PyObject *py_find_devices(PyObject *module, PyObject *unused)
{
    int count;
    char reason[256];
    const char *failure;
    (void)module, (void)unused;
    PyThreadState *thread = PyEval_SaveThread();
    failure = vgg_cuda_find_devices(&count, reason, sizeof reason);
    PyEval_RestoreThread(thread);
    return reason_or_none(failure);
}

PyDoc_STRVAR(open_doc, "open(cublas, cudnn, nccl)\n--\n\n"
                       "Find devices and open the libraries by their file names or paths. NCCL's are the places where it may\n"
                       "be, one a line: it is opened when devices first average.\n\n"
                       "Returns\n-------\n"
                       "str or None\n"
                       "    Why no device can be used.");

static PyObject *py_open(PyObject *module, PyObject *args)
{
    const char *cublas, *cudnn, *nccl;
    char reason[256];
    (void)module;
    if (!PyArg_ParseTuple(args, "sss:open", &cublas, &cudnn, &nccl))
        return NULL;
    const char *failure;
    vgg_cuda_set_nccl(nccl);
    PyThreadState *thread = PyEval_SaveThread();
    failure = vgg_cuda_open(cublas, cudnn, reason, sizeof reason);
    PyEval_RestoreThread(thread);
    return reason_or_none(failure);
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

/* An index of a usable device, or a ValueError. */
static bool check_device(const char *op, int device)
{
    if (device < 0 || device >= vgg_cuda_device_count())
        PyErr_Format(PyExc_ValueError, "%s: device is %d; expected 0..%d", op, device, vgg_cuda_device_count() - 1);
    return device >= 0 && device < vgg_cuda_device_count();
}

static PyObject *raise_cuda(cudaError_t error, const char *what)
{
    (void)cudaGetLastError();
    return PyErr_Format(PyExc_RuntimeError, "%s: %s (%s)", what, cudaGetErrorString(error), cudaGetErrorName(error));
}

PyDoc_STRVAR(set_stream_doc, "set_stream(device, stream)\n--\n\n"
                             "Make a cudaStream_t, as an int, the calling thread's on a device; returns the one before, which\n"
                             "it waits for.");

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
    if (!check_device("set_stream", device))
        return NULL;
    struct vgg_error error;
    struct vgg_context context = {.backend = &vgg_cuda_backend, .device = device, .threads = 1, .error = &error};
    cudaStream_t before = vgg_cuda_current_stream(device);
    if (before != stream && vgg_cuda_wait(&context, device, stream, device, before) != VGG_OK) {
        PyErr_SetString(PyExc_RuntimeError, error.msg);
        return NULL;
    }
    vgg_cuda_set_stream(device, stream);
    return PyLong_FromVoidPtr((void *)before);
}

PyDoc_STRVAR(properties_doc,
             "properties(device)\n--\n\n"
             "What a device is.\n\n"
             "Returns\n-------\n"
             "dict\n"
             "    \"name\", \"capability\" (major, minor), \"multiprocessors\", \"clock\" in Hz, \"bandwidth\" in bytes a\n"
             "    second (of the memory's clock and width), \"memory\" in bytes, \"driver\" and \"runtime\" (CUDA's\n"
             "    versions, 1000 major + 10 minor).");

static PyObject *py_properties(PyObject *module, PyObject *args)
{
    static const enum cudaDeviceAttr attributes[] = {cudaDevAttrComputeCapabilityMajor, cudaDevAttrComputeCapabilityMinor,
                                                     cudaDevAttrMultiProcessorCount,    cudaDevAttrClockRate,
                                                     cudaDevAttrMemoryClockRate,        cudaDevAttrGlobalMemoryBusWidth};
    enum { COUNT = sizeof attributes / sizeof *attributes };
    static struct cudaDeviceProp properties; /* large; under the GIL */
    int device, value[COUNT], driver = 0, runtime = 0;
    (void)module;
    if (!PyArg_ParseTuple(args, "i:properties", &device) || !check_device("properties", device))
        return NULL;
    cudaError_t error = cudaGetDeviceProperties(&properties, device);
    for (int i = 0; i < COUNT && error == cudaSuccess; i++)
        error = cudaDeviceGetAttribute(&value[i], attributes[i], device);
    if (error == cudaSuccess)
        error = cudaDriverGetVersion(&driver);
    if (error == cudaSuccess)
        error = cudaRuntimeGetVersion(&runtime);
    if (error != cudaSuccess)
        return raise_cuda(error, "properties");
    return Py_BuildValue("{s:s,s:(ii),s:i,s:d,s:d,s:n,s:i,s:i}", "name", properties.name, "capability", value[0], value[1],
                         "multiprocessors", value[2], "clock", 1e3 * value[3], "bandwidth", 2e3 * value[4] * value[5] / 8,
                         "memory", (Py_ssize_t)properties.totalGlobalMem, "driver", driver, "runtime", runtime);
}

static void destroy_event(PyObject *capsule)
{
    (void)cudaEventDestroy(PyCapsule_GetPointer(capsule, "vggnet.event"));
}

PyDoc_STRVAR(record_doc, "record(device)\n--\n\n"
                         "A point in the calling thread's stream, for elapsed.");

static PyObject *py_record(PyObject *module, PyObject *args)
{
    int device;
    cudaEvent_t event;
    (void)module;
    if (!PyArg_ParseTuple(args, "i:record", &device) || !check_device("record", device))
        return NULL;
    cudaError_t error = cudaSetDevice(device);
    if (error == cudaSuccess)
        error = cudaEventCreate(&event);
    if (error != cudaSuccess)
        return raise_cuda(error, "record");
    error = cudaEventRecord(event, vgg_cuda_current_stream(device));
    PyObject *capsule =
        error == cudaSuccess ? PyCapsule_New(event, "vggnet.event", destroy_event) : raise_cuda(error, "record");
    if (!capsule)
        (void)cudaEventDestroy(event);
    return capsule;
}

PyDoc_STRVAR(elapsed_doc, "elapsed(begin, end)\n--\n\n"
                          "Seconds of the device between two points that record gave; waits for the later one.");

static PyObject *py_elapsed(PyObject *module, PyObject *args)
{
    PyObject *capsules[2];
    void *events[2];
    float ms = 0;
    (void)module;
    if (!PyArg_ParseTuple(args, "OO:elapsed", &capsules[0], &capsules[1]))
        return NULL;
    for (int i = 0; i < 2; i++)
        if (!(events[i] = PyCapsule_GetPointer(capsules[i], "vggnet.event")))
            return NULL;
    cudaError_t error;
    PyThreadState *thread = PyEval_SaveThread();
    error = cudaEventSynchronize(events[1]);
    if (error == cudaSuccess)
        error = cudaEventElapsedTime(&ms, events[0], events[1]);
    PyEval_RestoreThread(thread);
    return error == cudaSuccess ? PyFloat_FromDouble(1e-3 * (double)ms) : raise_cuda(error, "elapsed");
}

static PyObject *raise_error(const struct vgg_error *error)
{
    PyErr_SetString(error->status == VGG_OUT_OF_MEMORY      ? PyExc_MemoryError
                    : error->status == VGG_INVALID_ARGUMENT ? PyExc_ValueError
                                                            : PyExc_RuntimeError,
                    error->msg);
    return NULL;
}

/* ------------------------------------------------------------------------------------------------ CUDA graphs */

static const char capture_name[] = "vggnet.capture";

static void destroy_capture(PyObject *capsule)
{
    struct vgg_cuda_capture *c = PyCapsule_GetPointer(capsule, capture_name);
    PyThreadState *thread = PyEval_SaveThread();
    vgg_cuda_capture_free(c);
    PyEval_RestoreThread(thread);
    PyMem_Free(c);
}

PyDoc_STRVAR(capture_doc, "capture(device, function)\n--\n\n"
                          "Call it while what the calling thread queues on a device is recorded, and not done.\n\n"
                          "Returns\n-------\n"
                          "(capture, result)\n"
                          "    For replay, and what the function returned.");

static PyObject *py_capture(PyObject *module, PyObject *args)
{
    int device;
    PyObject *function;
    (void)module;
    if (!PyArg_ParseTuple(args, "iO:capture", &device, &function) || !check_device("capture", device))
        return NULL;
    struct vgg_cuda_capture *c = PyMem_Calloc(1, sizeof *c);
    if (!c)
        return PyErr_NoMemory();
    c->device = device;
    PyObject *capsule = PyCapsule_New(c, capture_name, destroy_capture);
    if (!capsule) {
        PyMem_Free(c);
        return NULL;
    }
    struct vgg_error error;
    struct vgg_context context = {.backend = &vgg_cuda_backend, .device = device, .threads = 1, .error = &error};
    if (vgg_cuda_capture_begin(&context, c) != VGG_OK) {
        Py_DECREF(capsule);
        return raise_error(&error);
    }
    PyObject *result = PyObject_CallNoArgs(function);
    enum vgg_status status = vgg_cuda_capture_end(&context, c);
    if (result && status != VGG_OK) { /* after an exception it may be spoilt, which is no news */
        Py_CLEAR(result);
        raise_error(&error);
    }
    PyObject *pair = result ? Py_BuildValue("(OO)", capsule, result) : NULL;
    Py_XDECREF(result);
    Py_DECREF(capsule);
    return pair;
}

PyDoc_STRVAR(capturing_doc, "capturing(device)\n--\n\n"
                            "Whether the calling thread's function is being captured.");

static PyObject *py_capturing(PyObject *module, PyObject *args)
{
    int device;
    (void)module;
    if (!PyArg_ParseTuple(args, "i:capturing", &device) || !check_device("capturing", device))
        return NULL;
    return PyBool_FromLong(vgg_cuda_capturing(device));
}

PyDoc_STRVAR(replay_doc, "replay(capture, /)\n--\n\n"
                         "Queue on the calling thread's stream what was recorded.");

static PyObject *py_replay(PyObject *module, PyObject *capsule)
{
    (void)module;
    struct vgg_cuda_capture *c = PyCapsule_GetPointer(capsule, capture_name);
    if (!c)
        return NULL;
    struct vgg_error error;
    struct vgg_context context = {.backend = &vgg_cuda_backend, .device = c->device, .threads = 1, .error = &error};
    enum vgg_status status;
    PyThreadState *thread = PyEval_SaveThread();
    status = vgg_cuda_capture_replay(&context, c);
    PyEval_RestoreThread(thread);
    if (status != VGG_OK)
        return raise_error(&error);
    Py_RETURN_NONE;
}

/* ------------------------------------------------------------------------------------------------ NCCL: vggnet/nccl.py */

PyDoc_STRVAR(nccl_id_doc, "nccl_id()\n--\n\n"
                          "A new id for open_communicator, as bytes.");

static PyObject *py_nccl_id(PyObject *module, PyObject *unused)
{
    char id[VGG_CUDA_NCCL_ID_BYTES];
    struct vgg_error error;
    struct vgg_context context = {.backend = &vgg_cuda_backend, .device = 0, .threads = 1, .error = &error};
    enum vgg_status status;
    (void)module, (void)unused;
    PyThreadState *thread = PyEval_SaveThread();
    status = vgg_cuda_nccl_id(&context, id);
    PyEval_RestoreThread(thread);
    return status == VGG_OK ? PyBytes_FromStringAndSize(id, sizeof id) : raise_error(&error);
}

static const char communicator_name[] = "vggnet.communicator";

static struct vgg_cuda_communicator *communicator_of(PyObject *capsule)
{
    return PyCapsule_GetPointer(capsule, communicator_name);
}

static void destroy_communicator(PyObject *capsule)
{
    struct vgg_cuda_communicator *c = communicator_of(capsule);
    PyThreadState *thread = PyEval_SaveThread();
    if (c->count)
        vgg_cuda_communicator_close(c);
    PyEval_RestoreThread(thread);
    PyMem_Free(c);
}

PyDoc_STRVAR(open_communicator_doc, "open_communicator(id, rank, size, device)\n--\n\n"
                                    "One rank of a communicator; returns when every rank has called it.");

static PyObject *py_open_communicator(PyObject *module, PyObject *args)
{
    const char *id;
    Py_ssize_t id_bytes;
    int rank, size, device;
    (void)module;
    if (!PyArg_ParseTuple(args, "y#iii:open_communicator", &id, &id_bytes, &rank, &size, &device) ||
        !check_device("open_communicator", device))
        return NULL;
    if (id_bytes != VGG_CUDA_NCCL_ID_BYTES)
        return PyErr_Format(PyExc_ValueError, "open_communicator: id has %zd bytes; expected the %d of nccl_id", id_bytes,
                            (int)VGG_CUDA_NCCL_ID_BYTES);
    struct vgg_cuda_communicator *c = PyMem_Malloc(sizeof *c);
    if (!c)
        return PyErr_NoMemory();
    struct vgg_error error;
    struct vgg_context context = {.backend = &vgg_cuda_backend, .device = device, .threads = 1, .error = &error};
    enum vgg_status status;
    PyThreadState *thread = PyEval_SaveThread();
    status = vgg_cuda_communicator_open(&context, c, id, &device, 1, rank, size);
    PyEval_RestoreThread(thread);
    if (status != VGG_OK) {
        PyMem_Free(c);
        return raise_error(&error);
    }
    PyObject *capsule = PyCapsule_New(c, communicator_name, destroy_communicator);
    if (!capsule) {
        vgg_cuda_communicator_close(c);
        PyMem_Free(c);
    }
    return capsule;
}

/* The event after which what the communicator was given to do is done, and the thread's stream waits for it. */
static enum vgg_status record_mean(struct vgg_context *ctx, const struct vgg_cuda_communicator *c, cudaEvent_t *event)
{
    CUDA_TRY(ctx, cudaSetDevice(ctx->device));
    CUDA_TRY(ctx, cudaEventCreateWithFlags(event, cudaEventDisableTiming));
    cudaError_t error = cudaEventRecord(*event, c->local[0].stream);
    if (error != cudaSuccess)
        (void)cudaEventDestroy(*event);
    CUDA_TRY(ctx, error);
    return VGG_OK;
}

PyDoc_STRVAR(start_mean_doc,
             "start_mean(communicator, tensors, weights)\n--\n\n"
             "Queue the weighted mean over the ranks of tensors, given as pairs of address and number of floats;\n"
             "returns an event for finished.");

static PyObject *py_start_mean(PyObject *module, PyObject *args)
{
    PyObject *capsule, *tensors, *weights, *result = NULL;
    double weight[VGG_CUDA_MAX_DEVICES];
    (void)module;
    if (!PyArg_ParseTuple(args, "OO!O!:start_mean", &capsule, &PyTuple_Type, &tensors, &PyTuple_Type, &weights))
        return NULL;
    struct vgg_cuda_communicator *c = communicator_of(capsule);
    if (!c)
        return NULL;
    if (PyTuple_Size(weights) != c->size)
        return PyErr_Format(PyExc_ValueError, "start_mean: %zd weights; expected %d", PyTuple_Size(weights), c->size);
    for (int d = 0; d < c->size; d++)
        weight[d] = PyFloat_AsDouble(PyTuple_GetItem(weights, d));
    if (PyErr_Occurred())
        return NULL;
    size_t count = (size_t)PyTuple_Size(tensors);
    float **pointers = PyMem_Calloc(count + 1, sizeof *pointers);
    size_t *sizes = PyMem_Calloc(count + 1, sizeof *sizes);
    if (!pointers || !sizes) {
        PyErr_NoMemory();
        goto done;
    }
    for (size_t t = 0; t < count; t++) {
        unsigned long long address;
        Py_ssize_t size;
        if (!PyArg_ParseTuple(PyTuple_GetItem(tensors, (Py_ssize_t)t), "Kn", &address, &size))
            goto done;
        pointers[t] = (float *)(uintptr_t)address;
        sizes[t] = (size_t)size;
    }
    struct vgg_error error;
    struct vgg_context context = {.backend = &vgg_cuda_backend, .device = c->local[0].device, .threads = 1, .error = &error};
    cudaEvent_t event = NULL;
    enum vgg_status status;
    PyThreadState *thread = PyEval_SaveThread();
    status = vgg_cuda_communicator_mean(&context, c, pointers, sizes, count, weight);
    if (status == VGG_OK)
        status = record_mean(&context, c, &event);
    PyEval_RestoreThread(thread);
    result = status == VGG_OK ? PyCapsule_New(event, "vggnet.event", destroy_event) : raise_error(&error);
    if (!result && status == VGG_OK)
        (void)cudaEventDestroy(event);
done:
    PyMem_Free(sizes);
    PyMem_Free(pointers);
    return result;
}

PyDoc_STRVAR(finished_doc,
             "finished(communicator, event)\n--\n\n"
             "Whether what start_mean queued is done; a RuntimeError when something went wrong, here or elsewhere.");

static PyObject *py_finished(PyObject *module, PyObject *args)
{
    PyObject *communicator, *capsule;
    (void)module;
    if (!PyArg_ParseTuple(args, "OO:finished", &communicator, &capsule))
        return NULL;
    struct vgg_cuda_communicator *c = communicator_of(communicator);
    cudaEvent_t event = PyCapsule_GetPointer(capsule, "vggnet.event");
    if (PyErr_Occurred())
        return NULL;
    struct vgg_error error;
    struct vgg_context context = {.backend = &vgg_cuda_backend, .device = c->local[0].device, .threads = 1, .error = &error};
    enum vgg_status status;
    PyThreadState *thread = PyEval_SaveThread();
    cudaError_t asked = cudaEventQuery(event);
    if (asked == cudaErrorNotReady)
        (void)cudaGetLastError();
    status = asked == cudaSuccess || asked == cudaErrorNotReady ? vgg_cuda_communicator_check(&context, c)
                                                                : vgg_cuda_fail(&context, asked, "an average");
    PyEval_RestoreThread(thread);
    return status == VGG_OK ? PyBool_FromLong(asked == cudaSuccess) : raise_error(&error);
}

PyDoc_STRVAR(abort_doc, "abort(communicator)\n--\n\n"
                        "End what is under way; from any thread.");

static PyObject *py_abort(PyObject *module, PyObject *capsule)
{
    (void)module;
    struct vgg_cuda_communicator *c = communicator_of(capsule);
    if (!c)
        return NULL;
    PyThreadState *thread = PyEval_SaveThread();
    vgg_cuda_communicator_abort(c);
    PyEval_RestoreThread(thread);
    Py_RETURN_NONE;
}

static PyMethodDef functions[] = {
    {"find_devices", py_find_devices, METH_NOARGS, find_devices_doc},
    {"open", py_open, METH_VARARGS, open_doc},
    {"backend_capsule", py_capsule, METH_NOARGS, capsule_doc},
    {"symbols", py_symbols, METH_NOARGS, symbols_doc},
    {"set_stream", py_set_stream, METH_VARARGS, set_stream_doc},
    {"properties", py_properties, METH_VARARGS, properties_doc},
    {"record", py_record, METH_VARARGS, record_doc},
    {"elapsed", py_elapsed, METH_VARARGS, elapsed_doc},
    {"capture", py_capture, METH_VARARGS, capture_doc},
    {"capturing", py_capturing, METH_VARARGS, capturing_doc},
    {"replay", py_replay, METH_O, replay_doc},
    {"nccl_id", py_nccl_id, METH_NOARGS, nccl_id_doc},
    {"open_communicator", py_open_communicator, METH_VARARGS, open_communicator_doc},
    {"start_mean", py_start_mean, METH_VARARGS, start_mean_doc},
    {"finished", py_finished, METH_VARARGS, finished_doc},
    {"abort", py_abort, METH_O, abort_doc},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot slots[] = {{0, NULL}};

static PyModuleDef definition = {
    .m_base = PyModuleDef_HEAD_INIT,
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
