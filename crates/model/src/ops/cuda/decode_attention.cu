// Attention of new tokens over the block cache: `softmax(q k^T / sqrt(dim)) v` of each token against all positions up to its
// own, those of its own span included, which have been written before.
//
// A sequence is cut into chunks of CHUNK positions from its beginning on, whatever else is in the batch. Each chunk gives
// its maximum, its sum and its weighted values, and these are folded together in the order of the chunks. One block takes
// a token and the queries of one key-value head (at most eight of them), so that a key and a value are read once for all of
// them. It takes one chunk, and `combine` folds (few tokens: the chunks of one run side by side), or all chunks, and folds
// as it goes (many tokens: no memory for parts); the bits are the same.
#include "common.cuh"

constexpr uint32_t BLOCK_POSITIONS = 16; // cache::LANES
constexpr uint32_t CHUNK = 256;
constexpr uint32_t THREADS = 128;
constexpr uint32_t WARPS = THREADS / WARP;
constexpr uint32_t ELEMENTS = 8; // of a head, that one thread holds

// What some of a sequence's positions give for one query.
struct Part {
    float top, sum;
};

// How much the parts count when `chunk` joins `before`, and the joined part.
struct Fold {
    float old_weight, new_weight;
    Part joined;
};

__device__ __forceinline__ Fold fold(Part before, Part chunk) {
    const float top = fmaxf(before.top, chunk.top);
    // Nothing was before the first chunk; `-inf - -inf` is no number.
    const float a = before.sum == 0.0f ? 0.0f : expf(before.top - top), b = expf(chunk.top - top);
    return {a, b, {top, fmaf(chunk.sum, b, __fmul_rn(before.sum, a))}};
}

__device__ __forceinline__ float joined(const Fold &by, float before, float chunk) {
    return fmaf(chunk, by.new_weight, __fmul_rn(before, by.old_weight));
}

__device__ __forceinline__ void load(const float *from, bool aligned, uint32_t count, float *to) {
    if (aligned) {
        const float4 a = *reinterpret_cast<const float4 *>(from), b = *reinterpret_cast<const float4 *>(from + 4);
        to[0] = a.x, to[1] = a.y, to[2] = a.z, to[3] = a.w, to[4] = b.x, to[5] = b.y, to[6] = b.z, to[7] = b.w;
        return;
    }
#pragma unroll
    for (uint32_t i = 0; i < ELEMENTS; i++) to[i] = i < count ? from[i] : 0.0f;
}

__device__ __forceinline__ void load(const bf16 *from, bool aligned, uint32_t count, float *to) {
    if (aligned) {
        const uint4 pairs = *reinterpret_cast<const uint4 *>(from);
        const uint32_t words[4] = {pairs.x, pairs.y, pairs.z, pairs.w};
#pragma unroll
        for (uint32_t i = 0; i < 4; i++) {
            to[2 * i] = __uint_as_float(words[i] << 16);
            to[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
        }
        return;
    }
#pragma unroll
    for (uint32_t i = 0; i < ELEMENTS; i++) to[i] = i < count ? widen(from[i]) : 0.0f;
}

template <class T> struct Attention {
    const T *q, *keys, *values;
    const uint32_t *positions, *owners, *tables;
    T *mixed;
    float *parts; // `[tokens, query heads, chunks, 2 + dim]`, or null: then this block takes all chunks
    uint32_t query, key_value, dim, width, chunks, lanes;
};

// `lanes` threads hold a position's numbers (a power of two, at least `dim / ELEMENTS`); G is the number of queries, rounded
// up to a power of two. Dynamic shared memory: `[G, dim]` results, then `[WARPS, G, dim]` of the warps.
template <class T, int G> __device__ void attend(const Attention<T> &of) {
    __shared__ float scores[G][CHUNK];
    __shared__ Part chunk_parts[G], parts[G];
    DYNAMIC_SHARED(float, memory);
    const uint32_t dim = of.dim, group = of.query / of.key_value, passes = (group + G - 1) / G;
    const uint32_t token = blockIdx.x, head = blockIdx.y / passes, first = blockIdx.y % passes * G;
    const uint32_t queries = min(uint32_t(G), group - first), query_head = head * group + first;
    const uint32_t thread = threadIdx.x, lane = thread % of.lanes, team = thread / of.lanes, teams = THREADS / of.lanes;
    const uint32_t start = lane * ELEMENTS, count = start < dim ? min(ELEMENTS, dim - start) : 0;
    const bool vector = dim % ELEMENTS == 0 && count > 0;
    const uint32_t *table = of.tables + size_t(of.owners[token]) * of.width;
    const size_t row = size_t(of.key_value) * dim, column = size_t(head) * dim + start;
    const uint32_t length = of.positions[token] + 1;
    const uint32_t first_chunk = of.parts ? blockIdx.z : 0;
    const uint32_t end_chunk = of.parts ? first_chunk + 1 : (length + CHUNK - 1) / CHUNK;
    if (first_chunk * CHUNK >= length) return;
    float *result = memory, *by_warp = memory + G * dim;
    const float scale = rsqrtf(float(dim));
    for (uint32_t i = thread; i < G * dim; i += THREADS) result[i] = 0.0f;
    if (thread < G) parts[thread] = {-INFINITY, 0.0f};

    for (uint32_t chunk = first_chunk; chunk < end_chunk; chunk++) {
        const uint32_t begin = chunk * CHUNK, seen = min(CHUNK, length - begin);
        float held[G][ELEMENTS];
#pragma unroll
        for (int g = 0; g < G; g++) {
            const bool there = g < queries && count > 0;
            const T *from = of.q + (size_t(token) * of.query + query_head + (there ? g : 0)) * dim + (there ? start : 0);
            load(from, vector && there, there ? count : 0, held[g]);
        }
        // All threads of a warp go round as often.
        for (uint32_t t = 0; t < seen; t += teams) {
            const uint32_t at = t + team, position = begin + min(at, seen - 1);
            const size_t slot = size_t(table[position / BLOCK_POSITIONS]) * BLOCK_POSITIONS + position % BLOCK_POSITIONS;
            float key[ELEMENTS];
            load(count > 0 ? of.keys + slot * row + column : of.keys, vector, count, key);
#pragma unroll
            for (int g = 0; g < G; g++) {
                float dot = 0.0f;
#pragma unroll
                for (uint32_t i = 0; i < ELEMENTS; i++) dot = fmaf(held[g][i], key[i], dot);
                for (uint32_t offset = of.lanes / 2; offset > 0; offset /= 2) dot += __shfl_xor_sync(FULL_WARP, dot, offset);
                if (lane == 0 && at < seen) scores[g][at] = dot * scale;
            }
        }
        __syncthreads();
        for (uint32_t g = thread / WARP; g < G; g += WARPS) {
            float top = -INFINITY, sum = 0.0f;
            for (uint32_t t = thread % WARP; t < seen; t += WARP) top = fmaxf(top, scores[g][t]);
            top = warp_max(top);
            for (uint32_t t = thread % WARP; t < seen; t += WARP) {
                const float weight = expf(scores[g][t] - top);
                scores[g][t] = weight;
                sum += weight;
            }
            sum = warp_sum(sum);
            if (thread % WARP == 0) chunk_parts[g] = {top, sum};
        }
        __syncthreads();
#pragma unroll
        for (int g = 0; g < G; g++) {
#pragma unroll
            for (uint32_t i = 0; i < ELEMENTS; i++) held[g][i] = 0.0f;
        }
        for (uint32_t at = team; at < seen && count > 0; at += teams) {
            const uint32_t position = begin + at;
            const size_t slot = size_t(table[position / BLOCK_POSITIONS]) * BLOCK_POSITIONS + position % BLOCK_POSITIONS;
            float value[ELEMENTS];
            load(of.values + slot * row + column, vector, count, value);
#pragma unroll
            for (int g = 0; g < G; g++) {
                const float weight = scores[g][at];
#pragma unroll
                for (uint32_t i = 0; i < ELEMENTS; i++) held[g][i] = fmaf(weight, value[i], held[g][i]);
            }
        }
#pragma unroll
        for (int g = 0; g < G; g++) {
#pragma unroll
            for (uint32_t i = 0; i < ELEMENTS; i++) {
                for (uint32_t offset = of.lanes; offset < WARP; offset *= 2) {
                    held[g][i] += __shfl_xor_sync(FULL_WARP, held[g][i], offset);
                }
                if (thread % WARP < of.lanes && i < count) {
                    by_warp[((thread / WARP) * G + g) * dim + start + i] = held[g][i];
                }
            }
        }
        __syncthreads();
        for (uint32_t i = thread; i < queries * dim; i += THREADS) {
            float sum = 0.0f;
            for (uint32_t warp = 0; warp < WARPS; warp++) sum += by_warp[warp * G * dim + i];
            const uint32_t g = i / dim;
            result[i] = of.parts ? sum : joined(fold(parts[g], chunk_parts[g]), result[i], sum);
        }
        __syncthreads();
        if (thread < G) parts[thread] = of.parts ? chunk_parts[thread] : fold(parts[thread], chunk_parts[thread]).joined;
        __syncthreads();
    }
    const size_t out = size_t(token) * of.query + query_head;
    for (uint32_t i = thread; i < queries * dim; i += THREADS) {
        const uint32_t g = i / dim, d = i % dim;
        if (!of.parts) {
            of.mixed[(out + g) * dim + d] = narrow<T>(result[i] / parts[g].sum);
            continue;
        }
        float *to = of.parts + ((out + g) * of.chunks + first_chunk) * (dim + 2);
        to[2 + d] = result[i];
        if (d == 0) to[0] = parts[g].top, to[1] = parts[g].sum;
    }
}

// Folds the chunks of each token and query head, in their order: one block each.
template <class T>
__device__ void combine(const float *parts, const uint32_t *positions, T *mixed, uint32_t query, uint32_t dim, uint32_t chunks) {
    const size_t out = size_t(blockIdx.x) * query + blockIdx.y;
    const uint32_t used = (positions[blockIdx.x] + CHUNK) / CHUNK;
    const float *from = parts + out * chunks * (dim + 2);
    for (uint32_t d = threadIdx.x; d < dim; d += blockDim.x) {
        Part part = {-INFINITY, 0.0f};
        float value = 0.0f;
        for (uint32_t chunk = 0; chunk < used; chunk++) {
            const float *next = from + size_t(chunk) * (dim + 2);
            const Fold by = fold(part, {next[0], next[1]});
            value = joined(by, value, next[2 + d]);
            part = by.joined;
        }
        mixed[out * dim + d] = narrow<T>(value / part.sum);
    }
}

#define ATTEND(T, suffix, G)                                                                                                  \
    extern "C" __global__ void __launch_bounds__(128) decode_attention_##suffix##_##G(                                        \
        const T *q, const T *keys, const T *values, const uint32_t *positions, const uint32_t *owners,                        \
        const uint32_t *tables, T *mixed, float *parts, uint32_t query, uint32_t key_value, uint32_t dim, uint32_t width,     \
        uint32_t chunks, uint32_t lanes) {                                                                                    \
        attend<T, G>({q, keys, values, positions, owners, tables, mixed, parts, query, key_value, dim, width, chunks, lanes}); \
    }

#define KERNELS(T, suffix)                                                                                                    \
    ATTEND(T, suffix, 1)                                                                                                      \
    ATTEND(T, suffix, 2)                                                                                                      \
    ATTEND(T, suffix, 4)                                                                                                      \
    ATTEND(T, suffix, 8)                                                                                                      \
    extern "C" __global__ void decode_attention_combine_##suffix(const float *parts, const uint32_t *positions, T *mixed,     \
                                                                 uint32_t query, uint32_t dim, uint32_t chunks) {             \
        combine<T>(parts, positions, mixed, query, dim, chunks);                                                              \
    }

KERNELS(float, f32)
KERNELS(bf16, bf16)
