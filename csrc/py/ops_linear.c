/* ops_linear.c: bindings of the fully connected layer. */
#include "py.h"

PyDoc_STRVAR(linear_doc, "linear(x, w, b=None, *, relu=False, precision='float32', out=None, workspace=None)\n--\n\n"
                         "Fully connected layer: y = x w^T + b, with ReLU if asked.\n\n"
                         "Parameters\n----------\n"
                         "x : (N, I) float32\n"
                         "w : (O, I) float32 or a bfloat16 Tensor\n"
                         "b : (O,) float32, optional\n"
                         "relu : bool\n"
                         "precision : {\"float32\", \"tf32\", \"bf16\"}\n"
                         "    \"tf32\": a GPU may round the factors of products to 10 bits of fraction.\n"
                         "    \"bf16\", on CUDA only: x, w and the result are bfloat16 Tensors, b and all sums float32.\n"
                         "out : Tensor, optional\n"
                         "    With \"bf16\" it may be float32: the sums as they are, for logits.\n"
                         "workspace : uint8 Tensor, optional\n"
                         "    Of linear_workspace bytes. In less, fewer threads work.\n\n"
                         "Returns\n-------\n"
                         "Tensor\n"
                         "    y, (N, O).\n\n"
                         "Raises\n------\n"
                         "ValueError\n"
                         "    If shapes do not fit, or workspace is too small for even one thread.\n\n"
                         "Source: paper, section 2.1.");

static PyObject *py_linear(PyObject *module, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"x", "w", "b", "relu", "precision", "out", "workspace", NULL};
    PyObject *x, *w, *b = Py_None, *precision = NULL, *out = Py_None, *workspace = Py_None;
    int relu = 0;
    struct vgg_linear s = {0};
    size_t bytes;
    struct call c;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO|O$pOOO:linear", names, &x, &w, &b, &relu, &precision, &out,
                                     &workspace) ||
        !vggpy_precision(precision, "linear", &s.precision))
        return NULL;
    s.relu = relu;
    struct call_input in[] = {
        {.name = "x", .object = x, .dtype = VGG_FLOAT32, .map = true},
        {.name = "w", .object = w, .dtype = VGG_FLOAT32},
        {.name = "b", .object = b, .dtype = VGG_FLOAT32, .optional = true},
    };
    const bool wide_out = vggpy_is_tensor(vggpy_state(module), out) && ((struct tensor *)out)->dtype == VGG_FLOAT32;
    s.wide = s.precision == VGG_PRECISION_BF16 && wide_out;
    if (call_begin(&c, module, "linear", in, 3) &&
        call_check(&c, vgg_linear_check(&s, &in[0].array, &in[1].array, call_array(&in[2]), &c.error)) &&
        call_output(&c, out, "out", s.wide ? VGG_FLOAT32 : vgg_precision_dtype(s.precision), 2, (size_t[]){s.n, s.out}, -1) &&
        call_check(&c, c.device.backend->linear_workspace(&c.context, &bytes, &s, VGG_FORWARD)) &&
        call_workspace(&c, workspace, bytes))
        CALL_RUN(&c, linear, c.outputs[0]->data, in[0].array.data, in[1].array.data, in[2].array.data, &s);
    return call_end(&c);
}

PyDoc_STRVAR(linear_backward_input_doc, "linear_backward_input(dy, w, *, precision='float32', out=None, workspace=None)\n--\n\n"
                                        "Gradient of linear with respect to x: dx = dy w.\n\n"
                                        "Parameters\n----------\n"
                                        "dy : (N, O) float32\n"
                                        "w : (O, I) float32\n"
                                        "precision : {\"float32\", \"tf32\", \"bf16\"}\n"
                                        "    As in linear; with \"bf16\" dy may be bfloat16 or float32, which is rounded.\n"
                                        "out : Tensor, optional\n"
                                        "workspace : uint8 Tensor, optional\n\n"
                                        "Returns\n-------\n"
                                        "Tensor\n"
                                        "    dx, (N, I).\n\n"
                                        "Raises\n------\n"
                                        "ValueError\n"
                                        "    As linear.");

static PyObject *py_linear_backward_input(PyObject *module, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"dy", "w", "precision", "out", "workspace", NULL};
    PyObject *dy, *w, *precision = NULL, *out = Py_None, *workspace = Py_None;
    struct vgg_linear s = {0};
    size_t bytes;
    struct call c;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO|$OOO:linear_backward_input", names, &dy, &w, &precision, &out,
                                     &workspace) ||
        !vggpy_precision(precision, "linear_backward_input", &s.precision))
        return NULL;
    struct call_input in[] = {
        {.name = "dy", .object = dy, .dtype = VGG_FLOAT32, .map = true},
        {.name = "w", .object = w, .dtype = VGG_FLOAT32, .map = true},
    };
    if (call_begin(&c, module, "linear_backward_input", in, 2) &&
        call_check(&c, vgg_linear_backward_input_check(&s, &in[0].array, &in[1].array, &c.error)) &&
        call_output(&c, out, "out", vgg_precision_dtype(s.precision), 2, (size_t[]){s.n, s.in}, -1) &&
        call_check(&c, c.device.backend->linear_workspace(&c.context, &bytes, &s, VGG_BACKWARD_INPUT)) &&
        call_workspace(&c, workspace, bytes))
        CALL_RUN(&c, linear_backward_input, c.outputs[0]->data, in[0].array.data, in[1].array.data, &s);
    return call_end(&c);
}

PyDoc_STRVAR(linear_backward_weight_doc, "linear_backward_weight(dy, x, *, precision='float32', out=None, accumulate=False, "
                                         "workspace=None)\n--\n\n"
                                         "Gradients of linear with respect to w and b: dw = dy^T x, db = sum of dy's rows.\n\n"
                                         "Parameters\n----------\n"
                                         "dy : (N, O) float32\n"
                                         "x : (N, I) float32\n"
                                         "precision : {\"float32\", \"tf32\", \"bf16\"}\n"
                                         "    As in linear_backward_input; the results are float32 always.\n"
                                         "out : (Tensor, Tensor), optional\n"
                                         "    dw and db.\n"
                                         "accumulate : bool\n"
                                         "    Add to out instead of overwriting it.\n"
                                         "workspace : uint8 Tensor, optional\n\n"
                                         "Returns\n-------\n"
                                         "(Tensor, Tensor)\n"
                                         "    dw (O, I) and db (O,).\n\n"
                                         "Raises\n------\n"
                                         "ValueError\n"
                                         "    As linear; also for accumulate without out.");

static PyObject *py_linear_backward_weight(PyObject *module, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"dy", "x", "precision", "out", "accumulate", "workspace", NULL};
    PyObject *dy, *x, *precision = NULL, *out = Py_None, *workspace = Py_None, *outs[2];
    int accumulate = 0;
    struct vgg_linear s = {0};
    size_t bytes;
    struct call c;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO|$OOpO:linear_backward_weight", names, &dy, &x, &precision, &out,
                                     &accumulate, &workspace) ||
        !vggpy_precision(precision, "linear_backward_weight", &s.precision))
        return NULL;
    if (accumulate && out == Py_None)
        return PyErr_Format(PyExc_ValueError, "linear_backward_weight: accumulate=True adds to out, which is None");
    struct call_input in[] = {
        {.name = "dy", .object = dy, .dtype = VGG_FLOAT32, .map = true},
        {.name = "x", .object = x, .dtype = VGG_FLOAT32, .map = true},
    };
    if (call_begin(&c, module, "linear_backward_weight", in, 2) &&
        call_check(&c, vgg_linear_backward_weight_check(&s, &in[0].array, &in[1].array, &c.error)) &&
        call_out_pair(&c, out, outs) && call_output(&c, outs[0], "out[0]", VGG_FLOAT32, 2, (size_t[]){s.out, s.in}, -1) &&
        call_output(&c, outs[1], "out[1]", VGG_FLOAT32, 1, (size_t[]){s.out}, -1) &&
        call_check(&c, c.device.backend->linear_workspace(&c.context, &bytes, &s, VGG_BACKWARD_WEIGHT)) &&
        call_workspace(&c, workspace, bytes))
        CALL_RUN(&c, linear_backward_weight, c.outputs[0]->data, c.outputs[1]->data, in[0].array.data, in[1].array.data, &s,
                 accumulate);
    return call_end(&c);
}

PyDoc_STRVAR(linear_workspace_doc,
             "linear_workspace(rows, in_features, out_features, direction='forward', *, weight_dtype='float32', "
             "precision='float32', device='cpu')\n--\n\n"
             "Bytes that workspace= needs for one call of linear or its gradients.\n\n"
             "Parameters\n----------\n"
             "rows, in_features, out_features : int\n"
             "    N, I and O.\n"
             "direction : {\"forward\", \"backward_input\", \"backward_weight\"}\n"
             "weight_dtype : {\"float32\", \"bfloat16\"}\n"
             "precision, device : str\n\n"
             "Returns\n-------\n"
             "int");

static PyObject *py_linear_workspace(PyObject *module, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"rows", "in_features", "out_features", "direction", "weight_dtype", "precision", "device", NULL};
    static const char *const directions[] = {"forward", "backward_input", "backward_weight", NULL};
    static const char *const weight_dtypes[] = {"float32", "bfloat16", NULL};
    static const char op[] = "linear_workspace";
    struct vgg_state *state = vggpy_state(module);
    PyObject *rows, *in, *out, *direction_object = NULL, *weight_dtype = NULL, *precision = NULL;
    const char *device_name = "cpu";
    struct device device;
    struct vgg_linear s = {0};
    uint64_t n, i, o;
    int direction = VGG_FORWARD, narrow = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOO|O$OOs:linear_workspace", names, &rows, &in, &out, &direction_object,
                                     &weight_dtype, &precision, &device_name) ||
        !vggpy_uint(rows, op, "rows", PTRDIFF_MAX, &n) || !vggpy_uint(in, op, "in_features", PTRDIFF_MAX, &i) ||
        !vggpy_uint(out, op, "out_features", PTRDIFF_MAX, &o) ||
        (direction_object && (direction = vggpy_choice(direction_object, op, "direction", directions)) < 0) ||
        (weight_dtype && (narrow = vggpy_choice(weight_dtype, op, "weight_dtype", weight_dtypes)) < 0) ||
        !vggpy_precision(precision, op, &s.precision) || !vggpy_device_parse(state, device_name, &device))
        return NULL;
    size_t bytes = 0;
    s.n = (size_t)n, s.in = (size_t)i, s.out = (size_t)o, s.bfloat16 = narrow != 0;
    struct vgg_error error = {.status = VGG_OK};
    struct vgg_context context = vggpy_context(device, &error);
    if (device.backend->linear_workspace(&context, &bytes, &s, (enum vgg_direction)direction) != VGG_OK) {
        vggpy_raise(state, &error);
        return NULL;
    }
    return PyLong_FromSize_t(bytes);
}

PyMethodDef vggpy_linear_functions[] = {
    {"linear", VGGPY_KEYWORDS(py_linear), linear_doc},
    {"linear_backward_input", VGGPY_KEYWORDS(py_linear_backward_input), linear_backward_input_doc},
    {"linear_backward_weight", VGGPY_KEYWORDS(py_linear_backward_weight), linear_backward_weight_doc},
    {"linear_workspace", VGGPY_KEYWORDS(py_linear_workspace), linear_workspace_doc},
    {NULL, NULL, 0, NULL},
};
