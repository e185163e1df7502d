// Separable resampling of RGB rows that arrive one at a time, from the top.
//
// An output row is made as soon as the last source row that it needs is there: the rows are
// weighted and summed first, then the columns of the sum. Only rows that are still needed are kept,
// so that everything stays in the first-level cache and no buffer of the image's size is allocated.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "axis.h"

namespace convnextv2 {

// Vectors are as long as the machine's registers, because compilers split longer ones badly.
#ifdef __AVX512F__
constexpr int LANES = 16;
#else
constexpr int LANES = 8;
#endif
typedef float floats __attribute__((vector_size(4 * LANES), aligned(4)));
typedef int32_t ints __attribute__((vector_size(4 * LANES)));
typedef uint8_t bytes __attribute__((vector_size(LANES), aligned(1)));
typedef float float8 __attribute__((vector_size(32), aligned(4)));
typedef int32_t int8 __attribute__((vector_size(32)));

static inline floats within_a_byte(floats value) {
  const floats black = {}, white = black + 255.0f;
  value = value > black ? value : black;
  return value < white ? value : white;
}

class Resampler {
 public:
  Axis rows, columns;

  // The axes must be set first. Each thread reuses one Resampler, and with it the memory. The rows
  // to come have `count` pixels, starting at column `left`.
  void start(int32_t height, int32_t width, bool mirrored, int32_t left, int32_t count,
             uint8_t* out) {
    height_ = height, width_ = width, left_ = left, next_ = 0, out_ = out;
    length_ = (3 * count + LANES - 1) / LANES * LANES;
    kept_.resize(static_cast<size_t>(rows.taps) * length_);
    // The vector of a pair of taps reads two values past its second pixel.
    sums_.assign(length_ + 16, 0.0f);
    line_.resize(3 * width + 16);
    lay_out_columns(mirrored);
  }

  bool done() const { return next_ == height_; }

  // Takes row `y` of the source. Rows come in order and without gaps, from the first one needed. At
  // least fifteen bytes after the pixels must be readable.
  void take(int32_t y, const uint8_t* pixels) {
    float* kept = kept_row(y);
    for (int32_t i = 0; i < length_; i += LANES) {
      // In two steps, because compilers have no direct conversion.
      const ints whole = __builtin_convertvector(
          *reinterpret_cast<const bytes*>(pixels + i), ints);
      *reinterpret_cast<floats*>(kept + i) = __builtin_convertvector(whole, floats);
    }
    while (!done() && rows.first[next_] + rows.taps <= y + 1) {
      finish_row();
    }
  }

 private:
  float* kept_row(int32_t y) { return &kept_[static_cast<size_t>(y % rows.taps) * length_]; }

  // Two taps share one vector: three times the weight of a pixel, then three times that of the
  // next.
  void lay_out_columns(bool mirrored) {
    pairs_ = (columns.taps + 1) / 2;
    starts_.resize(width_);
    spread_.assign(static_cast<size_t>(width_) * pairs_ * 8, 0.0f);
    for (int32_t x = 0; x < width_; ++x) {
      const int32_t from = mirrored ? width_ - 1 - x : x;
      starts_[x] = 3 * (columns.first[from] - left_);
      float* target = &spread_[static_cast<size_t>(x) * pairs_ * 8];
      for (int32_t tap = 0; tap < columns.taps; ++tap) {
        const float weight = columns.weights[static_cast<size_t>(from) * columns.taps + tap];
        for (int c = 0; c < 3; ++c) target[tap / 2 * 8 + tap % 2 * 3 + c] = weight;
      }
    }
  }

  // The usual numbers of taps are constants, so that the compiler unrolls the inner loops.
  void finish_row() {
    switch (rows.taps) {
      case 2: weigh_rows<2>(); break;
      case 3: weigh_rows<3>(); break;
      case 4: weigh_rows<4>(); break;
      case 5: weigh_rows<5>(); break;
      case 6: weigh_rows<6>(); break;
      case 7: weigh_rows<7>(); break;
      case 8: weigh_rows<8>(); break;
      default: weigh_rows<0>();
    }
    switch (pairs_) {
      case 1: weigh_columns<1>(); break;
      case 2: weigh_columns<2>(); break;
      case 3: weigh_columns<3>(); break;
      case 4: weigh_columns<4>(); break;
      default: weigh_columns<0>();
    }
    ++next_;
  }

  template <int TAPS>
  void weigh_rows() {
    const int32_t taps = TAPS ? TAPS : rows.taps;
    const float* weights = &rows.weights[static_cast<size_t>(next_) * rows.taps];
    window_.resize(taps);
    for (int32_t tap = 0; tap < taps; ++tap) {
      window_[tap] = kept_row(rows.first[next_] + tap);
    }
    for (int32_t i = 0; i < length_; i += LANES) {
      floats sum = {};
      for (int32_t tap = 0; tap < taps; ++tap) {
        sum += weights[tap] * *reinterpret_cast<const floats*>(window_[tap] + i);
      }
      // As in Pillow, values are cut to the range of a byte between the passes.
      *reinterpret_cast<floats*>(&sums_[i]) = within_a_byte(sum);
    }
  }

  template <int PAIRS>
  void weigh_columns() {
    const int32_t pairs = PAIRS ? PAIRS : pairs_;
    const int8 second_pixel = {3, 4, 5, 6, 7, 7, 7, 7};
    const float* weights = spread_.data();
    for (int32_t x = 0; x < width_; ++x) {
      const float* pixels = &sums_[starts_[x]];
      float8 sum = {};
      for (int32_t pair = 0; pair < pairs; ++pair, weights += 8) {
        sum += *reinterpret_cast<const float8*>(weights) *
               *reinterpret_cast<const float8*>(pixels + 6 * pair);
      }
      // Lanes past the third are overwritten by the pixels that follow.
      *reinterpret_cast<float8*>(&line_[3 * x]) = sum + __builtin_shuffle(sum, second_pixel);
    }
    uint8_t* target = out_ + static_cast<size_t>(next_) * 3 * width_;
    for (int32_t i = 0; i < 3 * width_; i += LANES) {
      const floats value = within_a_byte(*reinterpret_cast<floats*>(&line_[i]) + 0.5f);
      const bytes narrow =
          __builtin_convertvector(__builtin_convertvector(value, ints), bytes);
      std::memcpy(target + i, &narrow, std::min(LANES, 3 * width_ - i));
    }
  }

  int32_t height_ = 0, width_ = 0, left_ = 0, length_ = 0, pairs_ = 0, next_ = 0;
  uint8_t* out_ = nullptr;
  std::vector<int32_t> starts_;
  std::vector<const float*> window_;
  std::vector<float> kept_, sums_, spread_, line_;
};

}  // namespace convnextv2
