// Order of text and audio in a spoken answer: a chunk of text, then a chunk of audio, text first. Plain C++, no Python.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

namespace megatron_aqaa {

struct Span {
  const int64_t* begin;
  const int64_t* end;
  int64_t size() const { return end - begin; }
};

constexpr int64_t kBlock = 16;  // ids that are copied at once: the published chunks have 10 and 15

// Copies the next `count` ids (or what is left) from `source` to `out` and returns the end of what was written.
// A short chunk is copied as a whole block of fixed size where source and `stop` leave room for one: what it writes
// too much is overwritten by the next chunk.
inline int64_t* take(Span& source, int64_t count, int64_t* out, const int64_t* stop) {
  count = std::min(count, source.size());
  if (count <= kBlock && source.size() >= kBlock && stop - out >= kBlock) {
    std::memcpy(out, source.begin, kBlock * sizeof(int64_t));
  } else {
    std::copy_n(source.begin, count, out);
  }
  source.begin += count;
  return out + count;
}

// Tail rule: once less than a chunk of text is left, it is followed by all the audio that is left; once the audio is
// spent, all the text that is left follows. `audio_start` and `audio_end` (negative: none) enclose first to last audio.
struct TextAudioOrder {
  int64_t text_chunk, audio_chunk, audio_start, audio_end;

  int64_t count(const Span& text, const Span& audio) const {
    return text.size() + audio.size() + (audio.size() > 0 ? (audio_start >= 0) + (audio_end >= 0) : 0);
  }

  void interleave(Span text, Span audio, int64_t* out) const {
    const bool spoken = audio.size() > 0;
    const int64_t* stop = out + count(text, audio);
    for (bool first = true; audio.size() > 0; first = false) {
      const bool last_text = text.size() < text_chunk;
      out = take(text, text_chunk, out, stop);
      if (first && audio_start >= 0) *out++ = audio_start;
      out = take(audio, last_text ? audio.size() : audio_chunk, out, stop);
    }
    if (spoken && audio_end >= 0) *out++ = audio_end;
    take(text, text.size(), out, stop);
  }
};

}  // namespace megatron_aqaa
