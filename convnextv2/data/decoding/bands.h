// Resampling of rows with any number of channels, of 8 or 16 bits. It does what resample.h does for
// RGB, with the same weights in the same order, but without explicit vectors.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

#include "axis.h"

namespace convnextv2 {

template <class Value>
class BandResampler {
 public:
  Axis rows, columns;

  // The axes must be set first. The rows to come have `count` pixels of `channels` values, starting
  // at column `left`.
  void start(int32_t height, int32_t width, int32_t channels, bool mirrored, int32_t left,
             int32_t count, Value* out) {
    height_ = height, width_ = width, channels_ = channels, mirrored_ = mirrored, left_ = left;
    length_ = count * channels, next_ = 0, out_ = out;
    kept_.resize(static_cast<size_t>(rows.taps) * length_);
    sums_.resize(length_);
    pixel_.resize(channels);
  }

  bool done() const { return next_ == height_; }

  // Takes row `y` of the source. Rows come in order and without gaps, from the first one needed.
  void take(int32_t y, const Value* pixels) {
    std::copy(pixels, pixels + length_, kept_row(y));
    while (!done() && rows.first[next_] + rows.taps <= y + 1) {
      weigh_rows();
      weigh_columns();
      ++next_;
    }
  }

 private:
  static constexpr float WHITE = std::numeric_limits<Value>::max();

  float* kept_row(int32_t y) { return &kept_[static_cast<size_t>(y % rows.taps) * length_]; }

  void weigh_rows() {
    std::fill(sums_.begin(), sums_.end(), 0.0f);
    for (int32_t tap = 0; tap < rows.taps; ++tap) {
      const float weight = rows.weights[static_cast<size_t>(next_) * rows.taps + tap];
      const float* row = kept_row(rows.first[next_] + tap);
      for (int32_t i = 0; i < length_; ++i) sums_[i] += weight * row[i];
    }
    for (float& sum : sums_) sum = std::min(std::max(sum, 0.0f), WHITE);
  }

  void weigh_columns() {
    Value* target = out_ + static_cast<size_t>(next_) * width_ * channels_;
    for (int32_t x = 0; x < width_; ++x, target += channels_) {
      const int32_t from = mirrored_ ? width_ - 1 - x : x;
      const float* pixels = &sums_[static_cast<size_t>(columns.first[from] - left_) * channels_];
      std::fill(pixel_.begin(), pixel_.end(), 0.0f);
      for (int32_t tap = 0; tap < columns.taps; ++tap, pixels += channels_) {
        const float weight = columns.weights[static_cast<size_t>(from) * columns.taps + tap];
        for (int32_t c = 0; c < channels_; ++c) pixel_[c] += weight * pixels[c];
      }
      for (int32_t c = 0; c < channels_; ++c) {
        target[c] = static_cast<Value>(std::min(std::max(pixel_[c] + 0.5f, 0.0f), WHITE));
      }
    }
  }

  int32_t height_ = 0, width_ = 0, channels_ = 0, left_ = 0, length_ = 0, next_ = 0;
  bool mirrored_ = false;
  Value* out_ = nullptr;
  std::vector<float> kept_, sums_, pixel_;
};

}  // namespace convnextv2
