// Causal grouped-query attention over packed sequences, any head of up to 256 elements: one warp a query, or a key.
//
// Scores exist 32 at a time, a key (or query) a lane: softmax is streamed, and the backward computes the weights again from
// `lse`, the logarithm of each query's sum of exponentials. `q, out: [tokens, heads * dim]`, `k, v: [tokens, heads / group *
// dim]`, `lse, delta: [tokens, heads]`, `bounds: [tokens, 2]` where each token's sequence starts and ends. Blocks of y take a
// head each. Milakov and Gimelshein, arXiv 1805.02867; Dao et al., arXiv 2205.14135.
#include "common.cuh"

constexpr int WARPS = 4;
constexpr int MOST = 256, OWN = MOST / WARP;

struct Shape {
    uint32_t tokens, heads, group, dim;
    __device__ size_t query(uint32_t token, uint32_t head) const { return (size_t(token) * heads + head) * dim; }
    __device__ size_t key(uint32_t token, uint32_t head) const { return (size_t(token) * (heads / group) + head / group) * dim; }
    __device__ size_t score(uint32_t token, uint32_t head) const { return size_t(token) * heads + head; }
};

// The dot product of a row in shared memory with a row in global memory.
template <class T> __device__ __forceinline__ float dot(const float *a, const T *b, uint32_t dim) {
    float sum = 0.0f;
    for (uint32_t i = 0; i < dim; i++) sum += a[i] * widen(b[i]);
    return sum;
}

// Puts a row into shared memory for the warp.
template <class T> __device__ __forceinline__ void stage(float *to, const T *from, uint32_t dim) {
    for (uint32_t i = threadIdx.x % WARP; i < dim; i += WARP) to[i] = widen(from[i]);
}

template <class T>
__device__ void forward(const T *q, const T *k, const T *v, const uint32_t *bounds, T *out, float *lse, Shape shape) {
    __shared__ float rows[WARPS][MOST];
    const uint32_t lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, query = blockIdx.x * WARPS + warp, head = blockIdx.y;
    if (query >= shape.tokens) return;
    const uint32_t start = bounds[2 * query];
    const float scale = rsqrtf(float(shape.dim));
    stage(rows[warp], q + shape.query(query, head), shape.dim);
    __syncwarp();
    float most = -INFINITY, sum = 0.0f, own[OWN] = {};
    for (uint32_t base = start; base <= query; base += WARP) {
        const uint32_t key = base + lane;
        const float s = key <= query ? scale * dot(rows[warp], k + shape.key(key, head), shape.dim) : -INFINITY;
        const float now = fmaxf(most, warp_max(s)), p = expf(s - now), kept = expf(most - now);
        sum = sum * kept + warp_sum(p);
        most = now;
        for (int i = 0; i < OWN; i++) own[i] *= kept;
        for (uint32_t j = 0; j < WARP && base + j <= query; j++) {
            const float weight = __shfl_sync(FULL_WARP, p, j);
            const T *row = v + shape.key(base + j, head);
            for (uint32_t i = 0; i < OWN && i * WARP + lane < shape.dim; i++) own[i] += weight * widen(row[i * WARP + lane]);
        }
    }
    T *to = out + shape.query(query, head);
    for (uint32_t i = 0; i < OWN && i * WARP + lane < shape.dim; i++) to[i * WARP + lane] = narrow<T>(own[i] / sum);
    if (lane == 0) lse[shape.score(query, head)] = most + logf(sum);
}

// `delta = rowsum(dO O)`.
template <class T> __device__ void deltas(const T *out, const T *g, float *delta, Shape shape) {
    const uint32_t lane = threadIdx.x % WARP, query = blockIdx.x * WARPS + threadIdx.x / WARP, head = blockIdx.y;
    if (query >= shape.tokens) return;
    const size_t at = shape.query(query, head);
    float sum = 0.0f;
    for (uint32_t i = lane; i < shape.dim; i += WARP) sum += widen(out[at + i]) * widen(g[at + i]);
    sum = warp_sum(sum);
    if (lane == 0) delta[shape.score(query, head)] = sum;
}

// `dQ = dS K`, `dS = P (dO V^T - delta) / sqrt(dim)`.
template <class T>
__device__ void backward_query(const T *q, const T *k, const T *v, const T *g, const uint32_t *bounds, const float *lse,
                               const float *delta, T *dq, Shape shape) {
    __shared__ float rows[WARPS][MOST], gradients[WARPS][MOST];
    const uint32_t lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, query = blockIdx.x * WARPS + warp, head = blockIdx.y;
    if (query >= shape.tokens) return;
    const float scale = rsqrtf(float(shape.dim));
    stage(rows[warp], q + shape.query(query, head), shape.dim);
    stage(gradients[warp], g + shape.query(query, head), shape.dim);
    __syncwarp();
    const float log_sum = lse[shape.score(query, head)], less = delta[shape.score(query, head)];
    float own[OWN] = {};
    for (uint32_t base = bounds[2 * query]; base <= query; base += WARP) {
        const uint32_t key = base + lane;
        float ds = 0.0f;
        if (key <= query) {
            const size_t at = shape.key(key, head);
            const float p = expf(scale * dot(rows[warp], k + at, shape.dim) - log_sum);
            ds = p * (dot(gradients[warp], v + at, shape.dim) - less) * scale;
        }
        for (uint32_t j = 0; j < WARP && base + j <= query; j++) {
            const float weight = __shfl_sync(FULL_WARP, ds, j);
            const T *row = k + shape.key(base + j, head);
            for (uint32_t i = 0; i < OWN && i * WARP + lane < shape.dim; i++) own[i] += weight * widen(row[i * WARP + lane]);
        }
    }
    T *to = dq + shape.query(query, head);
    for (uint32_t i = 0; i < OWN && i * WARP + lane < shape.dim; i++) to[i * WARP + lane] = narrow<T>(own[i]);
}

// `dK = dS^T Q`, `dV = P^T dO`, over the queries behind the key and over the heads that share it, in their order.
template <class T>
__device__ void backward_key(const T *q, const T *k, const T *v, const T *g, const uint32_t *bounds, const float *lse,
                             const float *delta, T *dk, T *dv, Shape shape) {
    __shared__ float keys[WARPS][MOST], values[WARPS][MOST];
    const uint32_t lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, key = blockIdx.x * WARPS + warp;
    if (key >= shape.tokens) return;
    const uint32_t first_head = blockIdx.y * shape.group, end = bounds[2 * key + 1];
    const float scale = rsqrtf(float(shape.dim));
    const size_t place = shape.key(key, first_head);
    stage(keys[warp], k + place, shape.dim);
    stage(values[warp], v + place, shape.dim);
    __syncwarp();
    float own_k[OWN] = {}, own_v[OWN] = {};
    for (uint32_t head = first_head; head < first_head + shape.group; head++) {
        for (uint32_t base = key; base < end; base += WARP) {
            const uint32_t query = base + lane;
            float p = 0.0f, ds = 0.0f;
            if (query < end) {
                const size_t at = shape.query(query, head), score = shape.score(query, head);
                p = expf(scale * dot(keys[warp], q + at, shape.dim) - lse[score]);
                ds = p * (dot(values[warp], g + at, shape.dim) - delta[score]) * scale;
            }
            for (uint32_t j = 0; j < WARP && base + j < end; j++) {
                const float weight_k = __shfl_sync(FULL_WARP, ds, j), weight_v = __shfl_sync(FULL_WARP, p, j);
                const size_t at = shape.query(base + j, head);
                for (uint32_t i = 0; i < OWN && i * WARP + lane < shape.dim; i++) {
                    own_k[i] += weight_k * widen(q[at + i * WARP + lane]);
                    own_v[i] += weight_v * widen(g[at + i * WARP + lane]);
                }
            }
        }
    }
    for (uint32_t i = 0; i < OWN && i * WARP + lane < shape.dim; i++) {
        dk[place + i * WARP + lane] = narrow<T>(own_k[i]);
        dv[place + i * WARP + lane] = narrow<T>(own_v[i]);
    }
}

#define KERNELS(T, suffix)                                                                                                    \
    extern "C" __global__ void attention_forward_##suffix(const T *q, const T *k, const T *v, const uint32_t *bounds, T *out, \
                                                          float *lse, uint32_t tokens, uint32_t heads, uint32_t group,        \
                                                          uint32_t dim) {                                                     \
        forward<T>(q, k, v, bounds, out, lse, Shape{tokens, heads, group, dim});                                              \
    }                                                                                                                         \
    extern "C" __global__ void attention_deltas_##suffix(const T *out, const T *g, float *delta, uint32_t tokens,             \
                                                         uint32_t heads, uint32_t group, uint32_t dim) {                      \
        deltas<T>(out, g, delta, Shape{tokens, heads, group, dim});                                                           \
    }                                                                                                                         \
    extern "C" __global__ void attention_backward_query_##suffix(                                                             \
        const T *q, const T *k, const T *v, const T *g, const uint32_t *bounds, const float *lse, const float *delta, T *dq,  \
        uint32_t tokens, uint32_t heads, uint32_t group, uint32_t dim) {                                                      \
        backward_query<T>(q, k, v, g, bounds, lse, delta, dq, Shape{tokens, heads, group, dim});                              \
    }                                                                                                                         \
    extern "C" __global__ void attention_backward_key_##suffix(                                                               \
        const T *q, const T *k, const T *v, const T *g, const uint32_t *bounds, const float *lse, const float *delta, T *dk,  \
        T *dv, uint32_t tokens, uint32_t heads, uint32_t group, uint32_t dim) {                                               \
        backward_key<T>(q, k, v, g, bounds, lse, delta, dk, dv, Shape{tokens, heads, group, dim});                            \
    }

KERNELS(float, f32)
KERNELS(bf16, bf16)
