// LayerNorm over channels, and GELU followed by GRN: the work between two matrix products. Rows are
// sites: tensors are (rows, channels) in memory. Sums over rows are taken in a fixed number of
// pieces, each in order, so that any number of threads gives the same result.
#pragma once
#include <algorithm>
#include <vector>
#include "vectors.h"

constexpr int64_t PIECES = 16;

template <typename T, typename F> inline void each_block(int64_t channels, F&& act) {
    int64_t c = 0;
    for (; c + LANES<T> <= channels; c += LANES<T>) act(c, LANES<T>);
    if (c < channels) act(c, (int)(channels - c));
}

template <typename T>
void layer_norm_forward(const T* x, const T* weight, const T* bias, T eps, T* out, T* mean, T* rstd,
                        int64_t rows, int64_t channels, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t row = 0; row < rows; row++) {
        const T* in = x + row * channels;
        Vec<T> total{}, squares{};
        each_block<T>(channels, [&](int64_t c, int n) { total += load(in + c, n); });
        const T m = sum<T>(total) / channels;
        each_block<T>(channels, [&](int64_t c, int n) {
            const Vec<T> d = first<T>(load(in + c, n) - m, n);
            squares += d * d;
        });
        const T r = 1 / std::sqrt(sum<T>(squares) / channels + eps);
        mean[row] = m, rstd[row] = r;
        each_block<T>(channels, [&](int64_t c, int n) {
            const Vec<T> y = (load(in + c, n) - m) * r * load(weight + c, n) + load(bias + c, n);
            store(out + row * channels + c, y, n);
        });
    }
}

template <typename T>
void layer_norm_backward(const T* grad, const T* x, const T* weight, const T* mean, const T* rstd,
                         T* grad_x, T* grad_weight, T* grad_bias, int64_t rows, int64_t channels,
                         int threads) {
    const int64_t wide = (channels + LANES<T> - 1) / LANES<T> * LANES<T>;
    std::vector<T> partial(2 * PIECES * wide);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t piece = 0; piece < PIECES; piece++) {
        T *by_weight = partial.data() + 2 * piece * wide, *by_bias = by_weight + wide;
        for (int64_t row = rows * piece / PIECES; row < rows * (piece + 1) / PIECES; row++) {
            const T *in = x + row * channels, *g = grad + row * channels;
            const T m = mean[row], r = rstd[row];
            Vec<T> plain{}, along{};
            each_block<T>(channels, [&](int64_t c, int n) {
                const Vec<T> dy = load(g + c, n), hat = (load(in + c, n) - m) * r;
                const Vec<T> d = dy * load(weight + c, n);
                plain += d, along += d * hat;
                store(by_weight + c, load(by_weight + c) + dy * hat);
                store(by_bias + c, load(by_bias + c) + dy);
            });
            const T a = sum<T>(plain) / channels, b = sum<T>(along) / channels;
            each_block<T>(channels, [&](int64_t c, int n) {
                const Vec<T> hat = (load(in + c, n) - m) * r;
                const Vec<T> d = load(g + c, n) * load(weight + c, n);
                store(grad_x + row * channels + c, (d - a - hat * b) * r, n);
            });
        }
    }
    for (int64_t c = 0; c < channels; c++) {
        grad_weight[c] = grad_bias[c] = 0;
        for (int64_t piece = 0; piece < PIECES; piece++) {
            grad_weight[c] += partial[2 * piece * wide + c];
            grad_bias[c] += partial[(2 * piece + 1) * wide + c];
        }
    }
}

// The rows of each group, cut so that all threads have work even if there is one group.
struct Groups {
    int64_t groups, rows, channels;
    int64_t cuts() const { return std::max<int64_t>(1, PIECES / groups); }
    int64_t pieces() const { return groups * cuts(); }
    int64_t first(int64_t piece) const {
        return piece / cuts() * rows + rows * (piece % cuts()) / cuts();
    }
    int64_t last(int64_t piece) const {
        return piece / cuts() * rows + rows * (piece % cuts() + 1) / cuts();
    }
};

// y = scale * gelu(x) + beta with scale = 1 + gamma * response, response = norm / (mean norm + eps)
// and norm = |gelu(x)| over the rows of a group. Writes norm and scale (groups, channels) for backward.
template <typename T>
void gelu_grn_forward(const T* x, const T* gamma, const T* beta, T eps, T* out, T* norm, T* scale,
                      Groups g, int threads) {
    const int64_t C = g.channels, wide = (C + LANES<T> - 1) / LANES<T> * LANES<T>;
    std::vector<T> partial(g.pieces() * wide);
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(static)
        for (int64_t piece = 0; piece < g.pieces(); piece++) {
            T* total = partial.data() + piece * wide;
            for (int64_t row = g.first(piece); row < g.last(piece); row++)
                each_block<T>(C, [&](int64_t c, int n) {
                    const Vec<T> v = load(x + row * C + c, n), y = v * cdf(v);
                    store(out + row * C + c, y, n);
                    store(total + c, load(total + c) + y * y);
                });
        }
#pragma omp for schedule(static)
        for (int64_t group = 0; group < g.groups; group++) {
            T mean = 0;
            for (int64_t c = 0; c < C; c++) {
                T squares = 0;
                for (int64_t cut = 0; cut < g.cuts(); cut++)
                    squares += partial[(group * g.cuts() + cut) * wide + c];
                norm[group * C + c] = std::sqrt(squares);
                mean += norm[group * C + c] / C;
            }
            for (int64_t c = 0; c < C; c++)
                scale[group * C + c] = 1 + gamma[c] * norm[group * C + c] / (mean + eps);
        }
#pragma omp for schedule(static)
        for (int64_t piece = 0; piece < g.pieces(); piece++) {
            const T* s = scale + piece / g.cuts() * C;
            for (int64_t row = g.first(piece); row < g.last(piece); row++)
                each_block<T>(C, [&](int64_t c, int n) {
                    T* y = out + row * C + c;
                    store(y, load<T>(y, n) * load(s + c, n) + load(beta + c, n), n);
                });
        }
    }
}

// First half of the backward: the sums over the rows of each group of grad * gelu(x) and of grad
// and, in the same pass, the recomputed output, unless `out` is null.
template <typename T>
void gelu_grn_sums(const T* grad, const T* x, const T* scale, const T* beta, T* out, T* along, T* plain,
                   Groups g, int threads) {
    const int64_t C = g.channels, wide = (C + LANES<T> - 1) / LANES<T> * LANES<T>;
    std::vector<T> partial(2 * g.pieces() * wide);
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(static)
        for (int64_t piece = 0; piece < g.pieces(); piece++) {
            T *a = partial.data() + 2 * piece * wide, *p = a + wide;
            const T* s = scale + piece / g.cuts() * C;
            for (int64_t row = g.first(piece); row < g.last(piece); row++)
                each_block<T>(C, [&](int64_t c, int n) {
                    const Vec<T> v = load(x + row * C + c, n), dy = load(grad + row * C + c, n);
                    const Vec<T> y = v * cdf(v);
                    store(a + c, load(a + c) + dy * y);
                    store(p + c, load(p + c) + dy);
                    if (out) store(out + row * C + c, y * load(s + c, n) + load(beta + c, n), n);
                });
        }
#pragma omp for schedule(static)
        for (int64_t group = 0; group < g.groups; group++)
            for (int64_t c = 0; c < C; c++) {
                T a = 0, p = 0;
                for (int64_t cut = 0; cut < g.cuts(); cut++) {
                    const T* piece = partial.data() + 2 * (group * g.cuts() + cut) * wide;
                    a += piece[c], p += piece[wide + c];
                }
                along[group * C + c] = a, plain[group * C + c] = p;
            }
    }
}

// Second half: the gradient of x, from the sums `along`, and the gradient of gamma by group.
template <typename T>
void gelu_grn_backward(const T* grad, const T* x, const T* gamma, const T* norm, const T* along, T eps,
                       T* grad_x, T* grad_gamma, Groups g, int threads) {
    const int64_t C = g.channels, wide = (C + LANES<T> - 1) / LANES<T> * LANES<T>;
    std::vector<T> scale(g.groups * wide), pull(g.groups * wide);
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(static)
        for (int64_t group = 0; group < g.groups; group++) {
            const T *a = norm + group * C, *d = along + group * C;
            T mean = 0, turn = 0;
            for (int64_t c = 0; c < C; c++) mean += a[c] / C;
            for (int64_t c = 0; c < C; c++) turn += gamma[c] * d[c] * a[c];
            turn /= (mean + eps) * (mean + eps) * C;
            for (int64_t c = 0; c < C; c++) {
                const T response = a[c] / (mean + eps);
                grad_gamma[group * C + c] = d[c] * response;
                scale[group * wide + c] = 1 + gamma[c] * response;
                const T by_norm = gamma[c] * d[c] / (mean + eps) - turn;
                pull[group * wide + c] = a[c] > 0 ? by_norm / a[c] : 0;
            }
        }
#pragma omp for schedule(static)
        for (int64_t piece = 0; piece < g.pieces(); piece++) {
            const T* s = scale.data() + piece / g.cuts() * wide;
            const T* p = pull.data() + piece / g.cuts() * wide;
            for (int64_t row = g.first(piece); row < g.last(piece); row++)
                each_block<T>(C, [&](int64_t c, int n) {
                    const Vec<T> v = load(x + row * C + c, n), dy = load(grad + row * C + c, n);
                    const Normal<T> at = normal(v);
                    const Vec<T> d = dy * load(s + c) + load(p + c) * v * at.cdf;
                    store(grad_x + row * C + c,
                          d * (at.cdf + v * at.phi * (T)0.3989422804014327), n);
                });
        }
    }
}
