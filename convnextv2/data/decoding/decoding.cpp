// Images of memory-mapped .beton files as the network sees them: found, decoded, cropped, resized
// and flipped.
//
// Called once per image, without Python, by code that numba compiled
// (convnextv2/data/loading/views.py).

#include <sys/mman.h>
#include <unistd.h>

#include "bands.h"
#include "faults.h"
#include "jpeg.h"
#include "resample.h"

using namespace convnextv2;

namespace {

// One row of the table that convnextv2/data/shards/mapped.py makes.
struct Shard {
  uint64_t first_sample, samples, address, bytes, records, page_size;
};

// FFCV's record of a sample with the fields image and label, 24 bytes.
struct __attribute__((packed)) Record {
  uint8_t mode;
  uint16_t width, height;
  uint64_t pointer;
  uint8_t padding[3];
  int64_t label;
};
static_assert(sizeof(Record) == 24, "FFCV aligns fields to 8 bytes");

enum Mode : int64_t { JPEG = 0, RAW = 1 };
// How much of a JPEG is decoded. REDUCED: what the crop needs, at a reduced scale if the crop is
// large. EXACT: what the crop needs, at full scale. FULL: everything.
enum Decode : int32_t { REDUCED = 0, EXACT = 1, FULL = 2 };
enum Problem : int32_t { NONE = 0, NOT_THERE = 1, DAMAGED = 2, UNREADABLE = 3 };

struct Place {
  int64_t address, size, mode, height, width, label;
};

// A crop [top, bottom) x [left, right) in pixels of the stored image. Only if `beyond` is set does
// the resampling filter also use pixels outside of it.
struct Box {
  double top, left, bottom, right, mirrored, beyond;
};

const Shard* shard_of(const Shard* shards, int64_t count, uint64_t sample) {
  const Shard* end = shards + count;
  const Shard* after = std::upper_bound(
      shards, end, sample, [](uint64_t s, const Shard& shard) { return s < shard.first_sample; });
  if (after == shards) return nullptr;
  const Shard* shard = after - 1;
  return sample - shard->first_sample < shard->samples ? shard : nullptr;
}

int32_t clamp(double value, int32_t low, int32_t high) {
  return static_cast<int32_t>(std::min<double>(high, std::max<double>(low, value)));
}

// Computes the weights of a view of an image that is decoded at 1/`shrink` of its size.
template <class AnyResampler>
void make_axes(AnyResampler& resampler, const Place& place, const Box& box, int32_t filter,
               int32_t height, int32_t width, int32_t shrink) {
  const int32_t rows = (place.height + shrink - 1) / shrink;
  const int32_t columns = (place.width + shrink - 1) / shrink;
  const double top = box.top / shrink, bottom = box.bottom / shrink;
  const double left = box.left / shrink, right = box.right / shrink;
  const bool beyond = box.beyond != 0;
  const bool enlarges =
      box.bottom - box.top < shrink * height || box.right - box.left < shrink * width;
  make_axis(resampler.rows, static_cast<Filter>(filter), height, top, bottom,
            beyond ? 0 : clamp(std::floor(top), 0, rows - 1),
            beyond ? rows : clamp(std::ceil(bottom), 1, rows), enlarges);
  make_axis(resampler.columns, static_cast<Filter>(filter), width, left, right,
            beyond ? 0 : clamp(std::floor(left), 0, columns - 1),
            beyond ? columns : clamp(std::ceil(right), 1, columns), enlarges);
}

template <class Value>
int32_t view_bands(const Place& place, const Box& box, int32_t filter, int32_t height,
                   int32_t width, int32_t channels, Value* out) {
  thread_local BandResampler<Value> resampler;
  make_axes(resampler, place, box, filter, height, width, 1);
  const int32_t first_row = resampler.rows.low();
  const int32_t first = resampler.columns.low(), last = resampler.columns.high();
  resampler.start(height, width, channels, box.mirrored != 0, first, last - first, out);
  const auto* stored = reinterpret_cast<const Value*>(place.address);
  return unless_fault<UNREADABLE>([&] {
    for (int32_t y = first_row; !resampler.done(); ++y) {
      resampler.take(y, stored + (static_cast<size_t>(y) * place.width + first) * channels);
    }
    return NONE;
  });
}

}  // namespace

extern "C" {

// Finds sample `sample`, whose pixels have `pixel_bytes` bytes; only those of three bytes (RGB) may
// be stored as JPEG. FFCV keeps sizes in another table, 24 more bytes to read per sample; here an
// image ends where the next one begins, or at the end of its page.
int32_t convnextv2_locate(const Shard* shards, int64_t count, uint64_t sample, int32_t pixel_bytes,
                          Place* place) {
  const Shard* shard = shard_of(shards, count, sample);
  if (shard == nullptr) return NOT_THERE;
  return unless_fault<UNREADABLE>([&]() -> int32_t {
    const uint64_t row = sample - shard->first_sample;
    const auto* records = reinterpret_cast<const Record*>(shard->address + shard->records);
    const Record& record = records[row];
    const uint64_t begin = record.pointer;
    if (begin >= shard->bytes) return DAMAGED;
    uint64_t end = (begin / shard->page_size + 1) * shard->page_size;
    if (row + 1 < shard->samples) {
      const uint64_t next = records[row + 1].pointer;
      if (next > begin && next < end) end = next;
    }
    const uint64_t pixels = static_cast<uint64_t>(pixel_bytes) * record.height * record.width;
    // Resampling may read a vector beyond the last row. FFCV's table, which follows the pages,
    // leaves room for that.
    if (end + LANES > shard->bytes || pixels == 0 || record.mode > RAW) return DAMAGED;
    if (record.mode == JPEG && pixel_bytes != 3) return DAMAGED;
    if (record.mode == RAW && pixels > end - begin) return DAMAGED;
    *place = {static_cast<int64_t>(shard->address + begin),
              static_cast<int64_t>(record.mode == RAW ? pixels : end - begin),
              record.mode, record.height, record.width, record.label};
    return NONE;
  });
}

// Asks the kernel to read these samples while others are decoded. Missing samples are skipped here;
// decoding them reports the problem.
void convnextv2_prefetch(const Shard* shards, int64_t count, const uint64_t* samples,
                         int64_t wanted, int32_t pixel_bytes) {
  const int64_t page = sysconf(_SC_PAGESIZE);
  for (int64_t n = 0; n < wanted; ++n) {
    Place place;
    if (convnextv2_locate(shards, count, samples[n], pixel_bytes, &place) != NONE) continue;
    const int64_t begin = place.address / page * page;
    madvise(reinterpret_cast<void*>(begin), place.address + place.size - begin, MADV_WILLNEED);
  }
}

// Writes the `box` of the image at `place` to `out` (height, width, 3).
int32_t convnextv2_view(const Place* place, const Box* box, int32_t filter, int32_t decode,
                        int32_t height, int32_t width, uint8_t* out) {
  thread_local Jpeg jpeg;
  thread_local Resampler resampler;
  const double tall = box->bottom - box->top, wide = box->right - box->left;
  int32_t shrink = 1;
  if (place->mode == JPEG && decode == REDUCED) {
    while (shrink < 8 && tall >= 2 * shrink * height && wide >= 2 * shrink * width) shrink *= 2;
  }
  const auto* stored = reinterpret_cast<const uint8_t*>(place->address);
  if (place->mode == JPEG) {
    const int32_t problem = unless_fault<UNREADABLE>([&]() -> int32_t {
      const bool good = jpeg.open(stored, place->size, place->height, place->width, shrink);
      return good ? NONE : DAMAGED;
    });
    if (problem != NONE) return problem;
  }
  make_axes(resampler, *place, *box, filter, height, width, shrink);
  const int32_t first_row = resampler.rows.low();
  const int32_t first = resampler.columns.low(), last = resampler.columns.high();
  const auto start = [&](int32_t column, int32_t count) {
    resampler.start(height, width, box->mirrored != 0, column, count, out);
  };
  const auto take = [&](int32_t y, const uint8_t* pixels) {
    if (y >= first_row) resampler.take(y, pixels);
  };
  const auto done = [&] { return resampler.done(); };
  if (place->mode == JPEG) {
    return unless_fault<UNREADABLE>([&] {
      const bool good = jpeg.rows(decode == FULL, first_row, first, last, start, take, done);
      return good && done() ? NONE : DAMAGED;
    });
  }
  start(first, last - first);
  return unless_fault<UNREADABLE>([&] {
    for (int32_t y = first_row; !done(); ++y) {
      take(y, stored + (static_cast<size_t>(y) * place->width + first) * 3);
    }
    return NONE;
  });
}

// The same for pixels with any number of channels, of 8 or 16 bits: `out` is (height, width,
// channels).
int32_t convnextv2_view_bands(const Place* place, const Box* box, int32_t filter, int32_t height,
                              int32_t width, int32_t channels, int32_t value_bytes, void* out) {
  if (value_bytes == 1) {
    return view_bands(*place, *box, filter, height, width, channels, static_cast<uint8_t*>(out));
  }
  return view_bands(*place, *box, filter, height, width, channels, static_cast<uint16_t*>(out));
}

}  // extern "C"
