/* dlpack.c: sharing memory with other libraries, both ways.
 *
 * A capsule has one owner of what it points to: the capsule's destructor while its name is "dltensor...", and whoever renamed
 * it to "used_dltensor..." afterwards. Either side may go first: an export holds a reference to its tensor, an import's storage
 * holds what it was given.
 */
#include "py.h"

#include "dlpack.h"

static const char legacy_name[] = "dltensor", versioned_name[] = "dltensor_versioned";
static const char used_legacy_name[] = "used_dltensor", used_versioned_name[] = "used_dltensor_versioned";

/* ------------------------------------------------------------------------------------------------ devices */

/* A device's number in DLPack: host memory is one device there. */
static int device_id(struct device device)
{
    return device.backend->host ? 0 : device.index;
}

/* The device that DLPack calls (type, id): raises BufferError if there is none that is usable. */
static bool device_of(const struct vgg_state *state, const char *op, long type, long id, struct device *device)
{
    const char *name = type == DLPACK_CUDA ? "cuda" : "";
    for (int i = 0; i < state->backend_count; i++)
        if (type != 0 && state->backends[i]->dlpack_type == type)
            name = state->backends[i]->name;
    if (id >= 0 && vggpy_device_find(state, name, strlen(name), id, device) && device_id(*device) == id)
        return true;
    if (!PyErr_Occurred())
        PyErr_Format(PyExc_BufferError,
                     "%s: DLPack device (%ld, %ld) is none that is usable here; expected one of the CPU's, "
                     "(1, 0), and CUDA's, (2, n)",
                     op, type, id);
    return false;
}

static int device_type(const struct tensor *tensor)
{
    return tensor->storage->device.backend->dlpack_type;
}

/* What an object's __dlpack_device__ says; the CPU where it has none. */
static bool producer_device(PyObject *object, long *type, long *id)
{
    *type = DLPACK_CPU, *id = 0;
    if (!PyObject_HasAttrString(object, "__dlpack_device__"))
        return true;
    PyObject *pair = PyObject_CallMethod(object, "__dlpack_device__", NULL);
    PyObject *tuple = pair ? PySequence_Tuple(pair) : NULL;
    bool parsed = tuple && PyArg_ParseTuple(tuple, "ll;__dlpack_device__ gives two ints", type, id);
    Py_XDECREF(tuple);
    Py_XDECREF(pair);
    return parsed;
}

bool vggpy_is_device_array(PyObject *object)
{
    long type, id;
    if (!producer_device(object, &type, &id))
        PyErr_Clear(); /* whatever is done with it instead says more */
    return type == DLPACK_CUDA;
}

/* ------------------------------------------------------------------------------------------------ export */

/* What an exported capsule points into: the form that was asked for, and the arrays it refers to. */
struct export {
    union {
        struct dl_managed legacy;
        struct dl_managed_versioned versioned;
    } managed; /* first: the deleters get its address */
    struct tensor *tensor;
    int64_t shape[VGG_MAX_NDIM], strides[VGG_MAX_NDIM];
};

/* The consumer may call from any thread, with or without the GIL, also while the interpreter goes down (then it leaks). */
static void export_free(struct export *self)
{
    if (!Py_IsInitialized())
        return;
    PyGILState_STATE gil = PyGILState_Ensure();
    Py_DECREF(self->tensor);
    PyMem_Free(self);
    PyGILState_Release(gil);
}

static void export_delete_legacy(struct dl_managed *managed)
{
    export_free((struct export *)managed);
}
static void export_delete_versioned(struct dl_managed_versioned *managed)
{
    export_free((struct export *)managed);
}

/* Of a capsule that nobody consumed. */
static void export_destroy_capsule(PyObject *capsule)
{
    const char *name = PyCapsule_GetName(capsule);
    if (strcmp(name, legacy_name) == 0 || strcmp(name, versioned_name) == 0)
        export_free(PyCapsule_GetPointer(capsule, name));
}

static PyObject *export_capsule(struct tensor *tensor, bool versioned, uint64_t flags)
{
    struct export *self = PyMem_Calloc(1, sizeof(*self));
    if (!self)
        return PyErr_NoMemory();
    struct dl_tensor *t = versioned ? &self->managed.versioned.tensor : &self->managed.legacy.tensor;
    t->data = tensor->data;
    t->device.type = device_type(tensor);
    t->device.id = device_id(tensor->storage->device);
    t->ndim = tensor->ndim;
    static const uint8_t codes[VGG_DTYPE_COUNT] = {DLPACK_FLOAT, DLPACK_INT, DLPACK_UINT, DLPACK_BFLOAT};
    t->dtype.code = codes[tensor->dtype];
    t->dtype.bits = (uint8_t)(8 * vgg_dtype_size(tensor->dtype));
    t->dtype.lanes = 1;
    t->shape = self->shape;
    t->strides = self->strides;
    for (int i = 0; i < tensor->ndim; i++) {
        self->shape[i] = tensor->shape[i];
        self->strides[i] = tensor->strides[i] / (Py_ssize_t)vgg_dtype_size(tensor->dtype);
    }
    if (versioned) {
        self->managed.versioned.version.major = DLPACK_MAJOR;
        self->managed.versioned.version.minor = DLPACK_MINOR;
        self->managed.versioned.deleter = export_delete_versioned;
        self->managed.versioned.flags = flags;
    } else {
        self->managed.legacy.deleter = export_delete_legacy;
    }
    PyObject *capsule = PyCapsule_New(self, versioned ? versioned_name : legacy_name, export_destroy_capsule);
    if (!capsule) {
        PyMem_Free(self);
        return NULL;
    }
    self->tensor = (struct tensor *)Py_NewRef((PyObject *)tensor);
    return capsule;
}

/* Makes the consumer's stream wait for what this thread has queued on the device. */
static bool order_consumer(const struct vgg_state *state, struct device device, PyObject *stream)
{
    if (device.backend->host) {
        if (stream != Py_None)
            PyErr_Format(PyExc_BufferError, "__dlpack__: stream is %R; the CPU has none, pass None", stream);
        return stream == Py_None;
    }
    Py_ssize_t after = stream == Py_None ? 1 : PyNumber_AsSsize_t(stream, PyExc_OverflowError);
    if (after == -1 && PyErr_Occurred())
        return false;
    if (after == 0 || after < -1) {
        PyErr_Format(PyExc_BufferError,
                     "__dlpack__: stream is %R; expected 1 (the default stream), 2 (the thread's), a handle, "
                     "or -1 (no waiting); 0 would be ambiguous",
                     stream);
        return false;
    }
    if (after == -1)
        return true;
    struct vgg_error error = {.status = VGG_OK};
    struct vgg_context context = vggpy_context(device, &error);
    enum vgg_status status = device.backend->order(&context, device.backend->stream(device.index), after);
    return status == VGG_OK ? true : vggpy_raise(state, &error);
}

PyObject *vggpy_to_dlpack(PyObject *object, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"stream", "max_version", "dl_device", "copy", NULL};
    struct tensor *self = (struct tensor *)object;
    struct vgg_state *state = vggpy_state_of(object);
    PyObject *stream = Py_None, *max_version = Py_None, *dl_device = Py_None, *copy = Py_None;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|$OOOO:__dlpack__", names, &stream, &max_version, &dl_device, &copy))
        return NULL;
    struct device device = self->storage->device;
    long major = 0, minor = 0, type = device_type(self), id = device_id(device);
    if (max_version != Py_None &&
        !(PyTuple_Check(max_version) && PyArg_ParseTuple(max_version, "ll;max_version is two ints", &major, &minor)))
        return PyErr_Occurred()
                   ? NULL
                   : PyErr_Format(PyExc_TypeError, "__dlpack__: max_version is %R; expected (major, minor)", max_version);
    if (dl_device != Py_None &&
        !(PyTuple_Check(dl_device) && PyArg_ParseTuple(dl_device, "ll;dl_device is two ints", &type, &id)))
        return PyErr_Occurred() ? NULL
                                : PyErr_Format(PyExc_TypeError, "__dlpack__: dl_device is %R; expected (type, id)", dl_device);
    int must_copy = copy == Py_None ? -1 : PyObject_IsTrue(copy);
    if ((must_copy == -1 && PyErr_Occurred()) || !device_of(state, "__dlpack__", type, id, &device))
        return NULL;
    bool same = vggpy_same_memory(device, self->storage->device);
    if (!same && must_copy == 0)
        return PyErr_Format(PyExc_BufferError,
                            "__dlpack__: dl_device is (%ld, %ld), where the tensor is not; copy=False "
                            "forbids the copy",
                            type, id);
    bool readonly = same && must_copy != 1 && (self->readonly || self->frozen);
    if (readonly && major < DLPACK_MAJOR)
        return PyErr_Format(PyExc_BufferError, "__dlpack__: the tensor's views are read-only, which the consumer's old DLPack "
                                               "cannot express; pass max_version=(1, 0) or copy=True");
    struct tensor *shared =
        same && must_copy != 1 ? (struct tensor *)Py_NewRef(object) : vggpy_tensor_to_device(state, self, device);
    uint64_t flags = (readonly ? DLPACK_READ_ONLY : 0) | (shared != self ? DLPACK_IS_COPIED : 0);
    PyObject *capsule =
        shared && order_consumer(state, device, stream) ? export_capsule(shared, major >= DLPACK_MAJOR, flags) : NULL;
    Py_XDECREF((PyObject *)shared);
    return capsule;
}

PyObject *vggpy_dlpack_device(PyObject *self, PyObject *unused)
{
    (void)unused;
    struct device device = ((struct tensor *)self)->storage->device;
    if (device.backend->dlpack_type == 0)
        return PyErr_Format(PyExc_BufferError,
                            "__dlpack_device__: the tensor's device has no DLPack number; use t.to(\"cpu\")");
    return Py_BuildValue("(ii)", device.backend->dlpack_type, device_id(device));
}

PyObject *vggpy_cuda_array_interface(PyObject *object, void *closure)
{
    static const char *const types[VGG_DTYPE_COUNT] = {"<f4", "<i8", "|u1", NULL};
    struct tensor *self = (struct tensor *)object;
    struct device device = self->storage->device;
    (void)closure;
    if (device_type(self) != DLPACK_CUDA || !types[self->dtype])
        return PyErr_Format(PyExc_AttributeError,
                            device_type(self) == DLPACK_CUDA
                                ? "__cuda_array_interface__: it has no bfloat16; use DLPack"
                                : "__cuda_array_interface__: the tensor is on no CUDA device; use t.to(\"cuda\")");
    return Py_BuildValue("{s:N,s:s,s:(NO),s:O,s:i,s:n}", "shape", vggpy_shape_tuple(self->ndim, self->shape), "typestr",
                         types[self->dtype], "data", PyLong_FromVoidPtr(self->data),
                         self->readonly || self->frozen ? Py_True : Py_False, "strides", Py_None, "version", 3, "stream",
                         (Py_ssize_t)device.backend->stream(device.index));
}

/* ------------------------------------------------------------------------------------------------ import */

static const char import_legacy_name[] = "vggnet.dltensor", import_versioned_name[] = "vggnet.dltensor_versioned";

/* Of the capsule that owns an import; it dies with the storage. */
static void import_destroy_legacy(PyObject *capsule)
{
    struct dl_managed *managed = PyCapsule_GetPointer(capsule, import_legacy_name);
    if (managed->deleter)
        managed->deleter(managed);
}

static void import_destroy_versioned(PyObject *capsule)
{
    struct dl_managed_versioned *managed = PyCapsule_GetPointer(capsule, import_versioned_name);
    if (managed->deleter)
        managed->deleter(managed);
}

/* The producer's capsule: versioned where it knows how, and with our stream waiting for its own where it has streams. */
static PyObject *request_capsule(const struct vgg_state *state, PyObject *object)
{
    long type, id;
    struct device device;
    PyObject *method = PyObject_GetAttrString(object, "__dlpack__");
    if (!method) {
        if (PyErr_ExceptionMatches(PyExc_AttributeError))
            PyErr_Format(PyExc_TypeError, "from_dlpack: expected an object with __dlpack__, not %R; use vggnet.tensor to copy",
                         (PyObject *)Py_TYPE(object));
        return NULL;
    }
    PyObject *none = PyTuple_New(0), *kwargs = NULL, *capsule = NULL;
    if (!none || !producer_device(object, &type, &id) || !device_of(state, "from_dlpack", type, id, &device))
        goto done;
    Py_ssize_t stream = (Py_ssize_t)device.backend->stream(device.index);
    kwargs = device.backend->host ? Py_BuildValue("{s:(ii)}", "max_version", DLPACK_MAJOR, DLPACK_MINOR)
                                  : Py_BuildValue("{s:(ii),s:n}", "max_version", DLPACK_MAJOR, DLPACK_MINOR, "stream", stream);
    capsule = kwargs ? PyObject_Call(method, none, kwargs) : NULL;
    if (!capsule && kwargs && PyErr_ExceptionMatches(PyExc_TypeError)) { /* from before max_version */
        PyErr_Clear();
        if (PyDict_DelItemString(kwargs, "max_version") == 0)
            capsule = PyObject_Call(method, none, kwargs);
    }
done:
    Py_XDECREF(kwargs);
    Py_XDECREF(none);
    Py_DECREF(method);
    return capsule;
}

static bool import_dtype(const struct dl_tensor *t, enum vgg_dtype *dtype)
{
    if (t->dtype.lanes != 1)
        return false;
    if (t->dtype.code == DLPACK_FLOAT && t->dtype.bits == 32)
        *dtype = VGG_FLOAT32;
    else if (t->dtype.code == DLPACK_INT && t->dtype.bits == 64)
        *dtype = VGG_INT64;
    else if ((t->dtype.code == DLPACK_UINT || t->dtype.code == DLPACK_BOOL) && t->dtype.bits == 8)
        *dtype = VGG_UINT8;
    else if (t->dtype.code == DLPACK_BFLOAT && t->dtype.bits == 16)
        *dtype = VGG_BFLOAT16;
    else
        return false;
    return true;
}

/* Whether the tensor can be ours as it is: raises BufferError if not. Fills what is needed to wrap it. */
static bool import_check(const struct vgg_state *state, const struct dl_tensor *t, struct device *device, enum vgg_dtype *dtype,
                         size_t *shape, void **data, size_t *bytes)
{
    if (!device_of(state, "from_dlpack", t->device.type, t->device.id, device))
        return false;
    const char *advice = device->backend->host ? "use vggnet.tensor, which copies" : "convert it in its own library first";
    if (!import_dtype(t, dtype)) {
        PyErr_Format(PyExc_BufferError,
                     "from_dlpack: DLPack type (code %d, %d bits, %d lanes) is not float32, int64, uint8 or bfloat16; %s",
                     (int)t->dtype.code, (int)t->dtype.bits, (int)t->dtype.lanes, advice);
        return false;
    }
    if (t->ndim < 0 || t->ndim > VGG_MAX_NDIM) {
        PyErr_Format(PyExc_BufferError, "from_dlpack: the array has %d dimensions; expected at most %d", (int)t->ndim,
                     VGG_MAX_NDIM);
        return false;
    }
    bool empty = false, valid = true;
    for (int i = 0; i < t->ndim; i++) {
        valid = valid && t->shape[i] >= 0;
        shape[i] = valid ? (size_t)t->shape[i] : 0;
        empty = empty || shape[i] == 0;
    }
    if (!valid || !vgg_shape_bytes(bytes, shape, t->ndim, vgg_dtype_size(*dtype))) {
        PyErr_SetString(PyExc_BufferError, "from_dlpack: the array's shape is invalid");
        return false;
    }
    int64_t expected = 1;
    for (int i = t->ndim - 1; i >= 0 && t->strides && !empty; i--) {
        if (t->shape[i] != 1 && t->strides[i] != expected) {
            PyErr_Format(PyExc_BufferError, "from_dlpack: the array is not C-contiguous, so it cannot be shared; %s", advice);
            return false;
        }
        expected *= t->shape[i];
    }
    *data = empty ? NULL : (char *)t->data + t->byte_offset;
    if ((uintptr_t)*data % vgg_dtype_size(*dtype) != 0) {
        PyErr_Format(PyExc_BufferError, "from_dlpack: the data are not aligned; %s", advice);
        return false;
    }
    return true;
}

struct tensor *vggpy_from_dlpack(const struct vgg_state *state, PyObject *object)
{
    PyObject *capsule = PyCapsule_CheckExact(object) ? Py_NewRef(object) : request_capsule(state, object);
    PyObject *owner = NULL;
    struct storage *storage = NULL;
    struct tensor *tensor = NULL;
    if (!capsule)
        return NULL;
    bool versioned = PyCapsule_IsValid(capsule, versioned_name);
    if (!versioned && !PyCapsule_IsValid(capsule, legacy_name)) {
        PyErr_SetString(PyExc_TypeError, "from_dlpack: expected a fresh DLPack capsule (each can be used once)");
        goto done;
    }
    void *managed = PyCapsule_GetPointer(capsule, versioned ? versioned_name : legacy_name);
    struct dl_managed_versioned *with_version = managed;
    if (versioned && with_version->version.major != DLPACK_MAJOR) {
        PyErr_Format(PyExc_BufferError, "from_dlpack: the producer speaks DLPack %u; this is 1", with_version->version.major);
        goto done;
    }
    const struct dl_tensor *t = versioned ? &with_version->tensor : &((struct dl_managed *)managed)->tensor;
    struct device device;
    enum vgg_dtype dtype;
    size_t shape[VGG_MAX_NDIM], bytes;
    void *data;
    if (!import_check(state, t, &device, &dtype, shape, &data, &bytes))
        goto done;
    int ndim = t->ndim;
    bool readonly = versioned && (with_version->flags & DLPACK_READ_ONLY);
    owner = PyCapsule_New(managed, versioned ? import_versioned_name : import_legacy_name,
                          versioned ? import_destroy_versioned : import_destroy_legacy);
    if (!owner)
        goto done;
    /* From here on `owner` has it: the producer's capsule must not delete it too. It cannot fail: the name was checked. */
    PyCapsule_SetName(capsule, versioned ? used_versioned_name : used_legacy_name);
    storage = vggpy_storage_wrap(state, device, data, bytes, owner);
    tensor = storage ? vggpy_tensor_wrap(state, storage, data, dtype, ndim, shape) : NULL;
    if (tensor)
        tensor->readonly = readonly;
done:
    Py_XDECREF((PyObject *)storage);
    Py_XDECREF(owner);
    Py_DECREF(capsule);
    return tensor;
}
