/* py.h: what the files of csrc/py share. They are the only ones that include Python.h.
 *
 * Ownership: a Storage owns bytes on one device; a Tensor owns a reference to a Storage and says which bytes of it and in what
 * shape; everything else borrows for the length of a call.
 * Functions that return bool or a pointer have set a Python exception when they return false or NULL.
 */
#ifndef VGGNET_PY_H
#define VGGNET_PY_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#define NPY_NO_DEPRECATED_API NPY_2_0_API_VERSION
#define NPY_TARGET_VERSION NPY_2_0_API_VERSION
#define PY_ARRAY_UNIQUE_SYMBOL vggpy_numpy_api
#ifndef VGGPY_IMPORTS_NUMPY /* module.c does, once for all files */
#define NO_IMPORT_ARRAY
#endif
#include <numpy/arrayobject.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../vgg_internal.h"

/* ------------------------------------------------------------------------------------------------ state (module.c) */

/* Every Python object that a module owns: the struct, traverse and clear expand this one list. */
#define STATE_OBJECTS(X) \
    X(storage_type) \
    X(tensor_type) \
    X(vgg_error) \
    X(device_error) \
    X(weights_error) \
    X(image_error) \
    X(capsules) /* list: keeps what registered backends live in from going */

enum { VGGPY_MAX_BACKENDS = 8 };

struct vgg_state {
#define X(name) PyObject *name;
    STATE_OBJECTS(X)
#undef X
    const struct vgg_backend *backends[VGGPY_MAX_BACKENDS]; /* the CPU's is the first */
    int backend_count;
};

struct vgg_state *vggpy_state(PyObject *module);
struct vgg_state *vggpy_state_of(PyObject *self); /* of a Storage or Tensor */

/* Functions of one file, added to the module by module.c. */
extern PyMethodDef vggpy_tensor_functions[], vggpy_device_functions[], vggpy_conv2d_functions[], vggpy_linear_functions[],
    vggpy_layer_functions[], vggpy_update_functions[], vggpy_augment_functions[];

/* METH_KEYWORDS functions have another type than the slot says. */
#define VGGPY_KEYWORDS(function) (PyCFunction)(void (*)(void))(function), METH_VARARGS | METH_KEYWORDS

/* ------------------------------------------------------------------------------------------------ errors (raise.c) */

/* Raises the exception of error->status. Always false. */
bool vggpy_raise(const struct vgg_state *state, const struct vgg_error *error);

/* ------------------------------------------------------------------------------------------------ devices (device.c) */

struct device {
    const struct vgg_backend *backend;
    int index;
};

/* A device of the backend with that name; CUDA's is opened when it is first asked for. False without an exception: none is. */
bool vggpy_device_find(const struct vgg_state *state, const char *name, size_t length, long index, struct device *device);
bool vggpy_device_parse(const struct vgg_state *state, const char *name, struct device *device);
PyObject *vggpy_device_name(struct device device); /* "cpu", "cpu:1", "cuda:0" */
bool vggpy_register_backend(struct vgg_state *state, const struct vgg_backend *backend);

static inline bool vggpy_same_device(struct device a, struct device b)
{
    return a.backend == b.backend && a.index == b.index;
}

/* Whether an address means the same on both. */
static inline bool vggpy_same_memory(struct device a, struct device b)
{
    return vggpy_same_device(a, b) || (a.backend == b.backend && a.backend->host);
}

/* A context for calls without workspace. It borrows *error. */
struct vgg_context vggpy_context(struct device device, struct vgg_error *error);

/* Moves bytes with the GIL released: to the device, to the host. */
enum transfer { UPLOAD, DOWNLOAD };
bool vggpy_transfer(const struct vgg_state *state, struct device device, enum transfer kind, void *to, const void *from,
                    size_t bytes);
/* float32 to bfloat16 or back, both on `device`. */
bool vggpy_convert(const struct vgg_state *state, struct device device, void *to, enum vgg_dtype to_dtype, const void *from,
                   size_t count);
/* Moves bytes between any two devices. */
bool vggpy_copy(const struct vgg_state *state, struct device device, void *to, struct device from_device, const void *from,
                size_t bytes);

/* ------------------------------------------------------------------------------------------------ storage (storage.c) */

/* Owns `nbytes` bytes of `device`: they are the backend's, or kept alive by `owner`, which goes with the storage. */
struct storage {
    PyObject_HEAD struct device device;
    void *data;
    size_t nbytes;
    PyObject *owner;  /* NULL: the bytes go back to the backend */
    uint64_t version; /* in-place operations bump it, under the GIL */
};

extern PyType_Spec vggpy_storage_spec;
struct storage *vggpy_storage_new(const struct vgg_state *state, struct device device, size_t nbytes);
/* Takes a new reference to owner. */
struct storage *vggpy_storage_wrap(const struct vgg_state *state, struct device device, void *data, size_t nbytes,
                                   PyObject *owner);

/* ------------------------------------------------------------------------------------------------ tensors (tensor.c) */

/* Owns a reference to a storage; describes C-contiguous elements inside it. Immutable but for `frozen`. */
struct tensor {
    PyObject_HEAD struct storage *storage;
    void *data; /* inside the storage; natural alignment of dtype */
    enum vgg_dtype dtype;
    int ndim;
    bool readonly; /* in-place operations raise: the memory is another's and was given for reading */
    bool frozen;   /* views given to Python are read-only */
    Py_ssize_t shape[VGG_MAX_NDIM], strides[VGG_MAX_NDIM]; /* strides in bytes; Py_buffers point to both */
};

extern PyType_Spec vggpy_tensor_spec;
bool vggpy_is_tensor(const struct vgg_state *state, PyObject *object);
struct tensor *vggpy_tensor_new(const struct vgg_state *state, struct device device, enum vgg_dtype dtype, int ndim,
                                const size_t *shape);
/* A tensor over storage from `data` on; takes a new reference to storage. */
struct tensor *vggpy_tensor_wrap(const struct vgg_state *state, struct storage *storage, void *data, enum vgg_dtype dtype,
                                 int ndim, const size_t *shape);
struct vgg_array vggpy_tensor_array(const struct tensor *tensor); /* borrows */
size_t vggpy_tensor_bytes(const struct tensor *tensor);
bool vggpy_tensor_writable(const struct tensor *tensor, const char *op, const char *name); /* or raises */
/* New tensor on another device (or the same): a copy. */
struct tensor *vggpy_tensor_to_device(const struct vgg_state *state, struct tensor *tensor, struct device device);

static inline bool vggpy_overlap(const void *a, size_t a_bytes, const void *b, size_t b_bytes)
{
    return a_bytes && b_bytes && (uintptr_t)a < (uintptr_t)b + b_bytes && (uintptr_t)b < (uintptr_t)a + a_bytes;
}
bool vggpy_tensors_overlap(const struct tensor *a, const struct tensor *b);

/* ------------------------------------------------------------------------------------------------ conversions (convert.c) */

/* Anything array-like -> a NumPy array in host memory: native, aligned, C-contiguous, of one of our dtypes. Without copying
 * where the object is already so. Floats become float32, bool and uint8 uint8, other integers int64; `wanted` (or
 * VGG_DTYPE_COUNT) int64 also takes uint8 and bool; with `cast`, the array is cast to `wanted`. Of bfloat16, which NumPy lacks,
 * an array holds the bits as uint16. */
PyArrayObject *vggpy_host_array(const struct vgg_state *state, PyObject *object, const char *op, const char *name,
                                enum vgg_dtype wanted, bool cast);
struct vgg_array vggpy_numpy_array(PyArrayObject *array); /* borrows; for arrays of vggpy_host_array */
PyObject *vggpy_numpy_new(enum vgg_dtype dtype, int ndim, const size_t *shape);
PyObject *vggpy_tensor_numpy(struct tensor *tensor); /* Tensor.numpy() */
/* A new tensor with a host array's contents. */
struct tensor *vggpy_tensor_from_array(const struct vgg_state *state, PyArrayObject *array, struct device device);
int vggpy_numpy_type(enum vgg_dtype dtype);

/* "O&"-like, but with messages that name the argument. */
bool vggpy_dtype(PyObject *object, const char *op, enum vgg_dtype *dtype);
/* A sequence of ints; -1 passes once when `infer` is not NULL, and its position goes there (or -1). */
bool vggpy_shape(PyObject *object, const char *op, const char *name, int *ndim, size_t *shape, int *infer);
/* The same with exactly 4 sizes. */
bool vggpy_shape4(PyObject *object, const char *op, const char *name, size_t *shape);
bool vggpy_uint(PyObject *object, const char *op, const char *name, uint64_t max, uint64_t *value);
/* Index of the string in choices (NULL at the end), or -1 with a ValueError that lists them. */
int vggpy_choice(PyObject *object, const char *op, const char *name, const char *const *choices);
/* precision="float32" (also for NULL), "tf32" or "bf16". */
bool vggpy_precision(PyObject *object, const char *op, enum vgg_precision *precision);
PyObject *vggpy_shape_tuple(int ndim, const Py_ssize_t *shape);

/* ------------------------------------------------------------------------------------------------ DLPack (dlpack.c) */

struct tensor *vggpy_from_dlpack(const struct vgg_state *state, PyObject *object);
PyObject *vggpy_to_dlpack(PyObject *self, PyObject *args, PyObject *kwargs);
PyObject *vggpy_dlpack_device(PyObject *self, PyObject *unused);
PyObject *vggpy_cuda_array_interface(PyObject *self, void *closure);
/* Whether the object is an array of another library in a device's memory: a producer of DLPack, but not the CPU's. */
bool vggpy_is_device_array(PyObject *object);

/* ------------------------------------------------------------------------------------------------ calls (call.c) */

enum { VGGPY_MAX_INPUTS = 5, VGGPY_MAX_OUTPUTS = 2 };

/* An argument that an operation reads. The binding fills the first five; `array` and `owner` are call_begin's. */
struct call_input {
    const char *name;
    PyObject *object; /* borrowed from the arguments */
    enum vgg_dtype dtype;
    bool optional; /* None is allowed: array.data is NULL then, and vggpy_given() too */
    bool map;      /* may be bfloat16 where the device computes with such maps */
    bool given;
    struct vgg_array array;
    PyObject *owner; /* keeps array.data */
};

/* One call of an operation, from arguments to result. A binding reads
 *
 *     if (call_begin(...) && call_check(&c, vgg_op_check(...)) && call_output(...) && call_workspace(...))
 *         CALL_RUN(&c, entry, outputs, inputs, shape);
 *     return call_end(&c);
 *
 * Each step raises and returns false when it cannot go on; call_end gives everything back, whatever was reached. It must be
 * called after call_begin, even a failed one. */
struct call {
    const struct vgg_state *state;
    const char *op;
    struct call_input *inputs;
    int input_count;
    struct device device; /* of the Tensors among the inputs */
    struct tensor *outputs[VGGPY_MAX_OUTPUTS];
    bool given[VGGPY_MAX_OUTPUTS]; /* came by out=: in place, so the storage's version is bumped */
    int output_count;
    PyObject *workspace_owner; /* the Tensor of workspace= */
    void *temporary;           /* a workspace of this call's own */
    size_t temporary_bytes;
    bool ran;
    enum vgg_status status;
    struct vgg_error error;
    struct vgg_context context;
};

bool call_begin(struct call *c, PyObject *module, const char *op, struct call_input *inputs, int count);
bool call_check(struct call *c, enum vgg_status status);
/* The next output: new, or `out` if that is a fitting Tensor (None: new). It may alias input number `alias` (-1: none). */
bool call_output(struct call *c, PyObject *out, const char *name, enum vgg_dtype dtype, int ndim, const size_t *shape,
                 int alias);
/* Splits out= of an operation with two results: None, or a sequence of two. The references are borrowed. */
bool call_out_pair(struct call *c, PyObject *out, PyObject *pair[2]);
bool call_workspace(struct call *c, PyObject *workspace, size_t bytes);
PyObject *call_end(struct call *c); /* None without outputs, the Tensor, or a tuple of two */

/* Runs a table entry with the GIL released. */
#define CALL_RUN(c, entry, ...) \
    do { \
        PyThreadState *call_thread = PyEval_SaveThread(); \
        (c)->status = (c)->context.backend->entry(&(c)->context, __VA_ARGS__); \
        PyEval_RestoreThread(call_thread); \
        (c)->ran = true; \
    } while (0)

static inline const struct vgg_array *call_array(const struct call_input *input)
{
    return input->given ? &input->array : NULL;
}

#endif
