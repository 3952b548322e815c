// The module `megatron_aqaa._index`: host-side index building on numpy int64 arrays, the interpreter lock released.
//
// The public functions, with their documentation, are in megatron_aqaa/ops/index.py.

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <stdexcept>
#include <tuple>
#include <vector>

#include "codes.h"
#include "packing.h"
#include "text_audio.h"

namespace py = pybind11;

namespace megatron_aqaa {
namespace {

using Ids = py::array_t<int64_t, py::array::c_style>;

void check_one_dimensional(const Ids& ids, const char* name) {
  if (ids.ndim() == 1) return;
  throw std::invalid_argument(std::string(name) + " must be one-dimensional, not " + std::to_string(ids.ndim()) +
                              "-dimensional");
}

// An array that owns the vector: no copy.
Ids to_array(std::vector<int64_t>&& values) {
  auto* owned = new std::vector<int64_t>(std::move(values));
  const py::capsule owner(owned, [](void* pointer) { delete static_cast<std::vector<int64_t>*>(pointer); });
  return Ids(static_cast<py::ssize_t>(owned->size()), owned->data(), owner);
}

Ids py_interleave_codes(const Ids& linguistic, const Ids& semantic, int64_t linguistic_start, int64_t semantic_start,
                        int64_t audio_stop) {
  check_one_dimensional(linguistic, "linguistic");
  check_one_dimensional(semantic, "semantic");
  const int64_t num_groups = count_groups(linguistic.size(), semantic.size());
  Ids out(num_groups * kTokensPerGroup);
  const int64_t *l = linguistic.data(), *s = semantic.data();
  int64_t* o = out.mutable_data();
  const py::gil_scoped_release unlocked;
  interleave_codes(l, s, num_groups, {linguistic_start, semantic_start, audio_stop}, o);
  return out;
}

std::tuple<Ids, Ids> py_deinterleave_codes(const Ids& ids, int64_t linguistic_start, int64_t semantic_start,
                                           int64_t audio_stop) {
  check_one_dimensional(ids, "ids");
  if (ids.size() % kTokensPerGroup != 0)
    throw std::invalid_argument("length " + std::to_string(ids.size()) +
                                " is not a multiple of 5: ids must be whole "
                                "groups [L L S S S]");
  const int64_t num_groups = ids.size() / kTokensPerGroup;
  Ids linguistic(num_groups * kLinguisticPerGroup), semantic(num_groups * kSemanticPerGroup);
  const int64_t* i = ids.data();
  int64_t *l = linguistic.mutable_data(), *s = semantic.mutable_data();
  {
    const py::gil_scoped_release unlocked;
    deinterleave_codes(i, num_groups, {linguistic_start, semantic_start, audio_stop}, l, s);
  }
  return {linguistic, semantic};
}

Ids py_interleave_text_audio(const Ids& text, const Ids& audio, int64_t text_chunk, int64_t audio_chunk,
                             int64_t audio_start, int64_t audio_end) {
  check_one_dimensional(text, "text_ids");
  check_one_dimensional(audio, "audio_ids");
  if (text_chunk < 1 || audio_chunk < 1)
    throw std::invalid_argument("text_chunk and audio_chunk must be at least 1, not " + std::to_string(text_chunk) +
                                " and " + std::to_string(audio_chunk));
  const Span text_span{text.data(), text.data() + text.size()};
  const Span audio_span{audio.data(), audio.data() + audio.size()};
  const TextAudioOrder order{text_chunk, audio_chunk, audio_start, audio_end};
  Ids out(order.count(text_span, audio_span));
  int64_t* o = out.mutable_data();
  const py::gil_scoped_release unlocked;
  order.interleave(text_span, audio_span, o);
  return out;
}

std::tuple<Ids, Ids> py_packing_plan(const Ids& lengths, int64_t capacity) {
  check_one_dimensional(lengths, "lengths");
  const int64_t* data = lengths.data();
  const int64_t count = lengths.size();
  PackingPlan plan;
  {
    const py::gil_scoped_release unlocked;
    plan = packing_plan(data, count, capacity);
  }
  return {to_array(std::move(plan.offsets)), to_array(std::move(plan.order))};
}

}  // namespace

// std::invalid_argument becomes ValueError.
PYBIND11_MODULE(_index, m) {
  m.def("interleave_codes", &py_interleave_codes);
  m.def("deinterleave_codes", &py_deinterleave_codes);
  m.def("interleave_text_audio", &py_interleave_text_audio);
  m.def("packing_plan", &py_packing_plan);
}

}  // namespace megatron_aqaa
