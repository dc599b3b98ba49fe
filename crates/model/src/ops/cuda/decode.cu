// What a step of generation does beside products and attention: rows of a table, queries and keys put in their places, the
// gate of the feed-forward layer, copies of blocks. The cache of a layer is `[slots, key_value heads * dim]` for keys and
// the same for values; sixteen slots are a block.
#include "common.cuh"

// `y_r = table_i(r)`: one block a row.
template <class T> __device__ void rows(const T *table, const uint32_t *indices, T *y, uint32_t width) {
    const T *from = table + size_t(indices[blockIdx.x]) * width;
    T *to = y + size_t(blockIdx.x) * width;
    for (uint32_t i = threadIdx.x; i < width; i += blockDim.x) to[i] = from[i];
}

// Adds biases, normalises heads of queries and keys (where there are weights for it), rotates them, and writes keys and
// values to the slot of their token. `qkv` are the token's products: queries are written back, keys and values go to the
// cache. One warp a head.
template <class T> struct Place {
    T *q;
    const T *k, *v;
    const T *q_bias, *k_bias, *v_bias, *q_norm, *k_norm;
    const float *cos, *sin;
    const uint32_t *positions, *slots;
    T *keys, *values;
    uint32_t query, key_value, dim;
    float eps;
};

template <class T> __device__ void place(const Place<T> &of) {
    const uint32_t token = blockIdx.x, lane = threadIdx.x % WARP;
    uint32_t head = blockIdx.y * (blockDim.x / WARP) + threadIdx.x / WARP;
    if (head >= of.query + 2 * of.key_value) return;
    const uint32_t dim = of.dim, half = dim / 2;
    const size_t slot = of.slots[token];
    const T *x, *bias = nullptr, *norm = nullptr;
    T *y;
    if (head < of.query) {
        const size_t at = size_t(token) * of.query * dim + head * dim;
        x = of.q + at;
        y = of.q + at;
        if (of.q_bias) bias = of.q_bias + head * dim;
        norm = of.q_norm;
    } else if (head < of.query + of.key_value) {
        head -= of.query;
        x = of.k + size_t(token) * of.key_value * dim + head * dim;
        y = of.keys + slot * of.key_value * dim + head * dim;
        if (of.k_bias) bias = of.k_bias + head * dim;
        norm = of.k_norm;
    } else {
        head -= of.query + of.key_value;
        x = of.v + size_t(token) * of.key_value * dim + head * dim;
        y = of.values + slot * of.key_value * dim + head * dim;
        if (of.v_bias) bias = of.v_bias + head * dim;
        for (uint32_t i = lane; i < dim; i += WARP) y[i] = bias ? narrow<T>(widen(x[i]) + widen(bias[i])) : x[i];
        return;
    }
    float inverse = 1.0f;
    if (norm) {
        float squares = 0.0f;
        for (uint32_t i = lane; i < dim; i += WARP) {
            const float value = widen(x[i]) + (bias ? widen(bias[i]) : 0.0f);
            squares += value * value;
        }
        inverse = rsqrtf(warp_sum(squares) / float(dim) + of.eps);
    }
    const float *cos = of.cos + size_t(of.positions[token]) * half, *sin = of.sin + size_t(of.positions[token]) * half;
    for (uint32_t i = lane; i < half; i += WARP) {
        float low = widen(x[i]), high = widen(x[i + half]);
        if (bias) low += widen(bias[i]), high += widen(bias[i + half]);
        if (norm) low *= inverse * widen(norm[i]), high *= inverse * widen(norm[i + half]);
        y[i] = narrow<T>(low * cos[i] - high * sin[i]);
        y[i + half] = narrow<T>(high * cos[i] + low * sin[i]);
    }
}

// `gate = silu(gate) up`.
template <class T> __device__ void gate(T *gate, const T *up, uint32_t count) {
    const size_t i = size_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= count) return;
    const float z = widen(gate[i]);
    gate[i] = narrow<T>(z / (1.0f + expf(-z)) * widen(up[i]));
}

// `y_r += bias`: one block a row.
template <class T> __device__ void add_bias(T *y, const T *bias, uint32_t width) {
    T *row = y + size_t(blockIdx.x) * width;
    for (uint32_t i = threadIdx.x; i < width; i += blockDim.x) row[i] = narrow<T>(widen(row[i]) + widen(bias[i]));
}

// Copies blocks within keys and values: `pairs` are sources and targets. One block a pair.
template <class T> __device__ void copy_blocks(const uint32_t *pairs, T *keys, T *values, uint32_t elements) {
    const size_t from = size_t(pairs[2 * blockIdx.x]) * elements, to = size_t(pairs[2 * blockIdx.x + 1]) * elements;
    for (uint32_t i = threadIdx.x; i < elements; i += blockDim.x) {
        keys[to + i] = keys[from + i];
        values[to + i] = values[from + i];
    }
}

#define KERNELS(T, suffix)                                                                                                    \
    extern "C" __global__ void decode_rows_##suffix(const T *table, const uint32_t *indices, T *y, uint32_t width) {          \
        rows<T>(table, indices, y, width);                                                                                    \
    }                                                                                                                         \
    extern "C" __global__ void decode_place_##suffix(T *q, const T *k, const T *v, const T *q_bias, const T *k_bias,          \
                                                     const T *v_bias, const T *q_norm, const T *k_norm, const float *cos,     \
                                                     const float *sin, const uint32_t *positions, const uint32_t *slots,      \
                                                     T *keys, T *values, uint32_t query, uint32_t key_value, uint32_t dim,    \
                                                     float eps) {                                                             \
        place<T>({q, k, v, q_bias, k_bias, v_bias, q_norm, k_norm, cos, sin, positions, slots, keys, values, query,           \
                  key_value, dim, eps});                                                                                      \
    }                                                                                                                         \
    extern "C" __global__ void decode_gate_##suffix(T *z, const T *up, uint32_t count) { gate<T>(z, up, count); }             \
    extern "C" __global__ void decode_add_bias_##suffix(T *y, const T *bias, uint32_t width) { add_bias<T>(y, bias, width); } \
    extern "C" __global__ void decode_copy_blocks_##suffix(const uint32_t *pairs, T *keys, T *values, uint32_t elements) {    \
        copy_blocks<T>(pairs, keys, values, elements);                                                                        \
    }

KERNELS(float, f32)
KERNELS(bf16, bf16)
