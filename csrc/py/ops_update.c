/* ops_update.c: bindings of what writes in place: Tensors only, whose storages' versions are bumped. */
#include "py.h"

/* The result of a call whose output is one of its arguments: None. */
static PyObject *end_in_place(struct call *c)
{
    PyObject *result = call_end(c);
    if (!result)
        return NULL;
    Py_DECREF(result);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(add_doc, "add_(y, x)\n--\n\n"
                      "y += x, in place: where two gradients meet.\n\n"
                      "Parameters\n----------\n"
                      "y : float32 Tensor; on CUDA also bfloat16\n"
                      "x : of y's shape and dtype\n"
                      "    Does not overlap y.\n\n"
                      "Raises\n------\n"
                      "TypeError\n"
                      "    If y is not a Tensor.\n"
                      "ValueError\n"
                      "    If the shapes differ.");

static PyObject *py_add(PyObject *module, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"y", "x", NULL};
    PyObject *y, *x;
    struct call c;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO:add_", names, &y, &x))
        return NULL;
    struct call_input in[] = {
        {.name = "y", .object = y, .dtype = VGG_FLOAT32, .map = true},
        {.name = "x", .object = x, .dtype = VGG_FLOAT32, .map = true},
    };
    const struct vgg_array *a = &in[1].array;
    if (y == Py_None)
        return PyErr_Format(PyExc_TypeError, "add_: y is None; expected a Tensor");
    if (call_begin(&c, module, "add_", in, 2) && call_check(&c, vgg_expect_map("add_", "x", a, &c.error)) &&
        call_output(&c, y, "y", a->dtype, a->ndim, a->shape, 0))
        CALL_RUN(&c, add, c.outputs[0]->data, a->data, vggpy_tensor_bytes(c.outputs[0]) / vgg_dtype_size(a->dtype), a->dtype);
    return end_in_place(&c);
}

/* ------------------------------------------------------------------------------------------------ lists of tensors */

/* Owns references to the tensors of an argument that is one Tensor or a sequence of them. */
struct tensors {
    const char *name;
    PyObject *tuple; /* our own: another thread may change a list meanwhile */
    size_t count;
};

static struct tensor *tensor_at(const struct tensors *list, size_t i)
{
    return (struct tensor *)PyTuple_GetItem(list->tuple, (Py_ssize_t)i); /* borrowed; never fails: checked in take_tensors */
}

static bool take_tensors(struct tensors *list, const struct vgg_state *state, const char *op, const char *name,
                         PyObject *object)
{
    list->name = name;
    list->tuple = vggpy_is_tensor(state, object) ? PyTuple_Pack(1, object) : PySequence_Tuple(object);
    if (!list->tuple) {
        if (PyErr_ExceptionMatches(PyExc_TypeError))
            PyErr_Format(PyExc_TypeError, "%s: %s is %R; expected a Tensor or a sequence of Tensors", op, name,
                         (PyObject *)Py_TYPE(object));
        return false;
    }
    list->count = (size_t)PyTuple_Size(list->tuple);
    for (size_t i = 0; i < list->count; i++)
        if (!vggpy_is_tensor(state, (PyObject *)tensor_at(list, i))) {
            PyErr_Format(PyExc_TypeError, "%s: %s[%zu] is %R; expected a Tensor", op, name, i,
                         (PyObject *)Py_TYPE((PyObject *)tensor_at(list, i)));
            return false;
        }
    return true;
}

/* float32, of the shape of `like`. */
static bool check_like(const struct vgg_state *state, const char *op, const struct tensors *list, size_t i,
                       const struct tensor *like)
{
    char name[64];
    snprintf(name, sizeof(name), "%s[%zu]", list->name, i);
    struct vgg_array array = vggpy_tensor_array(tensor_at(list, i)), expected = vggpy_tensor_array(like);
    struct vgg_error error = {.status = VGG_OK};
    return vgg_expect_dtype(op, name, &array, VGG_FLOAT32, &error) == VGG_OK &&
                   vgg_expect_shape(op, name, &array, expected.shape, expected.ndim, "that is the first one's shape", &error) ==
                       VGG_OK
               ? true
               : vggpy_raise(state, &error);
}

/* Tensor i of `written` is writable and keeps clear of every tensor of `other` (but itself). */
static bool check_written(const char *op, const struct tensors *written, size_t i, const struct tensors *other)
{
    struct tensor *tensor = tensor_at(written, i);
    if (!vggpy_tensor_writable(tensor, op, written->name))
        return false;
    for (size_t j = 0; j < other->count; j++)
        if (!(written == other && i == j) && vggpy_tensors_overlap(tensor, tensor_at(other, j))) {
            PyErr_Format(PyExc_ValueError, "%s: %s[%zu] overlaps %s[%zu]", op, written->name, i, other->name, j);
            return false;
        }
    return true;
}

/* ------------------------------------------------------------------------------------------------ SGD */

PyDoc_STRVAR(sgd_doc,
             "sgd_(param, grad, velocity, lr, momentum=0.9, weight_decay=0.0005)\n--\n\n"
             "One step of stochastic gradient descent: v = momentum v + lr (g + weight_decay p); p -= v.\n\n"
             "Parameters\n----------\n"
             "param, grad, velocity : float32 Tensor, or sequences of as many Tensors\n"
             "    Of equal shapes, on one device. param and velocity are written.\n"
             "lr, momentum, weight_decay : float\n\n"
             "Raises\n------\n"
             "TypeError\n"
             "    If something is not a Tensor.\n"
             "ValueError\n"
             "    If lengths, shapes or devices differ, tensors overlap or are read-only, or a number is not finite.\n\n"
             "Source: paper, section 3.1; the rule is Caffe's, which the authors used.");

static PyObject *py_sgd(PyObject *module, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"param", "grad", "velocity", "lr", "momentum", "weight_decay", NULL};
    static const char op[] = "sgd_";
    struct vgg_state *state = vggpy_state(module);
    PyObject *param, *grad, *velocity, *result = NULL;
    struct vgg_sgd s = {.momentum = 0.9f, .weight_decay = 5e-4f};
    struct tensors p = {0}, g = {0}, v = {0};
    float **pointers = NULL;
    size_t *sizes = NULL;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOOf|ff:sgd_", names, &param, &grad, &velocity, &s.lr, &s.momentum,
                                     &s.weight_decay))
        return NULL;
    struct vgg_error error = {.status = VGG_OK};
    if (vgg_sgd_check(&s, &error) != VGG_OK) {
        vggpy_raise(state, &error);
        return NULL;
    }
    if (!take_tensors(&p, state, op, "param", param) || !take_tensors(&g, state, op, "grad", grad) ||
        !take_tensors(&v, state, op, "velocity", velocity))
        goto done;
    size_t count = p.count;
    if (g.count != count || v.count != count) {
        PyErr_Format(PyExc_ValueError, "sgd_: %zu params, %zu grads and %zu velocities; expected as many of each", count,
                     g.count, v.count);
        goto done;
    }
    for (size_t i = 0; i < count; i++) {
        struct device device = tensor_at(&p, 0)->storage->device;
        if (!check_like(state, op, &p, i, tensor_at(&p, i)) || !check_like(state, op, &g, i, tensor_at(&p, i)) ||
            !check_like(state, op, &v, i, tensor_at(&p, i)))
            goto done;
        if (!vggpy_same_device(tensor_at(&p, i)->storage->device, device) ||
            !vggpy_same_device(tensor_at(&g, i)->storage->device, device) ||
            !vggpy_same_device(tensor_at(&v, i)->storage->device, device)) {
            PyErr_Format(PyExc_ValueError, "sgd_: the tensors at %zu are not all on the device of param[0]", i);
            goto done;
        }
        if (!check_written(op, &p, i, &p) || !check_written(op, &p, i, &v) || !check_written(op, &p, i, &g) ||
            !check_written(op, &v, i, &v) || !check_written(op, &v, i, &g))
            goto done;
    }
    if (count == 0) {
        result = Py_NewRef(Py_None);
        goto done;
    }
    pointers = PyMem_Calloc(3 * count, sizeof(*pointers));
    sizes = PyMem_Calloc(count, sizeof(*sizes));
    if (!pointers || !sizes) {
        PyErr_NoMemory();
        goto done;
    }
    for (size_t i = 0; i < count; i++) {
        pointers[i] = tensor_at(&p, i)->data;
        pointers[count + i] = tensor_at(&v, i)->data;
        pointers[2 * count + i] = tensor_at(&g, i)->data;
        sizes[i] = vggpy_tensor_bytes(tensor_at(&p, i)) / sizeof(float);
    }
    struct vgg_context context = vggpy_context(tensor_at(&p, 0)->storage->device, &error);
    PyThreadState *thread = PyEval_SaveThread();
    enum vgg_status status = context.backend->sgd(&context, pointers, pointers + count,
                                                  (const float *const *)(pointers + 2 * count), sizes, count, &s);
    PyEval_RestoreThread(thread);
    for (size_t i = 0; i < count; i++) {
        tensor_at(&p, i)->storage->version++;
        tensor_at(&v, i)->storage->version++;
    }
    if (status != VGG_OK)
        vggpy_raise(state, &error);
    else if (PyErr_CheckSignals() == 0)
        result = Py_NewRef(Py_None);
done:
    PyMem_Free(sizes);
    PyMem_Free(pointers);
    Py_XDECREF(v.tuple);
    Py_XDECREF(g.tuple);
    Py_XDECREF(p.tuple);
    return result;
}

/* ------------------------------------------------------------------------------------------------ averaging */

PyDoc_STRVAR(average_gradients_doc,
             "average_gradients_(lists_of_tensors, *, weights=None)\n--\n\n"
             "The weighted mean of the devices' gradients, written on every device.\n\n"
             "Parameters\n----------\n"
             "lists_of_tensors : sequence of sequences of float32 Tensor\n"
             "    One list per device, of equal lengths and shapes, on devices of one kind.\n"
             "weights : sequence of float, optional\n"
             "    One per device, as the images that its gradients are of; equal if not given.\n\n"
             "Raises\n------\n"
             "TypeError\n"
             "    If something is not a Tensor.\n"
             "ValueError\n"
             "    If lengths, shapes or kinds of device differ, tensors overlap or are read-only, or weights are negative\n"
             "    or sum to 0.\n\n"
             "Notes\n-----\n"
             "Summed in float64 in the order of the lists, so the result repeats bit for bit.\n\n"
             "Source: paper, section 3.3.");

/* weight[devices], from Python or all 1. */
static bool take_weights(const struct vgg_state *state, PyObject *object, double *weight, size_t devices)
{
    PyObject *tuple = object == Py_None ? NULL : PySequence_Tuple(object);
    bool valid = object == Py_None || tuple;
    if (tuple && (size_t)PyTuple_Size(tuple) != devices) {
        PyErr_Format(PyExc_ValueError, "average_gradients_: %zd weights for %zu lists", PyTuple_Size(tuple), devices);
        valid = false;
    }
    for (size_t d = 0; valid && d < devices; d++) {
        weight[d] = tuple ? PyFloat_AsDouble(PyTuple_GetItem(tuple, (Py_ssize_t)d)) : 1.0;
        valid = !PyErr_Occurred();
    }
    Py_XDECREF(tuple);
    struct vgg_error error = {.status = VGG_OK};
    return valid && (vgg_average_check(weight, devices, &error) == VGG_OK || vggpy_raise(state, &error));
}

static PyObject *py_average_gradients(PyObject *module, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"lists_of_tensors", "weights", NULL};
    static const char op[] = "average_gradients_";
    struct vgg_state *state = vggpy_state(module);
    PyObject *object, *weights = Py_None, *outer = NULL, *result = NULL;
    struct tensors *lists = NULL;
    struct vgg_context *contexts = NULL, **context_pointers = NULL;
    float **pointers = NULL;
    double *weight = NULL;
    size_t devices = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|$O:average_gradients_", names, &object, &weights))
        return NULL;
    outer = PySequence_Tuple(object);
    if (!outer)
        return NULL;
    devices = (size_t)PyTuple_Size(outer);
    if (devices == 0) {
        PyErr_SetString(PyExc_ValueError, "average_gradients_: there are no lists; expected one per device");
        goto done;
    }
    lists = PyMem_Calloc(devices, sizeof(*lists));
    contexts = PyMem_Calloc(devices, sizeof(*contexts));
    context_pointers = PyMem_Calloc(devices, sizeof(*context_pointers));
    weight = PyMem_Calloc(devices, sizeof(*weight));
    if (!lists || !contexts || !context_pointers || !weight) {
        PyErr_NoMemory();
        goto done;
    }
    if (!take_weights(state, weights, weight, devices))
        goto done;
    for (size_t d = 0; d < devices; d++) {
        if (!take_tensors(&lists[d], state, op, "lists_of_tensors", PyTuple_GetItem(outer, (Py_ssize_t)d)))
            goto done;
        if (lists[d].count != lists[0].count) {
            PyErr_Format(PyExc_ValueError, "average_gradients_: list %zu has %zu tensors, the first %zu", d, lists[d].count,
                         lists[0].count);
            goto done;
        }
    }
    size_t count = lists[0].count;
    struct vgg_error error = {.status = VGG_OK};
    for (size_t d = 0; d < devices && count; d++) {
        struct device device = tensor_at(&lists[d], 0)->storage->device;
        if (device.backend != tensor_at(&lists[0], 0)->storage->device.backend) {
            PyErr_SetString(PyExc_ValueError, "average_gradients_: the lists are on different kinds of device");
            goto done;
        }
        contexts[d] = vggpy_context(device, &error);
        context_pointers[d] = &contexts[d];
        for (size_t i = 0; i < count; i++) {
            if (!vggpy_same_device(tensor_at(&lists[d], i)->storage->device, device)) {
                PyErr_Format(PyExc_ValueError, "average_gradients_: list %zu has tensors on several devices", d);
                goto done;
            }
            if (!check_like(state, op, &lists[d], i, tensor_at(&lists[0], i)))
                goto done;
            for (size_t other = 0; other <= d; other++)
                if (!check_written(op, &lists[d], i, &lists[other]))
                    goto done;
        }
    }
    pointers = PyMem_Calloc(count * devices, sizeof(*pointers));
    if (!pointers) {
        PyErr_NoMemory();
        goto done;
    }
    for (size_t i = 0; i < count; i++)
        for (size_t d = 0; d < devices; d++)
            pointers[i * devices + d] = tensor_at(&lists[d], i)->data;
    enum vgg_status status = VGG_OK;
    for (size_t i = 0; i < count && status == VGG_OK; i++) {
        size_t size = vggpy_tensor_bytes(tensor_at(&lists[0], i)) / sizeof(float);
        PyThreadState *thread = PyEval_SaveThread();
        status = contexts[0].backend->average(context_pointers, pointers + i * devices, weight, devices, size);
        PyEval_RestoreThread(thread);
        for (size_t d = 0; d < devices; d++)
            tensor_at(&lists[d], i)->storage->version++;
    }
    if (status != VGG_OK)
        vggpy_raise(state, &error);
    else if (PyErr_CheckSignals() == 0)
        result = Py_NewRef(Py_None);
done:
    for (size_t d = 0; lists && d < devices; d++)
        Py_XDECREF(lists[d].tuple);
    PyMem_Free(pointers);
    PyMem_Free(weight);
    PyMem_Free(context_pointers);
    PyMem_Free(contexts);
    PyMem_Free(lists);
    Py_DECREF(outer);
    return result;
}

/* ------------------------------------------------------------------------------------------------ random fill */

PyDoc_STRVAR(random_normal_doc, "random_normal_(x, scale, seed, purpose)\n--\n\n"
                                "Fill x with numbers from the normal distribution of mean 0 and standard deviation scale.\n\n"
                                "Parameters\n----------\n"
                                "x : float32 Tensor\n"
                                "scale : float\n"
                                "seed : int\n"
                                "    0 <= seed < 2**64.\n"
                                "purpose : int\n"
                                "    0 <= purpose < 2**32.\n\n"
                                "Raises\n------\n"
                                "TypeError\n"
                                "    If x is not a Tensor.\n\n"
                                "Notes\n-----\n"
                                "Counter-based (Philox): the same numbers on every device and for any number of threads.");

PyDoc_STRVAR(random_uniform_doc, "random_uniform_(x, scale, seed, purpose)\n--\n\n"
                                 "Fill x with numbers uniform in [-scale, scale).\n\n"
                                 "Parameters\n----------\n"
                                 "x : float32 Tensor\n"
                                 "scale : float\n"
                                 "seed, purpose : int\n"
                                 "    As in random_normal_.\n\n"
                                 "Raises\n------\n"
                                 "TypeError\n"
                                 "    If x is not a Tensor.");

static PyObject *random_fill(PyObject *module, PyObject *args, PyObject *kwargs, bool normal)
{
    static char *names[] = {"x", "scale", "seed", "purpose", NULL};
    const char *op = normal ? "random_normal_" : "random_uniform_";
    PyObject *x, *seed_object, *purpose_object;
    float scale;
    uint64_t seed, purpose;
    struct call c;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, normal ? "OfOO:random_normal_" : "OfOO:random_uniform_", names, &x, &scale,
                                     &seed_object, &purpose_object) ||
        !vggpy_uint(seed_object, op, "seed", UINT64_MAX, &seed) ||
        !vggpy_uint(purpose_object, op, "purpose", UINT32_MAX, &purpose))
        return NULL;
    if (!vggpy_is_tensor(vggpy_state(module), x))
        return PyErr_Format(PyExc_TypeError, "%s: x is %R; expected a Tensor", op, (PyObject *)Py_TYPE(x));
    struct call_input in[] = {{.name = "x", .object = x, .dtype = VGG_FLOAT32}};
    const struct vgg_array *a = &in[0].array;
    size_t count = vggpy_tensor_bytes((struct tensor *)x) / sizeof(float);
    if (call_begin(&c, module, op, in, 1) && call_check(&c, vgg_random_check(op, count, scale, &c.error)) &&
        call_output(&c, x, "x", VGG_FLOAT32, a->ndim, a->shape, 0)) {
        if (normal)
            CALL_RUN(&c, random_normal, c.outputs[0]->data, count, scale, seed, (uint32_t)purpose);
        else
            CALL_RUN(&c, random_uniform, c.outputs[0]->data, count, scale, seed, (uint32_t)purpose);
    }
    return end_in_place(&c);
}

static PyObject *py_random_normal(PyObject *module, PyObject *args, PyObject *kwargs)
{
    return random_fill(module, args, kwargs, true);
}

static PyObject *py_random_uniform(PyObject *module, PyObject *args, PyObject *kwargs)
{
    return random_fill(module, args, kwargs, false);
}

PyMethodDef vggpy_update_functions[] = {
    {"add_", VGGPY_KEYWORDS(py_add), add_doc},
    {"sgd_", VGGPY_KEYWORDS(py_sgd), sgd_doc},
    {"average_gradients_", VGGPY_KEYWORDS(py_average_gradients), average_gradients_doc},
    {"random_normal_", VGGPY_KEYWORDS(py_random_normal), random_normal_doc},
    {"random_uniform_", VGGPY_KEYWORDS(py_random_uniform), random_uniform_doc},
    {NULL, NULL, 0, NULL},
};
