/* ops_augment.c: bindings of what makes a batch: crops of images, and random bits. */
#include "py.h"

#include "../core/philox.h"

/* `count` floats from a sequence. */
static bool take_floats(PyObject *object, const char *name, size_t count, float *to)
{
    PyObject *tuple = PySequence_Tuple(object);
    bool valid = tuple && (size_t)PyTuple_Size(tuple) == count;
    if (tuple && !valid)
        PyErr_Format(PyExc_ValueError, "augment: %s has %zd numbers; expected %zu", name, PyTuple_Size(tuple), count);
    for (size_t i = 0; valid && i < count; i++) {
        to[i] = (float)PyFloat_AsDouble(PyTuple_GetItem(tuple, (Py_ssize_t)i));
        valid = !PyErr_Occurred();
    }
    Py_XDECREF(tuple);
    return valid;
}

PyDoc_STRVAR(augment_doc, "augment(images, crops, size, mean, *, shift=None, device='cpu', out=None)\n--\n\n"
                          "Crop, mirror, shift colours and subtract the mean: from uint8 images to a batch.\n\n"
                          "Parameters\n----------\n"
                          "images : sequence of N arrays (H, W, C) uint8\n"
                          "    Sizes may differ; C is 1..4.\n"
                          "crops : (N, 3) int64\n"
                          "    top, left, and whether to mirror (0 or 1).\n"
                          "size : int\n"
                          "    Height and width of the crops, in pixels.\n"
                          "mean : C floats\n"
                          "    Subtracted from each channel, on the 0..255 scale.\n"
                          "shift : (N, C) float32, optional\n"
                          "    Added to each image's channels.\n"
                          "device : str\n"
                          "    Of the result.\n"
                          "out : Tensor, optional\n\n"
                          "Returns\n-------\n"
                          "Tensor\n"
                          "    (N, size, size, C) float32.\n\n"
                          "Raises\n------\n"
                          "ValueError\n"
                          "    If a crop does not lie inside its image.\n\n"
                          "Source: paper, section 3.1.");

/* Fills crops[n] from the arguments and puts what must live during the call into `keep`. */
static bool take_crops(const struct vgg_state *state, PyObject *images, PyObject *places_object, PyObject *shift_object,
                       const struct vgg_augment *s, struct vgg_crop *crops, PyObject *keep)
{
    static const char op[] = "augment";
    PyArrayObject *places = vggpy_host_array(state, places_object, op, "crops", VGG_INT64, false), *shift = NULL;
    struct vgg_error error = {.status = VGG_OK};
    bool valid = places != NULL;
    if (valid) {
        struct vgg_array a = vggpy_numpy_array(places);
        valid = (vgg_expect_dtype(op, "crops", &a, VGG_INT64, &error) == VGG_OK &&
                 vgg_expect_shape(op, "crops", &a, (size_t[]){s->n, 3}, 2, "there is a row (top, left, mirror) for each image",
                                  &error) == VGG_OK) ||
                vggpy_raise(state, &error);
    }
    if (valid && shift_object != Py_None) {
        shift = vggpy_host_array(state, shift_object, op, "shift", VGG_FLOAT32, false);
        valid = shift != NULL;
        if (valid) {
            struct vgg_array a = vggpy_numpy_array(shift);
            valid = (vgg_expect_dtype(op, "shift", &a, VGG_FLOAT32, &error) == VGG_OK &&
                     vgg_expect_shape(op, "shift", &a, (size_t[]){s->n, s->c}, 2, "each image's channels have one", &error) ==
                         VGG_OK) ||
                    vggpy_raise(state, &error);
        }
    }
    for (size_t i = 0; valid && i < s->n; i++) {
        char name[32];
        snprintf(name, sizeof(name), "images[%zu]", i);
        PyArrayObject *image = vggpy_host_array(state, PyTuple_GetItem(images, (Py_ssize_t)i), op, name, VGG_UINT8, false);
        valid = image && PyList_Append(keep, (PyObject *)image) == 0;
        Py_XDECREF((PyObject *)image); /* `keep` has it */
        if (!valid)
            break;
        struct vgg_array a = vggpy_numpy_array(image);
        if (vgg_expect_dtype(op, name, &a, VGG_UINT8, &error) != VGG_OK || vgg_expect_ndim(op, name, &a, 3, &error) != VGG_OK) {
            valid = vggpy_raise(state, &error);
            break;
        }
        const npy_int64 *place = (const npy_int64 *)PyArray_DATA(places) + 3 * i;
        if (a.shape[2] != s->c) {
            PyErr_Format(PyExc_ValueError, "augment: %s has %zu channels; expected %zu, as mean has", name, a.shape[2], s->c);
            valid = false;
        } else if (place[0] < 0 || place[1] < 0) {
            PyErr_Format(PyExc_ValueError, "augment: crops[%zu] begins at (%lld, %lld); expected to lie inside the image", i,
                         (long long)place[0], (long long)place[1]);
            valid = false;
        } else if (place[2] != 0 && place[2] != 1) {
            PyErr_Format(PyExc_ValueError, "augment: crops[%zu] has mirror %lld; expected 0 or 1", i, (long long)place[2]);
            valid = false;
        } else {
            crops[i] = (struct vgg_crop){
                .image = a.data,
                .height = a.shape[0],
                .width = a.shape[1],
                .top = (size_t)place[0],
                .left = (size_t)place[1],
                .mirror = place[2] == 1,
            };
            for (size_t ch = 0; shift && ch < s->c; ch++)
                crops[i].shift[ch] = ((const float *)PyArray_DATA(shift))[s->c * i + ch];
        }
    }
    Py_XDECREF((PyObject *)shift);
    Py_XDECREF((PyObject *)places);
    return valid;
}

static PyObject *py_augment(PyObject *module, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"images", "crops", "size", "mean", "shift", "device", "out", NULL};
    struct vgg_state *state = vggpy_state(module);
    PyObject *images_object, *places, *size_object, *mean, *shift = Py_None, *out = Py_None, *result = NULL;
    PyObject *images = NULL, *keep = NULL;
    struct vgg_crop *crops = NULL;
    const char *device_name = NULL;
    struct device device;
    uint64_t size;
    struct call c;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOOO|$OsO:augment", names, &images_object, &places, &size_object, &mean,
                                     &shift, &device_name, &out) ||
        !vggpy_uint(size_object, "augment", "size", 1 << 24, &size) ||
        !vggpy_device_parse(state, device_name ? device_name : "cpu", &device))
        return NULL;
    if (!device_name && vggpy_is_tensor(state, out))
        device = ((struct tensor *)out)->storage->device;
    Py_ssize_t channels = PySequence_Size(mean);
    if (channels < 0)
        return NULL;
    if (channels < 1 || channels > 4)
        return PyErr_Format(PyExc_ValueError, "augment: mean has %zd numbers; expected 1 to 4, as images have channels",
                            channels);
    images = PySequence_Tuple(images_object);
    keep = PyList_New(0);
    if (!images || !keep)
        goto done;
    struct vgg_augment s = {.n = (size_t)PyTuple_Size(images), .size = (size_t)size, .c = (size_t)channels};
    crops = PyMem_Calloc(s.n, sizeof(*crops));
    if (!crops) {
        PyErr_NoMemory();
        goto done;
    }
    if (!take_floats(mean, "mean", s.c, s.mean) || !take_crops(state, images, places, shift, &s, crops, keep))
        goto done;
    if (call_begin(&c, module, "augment", NULL, 0)) {
        c.device = device;
        c.context = vggpy_context(device, &c.error);
        if (call_check(&c, vgg_augment_check(&s, crops, &c.error)) &&
            call_output(&c, out, "out", VGG_FLOAT32, 4, (size_t[]){s.n, s.size, s.size, s.c}, -1))
            CALL_RUN(&c, augment, c.outputs[0]->data, crops, &s);
    }
    result = call_end(&c);
done:
    PyMem_Free(crops);
    Py_XDECREF(keep);
    Py_XDECREF(images);
    return result;
}

PyDoc_STRVAR(random_bits_doc, "random_bits(seed, rows, purpose, count)\n--\n\n"
                              "Random words, known from (seed, row, purpose, position) alone.\n\n"
                              "Parameters\n----------\n"
                              "seed : int\n"
                              "    0 <= seed < 2**64.\n"
                              "rows : (R,) int64\n"
                              "purpose : int\n"
                              "    0 <= purpose < 2**32.\n"
                              "count : int\n"
                              "    Words a row, at most 2**34.\n\n"
                              "Returns\n-------\n"
                              "numpy.ndarray\n"
                              "    (R, count) uint32.\n\n"
                              "Notes\n-----\n"
                              "Philox4x32-10 (Salmon et al., SC'11).");

static PyObject *py_random_bits(PyObject *module, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"seed", "rows", "purpose", "count", NULL};
    static const char op[] = "random_bits";
    struct vgg_state *state = vggpy_state(module);
    PyObject *seed_object, *rows_object, *purpose_object, *count_object, *bits = NULL;
    uint64_t seed, purpose, count;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOOO:random_bits", names, &seed_object, &rows_object, &purpose_object,
                                     &count_object) ||
        !vggpy_uint(seed_object, op, "seed", UINT64_MAX, &seed) ||
        !vggpy_uint(purpose_object, op, "purpose", UINT32_MAX, &purpose) ||
        !vggpy_uint(count_object, op, "count", (uint64_t)4 << 32, &count))
        return NULL;
    PyArrayObject *rows = vggpy_host_array(state, rows_object, op, "rows", VGG_INT64, false);
    if (!rows)
        return NULL;
    struct vgg_array a = vggpy_numpy_array(rows);
    struct vgg_error error = {.status = VGG_OK};
    if (vgg_expect_dtype(op, "rows", &a, VGG_INT64, &error) != VGG_OK || vgg_expect_ndim(op, "rows", &a, 1, &error) != VGG_OK) {
        vggpy_raise(state, &error);
        goto done;
    }
    npy_intp shape[2] = {(npy_intp)a.shape[0], (npy_intp)count};
    bits = PyArray_SimpleNew(2, shape, NPY_UINT32);
    if (!bits)
        goto done;
    uint32_t *words = PyArray_DATA((PyArrayObject *)bits);
    PyThreadState *thread = PyEval_SaveThread();
    for (size_t r = 0; r < a.shape[0]; r++, words += count)
        for (size_t j = 0; j < count; j += 4) {
            uint32_t block[4];
            vgg_philox(block, seed, (uint64_t)((const int64_t *)a.data)[r], (uint32_t)purpose, (uint32_t)(j / 4));
            memcpy(words + j, block, vgg_min_size(4, count - j) * sizeof(*words));
        }
    PyEval_RestoreThread(thread);
done:
    Py_DECREF((PyObject *)rows);
    return bits;
}

PyMethodDef vggpy_augment_functions[] = {
    {"augment", VGGPY_KEYWORDS(py_augment), augment_doc},
    {"random_bits", VGGPY_KEYWORDS(py_random_bits), random_bits_doc},
    {NULL, NULL, 0, NULL},
};
