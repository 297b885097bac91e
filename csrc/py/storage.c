/* storage.c: the Storage type: bytes on one device. */
#include "py.h"

static struct storage *storage_make(const struct vgg_state *state, struct device device, size_t nbytes)
{
    PyTypeObject *type = (PyTypeObject *)state->storage_type;
    struct storage *self = (struct storage *)PyType_GenericAlloc(type, 0); /* zeroed: owns nothing yet */
    if (self) {
        self->device = device;
        self->nbytes = nbytes;
    }
    return self;
}

struct storage *vggpy_storage_new(const struct vgg_state *state, struct device device, size_t nbytes)
{
    struct storage *self = storage_make(state, device, nbytes);
    if (!self)
        return NULL;
    struct vgg_error error = {.status = VGG_OK};
    struct vgg_context context = vggpy_context(device, &error);
    if (device.backend->allocate(&context, &self->data, nbytes) != VGG_OK) {
        self->data = NULL;
        self->nbytes = 0;
        Py_DECREF(self);
        vggpy_raise(state, &error);
        return NULL;
    }
    return self;
}

struct storage *vggpy_storage_wrap(const struct vgg_state *state, struct device device, void *data, size_t nbytes,
                                   PyObject *owner)
{
    struct storage *self = storage_make(state, device, nbytes);
    if (self) {
        self->data = data;
        self->owner = Py_NewRef(owner);
    }
    return self;
}

/* There is no tp_clear: an owner is a capsule, which refers to nothing, so no cycle goes through a storage; and a storage
 * that lost its bytes while a tensor still points to them would be worse than a leak. */
static int storage_traverse(PyObject *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(((struct storage *)self)->owner);
    return 0;
}

static void storage_dealloc(PyObject *object)
{
    struct storage *self = (struct storage *)object;
    PyTypeObject *type = Py_TYPE(object);
    PyObject_GC_UnTrack(object);
    if (self->owner)
        Py_DECREF(self->owner);
    else if (self->data)
        self->device.backend->release(self->device.index, self->data, self->nbytes);
    PyObject_GC_Del(object);
    Py_DECREF(type);
}

static PyObject *storage_nbytes(PyObject *self, void *closure)
{
    (void)closure;
    return PyLong_FromSize_t(((struct storage *)self)->nbytes);
}

static PyObject *storage_device(PyObject *self, void *closure)
{
    (void)closure;
    return vggpy_device_name(((struct storage *)self)->device);
}

static PyObject *storage_version(PyObject *self, void *closure)
{
    (void)closure;
    return PyLong_FromUnsignedLongLong(((struct storage *)self)->version);
}

static PyObject *storage_repr(PyObject *object)
{
    struct storage *self = (struct storage *)object;
    PyObject *device = vggpy_device_name(self->device);
    PyObject *repr = device ? PyUnicode_FromFormat("Storage(nbytes=%zu, device=\"%U\", version=%llu)", self->nbytes, device,
                                                   (unsigned long long)self->version)
                            : NULL;
    Py_XDECREF(device);
    return repr;
}

static PyGetSetDef storage_getset[] = {
    {"nbytes", storage_nbytes, NULL, PyDoc_STR("int : bytes owned."), NULL},
    {"device", storage_device, NULL, PyDoc_STR("str : where the bytes are."), NULL},
    {"version", storage_version, NULL,
     PyDoc_STR("int : grows with every in-place operation, so what was computed from the bytes can be known to be stale."),
     NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

PyDoc_STRVAR(storage_doc, "The bytes behind one or more tensors, on one device.\n\n"
                          "Made by tensors, never directly; freed when the last tensor or view over it goes.");

static PyType_Slot storage_slots[] = {
    {Py_tp_doc, (void *)storage_doc}, {Py_tp_dealloc, storage_dealloc}, {Py_tp_traverse, storage_traverse},
    {Py_tp_getset, storage_getset},   {Py_tp_repr, storage_repr},       {0, NULL},
};

PyType_Spec vggpy_storage_spec = {
    .name = "vggnet.Storage",
    .basicsize = sizeof(struct storage),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = storage_slots,
};
