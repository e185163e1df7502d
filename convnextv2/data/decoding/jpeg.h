// Decoding the part of a JPEG that a crop needs, with libjpeg-turbo.
//
// Rows below the crop are never reached, rows above it and blocks beside it are entropy-decoded but
// not transformed, and where the crop is at least twice the output the inverse DCT makes the smaller
// image directly.
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
    // A warning is damage: files were decoded without one when they were written.
    errors_.base.emit_message = [](j_common_ptr info, int level) {
      if (level < 0) info->err->error_exit(info);
    };
    jpeg_create_decompress(&info_);
  }
  ~Jpeg() { jpeg_destroy_decompress(&info_); }
  Jpeg(const Jpeg&) = delete;
  Jpeg& operator=(const Jpeg&) = delete;

  // Begin an image. `shrink` (1, 2, 4 or 8) becomes what it can be without loss of colour. Returns
  // false when it is damaged, or not of this size.
  bool open(const uint8_t* data, size_t size, int32_t height, int32_t width, int32_t& shrink) {
    // No C++ object with a destructor may live here: errors jump out of it.
    if (setjmp(errors_.back)) {
      jpeg_abort_decompress(&info_);
      return false;
    }
    // A fault (faults.h) leaves it in the middle of an image.
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

  // Hand the rows of the image that is open, from `top` on at columns [left, right), to
  // `take(y, pixels)` until `done()`. `start(first_column, columns)` hears before which columns
  // the rows have: some more than asked for, or `whole` rows. Returns false when it is damaged.
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
      // Two more columns on each side: the colour of a pixel is interpolated from its neighbours'.
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

  // Whether every component has at least half of the shrunk image's resolution, as 4:2:0 has of a
  // whole one's. libjpeg shrinks colours that are stored at a lower resolution less, but only if
  // that goes in both directions: of 4:1:1 it would leave a quarter.
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
