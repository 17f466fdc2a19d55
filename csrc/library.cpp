// The library: the operators' schemas, and the Python module that loads them.
#define Py_LIMITED_API 0x030A0000
#include <Python.h>
#include <torch/csrc/stable/library.h>

#include "cpu/simd.h"

// Kept word for word in stylekern/ops/<op>.py, which define the same operators for Triton; a test compares the two.
STABLE_TORCH_LIBRARY(stylekern, m) {
  m.def(
      "style_kernel_conv(Tensor input, Tensor vertical, Tensor horizontal, Tensor? bias, str padding_mode, "
      "str composition, bool normalize, float eps, int correction) -> (Tensor, Tensor, Tensor)");
  m.def(
      "style_kernel_conv_backward(Tensor grad, Tensor input, Tensor vertical, Tensor horizontal, Tensor mean, "
      "Tensor rstd, str padding_mode, str composition, bool normalize, int correction, bool need_input, "
      "bool need_vertical, bool need_horizontal) -> (Tensor, Tensor, Tensor)");
}

#ifndef STYLEKERN_CUDA_ARCHS
#define STYLEKERN_CUDA_ARCHS ""
#endif

static PyObject* build_options(PyObject*, PyObject*) {
  return Py_BuildValue("{s:s,s:s,s:s,s:s}", "compiler", STYLEKERN_COMPILER, "torch_headers", TORCH_VERSION,
                       "cpu_target", stylekern::cpu_target_name(stylekern::cpu_target()), "cuda_archs",
                       STYLEKERN_CUDA_ARCHS);
}

static PyMethodDef methods[] = {
    {"build_options", build_options, METH_NOARGS, "What the library was built with, and the CPU target it chose."},
    {nullptr, nullptr, 0, nullptr},
};
static PyModuleDef module = {PyModuleDef_HEAD_INIT, "_C", nullptr, 0, methods, nullptr, nullptr, nullptr, nullptr};

PyMODINIT_FUNC PyInit__C() { return PyModule_Create(&module); }
