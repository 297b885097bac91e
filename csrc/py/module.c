/* module.c: vggnet._C: its state, its initialisation, its exceptions. */
#define VGGPY_IMPORTS_NUMPY
#include "py.h"

struct vgg_state *vggpy_state(PyObject *module)
{
    return PyModule_GetState(module);
}
struct vgg_state *vggpy_state_of(PyObject *self)
{
    return PyType_GetModuleState(Py_TYPE(self));
} /* our types are final */

static PyObject *add_type(PyObject *module, PyType_Spec *spec)
{
    PyObject *type = PyType_FromModuleAndSpec(module, spec, NULL);
    if (type && PyModule_AddType(module, (PyTypeObject *)type) < 0)
        Py_CLEAR(type);
    return type;
}

/* `also`: the built-in class that the exception is too, or NULL. */
static PyObject *add_exception(PyObject *module, const char *name, const char *doc, PyObject *base, PyObject *also)
{
    PyObject *bases = also ? PyTuple_Pack(2, base, also) : Py_NewRef(base);
    PyObject *type = bases ? PyErr_NewExceptionWithDoc(name, doc, bases, NULL) : NULL;
    Py_XDECREF(bases);
    if (type && PyModule_AddObjectRef(module, strchr(name, '.') + 1, type) < 0)
        Py_CLEAR(type);
    return type;
}

static bool add_objects(PyObject *module, struct vgg_state *state)
{
    return (state->storage_type = add_type(module, &vggpy_storage_spec)) &&
           (state->tensor_type = add_type(module, &vggpy_tensor_spec)) &&
           (state->vgg_error =
                add_exception(module, "vggnet.VggError", "Base of vggnet's own exceptions.", PyExc_Exception, NULL)) &&
           (state->device_error =
                add_exception(module, "vggnet.DeviceError", "A device is not there, or it or its driver failed.",
                              state->vgg_error, PyExc_RuntimeError)) &&
           (state->weights_error =
                add_exception(module, "vggnet.WeightsError", "A file of weights is damaged, or is not for this model.",
                              state->vgg_error, PyExc_ValueError)) &&
           (state->image_error = add_exception(module, "vggnet.ImageError", "An image cannot be read or does not fit.",
                                               state->vgg_error, PyExc_ValueError)) &&
           (state->capsules = PyList_New(0));
}

static int module_exec(PyObject *module)
{
    static PyMethodDef *const functions[] = {
        vggpy_tensor_functions, vggpy_device_functions, vggpy_conv2d_functions,  vggpy_linear_functions,
        vggpy_layer_functions,  vggpy_update_functions, vggpy_augment_functions,
    };
    struct vgg_state *state = vggpy_state(module);
    struct vgg_error error = {.status = VGG_OK};
    if (PyArray_ImportNumPyAPI() < 0)
        return -1;
    if (vgg_kernels_init(getenv("VGGNET_ISA"), &error) != VGG_OK) {
        PyErr_Format(PyExc_ImportError, "environment variable VGGNET_ISA: %s", error.msg);
        return -1;
    }
    if (!add_objects(module, state) || !vggpy_register_backend(state, &vgg_cpu_backend))
        return -1;
    for (size_t i = 0; i < sizeof(functions) / sizeof(functions[0]); i++)
        if (PyModule_AddFunctions(module, functions[i]) < 0)
            return -1;
    return 0;
}

static int module_traverse(PyObject *module, visitproc visit, void *arg)
{
    struct vgg_state *state = vggpy_state(module);
#define X(name) Py_VISIT(state->name);
    STATE_OBJECTS(X)
#undef X
    return 0;
}

static int module_clear(PyObject *module)
{
    struct vgg_state *state = vggpy_state(module);
#define X(name) Py_CLEAR(state->name);
    STATE_OBJECTS(X)
#undef X
    return 0;
}

static void module_free(void *module)
{
    module_clear(module);
}

PyDoc_STRVAR(module_doc, "Tensors, operations and the CPU backend of vggnet, in C.");

/* The limited API of 3.11 has no names for these; older interpreters reject the slots, so PyInit adds them by version. */
enum { SLOT_MULTIPLE_INTERPRETERS = 3, SLOT_GIL = 4 };
#define INTERPRETERS_NOT_SUPPORTED ((void *)0) /* NumPy's C API is one for the process */
#define GIL_USED ((void *)0)

static PyModuleDef_Slot module_slots[4] = {{Py_mod_exec, module_exec}}; /* the rest is zero: the end */

static struct PyModuleDef module_def = {
    PyModuleDef_HEAD_INIT,   .m_name = "vggnet._C",         .m_doc = module_doc,     .m_size = sizeof(struct vgg_state),
    .m_slots = module_slots, .m_traverse = module_traverse, .m_clear = module_clear, .m_free = module_free,
};

PyMODINIT_FUNC PyInit__C(void);

PyMODINIT_FUNC PyInit__C(void)
{
    if (Py_Version >= 0x030C0000)
        module_slots[1] = (PyModuleDef_Slot){SLOT_MULTIPLE_INTERPRETERS, INTERPRETERS_NOT_SUPPORTED};
    if (Py_Version >= 0x030D0000)
        module_slots[2] = (PyModuleDef_Slot){SLOT_GIL, GIL_USED};
    return PyModuleDef_Init(&module_def);
}
