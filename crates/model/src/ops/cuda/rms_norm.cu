// RMSNorm: `y = x / sqrt(mean(x^2) + eps) * w` and its gradients. One block a row; the weights' gradient in two stages.
#include "common.cuh"

template <class T>
__device__ void forward(const T *x, const T *w, T *y, uint32_t width, float eps) {
    __shared__ float scratch[WARP];
    const size_t start = size_t(blockIdx.x) * width;
    float sum = 0.0f;
    for (uint32_t i = threadIdx.x; i < width; i += blockDim.x) {
        const float value = widen(x[start + i]);
        sum += value * value;
    }
    const float inverse = rsqrtf(block_sum(sum, scratch) / float(width) + eps);
    for (uint32_t i = threadIdx.x; i < width; i += blockDim.x) {
        y[start + i] = narrow<T>(widen(x[start + i]) * inverse * widen(w[i]));
    }
}

// `dx = (g w - n mean(g w n)) / rms`, `n = x / rms`; the row's `1 / rms` is left for the gradient of the weights.
template <class T>
__device__ void backward(const T *x, const T *w, const T *g, T *dx, float *inverses, uint32_t width, float eps) {
    __shared__ float scratch[WARP];
    const size_t start = size_t(blockIdx.x) * width;
    float squares = 0.0f, dot = 0.0f;
    for (uint32_t i = threadIdx.x; i < width; i += blockDim.x) {
        const float value = widen(x[start + i]);
        squares += value * value;
        dot += widen(g[start + i]) * widen(w[i]) * value;
    }
    const float inverse = rsqrtf(block_sum(squares, scratch) / float(width) + eps);
    const float mean = block_sum(dot, scratch) * inverse * inverse / float(width);
    if (threadIdx.x == 0) inverses[blockIdx.x] = inverse;
    for (uint32_t i = threadIdx.x; i < width; i += blockDim.x) {
        const float value = widen(x[start + i]);
        dx[start + i] = narrow<T>(inverse * (widen(g[start + i]) * widen(w[i]) - value * mean));
    }
}

// `sum g x / rms` over `rows_per_block` rows for each column: `partial: [blocks.y, width]`.
template <class T>
__device__ void weight_partial(const T *x, const T *g, const float *inverses, float *partial, uint32_t rows, uint32_t width,
                               uint32_t rows_per_block) {
    const uint32_t column = blockIdx.x * blockDim.x + threadIdx.x;
    if (column >= width) return;
    const uint32_t first = blockIdx.y * rows_per_block, end = min(rows, first + rows_per_block);
    float sum = 0.0f;
    for (uint32_t row = first; row < end; row++) {
        const size_t at = size_t(row) * width + column;
        sum += widen(g[at]) * widen(x[at]) * inverses[row];
    }
    partial[size_t(blockIdx.y) * width + column] = sum;
}

#define KERNELS(T, suffix)                                                                                                    \
    extern "C" __global__ void rms_norm_forward_##suffix(const T *x, const T *w, T *y, uint32_t width, float eps) {           \
        forward<T>(x, w, y, width, eps);                                                                                      \
    }                                                                                                                         \
    extern "C" __global__ void rms_norm_backward_##suffix(const T *x, const T *w, const T *g, T *dx, float *inverses,         \
                                                          uint32_t width, float eps) {                                        \
        backward<T>(x, w, g, dx, inverses, width, eps);                                                                       \
    }                                                                                                                         \
    extern "C" __global__ void rms_norm_weight_partial_##suffix(const T *x, const T *g, const float *inverses,                \
                                                                float *partial, uint32_t rows, uint32_t width,                \
                                                                uint32_t rows_per_block) {                                    \
        weight_partial<T>(x, g, inverses, partial, rows, width, rows_per_block);                                              \
    }

KERNELS(float, f32)
KERNELS(bf16, bf16)
