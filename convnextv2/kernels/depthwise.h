// Depthwise K x K convolution over tiles with halos. A tile is a visible patch or a piece of a
// dense image, wherever `base` says. Tiles that are masked (base < 0) or outside the grid are read
// as zeros.
//
// For every block of LANES channels, a window of tiles and its halo are copied into a buffer that
// stays in the nearest cache. The convolution, its adjoint and the weight's gradient then run on
// the buffer with all accumulators in registers. The window is one tile or, if tiles are so small
// that their halos overlap many times, the whole image.
#pragma once
#include <algorithm>
#include <vector>
#include "vectors.h"

struct Span { int64_t rows, columns; };

struct Tiles {
    const int64_t* base;  // (batch, rows, columns): first site of a tile in units of sites, or -1
    int64_t batch, rows, columns;
    int64_t height, width;  // sites of a tile
    int64_t stride;         // sites from one row of a tile to the next
    int64_t channels;

    int64_t at(int64_t b, int64_t row, int64_t column) const {
        if (row < 0 || row >= rows || column < 0 || column >= columns) return -1;
        return base[(b * rows + row) * columns + column];
    }
    Span span() const { return height * width <= 4 ? Span{rows, columns} : Span{1, 1}; }
    int64_t wide(int reach) const { return span().columns * width + 2 * reach; }
    int64_t window(int reach) const { return (span().rows * height + 2 * reach) * wide(reach); }
};

// Copies the window of `span` tiles that starts at tile (row, column) of image b, and `reach` sites
// around it in every direction, into `buffer`: as many rows of vectors as the window and its halo
// have rows of sites.
template <typename T>
void fetch(const T* x, const Tiles& t, int64_t b, int64_t row, int64_t column, Span span,
           int64_t channel, int reach, Vec<T>* buffer) {
    const int64_t h = t.height, w = t.width, high = span.rows * h, across = span.columns * w;
    const int64_t wide = across + 2 * reach;
    const int n = (int)std::min<int64_t>(LANES<T>, t.channels - channel);
    std::fill(buffer, buffer + (high + 2 * reach) * wide, Vec<T>{});
    const int64_t margin_r = (reach + h - 1) / h, margin_c = (reach + w - 1) / w;
    for (int64_t r = -margin_r; r < span.rows + margin_r; r++)
        for (int64_t c = -margin_c; c < span.columns + margin_c; c++) {
            const int64_t base = t.at(b, row + r, column + c);
            if (base < 0) continue;
            const int64_t top = std::max<int64_t>(0, -reach - r * h);
            const int64_t bottom = std::min<int64_t>(h, high + reach - r * h);
            const int64_t left = std::max<int64_t>(0, -reach - c * w);
            const int64_t right = std::min<int64_t>(w, across + reach - c * w);
            for (int64_t i = top; i < bottom; i++) {
                const T* from = x + (base + i * t.stride + left) * t.channels + channel;
                Vec<T>* to = buffer + (r * h + i + reach) * wide + c * w + left + reach;
                if (n == LANES<T>)
                    for (int64_t j = left; j < right; j++, from += t.channels) *to++ = load(from);
                else
                    for (int64_t j = left; j < right; j++, from += t.channels) *to++ = load(from, n);
            }
        }
}

// X outputs side by side, each the sum over its window of weight x input. A single accumulator
// would wait for its own result at every step, so each output has several if outputs are few. All
// of them stay in registers.
template <typename T, int K, int X>
inline void window_sums(const Vec<T>* in, int64_t wide, const Vec<T>* weight, Vec<T> start,
                        Vec<T>* out) {
    constexpr int SUMS = X >= 4 ? 1 : K;
    Vec<T> acc[X][SUMS];
    for (int i = 0; i < X; i++)
        for (int k = 0; k < SUMS; k++) acc[i][k] = k ? Vec<T>{} : start;
    for (int ky = 0; ky < K; ky++)
        for (int kx = 0; kx < K; kx++) {
            const Vec<T> w = weight[ky * K + kx];
            for (int i = 0; i < X; i++) acc[i][kx % SUMS] += w * in[ky * wide + kx + i];
        }
    for (int i = 0; i < X; i++) {
        for (int k = 1; k < SUMS; k++) acc[i][0] += acc[i][k];
        out[i] = acc[i][0];
    }
}

// `in` points to the window of the tile's first site, in a buffer `wide` vectors across. If `added`
// is given, a tensor like `out`, it is added to the result.
template <typename T, int K>
void convolve_tile(const Vec<T>* in, int64_t wide, const Tiles& t, const Vec<T>* weight, Vec<T> bias,
                   const T* added, T* out, int64_t base, int64_t channel) {
    const int n = (int)std::min<int64_t>(LANES<T>, t.channels - channel);
    Vec<T> sums[8];
    for (int64_t i = 0; i < t.height; i++, in += wide)
        for (int64_t j = 0, x; j < t.width; j += x) {
            const int64_t left = t.width - j;
            if (left >= 8) window_sums<T, K, 8>(in + j, wide, weight, bias, sums), x = 8;
            else if (left == 7) window_sums<T, K, 7>(in + j, wide, weight, bias, sums), x = 7;
            else if (left >= 4) window_sums<T, K, 4>(in + j, wide, weight, bias, sums), x = 4;
            else if (left >= 2) window_sums<T, K, 2>(in + j, wide, weight, bias, sums), x = 2;
            else window_sums<T, K, 1>(in + j, wide, weight, bias, sums), x = 1;
            const int64_t first = (base + i * t.stride + j) * t.channels + channel;
            for (int64_t k = 0; k < x; k++) {
                const int64_t at = first + k * t.channels;
                if (added) sums[k] += load(added + at, n);
                store(out + at, sums[k], n);
            }
        }
}

// Adds the tile's part to the gradients of the weight (K x K vectors) and of the bias (the vector
// behind them).
template <typename T, int K>
void correlate_tile(const Vec<T>* in, const Vec<T>* grad, int64_t wide, const Tiles& t,
                    Vec<T>* total) {
    const Vec<T>* centre = grad + K / 2 * wide + K / 2;
    for (int ky = 0; ky < K; ky++) {
        Vec<T> acc[K];
        for (int kx = 0; kx < K; kx++) acc[kx] = total[ky * K + kx];
        for (int64_t i = 0; i < t.height; i++)
            for (int64_t j = 0; j < t.width; j++) {
                const Vec<T> g = centre[i * wide + j];
                for (int kx = 0; kx < K; kx++) acc[kx] += g * in[(i + ky) * wide + j + kx];
            }
        for (int kx = 0; kx < K; kx++) total[ky * K + kx] = acc[kx];
    }
    for (int64_t i = 0; i < t.height; i++)
        for (int64_t j = 0; j < t.width; j++) total[K * K] += centre[i * wide + j];
}

// Packs weights (C, K, K) into K x K vectors of the LANES channels from `channel` on, turned by 180
// degrees if `turned`.
template <typename T, int K>
void pack(const T* weight, int64_t channels, int64_t channel, bool turned, Vec<T>* packed) {
    for (int k = 0; k < K * K; k++) {
        Vec<T> v{};
        for (int i = 0; i < LANES<T> && channel + i < channels; i++)
            v[i] = weight[(channel + i) * K * K + (turned ? K * K - 1 - k : k)];
        packed[k] = v;
    }
}

template <typename T> inline int64_t blocks(int64_t channels) {
    return (channels + LANES<T> - 1) / LANES<T>;
}

// Calls act(base of the tile, position of its window in the buffer) for each visible tile of a
// window.
template <typename F>
inline void each_visible(const Tiles& t, int64_t b, int64_t row, int64_t column, int reach, F&& act) {
    const Span span = t.span();
    for (int64_t r = 0; r < span.rows; r++)
        for (int64_t c = 0; c < span.columns; c++) {
            const int64_t base = t.at(b, row + r, column + c);
            if (base >= 0) act(base, r * t.height * t.wide(reach) + c * t.width);
        }
}

// Calls act(row, column) for each window of image b, except those of a single masked tile.
template <typename F> inline void each_window(const Tiles& t, int64_t b, F&& act) {
    const Span span = t.span();
    for (int64_t row = 0; row < t.rows; row += span.rows)
        for (int64_t column = 0; column < t.columns; column += span.columns)
            if (span.rows * span.columns > 1 || t.at(b, row, column) >= 0) act(row, column);
}

template <typename T, int K>
void depthwise_forward(const T* x, const T* weight, const T* bias, T* out, const Tiles& t,
                       int threads) {
    constexpr int REACH = K / 2;
    const int64_t count = blocks<T>(t.channels), wide = t.wide(REACH);
#pragma omp parallel num_threads(threads)
    {
        std::vector<Vec<T>> buffer(t.window(REACH));
        Vec<T> packed[K * K];
#pragma omp for collapse(2) schedule(static)
        for (int64_t block = 0; block < count; block++)
            for (int64_t b = 0; b < t.batch; b++) {
                const int64_t channel = block * LANES<T>;
                const int n = (int)std::min<int64_t>(LANES<T>, t.channels - channel);
                pack<T, K>(weight, t.channels, channel, false, packed);
                const Vec<T> start = load(bias + channel, n);
                each_window(t, b, [&](int64_t row, int64_t column) {
                    fetch(x, t, b, row, column, t.span(), channel, REACH, buffer.data());
                    each_visible(t, b, row, column, REACH, [&](int64_t base, int64_t at) {
                        convolve_tile<T, K>(buffer.data() + at, wide, t, packed, start,
                                            (const T*)nullptr, out, base, channel);
                    });
                });
            }
    }
}

// `shortcut` is a gradient like grad_x and is added to it. The sums over images are taken in
// `parts` pieces, each in order, so that any number of threads gives the same result. partial:
// (parts, blocks, K * K + 1) vectors.
template <typename T, int K>
void depthwise_backward(const T* x, const T* weight, const T* grad, const T* shortcut, T* grad_x,
                        T* grad_weight, T* grad_bias, const Tiles& t, int threads) {
    constexpr int REACH = K / 2;
    const int64_t count = blocks<T>(t.channels), parts = std::min<int64_t>(t.batch, 16);
    const int64_t wide = t.wide(REACH);
    std::vector<Vec<T>> partial(parts * count * (K * K + 1));
#pragma omp parallel num_threads(threads)
    {
        std::vector<Vec<T>> input(t.window(REACH)), output(input.size());
        Vec<T> packed[K * K];
#pragma omp for collapse(2) schedule(static)
        for (int64_t block = 0; block < count; block++)
            for (int64_t part = 0; part < parts; part++) {
                const int64_t channel = block * LANES<T>;
                pack<T, K>(weight, t.channels, channel, true, packed);
                Vec<T>* total = partial.data() + (part * count + block) * (K * K + 1);
                for (int64_t b = t.batch * part / parts; b < t.batch * (part + 1) / parts; b++)
                    each_window(t, b, [&](int64_t row, int64_t column) {
                        fetch(x, t, b, row, column, t.span(), channel, REACH, input.data());
                        fetch(grad, t, b, row, column, t.span(), channel, REACH, output.data());
                        each_visible(t, b, row, column, REACH, [&](int64_t base, int64_t at) {
                            convolve_tile<T, K>(output.data() + at, wide, t, packed, Vec<T>{}, shortcut,
                                                grad_x, base, channel);
                            correlate_tile<T, K>(input.data() + at, output.data() + at, wide, t,
                                                 total);
                        });
                    });
            }
    }
    for (int64_t c = 0; c < t.channels; c++)
        for (int k = 0; k <= K * K; k++) {
            T value = 0;
            for (int64_t part = 0; part < parts; part++)
                value += partial[(part * count + c / LANES<T>) * (K * K + 1) + k][c % LANES<T>];
            if (k < K * K) grad_weight[c * K * K + k] = value;
            else grad_bias[c] = value;
        }
}
