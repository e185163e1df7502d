// Which source pixels make an output pixel along one axis, and with what weights.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

namespace convnextv2 {

enum Filter : int32_t { BICUBIC = 0, AREA = 1 };

// Weights of every output pixel along one axis, for source pixel `first[i]` and those after it.
struct Axis {
  std::vector<int32_t> first;
  std::vector<float> weights;  // (outputs, taps)
  int32_t taps = 0;

  int32_t low() const { return *std::min_element(first.begin(), first.end()); }
  int32_t high() const { return *std::max_element(first.begin(), first.end()) + taps; }
};

inline double cubic(double x) {
  // Keys' cubic kernel with a = -0.5, as in Pillow.
  x = std::fabs(x);
  if (x < 1.0) return (1.5 * x - 2.5) * x * x + 1.0;
  if (x < 2.0) return ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0;
  return 0.0;
}

// Fills `run` with the weights of one output pixel, not yet cut at the border, and returns the
// first source pixel.
inline int32_t weigh(std::vector<double>& run, Filter filter, double begin, double scale,
                     int32_t output, bool enlarges) {
  // Positions are relative to the first pixel, as in OpenCV and Pillow, so that they round alike
  // where one falls on a whole pixel.
  run.clear();
  const double origin = std::floor(begin), offset = begin - origin;
  const double left = offset + output * scale, right = offset + (output + 1) * scale;
  int32_t first = static_cast<int32_t>(std::floor(left));
  if (filter == BICUBIC) {
    const double stretch = std::max(scale, 1.0), center = offset + (output + 0.5) * scale;
    first = static_cast<int32_t>(std::floor(center - 2.0 * stretch + 0.5));
    const int32_t last = static_cast<int32_t>(std::floor(center + 2.0 * stretch + 0.5));
    for (int32_t x = first; x < last; ++x) run.push_back(cubic((x - center + 0.5) / stretch));
  } else if (enlarges) {
    const float seam = (output + 1) - (first + 1 - offset) * (1.0 / scale);
    run.push_back(seam <= 0.0 ? 1.0 : 1.0 - (seam - std::floor(seam)));
    run.push_back(1.0 - run[0]);
  } else {
    for (int32_t x = first; x < right; ++x) {
      run.push_back(std::min<double>(x + 1, right) - std::max<double>(x, left));
    }
  }
  return first + static_cast<int32_t>(origin);
}

// Weights for `outputs` pixels that cover [begin, end) of an axis; pixels outside [low, high) are
// not used. BICUBIC is Pillow's: antialiased, with weights cut at the border and scaled to sum to
// one. AREA is OpenCV's INTER_AREA: means of the covered pixels or, if either axis is enlarged,
// pixels with linear seams between them and the last one repeated.
inline void make_axis(Axis& axis, Filter filter, int32_t outputs, double begin, double end,
                      int32_t low, int32_t high, bool enlarges) {
  thread_local std::vector<double> run;
  // OpenCV inverts its factor; that rounding decides seams that fall on whole pixels.
  const double scale = filter == AREA ? 1.0 / (outputs / (end - begin)) : (end - begin) / outputs;
  const double reach = filter == BICUBIC ? 4.0 * std::max(scale, 1.0) : enlarges ? 1.0 : scale;
  axis.taps = std::min(high - low, static_cast<int32_t>(std::ceil(reach)) + 1);
  axis.first.resize(outputs);
  axis.weights.assign(static_cast<size_t>(outputs) * axis.taps, 0.0f);
  for (int32_t output = 0; output < outputs; ++output) {
    const int32_t first = weigh(run, filter, begin, scale, output, enlarges);
    const int32_t start = std::max(low, std::min(first, high - axis.taps));
    float* weights = &axis.weights[static_cast<size_t>(output) * axis.taps];
    double total = 0.0;
    for (size_t tap = 0; tap < run.size(); ++tap) {
      const int32_t x = first + static_cast<int32_t>(tap);
      if (x >= low && x < high) total += run[tap];
    }
    for (size_t tap = 0; tap < run.size(); ++tap) {
      const int32_t x = first + static_cast<int32_t>(tap);
      if (x >= low && x < high) weights[x - start] = static_cast<float>(run[tap] / total);
    }
    axis.first[output] = start;
  }
}

}  // namespace convnextv2
