// Vectors of sixteen floats or eight doubles in GCC's vector extension. The compiler splits them
// into registers: one of AVX-512, two of AVX2, four of NEON. Memory is read and written unaligned.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

constexpr int BYTES = 64;

template <typename T> struct Lanes;
template <> struct Lanes<float> {
    typedef float V __attribute__((vector_size(BYTES)));
    typedef int32_t I __attribute__((vector_size(BYTES)));
    static constexpr int N = BYTES / sizeof(float);
};
template <> struct Lanes<double> {
    typedef double V __attribute__((vector_size(BYTES)));
    typedef int64_t I __attribute__((vector_size(BYTES)));
    static constexpr int N = BYTES / sizeof(double);
};
template <typename T> using Vec = typename Lanes<T>::V;
template <typename T> constexpr int LANES = Lanes<T>::N;

template <typename T> inline Vec<T> load(const T* from) {
    Vec<T> v;
    std::memcpy(&v, from, BYTES);
    return v;
}
template <typename T> inline void store(T* to, Vec<T> v) { std::memcpy(to, &v, BYTES); }

// Half a vector followed by zeros, joined in registers: the processor would stall on a way through
// memory.
inline Vec<float> half(const float* from) {
    typedef float Half __attribute__((vector_size(BYTES / 2)));
    Half h, zero{};
    std::memcpy(&h, from, BYTES / 2);
    return __builtin_shufflevector(h, zero, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
}
inline Vec<double> half(const double* from) {
    typedef double Half __attribute__((vector_size(BYTES / 2)));
    Half h, zero{};
    std::memcpy(&h, from, BYTES / 2);
    return __builtin_shufflevector(h, zero, 0, 1, 2, 3, 4, 5, 6, 7);
}

// Loads the first n lanes, with zeros behind them: the last channels of a row. In every published
// size n is a whole or half vector; copying a known length takes one instruction, an unknown length
// a call.
template <typename T> inline Vec<T> load(const T* from, int n) {
    if (n == LANES<T>) return load(from);
    if (n == LANES<T> / 2) return half(from);
    Vec<T> v{};
    std::memcpy(&v, from, n * sizeof(T));
    return v;
}
template <typename T> inline void store(T* to, Vec<T> v, int n) {
    if (n == LANES<T>) store(to, v);
    else if (n == LANES<T> / 2) std::memcpy(to, &v, BYTES / 2);
    else std::memcpy(to, &v, n * sizeof(T));
}

// Keeps the first n lanes and sets the others to zero.
template <typename T> inline Vec<T> first(Vec<T> v, int n) {
    if (n == LANES<T>) return v;
    T lanes[LANES<T>];
    store(lanes, v);
    return load(lanes, n);
}

// Adds to each lane those 1, 2, 4 ... places away, until each holds the sum of all.
template <typename T> inline T sum(Vec<T> v) {
    using I = typename Lanes<T>::I;
    I lane;
    for (int i = 0; i < LANES<T>; i++) lane[i] = i;
    for (int away = 1; away < LANES<T>; away *= 2) v += __builtin_shuffle(v, lane ^ away);
    return v[0];
}

// exp(x) for x <= 0: 2^n exp(r) with |r| <= ln 2 / 2; relative error below 2e-7.
inline Vec<float> exp_of_negative(Vec<float> x) {
    using V = Vec<float>;
    using I = Lanes<float>::I;
    const V low = V{} - 87.0f;
    x = x < low ? low : x;
    const V shifted = x * 1.44269504f + 12582912.0f;  // 1.5 x 2^23: rounds to an integer
    const V n = shifted - 12582912.0f;
    const V r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    V p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    const I power = (__builtin_convertvector(n, I) + 127) << 23;
    V scale;
    std::memcpy(&scale, &power, BYTES);
    return p * scale;
}

// phi(x) = exp(-x^2 / 2), and cdf(x) = (1 + erf(x / sqrt 2)) / 2 by Abramowitz & Stegun 7.1.26
// (absolute error 1.5e-7), which uses the same exponential.
template <typename T> struct Normal { Vec<T> phi, cdf; };

inline Normal<float> normal(Vec<float> x) {
    using V = Vec<float>;
    const V phi = exp_of_negative(x * x * -0.5f);
    const V size = x < 0.0f ? -x : x;
    const V t = 1.0f / (size * (0.3275911f * 0.70710678f) + 1.0f);
    V p = t * 1.061405429f - 1.453152027f;
    p = p * t + 1.421413741f;
    p = p * t - 0.284496736f;
    p = p * t + 0.254829592f;
    const V tail = p * t * phi * 0.5f;
    return {phi, x < 0.0f ? tail : 1.0f - tail};
}

inline Vec<float> cdf(Vec<float> x) { return normal(x).cdf; }

inline Normal<double> normal(Vec<double> x) {
    Normal<double> out;
    for (int i = 0; i < LANES<double>; i++) {
        out.phi[i] = std::exp(-0.5 * x[i] * x[i]);
        out.cdf[i] = 0.5 * std::erfc(-x[i] * M_SQRT1_2);
    }
    return out;
}

inline Vec<double> cdf(Vec<double> x) { return normal(x).cdf; }
