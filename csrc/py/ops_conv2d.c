/* ops_conv2d.c: bindings of convolution. */
#include "py.h"

static const char *const algorithms[] = {"auto", "direct", "winograd2", "winograd4", "winograd6", NULL};
static const char *const directions[] = {"forward", "backward_input", "backward_weight", NULL};

static bool parse_algorithm(PyObject *object, const char *op, enum vgg_algorithm *algorithm)
{
    int choice = object ? vggpy_choice(object, op, "algorithm", algorithms) : VGG_AUTO;
    *algorithm = (enum vgg_algorithm)choice;
    return choice >= 0;
}

static bool parse_direction(PyObject *object, const char *op, enum vgg_direction *direction)
{
    int choice = object ? vggpy_choice(object, op, "direction", directions) : VGG_FORWARD;
    *direction = (enum vgg_direction)choice;
    return choice >= 0;
}

/* False, True (the paper's rounding, floor), "floor" or "ceil". */
static bool parse_pool(PyObject *object, const char *op, enum vgg_pool *pool)
{
    static const char *const names[] = {"floor", "ceil", NULL};
    if (!object || PyBool_Check(object)) {
        *pool = object == Py_True ? VGG_POOL_FLOOR : VGG_POOL_NONE;
        return true;
    }
    int choice = vggpy_choice(object, op, "pool", names);
    *pool = choice == 1 ? VGG_POOL_CEIL : VGG_POOL_FLOOR;
    return choice >= 0;
}

static bool check_transformed(struct call *c, const struct vgg_conv2d *s, const struct vgg_array *transformed)
{
    size_t bytes = 0;
    if (transformed == NULL)
        return true;
    if (!call_check(c, c->device.backend->conv2d_transformed_bytes(&c->context, &bytes, s)))
        return false;
    if (bytes != 0 && transformed->ndim == 1 && transformed->shape[0] == bytes / sizeof(float))
        return true;
    char text[80];
    const char *algorithm = algorithms[vgg_conv2d_algorithm(s, VGG_FORWARD)];
    if (bytes == 0)
        PyErr_Format(PyExc_ValueError, "conv2d: transformed is given; expected None because algorithm '%s' takes w as it is",
                     algorithm);
    else
        PyErr_Format(PyExc_ValueError, "conv2d: transformed has shape %s; expected (%zu,) because algorithm is '%s'",
                     vgg_shape_text(text, sizeof text, transformed->shape, transformed->ndim), bytes / sizeof(float),
                     algorithm);
    return false;
}

PyDoc_STRVAR(
    conv2d_doc,
    "conv2d(x, w, b=None, *, relu=False, pool=False, algorithm='auto', precision='float32', transformed=None, out=None, "
    "workspace=None)\n--\n\n"
    "Convolution, stride 1, padded so that height and width are kept; with bias, ReLU and 2x2 max pooling.\n\n"
    "Parameters\n----------\n"
    "x : (N, H, W, C) float32\n"
    "w : (K, 3, 3, C) or (K, 1, 1, C) float32\n"
    "b : (K,) float32, optional\n"
    "relu : bool\n"
    "    Apply max(y, 0).\n"
    "pool : bool or {\"floor\", \"ceil\"}\n"
    "    Then pool, as max_pool2d; True is \"floor\".\n"
    "algorithm : {\"auto\", \"direct\", \"winograd2\", \"winograd4\", \"winograd6\"}\n"
    "    That one, or an error. \"auto\" is what conv2d_algorithm tells.\n"
    "precision : {\"float32\", \"tf32\", \"bf16\"}\n"
    "    \"tf32\": a GPU may round the factors of products to 10 bits of fraction, for its tensor cores.\n"
    "    \"bf16\", on CUDA only: x, w and the result are bfloat16 Tensors, b and all sums float32.\n"
    "transformed : Tensor, optional\n"
    "    What conv2d_transform_weights made of w: saves time where w is used again.\n"
    "out : Tensor, or (Tensor, Tensor) with pool, optional\n"
    "    Where to write; overlaps no input.\n"
    "workspace : uint8 Tensor, optional\n"
    "    Scratch of conv2d_workspace bytes, instead of a temporary allocation. In less, fewer threads work.\n\n"
    "Returns\n-------\n"
    "Tensor or (Tensor, Tensor)\n"
    "    y (N, H, W, K); with pool (y, index), (N, H/2, W/2, K) float32 and uint8.\n\n"
    "Raises\n------\n"
    "NotImplementedError\n"
    "    If the algorithm cannot do this.\n"
    "ValueError\n"
    "    If shapes do not fit, or workspace is too small for even one thread: it is never grown.\n\n"
    "Notes\n-----\n"
    "Bit-equal for any number of threads. The GIL is released.\n\n"
    "Source: paper, section 2.1.");

static PyObject *py_conv2d(PyObject *module, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"x", "w", "b", "relu", "pool", "algorithm", "precision", "transformed", "out", "workspace", NULL};
    PyObject *x, *w, *b = Py_None, *pool = NULL, *algorithm = NULL, *precision = NULL, *transformed = Py_None, *out = Py_None,
                     *workspace = Py_None, *outs[2];
    int relu = 0;
    struct vgg_conv2d s = {0};
    size_t bytes;
    struct call c;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO|O$pOOOOOO:conv2d", names, &x, &w, &b, &relu, &pool, &algorithm,
                                     &precision, &transformed, &out, &workspace) ||
        !parse_pool(pool, "conv2d", &s.pool) || !parse_algorithm(algorithm, "conv2d", &s.algorithm) ||
        !vggpy_precision(precision, "conv2d", &s.precision))
        return NULL;
    s.relu = relu;
    s.transformed = transformed != Py_None;
    enum vgg_dtype dtype = vgg_precision_dtype(s.precision);
    bool pooled = s.pool != VGG_POOL_NONE, ceil_mode = s.pool == VGG_POOL_CEIL;
    struct call_input in[] = {
        {.name = "x", .object = x, .dtype = VGG_FLOAT32, .map = true},
        {.name = "w", .object = w, .dtype = VGG_FLOAT32, .map = true},
        {.name = "b", .object = b, .dtype = VGG_FLOAT32, .optional = true},
        {.name = "transformed", .object = transformed, .dtype = VGG_FLOAT32, .optional = true},
    };
    if (call_begin(&c, module, "conv2d", in, 4) &&
        call_check(&c, vgg_conv2d_check(&s, &in[0].array, &in[1].array, call_array(&in[2]), &c.error)) &&
        check_transformed(&c, &s, call_array(&in[3]))) {
        size_t shape[4] = {s.n, pooled ? vgg_pooled(s.h, ceil_mode) : s.h, pooled ? vgg_pooled(s.w, ceil_mode) : s.w, s.k};
        bool ready = pooled ? call_out_pair(&c, out, outs) && call_output(&c, outs[0], "out[0]", dtype, 4, shape, -1) &&
                                  call_output(&c, outs[1], "out[1]", VGG_UINT8, 4, shape, -1)
                            : call_output(&c, out, "out", dtype, 4, shape, -1);
        if (ready && call_check(&c, c.device.backend->conv2d_workspace(&c.context, &bytes, &s, VGG_FORWARD)) &&
            call_workspace(&c, workspace, bytes))
            CALL_RUN(&c, conv2d, c.outputs[0]->data, pooled ? c.outputs[1]->data : NULL, in[0].array.data,
                     in[s.transformed ? 3 : 1].array.data, in[2].array.data, &s);
    }
    return call_end(&c);
}

PyDoc_STRVAR(conv2d_transform_weights_doc,
             "conv2d_transform_weights(w, x_shape, *, algorithm='auto', out=None)\n--\n\n"
             "Weights in the form that a Winograd algorithm multiplies with, for conv2d's transformed=.\n\n"
             "Parameters\n----------\n"
             "w : (K, 3, 3, C) float32\n"
             "x_shape : (N, H, W, C)\n"
             "    Of the images to come; others do too if the algorithm is the same for them.\n"
             "algorithm : str\n"
             "    As in conv2d.\n"
             "out : Tensor, optional\n\n"
             "Returns\n-------\n"
             "Tensor\n"
             "    float32, conv2d_transformed_bytes / 4 values in an order of the algorithm's own.\n\n"
             "Raises\n------\n"
             "NotImplementedError\n"
             "    If the algorithm takes weights as they are.");

static PyObject *py_conv2d_transform_weights(PyObject *module, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"w", "x_shape", "algorithm", "out", NULL};
    static const char op[] = "conv2d_transform_weights";
    PyObject *w, *x_shape, *algorithm = NULL, *out = Py_None;
    struct vgg_array x = {.dtype = VGG_FLOAT32, .ndim = 4};
    struct vgg_conv2d s = {0};
    size_t bytes = 0;
    struct call c;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO|$OO:conv2d_transform_weights", names, &w, &x_shape, &algorithm, &out) ||
        !parse_algorithm(algorithm, op, &s.algorithm) || !vggpy_shape4(x_shape, op, "x_shape", x.shape))
        return NULL;
    struct call_input in[] = {{.name = "w", .object = w, .dtype = VGG_FLOAT32}};
    if (call_begin(&c, module, op, in, 1) && call_check(&c, vgg_conv2d_check(&s, &x, &in[0].array, NULL, &c.error)) &&
        call_check(&c, c.device.backend->conv2d_transformed_bytes(&c.context, &bytes, &s)) &&
        call_output(&c, out, "out", VGG_FLOAT32, 1, (size_t[]){bytes / sizeof(float)}, -1))
        CALL_RUN(&c, conv2d_transform, c.outputs[0]->data, in[0].array.data, &s);
    return call_end(&c);
}

PyDoc_STRVAR(conv2d_backward_input_doc,
             "conv2d_backward_input(dy, w, *, y=None, index=None, input_shape=None, algorithm='auto', precision='float32', "
             "out=None, workspace=None)\n--\n\n"
             "Gradient of conv2d with respect to x.\n\n"
             "Parameters\n----------\n"
             "dy : (N, H, W, K) float32\n"
             "    Gradient with respect to conv2d's result; of the pooled shape if that pooled.\n"
             "w : (K, 3, 3, C) or (K, 1, 1, C) float32\n"
             "y : float32 of dy's shape, optional\n"
             "    What conv2d(relu=True) returned: dy counts where y > 0.\n"
             "index : uint8 of dy's shape, optional\n"
             "    What conv2d(pool=...) returned with y. Floor or ceil is told by the shapes.\n"
             "input_shape : (N, H, W, C), optional\n"
             "    Of x; needed with index.\n"
             "algorithm, precision, workspace\n"
             "    As in conv2d; with \"bf16\" dy, w, y and the result are bfloat16.\n"
             "out : Tensor, optional\n\n"
             "Returns\n-------\n"
             "Tensor\n"
             "    dx, (N, H, W, C).\n\n"
             "Raises\n------\n"
             "ValueError, NotImplementedError\n"
             "    As conv2d.\n\n"
             "Source: paper, section 2.1.");

static PyObject *py_conv2d_backward_input(PyObject *module, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"dy", "w", "y", "index", "input_shape", "algorithm", "precision", "out", "workspace", NULL};
    static const char op[] = "conv2d_backward_input";
    PyObject *dy, *w, *y = Py_None, *index = Py_None, *input_shape = Py_None, *algorithm = NULL, *precision = NULL,
                      *out = Py_None, *workspace = Py_None;
    struct vgg_conv2d s = {0};
    size_t input_sizes[VGG_MAX_NDIM], bytes;
    struct call c;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO|$OOOOOOO:conv2d_backward_input", names, &dy, &w, &y, &index,
                                     &input_shape, &algorithm, &precision, &out, &workspace) ||
        !parse_algorithm(algorithm, op, &s.algorithm) || !vggpy_precision(precision, op, &s.precision) ||
        (input_shape != Py_None && !vggpy_shape4(input_shape, op, "input_shape", input_sizes)))
        return NULL;
    struct call_input in[] = {
        {.name = "dy", .object = dy, .dtype = VGG_FLOAT32, .map = true},
        {.name = "w", .object = w, .dtype = VGG_FLOAT32, .map = true},
        {.name = "y", .object = y, .dtype = VGG_FLOAT32, .map = true, .optional = true},
        {.name = "index", .object = index, .dtype = VGG_UINT8, .optional = true},
    };
    if (call_begin(&c, module, op, in, 4) &&
        call_check(&c, vgg_conv2d_backward_input_check(&s, &in[0].array, &in[1].array, call_array(&in[2]), call_array(&in[3]),
                                                       input_shape == Py_None ? NULL : input_sizes, &c.error)) &&
        call_output(&c, out, "out", vgg_precision_dtype(s.precision), 4, (size_t[]){s.n, s.h, s.w, s.c}, -1) &&
        call_check(&c, c.device.backend->conv2d_workspace(&c.context, &bytes, &s, VGG_BACKWARD_INPUT)) &&
        call_workspace(&c, workspace, bytes))
        CALL_RUN(&c, conv2d_backward_input, c.outputs[0]->data, in[0].array.data, in[1].array.data, in[2].array.data,
                 in[3].array.data, &s);
    return call_end(&c);
}

PyDoc_STRVAR(conv2d_backward_weight_doc,
             "conv2d_backward_weight(dy, x, kernel_size=3, *, y=None, index=None, algorithm='auto', precision='float32', "
             "out=None, accumulate=False, workspace=None)\n--\n\n"
             "Gradients of conv2d with respect to w and b.\n\n"
             "Parameters\n----------\n"
             "dy : (N, H, W, K) float32\n"
             "    Gradient with respect to conv2d's result; of the pooled shape if that pooled.\n"
             "x : (N, H, W, C) float32\n"
             "kernel_size : {1, 3}\n"
             "y, index, algorithm, precision, workspace\n"
             "    As in conv2d_backward_input; with \"bf16\" dy, x and y are bfloat16, the results float32 as ever.\n"
             "out : (Tensor, Tensor), optional\n"
             "    dw and db.\n"
             "accumulate : bool\n"
             "    Add to out instead of overwriting it.\n\n"
             "Returns\n-------\n"
             "(Tensor, Tensor)\n"
             "    dw (K, kernel_size, kernel_size, C) and db (K,).\n\n"
             "Raises\n------\n"
             "ValueError, NotImplementedError\n"
             "    As conv2d; also for accumulate without out.\n\n"
             "Source: paper, section 2.1.");

static PyObject *py_conv2d_backward_weight(PyObject *module, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"dy",        "x",   "kernel_size", "y",         "index", "algorithm",
                            "precision", "out", "accumulate",  "workspace", NULL};
    static const char op[] = "conv2d_backward_weight";
    PyObject *dy, *x, *kernel_size = NULL, *y = Py_None, *index = Py_None, *algorithm = NULL, *precision = NULL, *out = Py_None,
                      *workspace = Py_None, *outs[2];
    int accumulate = 0;
    uint64_t size = 3;
    struct vgg_conv2d s = {0};
    size_t bytes;
    struct call c;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO|O$OOOOOpO:conv2d_backward_weight", names, &dy, &x, &kernel_size, &y,
                                     &index, &algorithm, &precision, &out, &accumulate, &workspace) ||
        !parse_algorithm(algorithm, op, &s.algorithm) || !vggpy_precision(precision, op, &s.precision) ||
        (kernel_size && !vggpy_uint(kernel_size, op, "kernel_size", PTRDIFF_MAX, &size)))
        return NULL;
    if (accumulate && out == Py_None)
        return PyErr_Format(PyExc_ValueError, "%s: accumulate=True adds to out, which is None", op);
    s.kernel_size = (size_t)size;
    struct call_input in[] = {
        {.name = "dy", .object = dy, .dtype = VGG_FLOAT32, .map = true},
        {.name = "x", .object = x, .dtype = VGG_FLOAT32, .map = true},
        {.name = "y", .object = y, .dtype = VGG_FLOAT32, .map = true, .optional = true},
        {.name = "index", .object = index, .dtype = VGG_UINT8, .optional = true},
    };
    if (call_begin(&c, module, op, in, 4) &&
        call_check(&c, vgg_conv2d_backward_weight_check(&s, &in[0].array, &in[1].array, call_array(&in[2]), call_array(&in[3]),
                                                        &c.error)) &&
        call_out_pair(&c, out, outs) &&
        call_output(&c, outs[0], "out[0]", VGG_FLOAT32, 4, (size_t[]){s.k, s.kernel_size, s.kernel_size, s.c}, -1) &&
        call_output(&c, outs[1], "out[1]", VGG_FLOAT32, 1, (size_t[]){s.k}, -1) &&
        call_check(&c, c.device.backend->conv2d_workspace(&c.context, &bytes, &s, VGG_BACKWARD_WEIGHT)) &&
        call_workspace(&c, workspace, bytes))
        CALL_RUN(&c, conv2d_backward_weight, c.outputs[0]->data, c.outputs[1]->data, in[0].array.data, in[1].array.data,
                 in[2].array.data, in[3].array.data, &s, accumulate);
    return call_end(&c);
}

/* The shape struct of conv2d_algorithm and conv2d_workspace: the check looks at shapes only. */
static bool shape_from_sizes(struct vgg_conv2d *s, const struct vgg_state *state, const char *op, PyObject *x_shape,
                             PyObject *w_shape)
{
    const enum vgg_dtype dtype = vgg_precision_dtype(s->precision);
    struct vgg_array x = {.dtype = dtype, .ndim = 4}, w = {.dtype = dtype, .ndim = 4};
    struct vgg_error error = {.status = VGG_OK};
    if (!vggpy_shape4(x_shape, op, "x_shape", x.shape) || !vggpy_shape4(w_shape, op, "w_shape", w.shape))
        return false;
    return vgg_conv2d_check(s, &x, &w, NULL, &error) == VGG_OK ? true : vggpy_raise(state, &error);
}

PyDoc_STRVAR(conv2d_algorithm_doc,
             "conv2d_algorithm(x_shape, w_shape, direction='forward', *, pool=False)\n--\n\n"
             "What algorithm=\"auto\" takes.\n\n"
             "Parameters\n----------\n"
             "x_shape, w_shape : (N, H, W, C) and (K, R, R, C)\n"
             "direction : {\"forward\", \"backward_input\", \"backward_weight\"}\n"
             "pool : bool or {\"floor\", \"ceil\"}\n\n"
             "Returns\n-------\n"
             "str\n\n"
             "Notes\n-----\n"
             "A pure function of the shape of one image, direction, ISA and whether N is 1; never of threads or timing.");

static PyObject *py_conv2d_algorithm(PyObject *module, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"x_shape", "w_shape", "direction", "pool", NULL};
    static const char op[] = "conv2d_algorithm";
    PyObject *x_shape, *w_shape, *direction_object = NULL, *pool = NULL;
    enum vgg_direction direction;
    struct vgg_conv2d s = {0};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO|O$O:conv2d_algorithm", names, &x_shape, &w_shape, &direction_object,
                                     &pool) ||
        !parse_direction(direction_object, op, &direction) || !parse_pool(pool, op, &s.pool) ||
        !shape_from_sizes(&s, vggpy_state(module), op, x_shape, w_shape))
        return NULL;
    return PyUnicode_FromString(algorithms[vgg_conv2d_algorithm(&s, direction)]);
}

PyDoc_STRVAR(conv2d_workspace_doc,
             "conv2d_workspace(x_shape, w_shape, direction='forward', *, pool=False, algorithm='auto', precision='float32', "
             "transformed=False, device='cpu')\n--\n\n"
             "Bytes that workspace= needs for one call of conv2d or its gradients.\n\n"
             "Parameters\n----------\n"
             "x_shape, w_shape : (N, H, W, C) and (K, R, R, C)\n"
             "direction : {\"forward\", \"backward_input\", \"backward_weight\"}\n"
             "pool : bool or {\"floor\", \"ceil\"}\n"
             "    Backward: the rounding that index was made with.\n"
             "algorithm, precision, device : str\n"
             "transformed : bool\n"
             "    Whether transformed= is given too.\n\n"
             "Returns\n-------\n"
             "int");

static PyObject *py_conv2d_workspace(PyObject *module, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"x_shape", "w_shape", "direction", "pool", "algorithm", "precision", "transformed", "device", NULL};
    static const char op[] = "conv2d_workspace";
    int transformed = 0;
    struct vgg_state *state = vggpy_state(module);
    PyObject *x_shape, *w_shape, *direction_object = NULL, *pool = NULL, *algorithm = NULL, *precision = NULL;
    const char *device_name = "cpu";
    struct device device;
    enum vgg_direction direction;
    struct vgg_conv2d s = {0};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO|O$OOOps:conv2d_workspace", names, &x_shape, &w_shape, &direction_object,
                                     &pool, &algorithm, &precision, &transformed, &device_name) ||
        !vggpy_precision(precision, op, &s.precision) || !parse_direction(direction_object, op, &direction) ||
        !parse_pool(pool, op, &s.pool) || !parse_algorithm(algorithm, op, &s.algorithm) ||
        !vggpy_device_parse(state, device_name, &device) || !shape_from_sizes(&s, state, op, x_shape, w_shape))
        return NULL;
    s.transformed = transformed;
    size_t bytes = 0;
    struct vgg_error error = {.status = VGG_OK};
    struct vgg_context context = vggpy_context(device, &error);
    if (device.backend->conv2d_workspace(&context, &bytes, &s, direction) != VGG_OK) {
        vggpy_raise(state, &error);
        return NULL;
    }
    return PyLong_FromSize_t(bytes);
}

PyDoc_STRVAR(conv2d_transformed_bytes_doc,
             "conv2d_transformed_bytes(x_shape, w_shape, *, algorithm='auto', device='cpu')\n--\n\n"
             "Bytes that conv2d_transform_weights would take; 0 where the algorithm takes weights as they are.\n\n"
             "Parameters\n----------\n"
             "x_shape, w_shape : (N, H, W, C) and (K, R, R, C)\n"
             "algorithm, device : str\n\n"
             "Returns\n-------\n"
             "int");

static PyObject *py_conv2d_transformed_bytes(PyObject *module, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"x_shape", "w_shape", "algorithm", "device", NULL};
    static const char op[] = "conv2d_transformed_bytes";
    struct vgg_state *state = vggpy_state(module);
    PyObject *x_shape, *w_shape, *algorithm = NULL;
    const char *device_name = "cpu";
    struct device device;
    struct vgg_conv2d s = {0};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO|$Os:conv2d_transformed_bytes", names, &x_shape, &w_shape, &algorithm,
                                     &device_name) ||
        !parse_algorithm(algorithm, op, &s.algorithm) || !vggpy_device_parse(state, device_name, &device) ||
        !shape_from_sizes(&s, state, op, x_shape, w_shape))
        return NULL;
    size_t bytes = 0;
    struct vgg_error error = {.status = VGG_OK};
    struct vgg_context context = vggpy_context(device, &error);
    if (device.backend->conv2d_transformed_bytes(&context, &bytes, &s) != VGG_OK) {
        vggpy_raise(state, &error);
        return NULL;
    }
    return PyLong_FromSize_t(bytes);
}

PyMethodDef vggpy_conv2d_functions[] = {
    {"conv2d", VGGPY_KEYWORDS(py_conv2d), conv2d_doc},
    {"conv2d_backward_input", VGGPY_KEYWORDS(py_conv2d_backward_input), conv2d_backward_input_doc},
    {"conv2d_backward_weight", VGGPY_KEYWORDS(py_conv2d_backward_weight), conv2d_backward_weight_doc},
    {"conv2d_algorithm", VGGPY_KEYWORDS(py_conv2d_algorithm), conv2d_algorithm_doc},
    {"conv2d_transform_weights", VGGPY_KEYWORDS(py_conv2d_transform_weights), conv2d_transform_weights_doc},
    {"conv2d_transformed_bytes", VGGPY_KEYWORDS(py_conv2d_transformed_bytes), conv2d_transformed_bytes_doc},
    {"conv2d_workspace", VGGPY_KEYWORDS(py_conv2d_workspace), conv2d_workspace_doc},
    {NULL, NULL, 0, NULL},
};
