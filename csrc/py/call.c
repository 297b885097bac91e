/* call.c: what every operation's binding does around its call of the backend table (see struct call). */
#include "py.h"

/* The device of the Tensors among the inputs; the CPU if there are none. */
static bool find_device(struct call *c)
{
    struct call_input *first = NULL;
    c->device = (struct device){c->state->backends[0], 0};
    for (int i = 0; i < c->input_count; i++) {
        struct call_input *input = &c->inputs[i];
        if (!vggpy_is_tensor(c->state, input->object))
            continue;
        struct device device = ((struct tensor *)input->object)->storage->device;
        if (!first) {
            first = input;
            c->device = device;
        } else if (!vggpy_same_device(c->device, device)) {
            PyObject *a = vggpy_device_name(c->device), *b = vggpy_device_name(device);
            if (a && b)
                PyErr_Format(PyExc_ValueError, "%s: %s is on device \"%U\", %s on \"%U\"; expected one device", c->op,
                             first->name, a, input->name, b);
            Py_XDECREF(a);
            Py_XDECREF(b);
            return false;
        }
    }
    return true;
}

static bool borrow_input(struct call *c, struct call_input *input)
{
    if (input->object == Py_None) {
        if (!input->optional)
            PyErr_Format(PyExc_TypeError, "%s: %s is None; expected an array", c->op, input->name);
        return input->optional;
    }
    input->given = true;
    if (vggpy_is_tensor(c->state, input->object)) {
        input->owner = Py_NewRef(input->object);
        input->array = vggpy_tensor_array((struct tensor *)input->object);
        return true;
    }
    PyArrayObject *array = vggpy_host_array(c->state, input->object, c->op, input->name, input->dtype, false);
    if (!array)
        return false;
    if (c->device.backend->host) {
        input->owner = (PyObject *)array;
        input->array = vggpy_numpy_array(array);
        return true;
    }
    /* What is not a Tensor yet goes to the device of those that are. */
    struct tensor *tensor = vggpy_tensor_from_array(c->state, array, c->device);
    Py_DECREF((PyObject *)array);
    if (!tensor)
        return false;
    input->owner = (PyObject *)tensor;
    input->array = vggpy_tensor_array(tensor);
    return true;
}

/* Whether the device computes with maps of the input's dtype. */
static bool knows_dtype(struct call *c, const struct call_input *input)
{
    if (!input->map || !input->given || input->array.dtype != VGG_BFLOAT16 || c->device.backend->bfloat16)
        return true;
    PyErr_Format(PyExc_ValueError, "%s: %s has dtype bfloat16; expected float32 because device \"%s\" computes in nothing else",
                 c->op, input->name, c->device.backend->name);
    return false;
}

bool call_begin(struct call *c, PyObject *module, const char *op, struct call_input *inputs, int count)
{
    *c = (struct call){.state = vggpy_state(module), .op = op, .inputs = inputs, .input_count = count};
    if (!find_device(c))
        return false;
    c->context = vggpy_context(c->device, &c->error);
    for (int i = 0; i < count; i++)
        if (!borrow_input(c, &inputs[i]) || !knows_dtype(c, &inputs[i]))
            return false;
    return true;
}

bool call_check(struct call *c, enum vgg_status status)
{
    return status == VGG_OK ? true : vggpy_raise(c->state, &c->error);
}

static size_t array_bytes(const struct vgg_array *array)
{
    size_t bytes = vgg_dtype_size(array->dtype);
    for (int i = 0; i < array->ndim; i++)
        bytes *= array->shape[i];
    return bytes;
}

/* Whether memory to be written keeps clear of what is read (but for input `alias`, which it may equal) and of the outputs. */
static bool keeps_clear(struct call *c, const void *data, size_t bytes, const char *name, int alias)
{
    for (int i = 0; i < c->input_count; i++) {
        const struct call_input *input = &c->inputs[i];
        if (!input->given || (i == alias && input->array.data == data))
            continue;
        if (vggpy_overlap(data, bytes, input->array.data, array_bytes(&input->array))) {
            PyErr_Format(PyExc_ValueError, "%s: %s overlaps %s", c->op, name, input->name);
            return false;
        }
    }
    for (int i = 0; i < c->output_count; i++)
        if (vggpy_overlap(data, bytes, c->outputs[i]->data, vggpy_tensor_bytes(c->outputs[i]))) {
            PyErr_Format(PyExc_ValueError, "%s: %s overlaps another output", c->op, name);
            return false;
        }
    return true;
}

/* A Tensor that the caller gave to be written: of the call's device. */
static struct tensor *take_tensor(struct call *c, PyObject *object, const char *name)
{
    if (!vggpy_is_tensor(c->state, object)) {
        PyErr_Format(PyExc_TypeError, "%s: %s is %R; expected a Tensor", c->op, name, (PyObject *)Py_TYPE(object));
        return NULL;
    }
    struct tensor *tensor = (struct tensor *)object;
    if (!vggpy_same_device(tensor->storage->device, c->device)) {
        PyObject *a = vggpy_device_name(tensor->storage->device), *b = vggpy_device_name(c->device);
        if (a && b)
            PyErr_Format(PyExc_ValueError, "%s: %s is on device \"%U\"; expected \"%U\", the inputs' device", c->op, name, a,
                         b);
        Py_XDECREF(a);
        Py_XDECREF(b);
        return NULL;
    }
    return vggpy_tensor_writable(tensor, c->op, name) ? tensor : NULL;
}

bool call_output(struct call *c, PyObject *out, const char *name, enum vgg_dtype dtype, int ndim, const size_t *shape,
                 int alias)
{
    struct tensor *tensor;
    if (out == Py_None) {
        tensor = vggpy_tensor_new(c->state, c->device, dtype, ndim, shape);
        if (!tensor)
            return false;
    } else {
        tensor = take_tensor(c, out, name);
        if (!tensor)
            return false;
        struct vgg_array array = vggpy_tensor_array(tensor);
        if (array.dtype != dtype || array.ndim != ndim || memcmp(array.shape, shape, sizeof(size_t) * (size_t)ndim) != 0) {
            char got[128], expected[128];
            PyErr_Format(PyExc_ValueError, "%s: %s is %s of shape %s; expected %s of shape %s", c->op, name,
                         vgg_dtype_name(array.dtype), vgg_shape_text(got, sizeof(got), array.shape, array.ndim),
                         vgg_dtype_name(dtype), vgg_shape_text(expected, sizeof(expected), shape, ndim));
            return false;
        }
        if (!keeps_clear(c, array.data, vggpy_tensor_bytes(tensor), name, alias))
            return false;
        Py_INCREF((PyObject *)tensor);
        c->given[c->output_count] = true;
    }
    c->outputs[c->output_count++] = tensor;
    return true;
}

bool call_out_pair(struct call *c, PyObject *out, PyObject *pair[2])
{
    pair[0] = pair[1] = Py_None;
    if (out == Py_None)
        return true;
    if (!PyTuple_Check(out) || PyTuple_Size(out) != 2) {
        PyErr_Format(PyExc_TypeError, "%s: out is %R; expected a tuple of two Tensors", c->op, out);
        return false;
    }
    pair[0] = PyTuple_GetItem(out, 0); /* borrowed from the tuple, which the caller holds */
    pair[1] = PyTuple_GetItem(out, 1);
    for (int i = 0; i < 2; i++)
        if (pair[i] == Py_None) {
            PyErr_Format(PyExc_TypeError, "%s: out[%d] is None; expected a Tensor", c->op, i);
            return false;
        }
    return true;
}

bool call_workspace(struct call *c, PyObject *workspace, size_t bytes)
{
    if (workspace == Py_None) {
        void *data = NULL;
        c->context.workspace_bytes = bytes;
        if (bytes == 0)
            return true;
        if (!call_check(c, c->device.backend->allocate(&c->context, &data, bytes)))
            return false;
        c->context.workspace = c->temporary = data;
        c->temporary_bytes = bytes;
        return true;
    }
    struct tensor *tensor = take_tensor(c, workspace, "workspace");
    if (!tensor)
        return false;
    size_t size = vggpy_tensor_bytes(tensor);
    if (tensor->dtype != VGG_UINT8 || (uintptr_t)tensor->data % 64 != 0) {
        PyErr_Format(PyExc_ValueError, "%s: workspace is %s; expected a uint8 Tensor, 64-byte aligned as vggnet.empty makes it",
                     c->op, vgg_dtype_name(tensor->dtype));
        return false;
    }
    if (!keeps_clear(c, tensor->data, size, "workspace", -1))
        return false;
    c->workspace_owner = Py_NewRef(workspace);
    c->context.workspace = tensor->data;
    c->context.workspace_bytes = size;
    return true;
}

PyObject *call_end(struct call *c)
{
    PyObject *result = NULL;
    for (int i = 0; c->ran && i < c->output_count; i++)
        if (c->given[i])
            c->outputs[i]->storage->version++; /* also when it failed half-way */
    if (c->workspace_owner && c->ran)
        ((struct tensor *)c->workspace_owner)->storage->version++;
    if (c->ran && call_check(c, c->status) && PyErr_CheckSignals() == 0) {
        if (c->output_count == 0)
            result = Py_NewRef(Py_None);
        else if (c->output_count == 1)
            result = Py_NewRef((PyObject *)c->outputs[0]);
        else
            result = PyTuple_Pack(2, (PyObject *)c->outputs[0], (PyObject *)c->outputs[1]);
    }
    if (c->temporary)
        c->device.backend->release(c->device.index, c->temporary, c->temporary_bytes);
    for (int i = 0; i < c->output_count; i++)
        Py_DECREF((PyObject *)c->outputs[i]);
    for (int i = 0; i < c->input_count; i++)
        Py_XDECREF(c->inputs[i].owner);
    Py_XDECREF(c->workspace_owner);
    return result;
}
