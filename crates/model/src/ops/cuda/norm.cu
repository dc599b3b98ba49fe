// The gradient's sums: adding a micro-batch to f32 sums, and the sum of squares in f64, in two stages of a fixed order.
#include "common.cuh"

// `sum += g`.
template <class T> __device__ void add(const T *g, float *sum, uint32_t count) {
    const size_t i = size_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < count) sum[i] += widen(g[i]);
}

extern "C" __global__ void norm_add_f32(const float *g, float *sum, uint32_t count) { add<float>(g, sum, count); }
extern "C" __global__ void norm_add_bf16(const bf16 *g, float *sum, uint32_t count) { add<bf16>(g, sum, count); }

// The sum of the squares of `per_block` values a block.
extern "C" __global__ void norm_squares(const float *x, double *partial, uint32_t count, uint32_t per_block) {
    __shared__ double scratch[WARP];
    const size_t first = size_t(blockIdx.x) * per_block, end = min(size_t(count), first + per_block);
    double sum = 0.0;
    for (size_t i = first + threadIdx.x; i < end; i += blockDim.x) sum += double(x[i]) * double(x[i]);
    sum = block_sum(sum, scratch);
    if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

// The sum of the partial sums, by one block.
extern "C" __global__ void norm_total(const double *partial, double *total, uint32_t count) {
    __shared__ double scratch[WARP];
    double sum = 0.0;
    for (uint32_t i = threadIdx.x; i < count; i += blockDim.x) sum += partial[i];
    sum = block_sum(sum, scratch);
    if (threadIdx.x == 0) *total = sum;
}
