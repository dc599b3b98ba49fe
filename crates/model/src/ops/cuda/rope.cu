// Rotary position embedding, half-split: `(x_i, x_{i + half})` of each head is rotated by the angle of its token's position.
// A thread takes one pair.
#include "common.cuh"

// `x, y: [tokens, width]`, `cosines, sines: [positions, half]`, `positions: [tokens]`; `sign` -1 rotates back.
template <class T>
__device__ void rotate(const T *x, const float *cosines, const float *sines, const uint32_t *positions, T *y, uint32_t tokens,
                       uint32_t width, uint32_t half, float sign) {
    const size_t pair = size_t(blockIdx.x) * blockDim.x + threadIdx.x;
    const uint32_t pairs = width / 2;
    if (pair >= size_t(tokens) * pairs) return;
    const uint32_t token = uint32_t(pair / pairs), in_row = uint32_t(pair % pairs);
    const uint32_t head = in_row / half, i = in_row % half;
    const size_t low = size_t(token) * width + size_t(head) * 2 * half + i, high = low + half;
    const size_t angle = size_t(positions[token]) * half + i;
    const float cosine = cosines[angle], sine = sign * sines[angle];
    const float a = widen(x[low]), b = widen(x[high]);
    y[low] = narrow<T>(a * cosine - b * sine);
    y[high] = narrow<T>(b * cosine + a * sine);
}

#define KERNELS(T, suffix)                                                                                                    \
    extern "C" __global__ void rope_##suffix(const T *x, const float *cosines, const float *sines, const uint32_t *positions, \
                                             T *y, uint32_t tokens, uint32_t width, uint32_t half, float sign) {              \
        rotate<T>(x, cosines, sines, positions, y, tokens, width, half, sign);                                                \
    }

KERNELS(float, f32)
KERNELS(bf16, bf16)
