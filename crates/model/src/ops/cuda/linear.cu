// What a linear layer needs beside the product: `y += b` in each row.
#include "common.cuh"

template <class T> __device__ void add_bias(const T *bias, T *y, uint32_t count, uint32_t width) {
    const size_t i = size_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < count) y[i] = narrow<T>(widen(y[i]) + widen(bias[i % width]));
}

#define KERNELS(T, suffix)                                                                                                    \
    extern "C" __global__ void linear_add_bias_##suffix(const T *bias, T *y, uint32_t count, uint32_t width) {                \
        add_bias<T>(bias, y, count, width);                                                                                   \
    }

KERNELS(float, f32)
KERNELS(bf16, bf16)
