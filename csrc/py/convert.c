/* convert.c: between Python objects and what C needs: arrays, shapes, names, numbers. */
#include "py.h"

/* ------------------------------------------------------------------------------------------------ arrays */

int vggpy_numpy_type(enum vgg_dtype dtype)
{
    switch (dtype) {
    case VGG_FLOAT32: return NPY_FLOAT32;
    case VGG_INT64: return NPY_INT64;
    case VGG_UINT8: return NPY_UINT8;
    case VGG_BFLOAT16: return NPY_UINT16; /* which NumPy lacks: its bits */
    case VGG_DTYPE_COUNT: break;
    }
    return NPY_NOTYPE;
}

PyObject *vggpy_numpy_new(enum vgg_dtype dtype, int ndim, const size_t *shape)
{
    npy_intp sizes[VGG_MAX_NDIM];
    for (int i = 0; i < ndim; i++)
        sizes[i] = (npy_intp)shape[i];
    return PyArray_SimpleNew(ndim, sizes, vggpy_numpy_type(dtype));
}

struct vgg_array vggpy_numpy_array(PyArrayObject *array)
{
    struct vgg_array a = {.data = PyArray_DATA(array), .ndim = PyArray_NDIM(array)};
    switch (PyArray_DESCR(array)->kind) {
    case 'f': a.dtype = VGG_FLOAT32; break;
    case 'i': a.dtype = VGG_INT64; break;
    default: a.dtype = PyArray_ITEMSIZE(array) == 1 ? VGG_UINT8 : VGG_BFLOAT16;
    }
    for (int i = 0; i < a.ndim; i++)
        a.shape[i] = (size_t)PyArray_DIM(array, i);
    return a;
}

/* The object as a NumPy array of whatever dtype and layout it has; a producer of DLPack is asked before its buffer. */
static PyArrayObject *any_array(PyObject *object)
{
    if (PyArray_Check(object))
        return (PyArrayObject *)Py_NewRef(object);
    PyObject *array = NULL;
    if (!PyList_Check(object) && !PyTuple_Check(object) && PyObject_HasAttrString(object, "__dlpack__") &&
        !PyObject_HasAttrString(object, "__array__")) {
        PyObject *numpy = PyImport_ImportModule("numpy");
        array = numpy ? PyObject_CallMethod(numpy, "from_dlpack", "O", object) : NULL;
        Py_XDECREF(numpy);
    } else {
        array = PyArray_FromAny(object, NULL, 0, 0, 0, NULL);
    }
    return (PyArrayObject *)array;
}

/* The dtype that a NumPy array of this kind becomes; VGG_DTYPE_COUNT: none. */
static enum vgg_dtype natural_dtype(PyArrayObject *array)
{
    switch (PyArray_DESCR(array)->kind) {
    case 'f': return VGG_FLOAT32;
    case 'b': return VGG_UINT8;
    case 'i': return VGG_INT64;
    case 'u': return PyArray_ITEMSIZE(array) == 1 ? VGG_UINT8 : VGG_INT64;
    default: return VGG_DTYPE_COUNT;
    }
}

/* NumPy wraps a uint64 beyond int64 to a negative number: that is an error here. */
static bool fits_int64(PyArrayObject *from, PyArrayObject *to, const char *op, const char *name)
{
    if (PyArray_DESCR(from)->kind != 'u' || PyArray_ITEMSIZE(from) < 8)
        return true;
    const npy_int64 *value = PyArray_DATA(to);
    for (npy_intp i = 0, size = PyArray_SIZE(to); i < size; i++)
        if (value[i] < 0) {
            PyErr_Format(PyExc_ValueError, "%s: %s has a number above 2**63 - 1, which int64 cannot hold", op, name);
            return false;
        }
    return true;
}

/* A new array of `array`'s elements as float32 (of bfloat16's bits) or as bfloat16's bits (of float32). Takes over the
 * reference; NULL goes through. */
static PyArrayObject *convert_bfloat16(const struct vgg_state *state, PyArrayObject *array, enum vgg_dtype to)
{
    PyArrayObject *result =
        array ? (PyArrayObject *)PyArray_SimpleNew(PyArray_NDIM(array), PyArray_DIMS(array), vggpy_numpy_type(to)) : NULL;
    if (result) {
        struct device host = {state->backends[0], 0};
        if (!vggpy_convert(state, host, PyArray_DATA(result), to, PyArray_DATA(array), (size_t)PyArray_SIZE(array)))
            Py_CLEAR(result);
    }
    Py_XDECREF((PyObject *)array);
    return result;
}

PyArrayObject *vggpy_host_array(const struct vgg_state *state, PyObject *object, const char *op, const char *name,
                                enum vgg_dtype wanted, bool cast)
{
    PyArrayObject *any = NULL, *array = NULL;
    if (cast && wanted == VGG_BFLOAT16) /* by way of float32 */
        return convert_bfloat16(state, vggpy_host_array(state, object, op, name, VGG_FLOAT32, true), VGG_BFLOAT16);
    if (vggpy_is_tensor(state, object)) {
        any = (PyArrayObject *)vggpy_tensor_numpy((struct tensor *)object);
        if (((struct tensor *)object)->dtype == VGG_BFLOAT16)
            any = convert_bfloat16(state, any, VGG_FLOAT32);
    } else {
        any = any_array(object);
    }
    if (!any)
        return NULL;
    enum vgg_dtype dtype = natural_dtype(any);
    if (dtype == VGG_DTYPE_COUNT) {
        PyErr_Format(PyExc_TypeError, "%s: %s has dtype %S; expected floats, integers or bool", op, name,
                     (PyObject *)PyArray_DESCR(any));
        goto done;
    }
    if (PyArray_NDIM(any) > VGG_MAX_NDIM) {
        PyErr_Format(PyExc_ValueError, "%s: %s has %d dimensions; expected at most %d", op, name, PyArray_NDIM(any),
                     VGG_MAX_NDIM);
        goto done;
    }
    if (wanted != VGG_DTYPE_COUNT && (cast || (wanted == VGG_INT64 && dtype == VGG_UINT8)))
        dtype = wanted;
    /* DescrFromType's reference is stolen by FromArray. CARRAY_RO: aligned and C-contiguous; the descriptor is native. */
    array = (PyArrayObject *)PyArray_FromArray(any, PyArray_DescrFromType(vggpy_numpy_type(dtype)),
                                               NPY_ARRAY_CARRAY_RO | NPY_ARRAY_FORCECAST | NPY_ARRAY_ENSUREARRAY);
    if (array && dtype == VGG_INT64 && !fits_int64(any, array, op, name))
        Py_CLEAR(array);
done:
    Py_DECREF(any);
    return array;
}

struct tensor *vggpy_tensor_from_array(const struct vgg_state *state, PyArrayObject *array, struct device device)
{
    struct vgg_array from = vggpy_numpy_array(array);
    struct tensor *tensor = vggpy_tensor_new(state, device, from.dtype, from.ndim, from.shape);
    if (tensor && !vggpy_transfer(state, device, UPLOAD, tensor->data, from.data, vggpy_tensor_bytes(tensor)))
        Py_CLEAR(tensor);
    return tensor;
}

PyObject *vggpy_tensor_numpy(struct tensor *tensor)
{
    npy_intp shape[VGG_MAX_NDIM];
    for (int i = 0; i < tensor->ndim; i++)
        shape[i] = tensor->shape[i];
    struct device device = tensor->storage->device;
    /* NumPy takes no NULL: an empty tensor's array is NumPy's own, and there is nothing to share. */
    bool share = device.backend->host && tensor->data;
    /* PyArray_New takes NULL data as "allocate". */
    PyObject *array = PyArray_New(&PyArray_Type, tensor->ndim, shape, vggpy_numpy_type(tensor->dtype), NULL,
                                  share ? tensor->data : NULL, 0, share ? NPY_ARRAY_CARRAY : 0, NULL);
    if (!array)
        return NULL;
    if (share) { /* SetBaseObject steals the reference, also when it fails */
        if (PyArray_SetBaseObject((PyArrayObject *)array, Py_NewRef((PyObject *)tensor)) < 0) {
            Py_DECREF(array);
            return NULL;
        }
        if (tensor->readonly || tensor->frozen)
            PyArray_CLEARFLAGS((PyArrayObject *)array, NPY_ARRAY_WRITEABLE);
    } else if (!vggpy_transfer(vggpy_state_of((PyObject *)tensor), device, DOWNLOAD, PyArray_DATA((PyArrayObject *)array),
                               tensor->data, vggpy_tensor_bytes(tensor))) {
        Py_DECREF(array);
        return NULL;
    }
    return array;
}

/* ------------------------------------------------------------------------------------------------ names and numbers */

int vggpy_choice(PyObject *object, const char *op, const char *name, const char *const *choices)
{
    const char *text = PyUnicode_Check(object) ? PyUnicode_AsUTF8AndSize(object, NULL) : NULL;
    for (int i = 0; text && choices[i]; i++)
        if (strcmp(text, choices[i]) == 0)
            return i;
    if (PyErr_Occurred())
        return -1;
    char list[160] = "";
    for (int i = 0; choices[i]; i++) {
        size_t at = strlen(list);
        snprintf(list + at, sizeof(list) - at, "%s\"%s\"", i ? ", " : "", choices[i]);
    }
    PyErr_Format(PyUnicode_Check(object) ? PyExc_ValueError : PyExc_TypeError, "%s: %s is %R; expected one of %s", op, name,
                 object, list);
    return -1;
}

bool vggpy_dtype(PyObject *object, const char *op, enum vgg_dtype *dtype)
{
    static const char *const names[] = {"float32", "int64", "uint8", "bfloat16", NULL};
    int choice = vggpy_choice(object, op, "dtype", names);
    if (choice >= 0)
        *dtype = (enum vgg_dtype)choice;
    return choice >= 0;
}

bool vggpy_precision(PyObject *object, const char *op, enum vgg_precision *precision)
{
    static const char *const names[] = {"float32", "tf32", "bf16", NULL};
    int choice = object ? vggpy_choice(object, op, "precision", names) : VGG_PRECISION_FLOAT32;
    *precision = (enum vgg_precision)choice;
    return choice >= 0;
}

bool vggpy_uint(PyObject *object, const char *op, const char *name, uint64_t max, uint64_t *value)
{
    PyObject *index = PyNumber_Index(object);
    if (!index) {
        if (PyErr_ExceptionMatches(PyExc_TypeError))
            PyErr_Format(PyExc_TypeError, "%s: %s is %R; expected an int", op, name, object);
        return false;
    }
    unsigned long long number = PyLong_AsUnsignedLongLong(index);
    bool failed = number == (unsigned long long)-1 && PyErr_Occurred();
    if (failed)
        PyErr_Clear(); /* negative or too long: the message below says more */
    if (failed || number > max)
        PyErr_Format(PyExc_ValueError, "%s: %s is %S; expected 0..%llu", op, name, index, (unsigned long long)max);
    else
        *value = number;
    Py_DECREF(index);
    return !failed && number <= max;
}

bool vggpy_shape(PyObject *object, const char *op, const char *name, int *ndim, size_t *shape, int *infer)
{
    if (infer)
        *infer = -1;
    /* A tuple of our own: another thread may change a list meanwhile. */
    PyObject *tuple = PyIndex_Check(object) ? PyTuple_Pack(1, object) : PySequence_Tuple(object);
    if (!tuple) {
        if (PyErr_ExceptionMatches(PyExc_TypeError))
            PyErr_Format(PyExc_TypeError, "%s: %s is %R; expected a sequence of ints", op, name, object);
        return false;
    }
    Py_ssize_t count = PyTuple_Size(tuple);
    bool valid = count <= VGG_MAX_NDIM;
    if (!valid)
        PyErr_Format(PyExc_ValueError, "%s: %s has %zd dimensions; expected at most %d", op, name, count, VGG_MAX_NDIM);
    for (Py_ssize_t i = 0; valid && i < count; i++) {
        PyObject *item = PyTuple_GetItem(tuple, i); /* borrowed */
        Py_ssize_t size = PyNumber_AsSsize_t(item, PyExc_ValueError);
        if (size == -1 && PyErr_Occurred()) {
            valid = false;
            if (PyErr_ExceptionMatches(PyExc_TypeError))
                PyErr_Format(PyExc_TypeError, "%s: %s is %R; expected ints", op, name, tuple);
        } else if (size == -1 && infer && *infer == -1) {
            *infer = (int)i;
            shape[i] = 0;
        } else if (size < 0) {
            valid = false;
            PyErr_Format(PyExc_ValueError, "%s: %s is %R; expected sizes of 0 or more%s", op, name, tuple,
                         infer ? ", and -1 at most once" : "");
        } else {
            shape[i] = (size_t)size;
        }
    }
    Py_DECREF(tuple);
    *ndim = (int)count;
    return valid;
}

bool vggpy_shape4(PyObject *object, const char *op, const char *name, size_t *shape)
{
    int ndim;
    if (!vggpy_shape(object, op, name, &ndim, shape, NULL))
        return false;
    if (ndim != 4)
        PyErr_Format(PyExc_ValueError, "%s: %s is %R; expected 4 sizes", op, name, object);
    return ndim == 4;
}

PyObject *vggpy_shape_tuple(int ndim, const Py_ssize_t *shape)
{
    PyObject *tuple = PyTuple_New(ndim);
    for (int i = 0; tuple && i < ndim; i++) {
        PyObject *size = PyLong_FromSsize_t(shape[i]);
        if (!size || PyTuple_SetItem(tuple, i, size) < 0) /* SetItem steals */
            Py_CLEAR(tuple);
    }
    return tuple;
}
