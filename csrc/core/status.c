/* core/status.c: statuses, messages, and the checks every operation makes of its arrays. */
#include "../vgg_internal.h"

#include <stdarg.h>
#include <stdio.h>

enum vgg_status vgg_fail(struct vgg_error *error, enum vgg_status status, const char *format, ...)
{
    if (error != NULL) {
        va_list arguments;
        va_start(arguments, format);
        error->status = status;
        (void)vsnprintf(error->msg, sizeof error->msg, format, arguments);
        va_end(arguments);
    }
    return status;
}

char *vgg_shape_text(char *text, size_t size, const size_t *shape, int ndim)
{
    size_t used = 0;
    const char *before = "(";
    for (int i = 0; i < ndim; i++) {
        /* 28: the widest size_t, its separator, and the closing "...)". */
        if (used + 28 > size) {
            (void)snprintf(text + used, size - used, "%s...)", before);
            return text;
        }
        used += (size_t)snprintf(text + used, size - used, "%s%zu", before, shape[i]);
        before = ", ";
    }
    (void)snprintf(text + used, size - used, ndim == 0 ? "()" : ndim == 1 ? ",)" : ")");
    return text;
}

static const struct {
    const char *name;
    size_t size;
} dtypes[VGG_DTYPE_COUNT] = {
    [VGG_FLOAT32] = {"float32", 4},
    [VGG_INT64] = {"int64", 8},
    [VGG_UINT8] = {"uint8", 1},
    [VGG_BFLOAT16] = {"bfloat16", 2},
};

const char *vgg_dtype_name(enum vgg_dtype dtype)
{
    return dtypes[dtype].name;
}

size_t vgg_dtype_size(enum vgg_dtype dtype)
{
    return dtypes[dtype].size;
}

enum vgg_status vgg_expect_dtype(const char *op, const char *name, const struct vgg_array *a, enum vgg_dtype dtype,
                                 struct vgg_error *error)
{
    if (a->dtype == dtype)
        return VGG_OK;
    return vgg_fail(error, VGG_INVALID_ARGUMENT, "%s: %s has dtype %s; expected %s", op, name, vgg_dtype_name(a->dtype),
                    vgg_dtype_name(dtype));
}

enum vgg_status vgg_expect_precision(const char *op, const char *name, const struct vgg_array *a, enum vgg_precision precision,
                                     struct vgg_error *error)
{
    static const char *const names[VGG_PRECISION_COUNT] = {"float32", "tf32", "bf16"};
    enum vgg_dtype dtype = vgg_precision_dtype(precision);
    if (a->dtype == dtype || (a->dtype != VGG_BFLOAT16 && precision != VGG_PRECISION_BF16))
        return vgg_expect_dtype(op, name, a, dtype, error);
    return vgg_fail(error, VGG_INVALID_ARGUMENT, "%s: %s has dtype %s; expected %s because precision is \"%s\"", op, name,
                    vgg_dtype_name(a->dtype), vgg_dtype_name(dtype), names[precision]);
}

enum vgg_status vgg_expect_map(const char *op, const char *name, const struct vgg_array *a, struct vgg_error *error)
{
    return a->dtype == VGG_BFLOAT16 ? VGG_OK : vgg_expect_dtype(op, name, a, VGG_FLOAT32, error);
}

enum vgg_status vgg_expect_ndim(const char *op, const char *name, const struct vgg_array *a, int ndim, struct vgg_error *error)
{
    if (a->ndim == ndim)
        return VGG_OK;
    char text[96];
    return vgg_fail(error, VGG_INVALID_ARGUMENT, "%s: %s has shape %s, %d axes; expected %d", op, name,
                    vgg_shape_text(text, sizeof text, a->shape, a->ndim), a->ndim, ndim);
}

enum vgg_status vgg_expect_shape(const char *op, const char *name, const struct vgg_array *a, const size_t *shape, int ndim,
                                 const char *because, struct vgg_error *error)
{
    bool same = a->ndim == ndim;
    for (int i = 0; same && i < ndim; i++)
        same = a->shape[i] == shape[i];
    if (same)
        return VGG_OK;
    char got[80], expected[80];
    return vgg_fail(error, VGG_INVALID_ARGUMENT, "%s: %s has shape %s; expected %s because %s", op, name,
                    vgg_shape_text(got, sizeof got, a->shape, a->ndim), vgg_shape_text(expected, sizeof expected, shape, ndim),
                    because);
}

bool vgg_shape_bytes(size_t *bytes, const size_t *shape, int ndim, size_t element_size)
{
    /* A zero axis makes the product 0, but the others must still multiply without overflow: strides are made of them. */
    size_t product = element_size;
    bool empty = false;
    for (int i = 0; i < ndim; i++) {
        empty |= shape[i] == 0;
        if (!vgg_mul_size(&product, product, shape[i] == 0 ? 1 : shape[i]) || product > PTRDIFF_MAX)
            return false;
    }
    *bytes = empty ? 0 : product;
    return true;
}
