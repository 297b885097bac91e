/* raise.c: the one place where a status becomes a Python exception. */
#include "py.h"

bool vggpy_raise(const struct vgg_state *state, const struct vgg_error *error)
{
    PyObject *type = PyExc_RuntimeError; /* VGG_INTERNAL, and a backend that forgot to fill in the status */
    switch (error->status) {
    case VGG_INVALID_ARGUMENT: type = PyExc_ValueError; break;
    case VGG_UNSUPPORTED: type = PyExc_NotImplementedError; break;
    case VGG_OUT_OF_MEMORY: type = PyExc_MemoryError; break;
    case VGG_DEVICE: type = state->device_error; break;
    case VGG_OK:
    case VGG_INTERNAL: break;
    }
    PyErr_SetString(type, error->msg);
    return false;
}
