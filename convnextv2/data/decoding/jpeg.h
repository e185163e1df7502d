// Decodes the part of a JPEG that a crop needs, with libjpeg-turbo.
//
// Rows below the crop are not decoded. Rows above it and blocks beside it are entropy-decoded but
// not transformed. If the crop is at least twice as large as the output, the inverse DCT makes the
// smaller image directly.
#pragma once

#include <csetjmp>
#include <cstdint>
#include <cstdio>
#include <vector>

#include <jpeglib.h>

namespace convnextv2 {

class Jpeg {
 public:
  Jpeg() {
    info_.err = jpeg_std_error(&errors_.base);
    errors_.base.error_exit = [](j_common_ptr info) {
      longjmp(reinterpret_cast<Errors*>(info->err)->back, 1);
    };
    // A warning means damage: when the files were written, every image was decoded without one.
    errors_.base.emit_message = [](j_common_ptr info, int level) {
      if (level < 0) info->err->error_exit(info);
    };
    jpeg_create_decompress(&info_);
  }
  ~Jpeg() { jpeg_destroy_decompress(&info_); }
  Jpeg(const Jpeg&) = delete;
  Jpeg& operator=(const Jpeg&) = delete;

  // Begins an image. `shrink` (1, 2, 4 or 8) is lowered if it would cost colour. Returns false if
  // the image is damaged or does not have this size.
  bool open(const uint8_t* data, size_t size, int32_t height, int32_t width, int32_t& shrink) {
    // No C++ object with a destructor may live here: errors jump out of it.
    if (setjmp(errors_.back)) {
      jpeg_abort_decompress(&info_);
      return false;
    }
    // After a fault (faults.h), the decompressor may still be in the middle of an image.
    jpeg_abort_decompress(&info_);
    jpeg_mem_src(&info_, data, size);
    jpeg_read_header(&info_, TRUE);
    if (info_.image_height != static_cast<JDIMENSION>(height) ||
        info_.image_width != static_cast<JDIMENSION>(width)) {
      jpeg_abort_decompress(&info_);
      return false;
    }
    info_.out_color_space = JCS_RGB;
    info_.dct_method = JDCT_ISLOW;
    info_.scale_num = 1;
    while (shrink > 1 && !keeps_colour(shrink)) shrink /= 2;
    info_.scale_denom = shrink;
    return true;
  }

  // Hands the rows of the open image, from `top` on and at columns [left, right), to `take` until
  // `done()`. Before that, it calls `start(first_column, columns)` with the columns that the rows
  // really have: a few more than asked for, or all of them if `whole`, which also decodes all rows.
  // Returns false if the image is damaged.
  template <class Start, class Take, class Done>
  bool rows(bool whole, int32_t top, int32_t left, int32_t right, Start start, Take take,
            Done done) {
    if (setjmp(errors_.back)) {
      jpeg_abort_decompress(&info_);
      return false;
    }
    jpeg_start_decompress(&info_);
    JDIMENSION first = 0, columns = info_.output_width, row = 0;
    if (!whole) {
      // Two more columns on each side, because a pixel's colour is interpolated from its
      // neighbours.
      first = left > 2 ? left - 2 : 0;
      const JDIMENSION last = right + 2 < static_cast<int32_t>(info_.output_width)
                                  ? right + 2 : info_.output_width;
      columns = last - first;
      if (columns < info_.output_width) jpeg_crop_scanline(&info_, &first, &columns);
      if (top > 0) row = jpeg_skip_scanlines(&info_, top);
    }
    const int32_t stride = columns * 3;
    buffer_.resize(static_cast<size_t>(stride) * MOST_ROWS + 16);
    start(static_cast<int32_t>(first), static_cast<int32_t>(columns));
    JSAMPROW pointers[MOST_ROWS];
    for (int n = 0; n < MOST_ROWS; ++n) pointers[n] = buffer_.data() + n * stride;
    while (!done() && row < info_.output_height) {
      const JDIMENSION got = jpeg_read_scanlines(&info_, pointers, MOST_ROWS);
      for (JDIMENSION n = 0; n < got && !done(); ++n) {
        take(static_cast<int32_t>(row + n), pointers[n]);
      }
      row += got;
    }
    if (whole) {
      while (info_.output_scanline < info_.output_height) {
        jpeg_read_scanlines(&info_, pointers, MOST_ROWS);
      }
    }
    jpeg_abort_decompress(&info_);
    return true;
  }

 private:
  static constexpr int MOST_ROWS = 4;
  struct Errors {
    jpeg_error_mgr base;
    jmp_buf back;
  };

  // Whether every colour component has at least half of the shrunk image's resolution, as 4:2:0 has
  // in a whole image. libjpeg shrinks subsampled components less, but only if it can in both
  // directions: for 4:1:1 it would leave a quarter.
  bool keeps_colour(int32_t shrink) {
    info_.scale_denom = shrink;
    jpeg_calc_output_dimensions(&info_);
    for (int n = 0; n < info_.num_components; ++n) {
      const jpeg_component_info& part = info_.comp_info[n];
      if (2 * part.downsampled_width < info_.output_width ||
          2 * part.downsampled_height < info_.output_height) {
        return false;
      }
    }
    return true;
  }

  jpeg_decompress_struct info_;
  Errors errors_;
  std::vector<uint8_t> buffer_;
};

}  // namespace convnextv2
