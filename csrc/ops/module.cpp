// The module `megatron_aqaa._C`: importing it registers the operators. Every schema stands here, once.
//
// Built on torch's stable ABI and Python's limited API: one binary for torch >= 2.11 and every Python >= 3.11.

#include <Python.h>
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(megatron_aqaa, m) {
  m.def(
      "dual_codebook_embedding(Tensor token_ids, Tensor weight, Tensor? type_weight, Tensor? group_position_weight, "
      "Tensor? group_positions, int vocab_start_index, int vocab_size, int linguistic_start, int semantic_start, "
      "int audio_stop, float scale, ScalarType? out_dtype=None, bool deterministic=True) -> Tensor");
  m.def(
      "code_pair_embedding(Tensor codes, Tensor linguistic_weight, Tensor semantic_weight, bool concatenate, "
      "float scale, ScalarType? out_dtype=None, bool deterministic=True) -> Tensor");
  m.def("accumulate_rows_(Tensor(a!) destination, Tensor gradient, Tensor rows, Tensor? order, float scale) -> ()");
}

PyMODINIT_FUNC PyInit__C(void) {
  static PyModuleDef definition = {
      PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};
  PyObject* module = PyModule_Create(&definition);
  if (module == nullptr) return nullptr;
#ifdef MEGATRON_AQAA_CUDA
  const long built_with_cuda = 1;
#else
  const long built_with_cuda = 0;
#endif
  if (PyModule_AddIntConstant(module, "built_with_cuda", built_with_cuda) < 0) {
    Py_DECREF(module);
    return nullptr;
  }
  return module;
}
