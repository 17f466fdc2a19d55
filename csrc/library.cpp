// The library: the operators' schemas, and the Python module that loads them, which CMake's library is without.
#ifndef STYLEKERN_WITHOUT_PYTHON
#define Py_LIMITED_API 0x030A0000
#include <Python.h>
#endif
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
  m.def(
      "adaconv(Tensor input, Tensor kernel, Tensor? scale, Tensor? bias, bool normalize, str padding_mode, "
      "float eps, int correction) -> (Tensor, Tensor, Tensor)");
  m.def(
      "adaconv_backward(Tensor grad, Tensor input, Tensor kernel, Tensor mean, Tensor rstd, bool normalize, "
      "str padding_mode, int correction, bool need_input, bool need_kernel, bool need_bias) "
      "-> (Tensor, Tensor, Tensor)");
  m.def("adain(Tensor content, Tensor style, float eps, int correction) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "adain_backward(Tensor grad, Tensor content, Tensor style, Tensor content_mean, Tensor content_rstd, "
      "Tensor style_mean, Tensor style_rstd, int correction, bool need_content, bool need_style) -> (Tensor, Tensor)");
  m.def(
      "factorized_instance_norm(Tensor content, Tensor gamma_ind, Tensor beta_ind, Tensor gamma_style, "
      "Tensor beta_style, float eps, int correction) -> (Tensor, Tensor, Tensor)");
  m.def(
      "factorized_instance_norm_backward(Tensor grad, Tensor content, Tensor gamma_ind, Tensor beta_ind, "
      "Tensor gamma_style, Tensor mean, Tensor rstd, int correction, bool need_content, bool need_gamma_style) "
      "-> (Tensor, Tensor, Tensor, Tensor)");
  m.def("wavelet_pool(Tensor input, str odd) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "wavelet_pool_backward(Tensor ll, Tensor lh, Tensor hl, Tensor hh, SymInt height, SymInt width, str odd) "
      "-> Tensor");
  m.def("wavelet_unpool(Tensor ll, Tensor lh, Tensor hl, Tensor hh, SymInt height, SymInt width) -> Tensor");
  m.def("wavelet_unpool_backward(Tensor grad) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "cgm_attention(Tensor query, Tensor key, Tensor value, Tensor? gate_scale, Tensor? gate_bias, float alpha, "
      "bool cosine, str gate_grad, float temperature, bool renormalize, float eps) -> (Tensor, Tensor, Tensor)");
  m.def(
      "cgm_attention_backward(Tensor grad, Tensor query, Tensor key, Tensor value, Tensor? gate_scale, "
      "Tensor? gate_bias, Tensor output, Tensor lse, Tensor mass, float alpha, bool cosine, str gate_grad, "
      "float temperature, bool renormalize, float eps, bool need_query, bool need_key, bool need_value, "
      "bool need_gate) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "min_distances(Tensor x, Tensor y, str metric, float eps) "
      "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "min_distances_backward(Tensor? grad_row, Tensor? grad_col, Tensor x, Tensor y, Tensor row_argmin, "
      "Tensor col_argmin, Tensor row_match, Tensor col_match, Tensor x_norm, Tensor y_norm, str metric, float eps, "
      "bool need_x, bool need_y) -> (Tensor, Tensor)");
}

#ifndef STYLEKERN_WITHOUT_PYTHON
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
#endif
