// Rows by number: a gather (the embedding), and its gradient, a sum of rows that go to one place, in their order.
#include "common.cuh"

// `y[i] = table[rows[i]]`; one block a row.
template <class T> __device__ void gather(const T *table, const uint32_t *rows, T *y, uint32_t width) {
    constexpr int N = Pack<T>::SIZE;
    const T *from = table + size_t(rows[blockIdx.x]) * width;
    T *to = y + size_t(blockIdx.x) * width;
    if (width % N == 0 && aligned(from) && aligned(to)) {
        for (uint32_t i = threadIdx.x; i < width / N; i += blockDim.x) {
            reinterpret_cast<Pack<T> *>(to)[i] = reinterpret_cast<const Pack<T> *>(from)[i];
        }
        return;
    }
    for (uint32_t i = threadIdx.x; i < width; i += blockDim.x) to[i] = from[i];
}

// `y[places[u]] += sum of g[order[j]]` for `j` from `starts[u]` to `starts[u + 1]`: blocks of x take a place each, those of y
// a part of the columns. A row of `y` is written by one block, so that nothing depends on who comes first.
template <class From, class To>
__device__ void sum_into(const From *g, const uint32_t *places, const uint32_t *starts, const uint32_t *order, To *y,
                         uint32_t width) {
    const uint32_t column = blockIdx.y * blockDim.x + threadIdx.x;
    if (column >= width) return;
    float sum = 0.0f;
    for (uint32_t j = starts[blockIdx.x]; j < starts[blockIdx.x + 1]; j++) sum += widen(g[size_t(order[j]) * width + column]);
    To *to = y + size_t(places[blockIdx.x]) * width + column;
    *to = narrow<To>(widen(*to) + sum);
}

#define GATHER(T, suffix)                                                                                                     \
    extern "C" __global__ void rows_gather_##suffix(const T *table, const uint32_t *rows, T *y, uint32_t width) {             \
        gather<T>(table, rows, y, width);                                                                                     \
    }
#define SUM(From, To, suffix)                                                                                                 \
    extern "C" __global__ void rows_sum_into_##suffix(const From *g, const uint32_t *places, const uint32_t *starts,          \
                                                      const uint32_t *order, To *y, uint32_t width) {                         \
        sum_into<From, To>(g, places, starts, order, y, width);                                                               \
    }

GATHER(float, f32)
GATHER(bf16, bf16)
SUM(float, float, f32_f32)
SUM(float, bf16, f32_bf16)
SUM(bf16, float, bf16_f32)
SUM(bf16, bf16, bf16_bf16)
