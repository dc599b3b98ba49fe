// Sums over rows in a fixed order: the last stage of every gradient that is summed over tokens.
#include "common.cuh"

// `y[j] = sum_i x[i, j]` of `x: [rows, width]`, row by row.
template <class T>
__device__ void rows_sum(const float *x, T *y, uint32_t rows, uint32_t width) {
    const uint32_t column = blockIdx.x * blockDim.x + threadIdx.x;
    if (column >= width) return;
    float sum = 0.0f;
    for (uint32_t row = 0; row < rows; row++) sum += x[size_t(row) * width + column];
    y[column] = narrow<T>(sum);
}

// The same over `rows_per_block` rows a block of the grid's y: `partial: [blocks.y, width]`.
template <class T>
__device__ void rows_partial(const T *x, float *partial, uint32_t rows, uint32_t width, uint32_t rows_per_block) {
    const uint32_t column = blockIdx.x * blockDim.x + threadIdx.x;
    if (column >= width) return;
    const uint32_t first = blockIdx.y * rows_per_block, end = min(rows, first + rows_per_block);
    float sum = 0.0f;
    for (uint32_t row = first; row < end; row++) sum += widen(x[size_t(row) * width + column]);
    partial[size_t(blockIdx.y) * width + column] = sum;
}

#define KERNELS(T, suffix)                                                                                                    \
    extern "C" __global__ void rows_sum_##suffix(const float *x, T *y, uint32_t rows, uint32_t width) {                       \
        rows_sum<T>(x, y, rows, width);                                                                                       \
    }                                                                                                                         \
    extern "C" __global__ void rows_partial_##suffix(const T *x, float *partial, uint32_t rows, uint32_t width,               \
                                                     uint32_t rows_per_block) {                                               \
        rows_partial<T>(x, partial, rows, width, rows_per_block);                                                             \
    }

KERNELS(float, f32)
KERNELS(bf16, bf16)
