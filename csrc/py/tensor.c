/* tensor.c: the Tensor type and the functions that make tensors. */
#include "py.h"

/* ------------------------------------------------------------------------------------------------ making and asking */

bool vggpy_is_tensor(const struct vgg_state *state, PyObject *object)
{
    return Py_IS_TYPE(object, (PyTypeObject *)state->tensor_type); /* final: there are no subclasses */
}

size_t vggpy_tensor_bytes(const struct tensor *tensor)
{
    size_t bytes = vgg_dtype_size(tensor->dtype);
    for (int i = 0; i < tensor->ndim; i++)
        bytes *= (size_t)tensor->shape[i];
    return bytes;
}

struct vgg_array vggpy_tensor_array(const struct tensor *tensor)
{
    struct vgg_array array = {.data = tensor->data, .dtype = tensor->dtype, .ndim = tensor->ndim};
    for (int i = 0; i < tensor->ndim; i++)
        array.shape[i] = (size_t)tensor->shape[i];
    return array;
}

bool vggpy_tensors_overlap(const struct tensor *a, const struct tensor *b)
{
    return vggpy_same_memory(a->storage->device, b->storage->device) &&
           vggpy_overlap(a->data, vggpy_tensor_bytes(a), b->data, vggpy_tensor_bytes(b));
}

bool vggpy_tensor_writable(const struct tensor *tensor, const char *op, const char *name)
{
    if (tensor->readonly)
        PyErr_Format(PyExc_ValueError,
                     "%s: %s is read-only (it shares memory that was given for reading); use vggnet.tensor to copy", op, name);
    return !tensor->readonly;
}

struct tensor *vggpy_tensor_wrap(const struct vgg_state *state, struct storage *storage, void *data, enum vgg_dtype dtype,
                                 int ndim, const size_t *shape)
{
    PyTypeObject *type = (PyTypeObject *)state->tensor_type;
    struct tensor *self = (struct tensor *)PyType_GenericAlloc(type, 0);
    if (!self)
        return NULL;
    self->storage = (struct storage *)Py_NewRef((PyObject *)storage);
    self->data = data;
    self->dtype = dtype;
    self->ndim = ndim;
    Py_ssize_t stride = (Py_ssize_t)vgg_dtype_size(dtype);
    for (int i = ndim - 1; i >= 0; i--) {
        self->shape[i] = (Py_ssize_t)shape[i];
        self->strides[i] = stride;
        stride *= shape[i] ? self->shape[i] : 1;
    }
    return self;
}

struct tensor *vggpy_tensor_new(const struct vgg_state *state, struct device device, enum vgg_dtype dtype, int ndim,
                                const size_t *shape)
{
    size_t bytes;
    if (!vgg_shape_bytes(&bytes, shape, ndim, vgg_dtype_size(dtype))) {
        char text[128];
        PyErr_Format(PyExc_ValueError, "a tensor of shape %s is larger than any memory",
                     vgg_shape_text(text, sizeof(text), shape, ndim));
        return NULL;
    }
    struct storage *storage = vggpy_storage_new(state, device, bytes);
    if (!storage)
        return NULL;
    struct tensor *self = vggpy_tensor_wrap(state, storage, storage->data, dtype, ndim, shape);
    Py_DECREF((PyObject *)storage);
    return self;
}

struct tensor *vggpy_tensor_to_device(const struct vgg_state *state, struct tensor *tensor, struct device device)
{
    struct vgg_array from = vggpy_tensor_array(tensor);
    struct tensor *to = vggpy_tensor_new(state, device, from.dtype, from.ndim, from.shape);
    if (to && !vggpy_copy(state, device, to->data, tensor->storage->device, from.data, vggpy_tensor_bytes(to)))
        Py_CLEAR(to);
    return to;
}

/* Whether the device itself can make elements of `dtype` on `device` of the tensor's. */
static bool converts(const struct tensor *from, enum vgg_dtype dtype, struct device device)
{
    return vggpy_same_device(from->storage->device, device) &&
           ((from->dtype == VGG_FLOAT32 && dtype == VGG_BFLOAT16) || (from->dtype == VGG_BFLOAT16 && dtype == VGG_FLOAT32));
}

static size_t count_of(const struct tensor *tensor)
{
    return vggpy_tensor_bytes(tensor) / vgg_dtype_size(tensor->dtype);
}

/* A new tensor on `device` with a copy of object's elements, cast to dtype (VGG_DTYPE_COUNT: the one of ours that fits). */
static struct tensor *tensor_copy(const struct vgg_state *state, PyObject *object, const char *op, const char *name,
                                  enum vgg_dtype dtype, struct device device)
{
    if (vggpy_is_tensor(state, object) && (dtype == VGG_DTYPE_COUNT || dtype == ((struct tensor *)object)->dtype))
        return vggpy_tensor_to_device(state, (struct tensor *)object, device);
    if (vggpy_is_tensor(state, object) && converts((struct tensor *)object, dtype, device)) {
        struct tensor *from = (struct tensor *)object;
        struct vgg_array a = vggpy_tensor_array(from);
        struct tensor *tensor = vggpy_tensor_new(state, device, dtype, a.ndim, a.shape);
        if (tensor && !vggpy_convert(state, device, tensor->data, dtype, a.data, count_of(from)))
            Py_CLEAR(tensor);
        return tensor;
    }
    if (!vggpy_is_tensor(state, object) &&
        vggpy_is_device_array(object)) { /* of another library: the copy is made on its device */
        struct tensor *there = vggpy_from_dlpack(state, object);
        struct tensor *tensor = there ? tensor_copy(state, (PyObject *)there, op, name, dtype, device) : NULL;
        Py_XDECREF((PyObject *)there);
        return tensor;
    }
    PyArrayObject *array = vggpy_host_array(state, object, op, name, dtype, true); /* the host casts */
    struct tensor *tensor = array ? vggpy_tensor_from_array(state, array, device) : NULL;
    Py_XDECREF((PyObject *)array);
    return tensor;
}

/* Another tensor over the same bytes, with the same permissions. */
static struct tensor *tensor_share(struct tensor *self, void *data, enum vgg_dtype dtype, int ndim, const size_t *shape)
{
    struct tensor *other = vggpy_tensor_wrap(vggpy_state_of((PyObject *)self), self->storage, data, dtype, ndim, shape);
    if (other) {
        other->readonly = self->readonly;
        other->frozen = self->frozen;
    }
    return other;
}

/* ------------------------------------------------------------------------------------------------ type slots */

/* No tp_clear, as in storage.c: a tensor is in no cycle, and one without its storage would dangle. */
static int tensor_traverse(PyObject *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT((PyObject *)((struct tensor *)self)->storage);
    return 0;
}

static void tensor_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    Py_XDECREF((PyObject *)((struct tensor *)self)->storage);
    PyObject_GC_Del(self);
    Py_DECREF(type);
}

static PyObject *tensor_repr(PyObject *object)
{
    struct tensor *self = (struct tensor *)object;
    PyObject *shape = vggpy_shape_tuple(self->ndim, self->shape);
    PyObject *device = vggpy_device_name(self->storage->device);
    PyObject *repr = shape && device ? PyUnicode_FromFormat("Tensor(shape=%R, dtype=\"%s\", device=\"%U\")", shape,
                                                            vgg_dtype_name(self->dtype), device)
                                     : NULL;
    Py_XDECREF(device);
    Py_XDECREF(shape);
    return repr;
}

static int tensor_getbuffer(PyObject *object, Py_buffer *view, int flags)
{
    static char *const formats[VGG_DTYPE_COUNT] = {"f", sizeof(long) == 8 ? "l" : "q", "B"};
    struct tensor *self = (struct tensor *)object;
    view->obj = NULL;
    bool readonly = self->readonly || self->frozen;
    if (!self->storage->device.backend->host) {
        PyErr_SetString(PyExc_BufferError, "the tensor is not in host memory; use t.numpy() or t.to(\"cpu\")");
        return -1;
    }
    if (self->dtype == VGG_BFLOAT16) {
        PyErr_SetString(PyExc_BufferError, "buffers have no bfloat16; use t.to(dtype=\"float32\")");
        return -1;
    }
    if (readonly && (flags & PyBUF_WRITABLE)) {
        PyErr_SetString(PyExc_BufferError,
                        "the tensor's views are read-only; it changes by in-place operations and copy_ only");
        return -1;
    }
    if ((flags & PyBUF_F_CONTIGUOUS) == PyBUF_F_CONTIGUOUS && self->ndim > 1) {
        PyErr_SetString(PyExc_BufferError, "a tensor is C-contiguous, not Fortran-contiguous");
        return -1;
    }
    view->buf = self->data;
    view->obj = Py_NewRef(object);
    view->len = (Py_ssize_t)vggpy_tensor_bytes(self);
    view->itemsize = (Py_ssize_t)vgg_dtype_size(self->dtype);
    view->readonly = readonly;
    view->ndim = self->ndim;
    view->format = flags & PyBUF_FORMAT ? formats[self->dtype] : NULL;
    view->shape = (flags & PyBUF_ND) == PyBUF_ND ? self->shape : NULL; /* live as long as obj does */
    view->strides = (flags & PyBUF_STRIDES) == PyBUF_STRIDES ? self->strides : NULL;
    view->suboffsets = NULL;
    view->internal = NULL;
    return 0;
}

/* ------------------------------------------------------------------------------------------------ attributes */

static PyObject *tensor_shape(PyObject *object, void *closure)
{
    (void)closure;
    struct tensor *self = (struct tensor *)object;
    return vggpy_shape_tuple(self->ndim, self->shape);
}

static PyObject *tensor_dtype(PyObject *self, void *closure)
{
    (void)closure;
    return PyUnicode_FromString(vgg_dtype_name(((struct tensor *)self)->dtype));
}

static PyObject *tensor_device(PyObject *self, void *closure)
{
    (void)closure;
    return vggpy_device_name(((struct tensor *)self)->storage->device);
}

static PyObject *tensor_nbytes(PyObject *self, void *closure)
{
    (void)closure;
    return PyLong_FromSize_t(vggpy_tensor_bytes((struct tensor *)self));
}

static PyObject *tensor_ndim(PyObject *self, void *closure)
{
    (void)closure;
    return PyLong_FromLong(((struct tensor *)self)->ndim);
}

static PyObject *tensor_size(PyObject *object, void *closure)
{
    (void)closure;
    struct tensor *self = (struct tensor *)object;
    return PyLong_FromSize_t(vggpy_tensor_bytes(self) / vgg_dtype_size(self->dtype));
}

static PyObject *tensor_storage(PyObject *self, void *closure)
{
    (void)closure;
    return Py_NewRef((PyObject *)((struct tensor *)self)->storage);
}

static PyObject *tensor_readonly(PyObject *self, void *closure)
{
    (void)closure;
    return PyBool_FromLong(((struct tensor *)self)->readonly);
}

static PyGetSetDef tensor_getset[] = {
    {"shape", tensor_shape, NULL, PyDoc_STR("tuple of int : sizes; the elements are always C-contiguous."), NULL},
    {"dtype", tensor_dtype, NULL, PyDoc_STR("str : \"float32\", \"int64\", \"uint8\" or \"bfloat16\"."), NULL},
    {"device", tensor_device, NULL, PyDoc_STR("str : \"cpu\", or a name with a number, as \"cpu:1\" or \"cuda:0\"."), NULL},
    {"nbytes", tensor_nbytes, NULL, PyDoc_STR("int : bytes of the elements."), NULL},
    {"ndim", tensor_ndim, NULL, PyDoc_STR("int : number of dimensions."), NULL},
    {"size", tensor_size, NULL, PyDoc_STR("int : number of elements."), NULL},
    {"storage", tensor_storage, NULL, PyDoc_STR("Storage : the bytes, which other tensors may share."), NULL},
    {"readonly", tensor_readonly, NULL,
     PyDoc_STR("bool : whether in-place operations raise, because the memory was imported for reading only."), NULL},
    {"__cuda_array_interface__", vggpy_cuda_array_interface, NULL,
     PyDoc_STR("dict : the memory for other CUDA libraries (Numba's protocol, version 3); AttributeError on other devices."),
     NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

/* ------------------------------------------------------------------------------------------------ methods */

PyDoc_STRVAR(numpy_doc, "numpy($self, /)\n--\n\n"
                        "A NumPy array of the elements: the same memory on the CPU, a copy from other devices.\n\n"
                        "The array keeps the memory alive. It is read-only after freeze_views() and for read-only imports.\n\n"
                        "Raises\n------\n"
                        "TypeError\n"
                        "    For bfloat16, which NumPy lacks; use to(dtype=\"float32\").");

/* NumPy has no bfloat16: raises then. */
static bool numpy_knows(const struct tensor *tensor, const char *op)
{
    if (tensor->dtype == VGG_BFLOAT16)
        PyErr_Format(PyExc_TypeError, "%s: the tensor is bfloat16, which NumPy lacks; use t.to(dtype=\"float32\")", op);
    return tensor->dtype != VGG_BFLOAT16;
}

static PyObject *tensor_numpy(PyObject *self, PyObject *unused)
{
    (void)unused;
    return numpy_knows((struct tensor *)self, "numpy") ? vggpy_tensor_numpy((struct tensor *)self) : NULL;
}

PyDoc_STRVAR(array_doc, "__array__($self, /, dtype=None, copy=None)\n--\n\n"
                        "NumPy's protocol: numpy() and, where dtype or copy ask for it, a copy.\n\n"
                        "Raises\n------\n"
                        "ValueError\n"
                        "    If copy is False and a copy is needed.");

static PyObject *tensor_array(PyObject *object, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"dtype", "copy", NULL};
    struct tensor *self = (struct tensor *)object;
    PyObject *dtype = Py_None, *copy = Py_None;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|OO:__array__", names, &dtype, &copy) || !numpy_knows(self, "__array__"))
        return NULL;
    int must_copy = copy == Py_None ? -1 : PyObject_IsTrue(copy);
    if (must_copy == -1 && PyErr_Occurred())
        return NULL;
    PyArray_Descr *descr = NULL;
    if (dtype != Py_None && !PyArray_DescrConverter(dtype, &descr))
        return NULL;
    PyObject *array = NULL, *result = NULL;
    bool host = self->storage->device.backend->host;
    PyArray_Descr *own = PyArray_DescrFromType(vggpy_numpy_type(self->dtype)); /* of a built-in type: never NULL */
    bool cast = descr && !PyArray_EquivTypes(descr, own);                      /* also another byte order */
    Py_DECREF((PyObject *)own);
    if (must_copy == 0 && (!host || cast)) {
        PyErr_SetString(PyExc_ValueError, "__array__: copy=False, but another dtype or device needs a copy");
        goto done;
    }
    array = vggpy_tensor_numpy(self);
    if (!array)
        goto done;
    if (cast) {
        Py_INCREF((PyObject *)descr); /* stolen */
        result = PyArray_CastToType((PyArrayObject *)array, descr, 0);
    } else if (must_copy == 1 && host) {
        result = PyArray_NewCopy((PyArrayObject *)array, NPY_CORDER);
    } else {
        result = Py_NewRef(array);
    }
done:
    Py_XDECREF((PyObject *)descr);
    Py_XDECREF(array);
    return result;
}

PyDoc_STRVAR(to_doc, "to($self, /, device=None, dtype=None)\n--\n\n"
                     "The tensor on another device or in another dtype: itself if nothing changes, else a copy.\n\n"
                     "Parameters\n----------\n"
                     "device : str, optional\n"
                     "    \"cpu\", or one of vggnet's devices().\n"
                     "dtype : str, optional\n"
                     "    \"float32\", \"int64\", \"uint8\" or \"bfloat16\"; floats are cut towards zero, as by NumPy's\n"
                     "    astype, and rounded to the nearest bfloat16, to even where two are as near.\n\n"
                     "Raises\n------\n"
                     "DeviceError\n"
                     "    If the device is not there.");

static PyObject *tensor_to(PyObject *object, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"device", "dtype", NULL};
    struct tensor *self = (struct tensor *)object;
    struct vgg_state *state = vggpy_state_of(object);
    const char *device_name = NULL;
    PyObject *dtype_name = Py_None;
    struct device device = self->storage->device;
    enum vgg_dtype dtype = self->dtype;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|zO:to", names, &device_name, &dtype_name) ||
        (device_name && !vggpy_device_parse(state, device_name, &device)) ||
        (dtype_name != Py_None && !vggpy_dtype(dtype_name, "to", &dtype)))
        return NULL;
    if (dtype == self->dtype && vggpy_same_device(device, self->storage->device))
        return Py_NewRef(object);
    return (PyObject *)tensor_copy(state, object, "to", "self", dtype, device);
}

PyDoc_STRVAR(copy_doc, "copy_($self, obj, /)\n--\n\n"
                       "Overwrite the elements with those of obj, in place; returns the tensor.\n\n"
                       "Parameters\n----------\n"
                       "obj : Tensor or anything that vggnet.tensor takes\n"
                       "    Of the same shape; another dtype is cast, another device's memory is moved.\n\n"
                       "Raises\n------\n"
                       "ValueError\n"
                       "    If the shape differs, the tensor is read-only, or obj overlaps it.");

static PyObject *tensor_copy_(PyObject *object, PyObject *from)
{
    struct tensor *self = (struct tensor *)object;
    struct vgg_state *state = vggpy_state_of(object);
    if (!vggpy_tensor_writable(self, "copy_", "the tensor"))
        return NULL;
    PyArrayObject *array = NULL;
    struct tensor *source = vggpy_is_tensor(state, from) ? (struct tensor *)from : NULL;
    struct vgg_array a;
    struct device to = self->storage->device;
    bool converted = source && converts(source, self->dtype, to);
    bool done = false, direct = converted || (source && source->dtype == self->dtype);
    if (direct) { /* between devices, or on one: without a pass through NumPy */
        a = vggpy_tensor_array(source);
    } else {
        array = vggpy_host_array(state, from, "copy_", "obj", self->dtype, true);
        if (!array)
            return NULL;
        a = vggpy_numpy_array(array);
    }
    struct vgg_array own = vggpy_tensor_array(self);
    size_t bytes = vggpy_tensor_bytes(self);
    struct device host = {state->backends[0], 0};
    struct device at = direct ? source->storage->device : host;
    if (a.ndim != own.ndim || memcmp(a.shape, own.shape, sizeof(size_t) * (size_t)own.ndim) != 0) {
        char got[128], expected[128];
        PyErr_Format(PyExc_ValueError, "copy_: obj has shape %s; expected %s",
                     vgg_shape_text(got, sizeof(got), a.shape, a.ndim),
                     vgg_shape_text(expected, sizeof(expected), own.shape, own.ndim));
    } else if (!converted && a.data == own.data && vggpy_same_memory(at, to)) {
        done = true; /* onto itself */
    } else if ((vggpy_same_device(at, to) || (at.backend->host && to.backend->host)) &&
               vggpy_overlap(a.data, converted ? vggpy_tensor_bytes(source) : bytes, own.data, bytes)) {
        PyErr_SetString(PyExc_ValueError, "copy_: obj overlaps the tensor");
    } else if (converted) {
        done = vggpy_convert(state, to, own.data, self->dtype, a.data, count_of(self));
    } else {
        done = vggpy_copy(state, to, own.data, at, a.data, bytes);
    }
    Py_XDECREF((PyObject *)array);
    if (!done)
        return NULL;
    self->storage->version++;
    return Py_NewRef(object);
}

PyDoc_STRVAR(reshape_doc, "reshape($self, shape, /)\n--\n\n"
                          "The same elements in another shape, sharing the storage.\n\n"
                          "Parameters\n----------\n"
                          "shape : sequence of int\n"
                          "    Of as many elements; one size may be -1.\n\n"
                          "Raises\n------\n"
                          "ValueError\n"
                          "    If the number of elements differs.");

static PyObject *tensor_reshape(PyObject *object, PyObject *arg)
{
    struct tensor *self = (struct tensor *)object;
    int ndim, infer;
    size_t shape[VGG_MAX_NDIM], size = vggpy_tensor_bytes(self) / vgg_dtype_size(self->dtype), known = 1;
    if (!vggpy_shape(arg, "reshape", "shape", &ndim, shape, &infer))
        return NULL;
    bool fits = true;
    for (int i = 0; i < ndim; i++)
        if (i != infer)
            fits = fits && vgg_mul_size(&known, known, shape[i]);
    if (infer >= 0 && fits) {
        fits = known != 0 && size % known == 0;
        shape[infer] = fits ? size / known : 0;
    } else {
        fits = fits && known == size;
    }
    if (!fits)
        return PyErr_Format(PyExc_ValueError, "reshape: shape is %R; the tensor has %zu elements", arg, size);
    return (PyObject *)tensor_share(self, self->data, self->dtype, ndim, shape);
}

PyDoc_STRVAR(view_doc, "view($self, /, offset, shape, dtype)\n--\n\n"
                       "A tensor over a part of this one's bytes, sharing the storage: how an arena is divided.\n\n"
                       "Parameters\n----------\n"
                       "offset : int\n"
                       "    Bytes from this tensor's start; the part must be aligned for its dtype.\n"
                       "shape : sequence of int\n"
                       "dtype : str\n\n"
                       "Raises\n------\n"
                       "ValueError\n"
                       "    If the part does not lie inside this tensor.");

static PyObject *tensor_view(PyObject *object, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"offset", "shape", "dtype", NULL};
    struct tensor *self = (struct tensor *)object;
    PyObject *offset_object, *shape_object, *dtype_object;
    uint64_t offset;
    int ndim;
    size_t shape[VGG_MAX_NDIM], bytes, end;
    enum vgg_dtype dtype;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOO:view", names, &offset_object, &shape_object, &dtype_object) ||
        !vggpy_uint(offset_object, "view", "offset", PTRDIFF_MAX, &offset) ||
        !vggpy_shape(shape_object, "view", "shape", &ndim, shape, NULL) || !vggpy_dtype(dtype_object, "view", &dtype))
        return NULL;
    if (!vgg_shape_bytes(&bytes, shape, ndim, vgg_dtype_size(dtype)) || !vgg_add_size(&end, (size_t)offset, bytes) ||
        end > vggpy_tensor_bytes(self))
        return PyErr_Format(PyExc_ValueError, "view: shape %R of %s at byte %R ends outside the tensor's %zu bytes",
                            shape_object, vgg_dtype_name(dtype), offset_object, vggpy_tensor_bytes(self));
    void *data = self->data ? (char *)self->data + offset : NULL;
    if ((uintptr_t)data % vgg_dtype_size(dtype) != 0)
        return PyErr_Format(PyExc_ValueError, "view: offset is %R; expected one that is aligned for %s", offset_object,
                            vgg_dtype_name(dtype));
    return (PyObject *)tensor_share(self, data, dtype, ndim, shape);
}

PyDoc_STRVAR(freeze_views_doc, "freeze_views($self, /)\n--\n\n"
                               "Make views taken from now on (numpy(), buffers, DLPack) read-only; returns the tensor.\n\n"
                               "In-place operations and copy_ go on working: they bump storage.version, so that what was\n"
                               "computed from the elements is never stale. Tensors made from this one are frozen too.");

static PyObject *tensor_freeze_views(PyObject *self, PyObject *unused)
{
    (void)unused;
    ((struct tensor *)self)->frozen = true;
    return Py_NewRef(self);
}

PyDoc_STRVAR(item_doc, "item($self, /)\n--\n\n"
                       "The one element as a Python number; waits for the device.\n\n"
                       "Raises\n------\n"
                       "ValueError\n"
                       "    If the tensor does not have exactly one element.");

static PyObject *tensor_item(PyObject *object, PyObject *unused)
{
    (void)unused;
    struct tensor *self = (struct tensor *)object;
    size_t item = vgg_dtype_size(self->dtype), bytes = vggpy_tensor_bytes(self);
    union {
        float float32;
        int64_t int64;
        uint8_t uint8;
        uint16_t bfloat16;
        uint32_t bits;
    } value;
    if (bytes != item)
        return PyErr_Format(PyExc_ValueError, "item: the tensor has %zu elements; expected 1", bytes / item);
    if (!vggpy_transfer(vggpy_state_of(object), self->storage->device, DOWNLOAD, &value, self->data, bytes))
        return NULL;
    if (self->dtype == VGG_BFLOAT16)
        value.bits = (uint32_t)value.bfloat16 << 16;
    if (self->dtype == VGG_FLOAT32 || self->dtype == VGG_BFLOAT16)
        return PyFloat_FromDouble((double)value.float32);
    return PyLong_FromLongLong(self->dtype == VGG_INT64 ? value.int64 : value.uint8);
}

static PyObject *tensor_float(PyObject *self)
{
    PyObject *item = tensor_item(self, NULL);
    PyObject *result = item ? PyNumber_Float(item) : NULL;
    Py_XDECREF(item);
    return result;
}

PyDoc_STRVAR(dlpack_doc,
             "__dlpack__($self, /, *, stream=None, max_version=None, dl_device=None, copy=None)\n--\n\n"
             "Share the memory with another library, as a DLPack capsule.\n\n"
             "Parameters\n----------\n"
             "stream : int, optional\n"
             "    The consumer's stream on the tensor's device, which waits for what this thread has queued. CUDA:\n"
             "    None or 1 the default stream, 2 the thread's default stream, -1 no waiting, else a handle.\n"
             "max_version : (int, int), optional\n"
             "dl_device : (int, int), optional\n"
             "    Where the memory is wanted: a copy where the tensor is elsewhere.\n"
             "copy : bool, optional\n\n"
             "Raises\n------\n"
             "BufferError\n"
             "    If views are read-only and the consumer's DLPack is older than 1.0, or the device cannot be\n"
             "    shared without the copy that copy=False forbids.");

PyDoc_STRVAR(dlpack_device_doc,
             "__dlpack_device__($self, /)\n--\n\n"
             "DLPack's (device type, number): (1, 0) is the CPU, whichever of its devices, (2, n) is CUDA's device n.");

static PyMethodDef tensor_methods[] = {
    {"numpy", tensor_numpy, METH_NOARGS, numpy_doc},
    {"to", VGGPY_KEYWORDS(tensor_to), to_doc},
    {"copy_", tensor_copy_, METH_O, copy_doc},
    {"reshape", tensor_reshape, METH_O, reshape_doc},
    {"view", VGGPY_KEYWORDS(tensor_view), view_doc},
    {"freeze_views", tensor_freeze_views, METH_NOARGS, freeze_views_doc},
    {"item", tensor_item, METH_NOARGS, item_doc},
    {"__array__", VGGPY_KEYWORDS(tensor_array), array_doc},
    {"__dlpack__", VGGPY_KEYWORDS(vggpy_to_dlpack), dlpack_doc},
    {"__dlpack_device__", vggpy_dlpack_device, METH_NOARGS, dlpack_device_doc},
    {NULL, NULL, 0, NULL},
};

PyDoc_STRVAR(tensor_doc, "Elements of one dtype on one device, C-contiguous.\n\n"
                         "Made by vggnet.tensor, from_dlpack, empty, zeros and by operations. Supports the buffer protocol,\n"
                         "numpy.asarray and DLPack without copying.");

static PyType_Slot tensor_slots[] = {
    {Py_tp_doc, (void *)tensor_doc},     {Py_tp_dealloc, tensor_dealloc}, {Py_tp_traverse, tensor_traverse},
    {Py_tp_getset, tensor_getset},       {Py_tp_methods, tensor_methods}, {Py_tp_repr, tensor_repr},
    {Py_bf_getbuffer, tensor_getbuffer}, {Py_nb_float, tensor_float},     {0, NULL},
};

PyType_Spec vggpy_tensor_spec = {
    .name = "vggnet.Tensor",
    .basicsize = sizeof(struct tensor),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = tensor_slots,
};

/* ------------------------------------------------------------------------------------------------ functions */

PyDoc_STRVAR(py_tensor_doc, "tensor(obj, dtype=None, device='cpu')\n--\n\n"
                            "A new tensor with a copy of obj's elements.\n\n"
                            "Parameters\n----------\n"
                            "obj : Tensor, NumPy array, producer of DLPack or a buffer, number, or nested list\n"
                            "    Any strides and byte order. Floats become float32, bool uint8, other integers int64; uint8\n"
                            "    stays.\n"
                            "dtype : str, optional\n"
                            "    \"float32\", \"int64\" or \"uint8\": cast to it, as by NumPy's astype.\n"
                            "device : str\n\n"
                            "Raises\n------\n"
                            "TypeError\n"
                            "    If the elements are not real numbers.\n"
                            "ValueError\n"
                            "    If a nested list is ragged or there are more than 8 dimensions.\n\n"
                            "Examples\n--------\n"
                            ">>> import vggnet\n"
                            ">>> vggnet.tensor([[1.0, 2.0, 3.0]])\n"
                            "Tensor(shape=(1, 3), dtype=\"float32\", device=\"cpu\")");

static PyObject *py_tensor(PyObject *module, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"obj", "dtype", "device", NULL};
    struct vgg_state *state = vggpy_state(module);
    PyObject *object, *dtype_object = Py_None;
    const char *device_name = "cpu";
    enum vgg_dtype dtype = VGG_DTYPE_COUNT;
    struct device device;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|Os:tensor", names, &object, &dtype_object, &device_name) ||
        (dtype_object != Py_None && !vggpy_dtype(dtype_object, "tensor", &dtype)) ||
        !vggpy_device_parse(state, device_name, &device))
        return NULL;
    return (PyObject *)tensor_copy(state, object, "tensor", "obj", dtype, device);
}

PyDoc_STRVAR(from_dlpack_doc,
             "from_dlpack(obj, /)\n--\n\n"
             "A tensor that shares the memory of another library's array (or of a Tensor).\n\n"
             "Parameters\n----------\n"
             "obj : object with __dlpack__, or a DLPack capsule\n"
             "    C-contiguous float32, int64, uint8, bool (as uint8) or bfloat16, on the CPU or a CUDA device.\n"
             "    Of a CUDA device, this thread's stream waits for what the object's library has queued; for a\n"
             "    capsule, whoever asked for it saw to that.\n\n"
             "Raises\n------\n"
             "BufferError\n"
             "    If it cannot be shared as it is; vggnet.tensor copies then.");

static PyObject *py_from_dlpack(PyObject *module, PyObject *object)
{
    struct vgg_state *state = vggpy_state(module);
    if (!vggpy_is_tensor(state, object))
        return (PyObject *)vggpy_from_dlpack(state, object);
    /* One of ours: the same storage, so that its version goes on telling of every in-place operation. */
    struct tensor *tensor = (struct tensor *)object;
    struct vgg_array array = vggpy_tensor_array(tensor);
    return (PyObject *)tensor_share(tensor, array.data, array.dtype, array.ndim, array.shape);
}

static PyObject *make(PyObject *module, PyObject *args, PyObject *kwargs, bool zero)
{
    static char *names[] = {"shape", "dtype", "device", NULL};
    struct vgg_state *state = vggpy_state(module);
    const char *op = zero ? "zeros" : "empty", *device_name = "cpu";
    PyObject *shape_object, *dtype_object = NULL;
    enum vgg_dtype dtype = VGG_FLOAT32;
    struct device device;
    int ndim;
    size_t shape[VGG_MAX_NDIM];
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, zero ? "O|Os:zeros" : "O|Os:empty", names, &shape_object, &dtype_object,
                                     &device_name) ||
        !vggpy_shape(shape_object, op, "shape", &ndim, shape, NULL) ||
        (dtype_object && !vggpy_dtype(dtype_object, op, &dtype)) || !vggpy_device_parse(state, device_name, &device))
        return NULL;
    struct tensor *tensor = vggpy_tensor_new(state, device, dtype, ndim, shape);
    if (tensor && zero && tensor->data) {
        struct vgg_error error = {.status = VGG_OK};
        struct vgg_context context = vggpy_context(device, &error);
        PyThreadState *thread = PyEval_SaveThread();
        enum vgg_status status = device.backend->zero(&context, tensor->data, vggpy_tensor_bytes(tensor));
        PyEval_RestoreThread(thread);
        if (status != VGG_OK) {
            Py_CLEAR(tensor);
            vggpy_raise(state, &error);
        }
    }
    return (PyObject *)tensor;
}

PyDoc_STRVAR(empty_doc, "empty(shape, dtype='float32', device='cpu')\n--\n\n"
                        "A new tensor with undefined contents.\n\n"
                        "Parameters\n----------\n"
                        "shape : int or sequence of int\n"
                        "dtype : str\n"
                        "    \"float32\", \"int64\", \"uint8\" or \"bfloat16\".\n"
                        "device : str\n\n"
                        "Raises\n------\n"
                        "MemoryError\n"
                        "    If the device has not so much memory.");
PyDoc_STRVAR(zeros_doc, "zeros(shape, dtype='float32', device='cpu')\n--\n\n"
                        "A new tensor filled with 0.\n\n"
                        "Parameters\n----------\n"
                        "shape : int or sequence of int\n"
                        "dtype : str\n"
                        "    \"float32\", \"int64\", \"uint8\" or \"bfloat16\".\n"
                        "device : str\n\n"
                        "Raises\n------\n"
                        "MemoryError\n"
                        "    If the device has not so much memory.");

static PyObject *py_empty(PyObject *module, PyObject *args, PyObject *kwargs)
{
    return make(module, args, kwargs, false);
}
static PyObject *py_zeros(PyObject *module, PyObject *args, PyObject *kwargs)
{
    return make(module, args, kwargs, true);
}

PyMethodDef vggpy_tensor_functions[] = {
    {"tensor", VGGPY_KEYWORDS(py_tensor), py_tensor_doc},
    {"from_dlpack", py_from_dlpack, METH_O, from_dlpack_doc},
    {"empty", VGGPY_KEYWORDS(py_empty), empty_doc},
    {"zeros", VGGPY_KEYWORDS(py_zeros), zeros_doc},
    {NULL, NULL, 0, NULL},
};
