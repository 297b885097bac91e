/* ops_layer.c: bindings of the layers without weights. */
#include "py.h"

static size_t count_of(const struct vgg_array *array)
{
    size_t count = 1;
    for (int i = 0; i < array->ndim; i++)
        count *= array->shape[i];
    return count;
}

/* ------------------------------------------------------------------------------------------------ max pooling */

PyDoc_STRVAR(max_pool2d_doc, "max_pool2d(x, *, ceil_mode=False, out=None)\n--\n\n"
                             "Max pooling, 2x2, stride 2.\n\n"
                             "Parameters\n----------\n"
                             "x : (N, H, W, C) float32; on CUDA also bfloat16\n"
                             "ceil_mode : bool\n"
                             "    Odd sides are rounded up (Caffe), not down; the last window has what exists.\n"
                             "out : (Tensor, Tensor), optional\n\n"
                             "Returns\n-------\n"
                             "(Tensor, Tensor)\n"
                             "    y, (N, H/2, W/2, C) as x, and index, uint8 of the same shape: which of the window's\n"
                             "    elements, 0..3 row by row. The first maximum wins; a NaN wins, the first one.\n\n"
                             "Raises\n------\n"
                             "ValueError\n"
                             "    If x is not 4-dimensional float32.\n\n"
                             "Source: paper, section 2.1.");

static PyObject *py_max_pool2d(PyObject *module, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"x", "ceil_mode", "out", NULL};
    PyObject *x, *out = Py_None, *outs[2];
    int ceil_mode = 0;
    struct call c;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|$pO:max_pool2d", names, &x, &ceil_mode, &out))
        return NULL;
    struct vgg_max_pool2d s = {.ceil_mode = ceil_mode};
    struct call_input in[] = {{.name = "x", .object = x, .dtype = VGG_FLOAT32, .map = true}};
    if (call_begin(&c, module, "max_pool2d", in, 1) && call_check(&c, vgg_max_pool2d_check(&s, &in[0].array, &c.error))) {
        size_t shape[4] = {s.n, vgg_pooled(s.h, s.ceil_mode), vgg_pooled(s.w, s.ceil_mode), s.c};
        if (call_out_pair(&c, out, outs) && call_output(&c, outs[0], "out[0]", s.dtype, 4, shape, -1) &&
            call_output(&c, outs[1], "out[1]", VGG_UINT8, 4, shape, -1))
            CALL_RUN(&c, max_pool2d, c.outputs[0]->data, c.outputs[1]->data, in[0].array.data, &s);
    }
    return call_end(&c);
}

PyDoc_STRVAR(max_pool2d_backward_doc, "max_pool2d_backward(dy, index, input_shape, *, out=None)\n--\n\n"
                                      "Gradient of max_pool2d: dy where index says, 0 elsewhere.\n\n"
                                      "Parameters\n----------\n"
                                      "dy : float32 of index's shape; on CUDA also bfloat16\n"
                                      "index : uint8\n"
                                      "    What max_pool2d returned.\n"
                                      "input_shape : (N, H, W, C)\n"
                                      "    Of x; the rounding is told by the shapes.\n"
                                      "out : Tensor, optional\n\n"
                                      "Returns\n-------\n"
                                      "Tensor\n"
                                      "    dx, of input_shape.\n\n"
                                      "Raises\n------\n"
                                      "ValueError\n"
                                      "    If shapes do not fit or an index points outside its window.");

static PyObject *py_max_pool2d_backward(PyObject *module, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"dy", "index", "input_shape", "out", NULL};
    static const char op[] = "max_pool2d_backward";
    PyObject *dy, *index, *input_shape, *out = Py_None;
    struct vgg_max_pool2d s = {0};
    size_t shape[VGG_MAX_NDIM];
    struct call c;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOO|$O:max_pool2d_backward", names, &dy, &index, &input_shape, &out) ||
        !vggpy_shape4(input_shape, op, "input_shape", shape))
        return NULL;
    struct call_input in[] = {
        {.name = "dy", .object = dy, .dtype = VGG_FLOAT32, .map = true},
        {.name = "index", .object = index, .dtype = VGG_UINT8},
    };
    if (call_begin(&c, module, op, in, 2) &&
        call_check(&c, vgg_max_pool2d_backward_check(&s, &in[0].array, &in[1].array, shape, &c.error)) &&
        call_output(&c, out, "out", s.dtype, 4, shape, -1))
        CALL_RUN(&c, max_pool2d_backward, c.outputs[0]->data, in[0].array.data, in[1].array.data, &s);
    return call_end(&c);
}

/* ------------------------------------------------------------------------------------------------ ReLU */

PyDoc_STRVAR(relu_doc, "relu(x, *, out=None)\n--\n\n"
                       "max(x, 0), of any shape; NaN stays.\n\n"
                       "Parameters\n----------\n"
                       "x : float32; on CUDA also bfloat16\n"
                       "out : Tensor, optional\n"
                       "    May be x.\n\n"
                       "Returns\n-------\n"
                       "Tensor\n\n"
                       "Raises\n------\n"
                       "ValueError\n"
                       "    If x is not float32.\n\n"
                       "Source: paper, section 2.1.");

static PyObject *py_relu(PyObject *module, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"x", "out", NULL};
    PyObject *x, *out = Py_None;
    struct call c;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|$O:relu", names, &x, &out))
        return NULL;
    struct call_input in[] = {{.name = "x", .object = x, .dtype = VGG_FLOAT32, .map = true}};
    const struct vgg_array *a = &in[0].array;
    if (call_begin(&c, module, "relu", in, 1) && call_check(&c, vgg_expect_map("relu", "x", a, &c.error)) &&
        call_output(&c, out, "out", a->dtype, a->ndim, a->shape, 0))
        CALL_RUN(&c, relu, c.outputs[0]->data, a->data, count_of(a), a->dtype);
    return call_end(&c);
}

PyDoc_STRVAR(relu_backward_doc, "relu_backward(dy, y, *, out=None)\n--\n\n"
                                "Gradient of relu: dy where y > 0, else 0.\n\n"
                                "Parameters\n----------\n"
                                "dy : float32; on CUDA also bfloat16\n"
                                "y : as dy\n"
                                "    What relu returned (or its input: the signs are the same).\n"
                                "out : Tensor, optional\n"
                                "    May be dy.\n\n"
                                "Returns\n-------\n"
                                "Tensor\n\n"
                                "Raises\n------\n"
                                "ValueError\n"
                                "    If the shapes differ.");

static PyObject *py_relu_backward(PyObject *module, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"dy", "y", "out", NULL};
    static const char op[] = "relu_backward";
    PyObject *dy, *y, *out = Py_None;
    struct call c;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO|$O:relu_backward", names, &dy, &y, &out))
        return NULL;
    struct call_input in[] = {
        {.name = "dy", .object = dy, .dtype = VGG_FLOAT32, .map = true},
        {.name = "y", .object = y, .dtype = VGG_FLOAT32, .map = true},
    };
    const struct vgg_array *a = &in[0].array, *b = &in[1].array;
    if (call_begin(&c, module, op, in, 2) && call_check(&c, vgg_expect_map(op, "dy", a, &c.error)) &&
        call_check(&c, vgg_expect_dtype(op, "y", b, a->dtype, &c.error)) &&
        call_check(&c, vgg_expect_shape(op, "y", b, a->shape, a->ndim, "that is dy's shape", &c.error)) &&
        call_output(&c, out, "out", a->dtype, a->ndim, a->shape, 0))
        CALL_RUN(&c, relu_backward, c.outputs[0]->data, a->data, b->data, count_of(a), a->dtype);
    return call_end(&c);
}

/* ------------------------------------------------------------------------------------------------ LRN */

PyDoc_STRVAR(lrn_doc, "lrn(x, size=5, alpha=0.0001, beta=0.75, k=2.0, *, out=None)\n--\n\n"
                      "Local response normalisation over channels: x / (k + alpha * sum of squares)^beta.\n\n"
                      "Parameters\n----------\n"
                      "x : (..., C) float32; on CUDA also bfloat16\n"
                      "size : int\n"
                      "    Channels in the window, odd.\n"
                      "alpha, beta, k : float\n"
                      "    alpha multiplies the sum, not the mean (torch's and Caffe's alpha is size times this one).\n"
                      "out : Tensor, optional\n\n"
                      "Returns\n-------\n"
                      "Tensor\n\n"
                      "Raises\n------\n"
                      "ValueError\n"
                      "    If size is even or a parameter has no sense.\n\n"
                      "Source: paper, section 2.1 (net A-LRN); Krizhevsky et al. 2012, section 3.3.");

/* Both directions: dy, x, parameters; forward has no dy. */
static PyObject *lrn(PyObject *module, PyObject *dy, PyObject *x, PyObject *size_object, struct vgg_lrn *s, PyObject *out)
{
    const char *op = dy ? "lrn_backward" : "lrn";
    uint64_t size = 5;
    struct call c;
    if (size_object && !vggpy_uint(size_object, op, "size", PTRDIFF_MAX, &size))
        return NULL;
    s->size = (size_t)size;
    struct call_input in[] = {
        {.name = "x", .object = x, .dtype = VGG_FLOAT32, .map = true},
        {.name = "dy", .object = dy ? dy : Py_None, .dtype = VGG_FLOAT32, .map = true, .optional = !dy},
    };
    const struct vgg_array *a = &in[0].array;
    if (call_begin(&c, module, op, in, 2) && call_check(&c, vgg_lrn_check(s, a, call_array(&in[1]), &c.error)) &&
        call_output(&c, out, "out", s->dtype, a->ndim, a->shape, -1)) {
        if (dy)
            CALL_RUN(&c, lrn_backward, c.outputs[0]->data, in[1].array.data, a->data, s);
        else
            CALL_RUN(&c, lrn, c.outputs[0]->data, a->data, s);
    }
    return call_end(&c);
}

static PyObject *py_lrn(PyObject *module, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"x", "size", "alpha", "beta", "k", "out", NULL};
    PyObject *x, *size = NULL, *out = Py_None;
    struct vgg_lrn s = {.alpha = 1e-4f, .beta = 0.75f, .k = 2.0f};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|Offf$O:lrn", names, &x, &size, &s.alpha, &s.beta, &s.k, &out))
        return NULL;
    return lrn(module, NULL, x, size, &s, out);
}

PyDoc_STRVAR(lrn_backward_doc, "lrn_backward(dy, x, size=5, alpha=0.0001, beta=0.75, k=2.0, *, out=None)\n--\n\n"
                               "Gradient of lrn with respect to x.\n\n"
                               "Parameters\n----------\n"
                               "dy, x : (..., C) float32; on CUDA also bfloat16\n"
                               "size, alpha, beta, k\n"
                               "    As given to lrn.\n"
                               "out : Tensor, optional\n\n"
                               "Returns\n-------\n"
                               "Tensor\n\n"
                               "Raises\n------\n"
                               "ValueError\n"
                               "    As lrn.");

static PyObject *py_lrn_backward(PyObject *module, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"dy", "x", "size", "alpha", "beta", "k", "out", NULL};
    PyObject *dy, *x, *size = NULL, *out = Py_None;
    struct vgg_lrn s = {.alpha = 1e-4f, .beta = 0.75f, .k = 2.0f};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO|Offf$O:lrn_backward", names, &dy, &x, &size, &s.alpha, &s.beta, &s.k,
                                     &out))
        return NULL;
    return lrn(module, dy, x, size, &s, out);
}

/* ------------------------------------------------------------------------------------------------ dropout */

PyDoc_STRVAR(dropout_doc, "dropout(x, p, seed, rows, purpose=0, *, out=None)\n--\n\n"
                          "Zero each element with probability p, and multiply the others by 1 / (1 - p).\n\n"
                          "Parameters\n----------\n"
                          "x : (N, ...) float32; on CUDA also bfloat16\n"
                          "p : float\n"
                          "    0 <= p < 1.\n"
                          "seed : int\n"
                          "    0 <= seed < 2**64.\n"
                          "rows : (N,) int64\n"
                          "    Each row's global counter, epoch << 32 | image.\n"
                          "purpose : int\n"
                          "    Draws for different purposes are independent.\n"
                          "out : Tensor, optional\n"
                          "    May be x.\n\n"
                          "Returns\n-------\n"
                          "Tensor\n\n"
                          "Raises\n------\n"
                          "ValueError\n"
                          "    If p is outside its range or rows does not fit.\n\n"
                          "Notes\n-----\n"
                          "Counter-based (Philox): what is dropped depends on (seed, row, purpose, position) alone.\n\n"
                          "Source: paper, section 3.1.");

PyDoc_STRVAR(dropout_backward_doc, "dropout_backward(dy, p, seed, rows, purpose=0, *, out=None)\n--\n\n"
                                   "Gradient of dropout: the same function of dy, with the same arguments.\n\n"
                                   "Parameters\n----------\n"
                                   "dy : (N, ...) float32; on CUDA also bfloat16\n"
                                   "p, seed, rows, purpose\n"
                                   "    As given to dropout.\n"
                                   "out : Tensor, optional\n"
                                   "    May be dy.\n\n"
                                   "Returns\n-------\n"
                                   "Tensor\n\n"
                                   "Raises\n------\n"
                                   "ValueError\n"
                                   "    As dropout.");

static PyObject *dropout(PyObject *module, PyObject *args, PyObject *kwargs, const char *op, char *x_name, const char *format)
{
    char *names[] = {x_name, "p", "seed", "rows", "purpose", "out", NULL};
    PyObject *x, *seed_object, *rows, *purpose_object = NULL, *out = Py_None;
    float p;
    uint64_t seed, purpose = 0;
    struct call c;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, format, names, &x, &p, &seed_object, &rows, &purpose_object, &out) ||
        !vggpy_uint(seed_object, op, "seed", UINT64_MAX, &seed) ||
        (purpose_object && !vggpy_uint(purpose_object, op, "purpose", UINT32_MAX, &purpose)))
        return NULL;
    struct vgg_dropout s = {.p = p, .seed = seed, .purpose = (uint32_t)purpose};
    struct call_input in[] = {
        {.name = x_name, .object = x, .dtype = VGG_FLOAT32, .map = true},
        {.name = "rows", .object = rows, .dtype = VGG_INT64},
    };
    const struct vgg_array *a = &in[0].array;
    if (call_begin(&c, module, op, in, 2) && call_check(&c, vgg_dropout_check(&s, a, &in[1].array, &c.error)) &&
        call_output(&c, out, "out", s.dtype, a->ndim, a->shape, 0))
        CALL_RUN(&c, dropout, c.outputs[0]->data, a->data, in[1].array.data, &s);
    return call_end(&c);
}

static PyObject *py_dropout(PyObject *module, PyObject *args, PyObject *kwargs)
{
    return dropout(module, args, kwargs, "dropout", "x", "OfOO|O$O:dropout");
}

static PyObject *py_dropout_backward(PyObject *module, PyObject *args, PyObject *kwargs)
{
    return dropout(module, args, kwargs, "dropout_backward", "dy", "OfOO|O$O:dropout_backward");
}

/* ------------------------------------------------------------------------------------------------ soft-max */

PyDoc_STRVAR(softmax_doc, "softmax(x, *, out=None)\n--\n\n"
                          "Soft-max over the last axis; stable for any finite x.\n\n"
                          "Parameters\n----------\n"
                          "x : (..., C) float32\n"
                          "out : Tensor, optional\n\n"
                          "Returns\n-------\n"
                          "Tensor\n\n"
                          "Raises\n------\n"
                          "ValueError\n"
                          "    If x is not float32 or has no axis.\n\n"
                          "Source: paper, section 2.1.");

static PyObject *py_softmax(PyObject *module, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"x", "out", NULL};
    PyObject *x, *out = Py_None;
    struct vgg_softmax s = {0};
    struct call c;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|$O:softmax", names, &x, &out))
        return NULL;
    struct call_input in[] = {{.name = "x", .object = x, .dtype = VGG_FLOAT32}};
    const struct vgg_array *a = &in[0].array;
    if (call_begin(&c, module, "softmax", in, 1) && call_check(&c, vgg_softmax_check(&s, a, &c.error)) &&
        call_output(&c, out, "out", VGG_FLOAT32, a->ndim, a->shape, -1))
        CALL_RUN(&c, softmax, c.outputs[0]->data, a->data, &s);
    return call_end(&c);
}

/* What a loss is divided by; 0, the checks' word for the number of rows, when it is None. */
static bool normalizer_of(PyObject *object, const char *op, double *normalizer)
{
    *normalizer = 0;
    if (object == Py_None)
        return true;
    *normalizer = PyFloat_AsDouble(object);
    if (PyErr_Occurred())
        return false;
    if (!(*normalizer > 0))
        PyErr_Format(PyExc_ValueError, "%s: normalizer is %R; expected a number > 0", op, object);
    return *normalizer > 0;
}

PyDoc_STRVAR(cross_entropy_doc, "cross_entropy(logits, labels, *, normalizer=None, out=None)\n--\n\n"
                                "The multinomial logistic loss of a batch, and its gradient.\n\n"
                                "Parameters\n----------\n"
                                "logits : (N, C) float32\n"
                                "    Scores before soft-max.\n"
                                "labels : (N,) int64\n"
                                "    0 <= label < C.\n"
                                "normalizer : float, optional\n"
                                "    Both results are divided by it; N if not given.\n"
                                "out : (Tensor, Tensor), optional\n\n"
                                "Returns\n-------\n"
                                "(Tensor, Tensor)\n"
                                "    loss, a 0-d float32 tensor, and dlogits (N, C).\n\n"
                                "Raises\n------\n"
                                "ValueError\n"
                                "    If a label is outside 0..C-1, or normalizer is not above 0.\n\n"
                                "Source: paper, section 3.1.");

static PyObject *py_cross_entropy(PyObject *module, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"logits", "labels", "normalizer", "out", NULL};
    PyObject *logits, *labels, *normalizer = Py_None, *out = Py_None, *outs[2];
    struct vgg_softmax s = {0};
    struct call c;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO|$OO:cross_entropy", names, &logits, &labels, &normalizer, &out) ||
        !normalizer_of(normalizer, "cross_entropy", &s.normalizer))
        return NULL;
    struct call_input in[] = {
        {.name = "logits", .object = logits, .dtype = VGG_FLOAT32},
        {.name = "labels", .object = labels, .dtype = VGG_INT64},
    };
    const struct vgg_array *a = &in[0].array;
    if (call_begin(&c, module, "cross_entropy", in, 2) &&
        call_check(&c, vgg_expect_ndim("cross_entropy", "logits", a, 2, &c.error)) &&
        call_check(&c, vgg_cross_entropy_check(&s, a, &in[1].array, &c.error)) && call_out_pair(&c, out, outs) &&
        call_output(&c, outs[0], "out[0]", VGG_FLOAT32, 0, NULL, -1) &&
        call_output(&c, outs[1], "out[1]", VGG_FLOAT32, 2, a->shape, -1))
        CALL_RUN(&c, cross_entropy, c.outputs[0]->data, c.outputs[1]->data, a->data, in[1].array.data, &s);
    return call_end(&c);
}

PyDoc_STRVAR(euclidean_loss_doc, "euclidean_loss(x, target, labels=None, *, normalizer=None, out=None)\n--\n\n"
                                 "Half the squared distance of predictions to their targets, and its gradient.\n\n"
                                 "Parameters\n----------\n"
                                 "x : (N, D) float32; (N, C * D) with labels\n"
                                 "    One prediction a row, or one for each of C classes, class after class.\n"
                                 "target : (N, D) float32\n"
                                 "labels : (N,) int64, optional\n"
                                 "    0 <= label < C: which prediction of the row counts; the others' gradient is 0.\n"
                                 "normalizer : float, optional\n"
                                 "    Both results are divided by it; N if not given.\n"
                                 "out : (Tensor, Tensor), optional\n\n"
                                 "Returns\n-------\n"
                                 "(Tensor, Tensor)\n"
                                 "    loss, a 0-d float32 tensor, and dx of x's shape.\n\n"
                                 "Raises\n------\n"
                                 "ValueError\n"
                                 "    If shapes do not fit, a label is outside 0..C-1, or normalizer is not above 0.\n\n"
                                 "Source: paper, appendix A: the loss of predicted boxes.");

static PyObject *py_euclidean_loss(PyObject *module, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"x", "target", "labels", "normalizer", "out", NULL};
    static const char op[] = "euclidean_loss";
    PyObject *x, *target, *labels = Py_None, *normalizer = Py_None, *out = Py_None, *outs[2];
    struct vgg_euclidean s = {0};
    struct call c;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO|O$OO:euclidean_loss", names, &x, &target, &labels, &normalizer, &out) ||
        !normalizer_of(normalizer, op, &s.normalizer))
        return NULL;
    struct call_input in[] = {
        {.name = "x", .object = x, .dtype = VGG_FLOAT32},
        {.name = "target", .object = target, .dtype = VGG_FLOAT32},
        {.name = "labels", .object = labels, .dtype = VGG_INT64, .optional = true},
    };
    const struct vgg_array *a = &in[0].array;
    if (call_begin(&c, module, op, in, 3) &&
        call_check(&c, vgg_euclidean_loss_check(&s, a, &in[1].array, call_array(&in[2]), &c.error)) &&
        call_out_pair(&c, out, outs) && call_output(&c, outs[0], "out[0]", VGG_FLOAT32, 0, NULL, -1) &&
        call_output(&c, outs[1], "out[1]", VGG_FLOAT32, 2, a->shape, -1))
        CALL_RUN(&c, euclidean_loss, c.outputs[0]->data, c.outputs[1]->data, a->data, in[1].array.data, in[2].array.data, &s);
    return call_end(&c);
}

/* ------------------------------------------------------------------------------------------------ unfold */

PyDoc_STRVAR(unfold_doc, "unfold(x, size, *, out=None)\n--\n\n"
                         "Every size x size window as a row, so that fc6 becomes a convolution.\n\n"
                         "Parameters\n----------\n"
                         "x : (N, H, W, C) float32; on CUDA also bfloat16\n"
                         "size : int\n"
                         "out : Tensor, optional\n\n"
                         "Returns\n-------\n"
                         "Tensor\n"
                         "    (N * (H - size + 1) * (W - size + 1), size * size * C).\n\n"
                         "Raises\n------\n"
                         "ValueError\n"
                         "    If x is smaller than a window.\n\n"
                         "Source: paper, section 3.2.");

static PyObject *py_unfold(PyObject *module, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"x", "size", "out", NULL};
    PyObject *x, *size_object, *out = Py_None;
    uint64_t size;
    struct call c;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO|$O:unfold", names, &x, &size_object, &out) ||
        !vggpy_uint(size_object, "unfold", "size", PTRDIFF_MAX, &size))
        return NULL;
    struct vgg_unfold s = {.size = (size_t)size};
    struct call_input in[] = {{.name = "x", .object = x, .dtype = VGG_FLOAT32, .map = true}};
    if (call_begin(&c, module, "unfold", in, 1) && call_check(&c, vgg_unfold_check(&s, &in[0].array, &c.error)) &&
        call_output(&c, out, "out", s.dtype, 2,
                    (size_t[]){s.n * (s.h - s.size + 1) * (s.w - s.size + 1), s.size * s.size * s.c}, -1))
        CALL_RUN(&c, unfold, c.outputs[0]->data, in[0].array.data, &s);
    return call_end(&c);
}

PyMethodDef vggpy_layer_functions[] = {
    {"max_pool2d", VGGPY_KEYWORDS(py_max_pool2d), max_pool2d_doc},
    {"max_pool2d_backward", VGGPY_KEYWORDS(py_max_pool2d_backward), max_pool2d_backward_doc},
    {"relu", VGGPY_KEYWORDS(py_relu), relu_doc},
    {"relu_backward", VGGPY_KEYWORDS(py_relu_backward), relu_backward_doc},
    {"lrn", VGGPY_KEYWORDS(py_lrn), lrn_doc},
    {"lrn_backward", VGGPY_KEYWORDS(py_lrn_backward), lrn_backward_doc},
    {"dropout", VGGPY_KEYWORDS(py_dropout), dropout_doc},
    {"dropout_backward", VGGPY_KEYWORDS(py_dropout_backward), dropout_backward_doc},
    {"softmax", VGGPY_KEYWORDS(py_softmax), softmax_doc},
    {"cross_entropy", VGGPY_KEYWORDS(py_cross_entropy), cross_entropy_doc},
    {"euclidean_loss", VGGPY_KEYWORDS(py_euclidean_loss), euclidean_loss_doc},
    {"unfold", VGGPY_KEYWORDS(py_unfold), unfold_doc},
    {NULL, NULL, 0, NULL},
};
