// Causal grouped-query attention in bf16 on the tensor cores: 64 queries (or keys) a block of four warps, 16 a warp.
//
// Scores, softmax and outputs stay in registers; what another warp needs lies in shared memory. Heads of up to D elements,
// a multiple of eight, are padded with zeros to D. `tiles: [blocks.x, 3]` says of each block the first and the end token of
// its sequence and the first token of its tile. Shapes are those of `attention.cu`. Dao, arXiv 2307.08691, has the scheme.
#include "tensor_core.cuh"

constexpr int TILE = 64;
constexpr float LOG2_E = 1.4426950408889634f;

struct Layout {
    uint32_t heads, group, dim;
    __device__ size_t query_stride() const { return size_t(heads) * dim; }
    __device__ size_t key_stride() const { return size_t(heads / group) * dim; }
    __device__ size_t query(uint32_t head) const { return size_t(head) * dim; }
    __device__ size_t key(uint32_t head) const { return size_t(head / group) * dim; }
};

// `c[n] += a b^T` of 16 rows of the tile `a` and `8 N` rows of the tile `b`.
template <int D, int N>
__device__ __forceinline__ void product_rows(float (&c)[N][4], const bf16 *a, int a_row, const bf16 *b, int b_row) {
#pragma unroll
    for (int k = 0; k < D; k += 16) {
        uint32_t left[4], right[2][2];
        load_a<D>(left, a, a_row, k);
#pragma unroll
        for (int n = 0; n < N; n += 2) {
            load_b_rows<D>(right, b, b_row + n * 8, k);
            mma(c[n], left, right[0]);
            mma(c[n + 1], left, right[1]);
        }
    }
}

// `c[n] += p b` of `p: [16, 8 N]`, sums of a product, rounded, and `8 N` rows of the tile `b`.
template <int D, int N>
__device__ __forceinline__ void product_of_sums(float (&c)[D / 8][4], const float (&p)[N][4], const bf16 *b, int b_row) {
#pragma unroll
    for (int k = 0; k < N; k += 2) {
        const uint32_t left[4] = {pair(p[k][0], p[k][1]), pair(p[k][2], p[k][3]), pair(p[k + 1][0], p[k + 1][1]),
                                  pair(p[k + 1][2], p[k + 1][3])};
        uint32_t right[2][2];
#pragma unroll
        for (int n = 0; n < D / 8; n += 2) {
            load_b<D>(right, b, b_row + k * 8, n * 8);
            mma(c[n], left, right[0]);
            mma(c[n + 1], left, right[1]);
        }
    }
}

// Writes 16 rows of sums, the lane's from `row` on, those below `limit`.
template <int D>
__device__ __forceinline__ void store_rows(bf16 *to, size_t stride, const float (&c)[D / 8][4], uint32_t row, uint32_t limit,
                                           uint32_t dim, float scale_low, float scale_high) {
    const uint32_t lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4;
#pragma unroll
    for (int n = 0; n < D / 8; n++) {
        const uint32_t column = n * 8 + 2 * t;
        if (column >= dim) continue;
        if (row + g < limit) {
            *reinterpret_cast<uint32_t *>(to + size_t(row + g) * stride + column) = pair(c[n][0] * scale_low, c[n][1] * scale_low);
        }
        if (row + g + 8 < limit) {
            *reinterpret_cast<uint32_t *>(to + size_t(row + g + 8) * stride + column) =
                pair(c[n][2] * scale_high, c[n][3] * scale_high);
        }
    }
}

__device__ __forceinline__ float quad_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(FULL_WARP, x, 1));
    return fmaxf(x, __shfl_xor_sync(FULL_WARP, x, 2));
}

__device__ __forceinline__ float quad_sum(float x) {
    x += __shfl_xor_sync(FULL_WARP, x, 1);
    return x + __shfl_xor_sync(FULL_WARP, x, 2);
}

template <int D>
__device__ void forward(const bf16 *q, const bf16 *k, const bf16 *v, const uint32_t *tiles, bf16 *out, float *lse, Layout layout) {
    DYNAMIC_SHARED(bf16, memory);
    bf16 *queries = memory, *keys = queries + TILE * ROW<D>, *values = keys + TILE * ROW<D>;
    const uint32_t start = tiles[3 * blockIdx.x], end = tiles[3 * blockIdx.x + 1], first = tiles[3 * blockIdx.x + 2];
    const uint32_t head = blockIdx.y, warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4;
    const uint32_t row = first + warp * 16;
    const float scale = rsqrtf(float(layout.dim)) * LOG2_E;
    load_tile<D, TILE>(queries, q + layout.query(head), layout.query_stride(), first, end, layout.dim);
    float sums[D / 8][4] = {}, most[2] = {-INFINITY, -INFINITY}, total[2] = {0.0f, 0.0f};
    for (uint32_t base = start; base < min(end, first + TILE); base += TILE) {
        __syncthreads();
        load_tile<D, TILE>(keys, k + layout.key(head), layout.key_stride(), base, end, layout.dim);
        load_tile<D, TILE>(values, v + layout.key(head), layout.key_stride(), base, end, layout.dim);
        __syncthreads();
        float s[TILE / 8][4] = {};
        product_rows<D, TILE / 8>(s, queries, warp * 16, keys, 0);
        // A key is seen from its own place on. A sequence's last queries have rows beyond the end beside them, whose sums
        // nobody reads.
#pragma unroll
        for (int n = 0; n < TILE / 8; n++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const uint32_t key = base + n * 8 + 2 * t + i % 2, query = row + g + 8 * (i / 2);
                s[n][i] = key <= query ? s[n][i] * scale : -INFINITY;
            }
        }
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float now = most[half];
#pragma unroll
            for (int n = 0; n < TILE / 8; n++) now = fmaxf(now, fmaxf(s[n][2 * half], s[n][2 * half + 1]));
            now = quad_max(now);
            const float kept = exp2f(most[half] - now);
            most[half] = now;
            float sum = 0.0f;
#pragma unroll
            for (int n = 0; n < TILE / 8; n++) {
                s[n][2 * half] = exp2f(s[n][2 * half] - now);
                s[n][2 * half + 1] = exp2f(s[n][2 * half + 1] - now);
                sum += s[n][2 * half] + s[n][2 * half + 1];
            }
            total[half] = total[half] * kept + quad_sum(sum);
#pragma unroll
            for (int n = 0; n < D / 8; n++) {
                sums[n][2 * half] *= kept;
                sums[n][2 * half + 1] *= kept;
            }
        }
        product_of_sums<D, TILE / 8>(sums, s, values, 0);
    }
    store_rows<D>(out + layout.query(head), layout.query_stride(), sums, row, end, layout.dim, 1.0f / total[0], 1.0f / total[1]);
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const uint32_t query = row + g + 8 * half;
        if (t == 0 && query < end) lse[size_t(query) * layout.heads + head] = most[half] / LOG2_E + logf(total[half]);
    }
}

// `dQ = dS K`, `dS = P (dO V^T - delta) scale`.
template <int D>
__device__ void backward_query(const bf16 *q, const bf16 *k, const bf16 *v, const bf16 *g_out, const uint32_t *tiles,
                               const float *lse, const float *delta, bf16 *dq, Layout layout) {
    DYNAMIC_SHARED(bf16, memory);
    bf16 *queries = memory, *gradients = queries + TILE * ROW<D>, *keys = gradients + TILE * ROW<D>, *values = keys + TILE * ROW<D>;
    const uint32_t start = tiles[3 * blockIdx.x], end = tiles[3 * blockIdx.x + 1], first = tiles[3 * blockIdx.x + 2];
    const uint32_t head = blockIdx.y, warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4;
    const uint32_t row = first + warp * 16;
    const float scale = rsqrtf(float(layout.dim));
    load_tile<D, TILE>(queries, q + layout.query(head), layout.query_stride(), first, end, layout.dim);
    load_tile<D, TILE>(gradients, g_out + layout.query(head), layout.query_stride(), first, end, layout.dim);
    float log_sum[2] = {0.0f, 0.0f}, less[2] = {0.0f, 0.0f};
    for (int half = 0; half < 2; half++) {
        const uint32_t query = row + g + 8 * half;
        if (query >= end) continue;
        log_sum[half] = lse[size_t(query) * layout.heads + head];
        less[half] = delta[size_t(query) * layout.heads + head];
    }
    float sums[D / 8][4] = {};
    for (uint32_t base = start; base < min(end, first + TILE); base += TILE) {
        __syncthreads();
        load_tile<D, TILE>(keys, k + layout.key(head), layout.key_stride(), base, end, layout.dim);
        load_tile<D, TILE>(values, v + layout.key(head), layout.key_stride(), base, end, layout.dim);
        __syncthreads();
        // Half of the keys at a time, for the registers' sake.
#pragma unroll
        for (int part = 0; part < TILE; part += 32) {
            float s[4][4] = {}, dp[4][4] = {};
            product_rows<D, 4>(s, queries, warp * 16, keys, part);
            product_rows<D, 4>(dp, gradients, warp * 16, values, part);
#pragma unroll
            for (int n = 0; n < 4; n++) {
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    const uint32_t key = base + part + n * 8 + 2 * t + i % 2, query = row + g + 8 * (i / 2);
                    const float p = key <= query && query < end ? expf(s[n][i] * scale - log_sum[i / 2]) : 0.0f;
                    s[n][i] = p * (dp[n][i] - less[i / 2]) * scale;
                }
            }
            product_of_sums<D, 4>(sums, s, keys, part);
        }
    }
    store_rows<D>(dq + layout.query(head), layout.query_stride(), sums, row, end, layout.dim, 1.0f, 1.0f);
}

// `dK = dS^T Q`, `dV = P^T dO`. The tile is one of keys, `first..first + 64`; all heads that share them are gone through in order.
template <int D>
__device__ void backward_key(const bf16 *q, const bf16 *k, const bf16 *v, const bf16 *g_out, const uint32_t *tiles,
                             const float *lse, const float *delta, bf16 *dk, bf16 *dv, Layout layout) {
    DYNAMIC_SHARED(bf16, memory);
    bf16 *keys = memory, *values = keys + TILE * ROW<D>, *queries = values + TILE * ROW<D>, *gradients = queries + TILE * ROW<D>;
    __shared__ float log_sums[TILE], lesses[TILE];
    const uint32_t end = tiles[3 * blockIdx.x + 1], first = tiles[3 * blockIdx.x + 2];
    const uint32_t first_head = blockIdx.y * layout.group, warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const uint32_t g = lane / 4, t = lane % 4, row = first + warp * 16;
    const float scale = rsqrtf(float(layout.dim));
    load_tile<D, TILE>(keys, k + layout.key(first_head), layout.key_stride(), first, end, layout.dim);
    load_tile<D, TILE>(values, v + layout.key(first_head), layout.key_stride(), first, end, layout.dim);
    float sums_k[D / 8][4] = {}, sums_v[D / 8][4] = {};
    for (uint32_t head = first_head; head < first_head + layout.group; head++) {
        for (uint32_t base = first; base < end; base += TILE) {
            __syncthreads();
            load_tile<D, TILE>(queries, q + layout.query(head), layout.query_stride(), base, end, layout.dim);
            load_tile<D, TILE>(gradients, g_out + layout.query(head), layout.query_stride(), base, end, layout.dim);
            if (threadIdx.x < TILE && base + threadIdx.x < end) {
                log_sums[threadIdx.x] = lse[size_t(base + threadIdx.x) * layout.heads + head];
                lesses[threadIdx.x] = delta[size_t(base + threadIdx.x) * layout.heads + head];
            }
            __syncthreads();
#pragma unroll
            for (int part = 0; part < TILE; part += 32) {
                float p[4][4] = {}, ds[4][4] = {};
                product_rows<D, 4>(p, keys, warp * 16, queries, part);
                product_rows<D, 4>(ds, values, warp * 16, gradients, part);
#pragma unroll
                for (int n = 0; n < 4; n++) {
#pragma unroll
                    for (int i = 0; i < 4; i++) {
                        const uint32_t column = part + n * 8 + 2 * t + i % 2;
                        const uint32_t key = row + g + 8 * (i / 2), query = base + column;
                        const bool seen = key <= query && query < end;
                        const float weight = seen ? expf(p[n][i] * scale - log_sums[column]) : 0.0f;
                        ds[n][i] = seen ? weight * (ds[n][i] - lesses[column]) * scale : 0.0f;
                        p[n][i] = weight;
                    }
                }
                product_of_sums<D, 4>(sums_v, p, gradients, part);
                product_of_sums<D, 4>(sums_k, ds, queries, part);
            }
        }
    }
    store_rows<D>(dk + layout.key(first_head), layout.key_stride(), sums_k, row, end, layout.dim, 1.0f, 1.0f);
    store_rows<D>(dv + layout.key(first_head), layout.key_stride(), sums_v, row, end, layout.dim, 1.0f, 1.0f);
}

#define KERNELS(D)                                                                                                            \
    extern "C" __global__ void __launch_bounds__(128) attention_tiles_forward_##D(                                            \
        const bf16 *q, const bf16 *k, const bf16 *v, const uint32_t *tiles, bf16 *out, float *lse, uint32_t heads,            \
        uint32_t group, uint32_t dim) {                                                                                       \
        forward<D>(q, k, v, tiles, out, lse, Layout{heads, group, dim});                                                      \
    }                                                                                                                         \
    extern "C" __global__ void __launch_bounds__(128) attention_tiles_backward_query_##D(                                     \
        const bf16 *q, const bf16 *k, const bf16 *v, const bf16 *g, const uint32_t *tiles, const float *lse,                  \
        const float *delta, bf16 *dq, uint32_t heads, uint32_t group, uint32_t dim) {                                         \
        backward_query<D>(q, k, v, g, tiles, lse, delta, dq, Layout{heads, group, dim});                                      \
    }                                                                                                                         \
    extern "C" __global__ void __launch_bounds__(128) attention_tiles_backward_key_##D(                                       \
        const bf16 *q, const bf16 *k, const bf16 *v, const bf16 *g, const uint32_t *tiles, const float *lse,                  \
        const float *delta, bf16 *dk, bf16 *dv, uint32_t heads, uint32_t group, uint32_t dim) {                               \
        backward_key<D>(q, k, v, g, tiles, lse, delta, dk, dv, Layout{heads, group, dim});                                    \
    }

KERNELS(32)
KERNELS(64)
KERNELS(128)
