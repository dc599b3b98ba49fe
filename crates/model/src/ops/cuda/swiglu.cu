// SwiGLU's gate: `y = silu(z) u`, and its gradients `du = g z s`, `dz = g u s (1 + z (1 - s))` with `s = sigmoid(z)`.
// A thread takes sixteen bytes of each input.
#include "common.cuh"

__device__ __forceinline__ float sigmoid(float z) { return 1.0f / (1.0f + expf(-z)); }

template <class T> __device__ __forceinline__ void forward_one(const T *gate, const T *up, T *y, size_t i) {
    const float z = widen(gate[i]);
    y[i] = narrow<T>(z * sigmoid(z) * widen(up[i]));
}

template <class T>
__device__ __forceinline__ void backward_one(const T *gate, const T *up, const T *g, T *dgate, T *dup, size_t i) {
    const float z = widen(gate[i]), s = sigmoid(z), grad = widen(g[i]);
    dgate[i] = narrow<T>(grad * widen(up[i]) * s * (1.0f + z * (1.0f - s)));
    dup[i] = narrow<T>(grad * z * s);
}

template <class T> __device__ void forward(const T *gate, const T *up, T *y, uint32_t count) {
    constexpr int N = Pack<T>::SIZE;
    const size_t first = (size_t(blockIdx.x) * blockDim.x + threadIdx.x) * N;
    if (first >= count) return;
    if (first + N <= count && aligned(gate) && aligned(up) && aligned(y)) {
        const Pack<T> a = *reinterpret_cast<const Pack<T> *>(gate + first);
        const Pack<T> b = *reinterpret_cast<const Pack<T> *>(up + first);
        Pack<T> c;
#pragma unroll
        for (int i = 0; i < N; i++) forward_one(a.values, b.values, c.values, i);
        *reinterpret_cast<Pack<T> *>(y + first) = c;
        return;
    }
    for (size_t i = first; i < min(size_t(count), first + N); i++) forward_one(gate, up, y, i);
}

template <class T> __device__ void backward(const T *gate, const T *up, const T *g, T *dgate, T *dup, uint32_t count) {
    constexpr int N = Pack<T>::SIZE;
    const size_t first = (size_t(blockIdx.x) * blockDim.x + threadIdx.x) * N;
    if (first >= count) return;
    if (first + N <= count && aligned(gate) && aligned(up) && aligned(g) && aligned(dgate) && aligned(dup)) {
        const Pack<T> a = *reinterpret_cast<const Pack<T> *>(gate + first);
        const Pack<T> b = *reinterpret_cast<const Pack<T> *>(up + first);
        const Pack<T> c = *reinterpret_cast<const Pack<T> *>(g + first);
        Pack<T> da, db;
#pragma unroll
        for (int i = 0; i < N; i++) backward_one(a.values, b.values, c.values, da.values, db.values, i);
        *reinterpret_cast<Pack<T> *>(dgate + first) = da;
        *reinterpret_cast<Pack<T> *>(dup + first) = db;
        return;
    }
    for (size_t i = first; i < min(size_t(count), first + N); i++) backward_one(gate, up, g, dgate, dup, i);
}

#define KERNELS(T, suffix)                                                                                                    \
    extern "C" __global__ void swiglu_forward_##suffix(const T *gate, const T *up, T *y, uint32_t count) {                    \
        forward<T>(gate, up, y, count);                                                                                       \
    }                                                                                                                         \
    extern "C" __global__ void swiglu_backward_##suffix(const T *gate, const T *up, const T *g, T *dgate, T *dup,             \
                                                        uint32_t count) {                                                     \
        backward<T>(gate, up, g, dgate, dup, count);                                                                          \
    }

KERNELS(float, f32)
KERNELS(bf16, bf16)
