// C entry points of the CPU kernels, called through ctypes. They need no headers of Python or
// PyTorch, so that they compile in seconds. OpenMP uses the same threads as PyTorch (one libgomp).
#include "depthwise.h"
#include "pointwise.h"

#define FOR_TYPE(T, suffix)                                                                         \
    extern "C" void layer_norm_forward_##suffix(const T* x, const T* weight, const T* bias,         \
                                                double eps, T* out, T* mean, T* rstd, int64_t rows, \
                                                int64_t channels, int threads) {                    \
        layer_norm_forward<T>(x, weight, bias, eps, out, mean, rstd, rows, channels, threads);      \
    }                                                                                               \
    extern "C" void layer_norm_backward_##suffix(                                                   \
        const T* grad, const T* x, const T* weight, const T* mean, const T* rstd, T* grad_x,        \
        T* grad_weight, T* grad_bias, int64_t rows, int64_t channels, int threads) {                \
        layer_norm_backward<T>(grad, x, weight, mean, rstd, grad_x, grad_weight, grad_bias, rows,   \
                               channels, threads);                                                  \
    }                                                                                               \
    extern "C" void gelu_grn_forward_##suffix(                                                      \
        const T* x, const T* gamma, const T* beta, double eps, T* out, T* norm, T* scale,           \
        int64_t groups, int64_t rows, int64_t channels, int threads) {                              \
        gelu_grn_forward<T>(x, gamma, beta, eps, out, norm, scale, {groups, rows, channels},        \
                            threads);                                                               \
    }                                                                                               \
    extern "C" void gelu_grn_sums_##suffix(const T* grad, const T* x, const T* scale,               \
                                           const T* beta, T* out, T* along, T* plain,               \
                                           int64_t groups, int64_t rows, int64_t channels,          \
                                           int threads) {                                           \
        gelu_grn_sums<T>(grad, x, scale, beta, out, along, plain, {groups, rows, channels},         \
                         threads);                                                                  \
    }                                                                                               \
    extern "C" void gelu_grn_backward_##suffix(                                                     \
        const T* grad, const T* x, const T* gamma, const T* norm, const T* along, double eps,       \
        T* grad_x, T* grad_gamma, int64_t groups, int64_t rows, int64_t channels, int threads) {    \
        gelu_grn_backward<T>(grad, x, gamma, norm, along, eps, grad_x, grad_gamma,                  \
                             {groups, rows, channels}, threads);                                    \
    }                                                                                               \
    extern "C" void depthwise_forward_##suffix(const T* x, const T* weight, const T* bias, T* out,  \
                                               const Tiles* tiles, int threads) {                   \
        depthwise_forward<T, 7>(x, weight, bias, out, *tiles, threads);                             \
    }                                                                                               \
    extern "C" void depthwise_backward_##suffix(const T* x, const T* weight, const T* grad,         \
                                                const T* shortcut, T* grad_x, T* grad_weight,       \
                                                T* grad_bias, const Tiles* tiles, int threads) {    \
        depthwise_backward<T, 7>(x, weight, grad, shortcut, grad_x, grad_weight, grad_bias, *tiles, \
                                 threads);                                                          \
    }

FOR_TYPE(float, f32)
FOR_TYPE(double, f64)
