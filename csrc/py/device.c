/* device.c: device names, the backends of this module, and the functions about the machine. */
#include "py.h"

/* ------------------------------------------------------------------------------------------------ backends */

bool vggpy_register_backend(struct vgg_state *state, const struct vgg_backend *backend)
{
    /* "No entry may be NULL": device_count and all after it are pointers to functions. */
    static const char zero[sizeof(void (*)(void))];
    for (size_t at = offsetof(struct vgg_backend, device_count); at < sizeof(*backend); at += sizeof(zero))
        if (memcmp((const char *)backend + at, zero, sizeof(zero)) == 0) {
            PyErr_Format(PyExc_ValueError, "register_backend: the table has a NULL entry at byte %zu", at);
            return false;
        }
    if (!backend->name || !backend->name[0] || strchr(backend->name, ':')) {
        PyErr_SetString(PyExc_ValueError, "register_backend: the table's name is empty or has a colon");
        return false;
    }
    for (int i = 0; i < state->backend_count; i++)
        if (strcmp(state->backends[i]->name, backend->name) == 0) {
            PyErr_Format(PyExc_ValueError, "register_backend: \"%s\" is registered already", backend->name);
            return false;
        }
    if (state->backend_count == VGGPY_MAX_BACKENDS) {
        PyErr_Format(PyExc_ValueError, "register_backend: there are %d backends already", VGGPY_MAX_BACKENDS);
        return false;
    }
    state->backends[state->backend_count++] = backend;
    return true;
}

PyObject *vggpy_device_name(struct device device)
{
    if (device.backend == &vgg_cpu_backend && device.index == 0)
        return PyUnicode_FromString("cpu");
    return PyUnicode_FromFormat("%s:%d", device.backend->name, device.index);
}

/* Of the CPU's devices, which are there on any machine, only the first. */
static PyObject *device_list(const struct vgg_state *state)
{
    PyObject *list = PyList_New(0);
    for (int b = 0; list && b < state->backend_count; b++) {
        const struct vgg_backend *backend = state->backends[b];
        int count = backend == &vgg_cpu_backend ? 1 : backend->device_count();
        for (int i = 0; i < count; i++) {
            PyObject *name = vggpy_device_name((struct device){backend, i});
            int failed = name ? PyList_Append(list, name) : -1;
            Py_XDECREF(name);
            if (failed) {
                Py_DECREF(list);
                return NULL;
            }
        }
    }
    return list;
}

/* Looks the device up among the registered backends. */
static bool find_device(const struct vgg_state *state, const char *name, size_t length, long index, struct device *device)
{
    for (int i = 0; i < state->backend_count; i++) {
        const struct vgg_backend *backend = state->backends[i];
        if (strlen(backend->name) == length && memcmp(backend->name, name, length) == 0 && index < backend->device_count()) {
            *device = (struct device){backend, (int)index};
            return true;
        }
    }
    return false;
}

/* CUDA's backend is opened and registered by vggnet/cuda.py when it is first asked for. */
static bool require_cuda(void)
{
    PyObject *module = PyImport_ImportModule("vggnet.cuda");
    PyObject *result = module ? PyObject_CallMethod(module, "require", NULL) : NULL;
    Py_XDECREF(module);
    Py_XDECREF(result);
    return result != NULL;
}

bool vggpy_device_find(const struct vgg_state *state, const char *name, size_t length, long index, struct device *device)
{
    if (find_device(state, name, length, index, device))
        return true;
    if (length != 4 || memcmp(name, "cuda", 4) != 0)
        return false;
    return require_cuda() && find_device(state, name, length, index, device);
}

bool vggpy_device_parse(const struct vgg_state *state, const char *name, struct device *device)
{
    const char *colon = strchr(name, ':');
    size_t length = colon ? (size_t)(colon - name) : strlen(name);
    long index = 0;
    bool valid = true;
    if (colon) { /* digits only: strtol would take spaces and signs */
        size_t digits = strspn(colon + 1, "0123456789");
        valid = digits >= 1 && digits <= 4 && colon[1 + digits] == '\0';
        index = valid ? strtol(colon + 1, NULL, 10) : 0;
    }
    if (valid && vggpy_device_find(state, name, length, index, device))
        return true;
    if (PyErr_Occurred())
        return false;
    PyObject *list = device_list(state);
    if (list)
        PyErr_Format(PyExc_ValueError, "device is \"%s\"; expected one of %R, or \"cpu:N\" with N below %d", name, list,
                     VGG_CPU_DEVICES);
    Py_XDECREF(list);
    return false;
}

static int threads_of(struct device device)
{
    return vgg_get_num_threads(device.backend == &vgg_cpu_backend ? device.index : VGG_EVERY_DEVICE);
}

struct vgg_context vggpy_context(struct device device, struct vgg_error *error)
{
    return (struct vgg_context){
        .backend = device.backend,
        .device = device.index,
        .threads = threads_of(device),
        .error = error,
    };
}

bool vggpy_transfer(const struct vgg_state *state, struct device device, enum transfer kind, void *to, const void *from,
                    size_t bytes)
{
    if (bytes == 0)
        return true;
    struct vgg_error error = {.status = VGG_OK};
    struct vgg_context context = vggpy_context(device, &error);
    enum vgg_status status = VGG_OK;
    PyThreadState *thread = PyEval_SaveThread();
    switch (kind) {
    case UPLOAD: status = device.backend->upload(&context, to, from, bytes); break;
    case DOWNLOAD: status = device.backend->download(&context, to, from, bytes); break;
    }
    PyEval_RestoreThread(thread);
    return status == VGG_OK ? true : vggpy_raise(state, &error);
}

bool vggpy_convert(const struct vgg_state *state, struct device device, void *to, enum vgg_dtype to_dtype, const void *from,
                   size_t count)
{
    struct vgg_error error = {.status = VGG_OK};
    struct vgg_context context = vggpy_context(device, &error);
    PyThreadState *thread = PyEval_SaveThread();
    enum vgg_status status = device.backend->convert(&context, to, to_dtype, from, count);
    PyEval_RestoreThread(thread);
    return status == VGG_OK ? true : vggpy_raise(state, &error);
}

bool vggpy_copy(const struct vgg_state *state, struct device device, void *to, struct device from_device, const void *from,
                size_t bytes)
{
    if (bytes == 0)
        return true;
    if (from_device.backend == device.backend) {
        struct vgg_error error = {.status = VGG_OK};
        struct vgg_context context = vggpy_context(device, &error);
        PyThreadState *thread = PyEval_SaveThread();
        enum vgg_status status = device.backend->copy(&context, to, from, from_device.index, bytes);
        PyEval_RestoreThread(thread);
        return status == VGG_OK ? true : vggpy_raise(state, &error);
    }
    if (from_device.backend->host)
        return vggpy_transfer(state, device, UPLOAD, to, from, bytes);
    if (device.backend->host)
        return vggpy_transfer(state, from_device, DOWNLOAD, to, from, bytes);
    /* Two kinds of accelerators: by way of the host. */
    struct storage *host = vggpy_storage_new(state, (struct device){state->backends[0], 0}, bytes);
    bool done = host && vggpy_transfer(state, from_device, DOWNLOAD, host->data, from, bytes) &&
                vggpy_transfer(state, device, UPLOAD, to, host->data, bytes);
    Py_XDECREF((PyObject *)host);
    return done;
}

/* ------------------------------------------------------------------------------------------------ Python functions */

PyDoc_STRVAR(devices_doc,
             "devices()\n--\n\n"
             "The names that device= takes, [\"cpu\", ...].\n\n"
             "Of the CPU the first alone: \"cpu:1\" to \"cpu:63\" are devices too, which share the memory of \"cpu\"\n"
             "(= \"cpu:0\") but have threads of their own; see set_num_threads.");

static PyObject *py_devices(PyObject *module, PyObject *unused)
{
    (void)unused;
    return device_list(vggpy_state(module));
}

PyDoc_STRVAR(memory_stats_doc, "memory_stats(device='cpu')\n--\n\n"
                               "What tensors and workspaces of a device hold; the CPU's devices share one memory.\n\n"
                               "Returns\n-------\n"
                               "dict\n"
                               "    \"current\" and \"peak\" in bytes, exactly as asked for (no rounding),\n"
                               "    \"allocations\", the number of allocations since the start, and of devices that tell,\n"
                               "    \"free\" and \"total\", bytes of the device whoever uses them.");

static PyObject *py_memory_stats(PyObject *module, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"device", NULL};
    const char *name = "cpu";
    struct device device;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|s:memory_stats", names, &name) ||
        !vggpy_device_parse(vggpy_state(module), name, &device))
        return NULL;
    struct vgg_memory_stats stats = {0};
    device.backend->memory_stats(device.index, &stats);
    PyObject *dict = Py_BuildValue("{s:n,s:n,s:n}", "current", (Py_ssize_t)stats.current_bytes, "peak",
                                   (Py_ssize_t)stats.peak_bytes, "allocations", (Py_ssize_t)stats.allocations);
    PyObject *device_bytes = dict && stats.total_bytes ? Py_BuildValue("{s:n,s:n}", "free", (Py_ssize_t)stats.free_bytes,
                                                                       "total", (Py_ssize_t)stats.total_bytes)
                                                       : NULL;
    if (device_bytes && PyDict_Update(dict, device_bytes) < 0)
        Py_CLEAR(dict);
    else if (stats.total_bytes && !device_bytes)
        Py_CLEAR(dict);
    Py_XDECREF(device_bytes);
    return dict;
}

PyDoc_STRVAR(keep_memory_doc, "keep_memory(on, /)\n--\n\n"
                              "Keep the CPU's memory that is given back, for vggnet.memory.kept.\n\n"
                              "From the first True to the last False it serves the next request of as many bytes.");

static PyObject *py_keep_memory(PyObject *module, PyObject *on)
{
    (void)module;
    int truth = PyObject_IsTrue(on);
    if (truth < 0)
        return NULL;
    vgg_keep_large(truth);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(reset_peak_doc, "reset_peak_memory(device='cpu')\n--\n\n"
                             "Make memory_stats(device)[\"peak\"] equal to \"current\".");

static PyObject *py_reset_peak(PyObject *module, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"device", NULL};
    const char *name = "cpu";
    struct device device;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|s:reset_peak_memory", names, &name) ||
        !vggpy_device_parse(vggpy_state(module), name, &device))
        return NULL;
    device.backend->reset_peak(device.index);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(register_backend_doc,
             "register_backend(capsule, /)\n--\n\n"
             "Add a device: a PyCapsule named \"vggnet.backend\" with a struct vgg_backend (csrc/vgg.h).\n\n"
             "Raises\n------\n"
             "ValueError\n"
             "    If the table has a NULL entry or its name is taken.");

static PyObject *py_register_backend(PyObject *module, PyObject *capsule)
{
    struct vgg_state *state = vggpy_state(module);
    if (!PyCapsule_IsValid(capsule, "vggnet.backend")) {
        PyErr_SetString(PyExc_TypeError, "register_backend: expected a PyCapsule named \"vggnet.backend\"");
        return NULL;
    }
    /* The capsule first: a table in use whose owner is gone would be the worse failure. */
    if (PyList_Append(state->capsules, capsule) < 0)
        return NULL;
    if (!vggpy_register_backend(state, PyCapsule_GetPointer(capsule, "vggnet.backend"))) {
        Py_ssize_t count = PyList_Size(state->capsules);
        PyObject *type, *value, *traceback; /* deleting from a list must not see an exception */
        PyErr_Fetch(&type, &value, &traceback);
        PyList_SetSlice(state->capsules, count - 1, count, NULL);
        PyErr_Restore(type, value, traceback);
        return NULL;
    }
    Py_RETURN_NONE;
}

PyDoc_STRVAR(cpu_backend_doc, "cpu_backend_capsule()\n--\n\n"
                              "The CPU's table as a \"vggnet.backend\" capsule: what another backend can be built around.");

static PyObject *py_cpu_backend(PyObject *module, PyObject *unused)
{
    (void)module, (void)unused;
    return PyCapsule_New((void *)(uintptr_t)&vgg_cpu_backend, "vggnet.backend", NULL);
}

PyDoc_STRVAR(set_num_threads_doc,
             "set_num_threads(n, device=None)\n--\n\n"
             "Use at most n threads in the CPU's operations. Results do not depend on it.\n\n"
             "Parameters\n----------\n"
             "n : int\n"
             "    1 to 1024.\n"
             "device : str, optional\n"
             "    A CPU device, as \"cpu:1\", to set its share alone; None sets every device's, also those\n"
             "    that were set alone before.\n\n"
             "Raises\n------\n"
             "ValueError\n"
             "    If n is out of bounds, or device is not the CPU's.\n\n"
             "Notes\n-----\n"
             "Each CPU device has threads of its own, so operations on two of them, called from two threads\n"
             "of Python, run in parallel on as many cores as their shares add up to.\n\n"
             "Examples\n--------\n"
             ">>> import vggnet as vgg\n"
             ">>> vgg.set_num_threads(1, \"cpu:1\")\n"
             ">>> vgg.get_num_threads(\"cpu:1\")\n"
             "1\n"
             ">>> vgg.set_num_threads(vgg.get_num_threads())\n");

/* The device whose threads are meant; name may be NULL. */
static bool parse_cpu(const struct vgg_state *state, const char *op, const char *name, int *index)
{
    *index = VGG_EVERY_DEVICE;
    struct device device;
    if (!name)
        return true;
    if (!vggpy_device_parse(state, name, &device))
        return false;
    if (device.backend != &vgg_cpu_backend) {
        PyErr_Format(PyExc_ValueError, "%s: device is \"%s\"; expected a CPU device, as \"cpu:1\", or None for all of them", op,
                     name);
        return false;
    }
    *index = device.index;
    return true;
}

static PyObject *py_set_num_threads(PyObject *module, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"n", "device", NULL};
    PyObject *object;
    const char *name = NULL;
    uint64_t n;
    int index;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|z:set_num_threads", names, &object, &name) ||
        !vggpy_uint(object, "set_num_threads", "n", 1024, &n) ||
        !parse_cpu(vggpy_state(module), "set_num_threads", name, &index))
        return NULL;
    if (n == 0) {
        PyErr_SetString(PyExc_ValueError, "set_num_threads: n is 0; expected 1 or more");
        return NULL;
    }
    vgg_set_num_threads((int)n, index);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(get_num_threads_doc,
             "get_num_threads(device=None)\n--\n\n"
             "How many threads operations on a CPU device may use; None: what was set for every device.\n\n"
             "The default is VGGNET_NUM_THREADS, else the CPUs that this process may run on.");

static PyObject *py_get_num_threads(PyObject *module, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"device", NULL};
    const char *name = NULL;
    int index;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|z:get_num_threads", names, &name) ||
        !parse_cpu(vggpy_state(module), "get_num_threads", name, &index))
        return NULL;
    return PyLong_FromLong(vgg_get_num_threads(index));
}

PyDoc_STRVAR(kernels_doc,
             "kernels()\n--\n\n"
             "The table of CPU kernels.\n\n"
             "Returns\n-------\n"
             "list of dict\n"
             "    \"name\", \"slot\", \"isa\", \"mr\" and \"nr\" (the tile), \"available\" (can this CPU run it?),\n"
             "    \"selected\" (is it the one in use?), \"uses\" (operations that ran it).");

static PyObject *py_kernels(PyObject *module, PyObject *unused)
{
    (void)module, (void)unused;
    size_t count;
    const struct vgg_kernel *table = vgg_kernels(&count);
    PyObject *list = PyList_New(0);
    for (size_t i = 0; list && i < count; i++) {
        const struct vgg_kernel *kernel = &table[i];
        PyObject *row =
            Py_BuildValue("{s:s,s:s,s:s,s:n,s:n,s:O,s:O,s:n}", "name", kernel->name, "slot", vgg_slot_name(kernel->slot), "isa",
                          vgg_isa_name(kernel->isa), "mr", (Py_ssize_t)kernel->mr, "nr", (Py_ssize_t)kernel->nr, "available",
                          kernel->isa <= vgg_isa_best() ? Py_True : Py_False, "selected",
                          kernel == vgg_kernel(kernel->slot) ? Py_True : Py_False, "uses", (Py_ssize_t)vgg_kernel_uses(kernel));
        int failed = row ? PyList_Append(list, row) : -1;
        Py_XDECREF(row);
        if (failed)
            Py_CLEAR(list);
    }
    return list;
}

#if defined(__clang__)
#define TEXT_OF(number) #number
#define TEXT(number) TEXT_OF(number)
#define COMPILER "clang " TEXT(__clang_major__) "." TEXT(__clang_minor__) "." TEXT(__clang_patchlevel__)
#else
#define COMPILER "gcc " __VERSION__
#endif

PyDoc_STRVAR(build_info_doc,
             "build_info()\n--\n\n"
             "What this build is and what it found on this machine.\n\n"
             "Returns\n-------\n"
             "dict\n"
             "    \"version\", \"compiler\", \"isa\" (in use; VGGNET_ISA caps it), \"isa_available\", \"threads\" and\n"
             "    \"kernels\" (names in use).");

/* Clears *list where that fails. */
static void append_text(PyObject **list, const char *text)
{
    PyObject *item = PyUnicode_FromString(text);
    int failed = item ? PyList_Append(*list, item) : -1;
    Py_XDECREF(item);
    if (failed)
        Py_CLEAR(*list);
}

static PyObject *py_build_info(PyObject *module, PyObject *unused)
{
    (void)unused;
    (void)module;
    PyObject *available = PyList_New(0), *kernels = PyList_New(0);
    for (int isa = 0; available && isa <= (int)vgg_isa_best(); isa++)
        append_text(&available, vgg_isa_name((enum vgg_isa)isa));
    for (int slot = 0; kernels && slot < VGG_SLOT_COUNT; slot++)
        append_text(&kernels, vgg_kernel((enum vgg_slot)slot)->name);
    if (!available || !kernels) {
        Py_XDECREF(available);
        Py_XDECREF(kernels);
        return NULL;
    }
    return Py_BuildValue("{s:s,s:s,s:s,s:N,s:i,s:N}", "version", VGGNET_VERSION, "compiler", COMPILER, "isa",
                         vgg_isa_name(vgg_isa_selected()), "isa_available", available, "threads",
                         vgg_get_num_threads(VGG_EVERY_DEVICE), "kernels", kernels);
}

PyDoc_STRVAR(fma_peak_doc, "fma_peak(threads=1)\n--\n\n"
                           "Measured peak of multiply-add of so many threads, in float32 operations a second.");

static PyObject *py_fma_peak(PyObject *module, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"threads", NULL};
    int threads = 1;
    (void)module;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|i:fma_peak", names, &threads))
        return NULL;
    if (threads < 1 || threads > 1024) {
        PyErr_Format(PyExc_ValueError, "fma_peak: threads is %d; expected 1..1024", threads);
        return NULL;
    }
    PyThreadState *thread = PyEval_SaveThread();
    double peak = vgg_fma_peak(threads);
    PyEval_RestoreThread(thread);
    return PyFloat_FromDouble(peak);
}

PyDoc_STRVAR(memory_bandwidth_doc, "memory_bandwidth(threads=1)\n--\n\n"
                                   "Measured rates of plain streams through 256 MiB by so many threads.\n\n"
                                   "Returns\n-------\n"
                                   "dict\n"
                                   "    \"read\", \"write\" and \"update\" (in place, which counts both), in bytes a second.");

static PyObject *py_memory_bandwidth(PyObject *module, PyObject *args, PyObject *kwargs)
{
    enum { BYTES = 256 << 20 };
    static char *names[] = {"threads", NULL};
    int threads = 1;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|i:memory_bandwidth", names, &threads))
        return NULL;
    if (threads < 1 || threads > 1024) {
        PyErr_Format(PyExc_ValueError, "memory_bandwidth: threads is %d; expected 1..1024", threads);
        return NULL;
    }
    struct vgg_error error = {.status = VGG_OK};
    struct vgg_context context = vggpy_context((struct device){&vgg_cpu_backend, 0}, &error);
    void *data;
    if (vgg_cpu_backend.allocate(&context, &data, BYTES) != VGG_OK) {
        vggpy_raise(vggpy_state(module), &error);
        return NULL;
    }
    PyThreadState *thread = PyEval_SaveThread();
    struct vgg_memory_bandwidth rates = vgg_memory_bandwidth(threads, data, BYTES);
    PyEval_RestoreThread(thread);
    vgg_cpu_backend.release(0, data, BYTES);
    return Py_BuildValue("{s:d,s:d,s:d}", "read", rates.read, "write", rates.write, "update", rates.update);
}

PyDoc_STRVAR(select_isa_doc, "_select_isa(name, /)\n--\n\n"
                             "For the tests: use this ISA's kernels from now on (\"\": the best's). Returns the previous.");

static PyObject *py_select_isa(PyObject *module, PyObject *arg)
{
    const char *name = PyUnicode_AsUTF8AndSize(arg, NULL);
    if (!name)
        return NULL;
    enum vgg_isa previous = vgg_isa_selected();
    struct vgg_error error = {.status = VGG_OK};
    if (vgg_kernels_init(name, &error) != VGG_OK) {
        vggpy_raise(vggpy_state(module), &error);
        return NULL;
    }
    return PyUnicode_FromString(vgg_isa_name(previous));
}

PyDoc_STRVAR(fail_allocation_doc, "_fail_allocation(n, /)\n--\n\n"
                                  "For the tests: the n-th allocation from now fails, once; 0 switches it off.");

static PyObject *py_fail_allocation(PyObject *module, PyObject *arg)
{
    uint64_t n;
    (void)module;
    if (!vggpy_uint(arg, "_fail_allocation", "n", SIZE_MAX, &n))
        return NULL;
    vgg_fail_allocation((size_t)n);
    Py_RETURN_NONE;
}

PyMethodDef vggpy_device_functions[] = {
    {"devices", py_devices, METH_NOARGS, devices_doc},
    {"memory_stats", VGGPY_KEYWORDS(py_memory_stats), memory_stats_doc},
    {"reset_peak_memory", VGGPY_KEYWORDS(py_reset_peak), reset_peak_doc},
    {"keep_memory", py_keep_memory, METH_O, keep_memory_doc},
    {"register_backend", py_register_backend, METH_O, register_backend_doc},
    {"cpu_backend_capsule", py_cpu_backend, METH_NOARGS, cpu_backend_doc},
    {"set_num_threads", VGGPY_KEYWORDS(py_set_num_threads), set_num_threads_doc},
    {"get_num_threads", VGGPY_KEYWORDS(py_get_num_threads), get_num_threads_doc},
    {"kernels", py_kernels, METH_NOARGS, kernels_doc},
    {"build_info", py_build_info, METH_NOARGS, build_info_doc},
    {"fma_peak", VGGPY_KEYWORDS(py_fma_peak), fma_peak_doc},
    {"memory_bandwidth", VGGPY_KEYWORDS(py_memory_bandwidth), memory_bandwidth_doc},
    {"_select_isa", py_select_isa, METH_O, select_isa_doc},
    {"_fail_allocation", py_fail_allocation, METH_O, fail_allocation_doc},
    {NULL, NULL, 0, NULL},
};
