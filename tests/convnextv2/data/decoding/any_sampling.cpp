// A JPEG encoder for any sampling factors, which the libraries for Python leave out.

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include <jpeglib.h>

// Encode RGB `pixels` (height, width, 3) as YCbCr with `factors` (horizontal and vertical of each
// component) into `out`, which has room; returns the number of bytes.
extern "C" size_t encode(const uint8_t* pixels, int height, int width, const int* factors,
                         uint8_t* out) {
  jpeg_compress_struct info;
  jpeg_error_mgr errors;
  info.err = jpeg_std_error(&errors);
  jpeg_create_compress(&info);
  unsigned char* made = nullptr;
  unsigned long size = 0;
  jpeg_mem_dest(&info, &made, &size);
  info.image_width = width, info.image_height = height;
  info.input_components = 3, info.in_color_space = JCS_RGB;
  jpeg_set_defaults(&info);
  jpeg_set_quality(&info, 95, TRUE);
  for (int n = 0; n < 3; ++n) {
    info.comp_info[n].h_samp_factor = factors[2 * n];
    info.comp_info[n].v_samp_factor = factors[2 * n + 1];
  }
  jpeg_start_compress(&info, TRUE);
  for (int y = 0; y < height; ++y) {
    JSAMPROW row = const_cast<uint8_t*>(pixels) + static_cast<size_t>(y) * width * 3;
    jpeg_write_scanlines(&info, &row, 1);
  }
  jpeg_finish_compress(&info);
  std::memcpy(out, made, size);
  jpeg_destroy_compress(&info);
  std::free(made);
  return size;
}
