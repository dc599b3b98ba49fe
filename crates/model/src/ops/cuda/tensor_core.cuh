// The tensor cores' product of small matrices of bf16 with f32 sums, and how its factors come from shared memory.
//
// `mma` is PTX's m16n8k16: with `g = lane / 4` and `t = lane % 4`, a lane holds of `a: [16, 16]` the pairs of columns from
// `2t` on of the rows g and g + 8 (`a[0]`, `a[1]`) and from `2t + 8` on (`a[2]`, `a[3]`); of `b: [16, 8]` the pairs of rows
// from `2t` and `2t + 8` on of column g; of `c: [16, 8]` the columns 2t and 2t + 1 of row g, then of row g + 8. What one
// product leaves is thus, in pairs, what the next takes as `a`.
#pragma once
#include "common.cuh"

#ifdef KERNELS_ON_HOST

__device__ inline void mma(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    uint64_t low[32], high[32], right[32];
    memcpy(low, fibers::show(a[0] | uint64_t(a[1]) << 32), sizeof low);
    memcpy(high, fibers::show(a[2] | uint64_t(a[3]) << 32), sizeof high);
    memcpy(right, fibers::show(b[0] | uint64_t(b[1]) << 32), sizeof right);
    const int lane = shim::lane();
    auto half_of = [](uint64_t word, int at) { return widen(bf16{uint16_t(word >> (16 * at))}); };
    for (int i = 0; i < 4; i++) {
        const int row = lane / 4 + 8 * (i / 2), column = 2 * (lane % 4) + i % 2;
        for (int k = 0; k < 16; k++) {
            const int t = k % 8 / 2, odd = k % 2;
            const uint64_t *left = k < 8 ? low : high;
            c[i] += half_of(left[row % 8 * 4 + t], row / 8 * 2 + odd) * half_of(right[column * 4 + t], k / 8 * 2 + odd);
        }
    }
}

template <bool TRANSPOSED> __device__ inline void load_matrices(uint32_t (&to)[4], const bf16 *row) {
    const uint64_t *rows = fibers::show(reinterpret_cast<uint64_t>(row));
    const int lane = shim::lane();
    auto at = [&](int matrix, int i, int j) { return uint32_t(reinterpret_cast<const bf16 *>(rows[matrix * 8 + i])[j].bits); };
    for (int m = 0; m < 4; m++) {
        const int a = lane / 4, b = 2 * (lane % 4);
        to[m] = TRANSPOSED ? at(m, b, a) | at(m, b + 1, a) << 16 : at(m, a, b) | at(m, a, b + 1) << 16;
    }
}

__device__ inline uint32_t pair(float low, float high) {
    return uint32_t(narrow<bf16>(low).bits) | uint32_t(narrow<bf16>(high).bits) << 16;
}

#else

__device__ __forceinline__ void mma(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Four matrices of 8 x 8, transposed or not: lane i gives the address of row i % 8 of matrix i / 8 in shared memory, and
// gets of each matrix the elements 2t and 2t + 1 of row g (or, transposed, of column g).
template <bool TRANSPOSED> __device__ __forceinline__ void load_matrices(uint32_t (&to)[4], const bf16 *row) {
    const uint32_t address = uint32_t(__cvta_generic_to_shared(row));
    if (TRANSPOSED) {
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                     : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                     : "r"(address)
                     : "memory");
    } else {
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                     : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                     : "r"(address)
                     : "memory");
    }
}

__device__ __forceinline__ uint32_t pair(float low, float high) {
    const __nv_bfloat162 both = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<const uint32_t *>(&both);
}

#endif

// A tile of rows in shared memory. Rows are eight elements further apart than they are long, so that eight rows of a matrix
// lie in different banks.
template <int D> constexpr int ROW = D + 8;

// `a: [16, 16]` from rows `row..` and columns `column..` of a tile.
template <int D> __device__ __forceinline__ void load_a(uint32_t (&a)[4], const bf16 *tile, int row, int column) {
    const int lane = threadIdx.x % WARP;
    load_matrices<false>(a, tile + (row + lane % 16) * ROW<D> + column + lane / 16 * 8);
}

// Two `b: [16, 8]` side by side whose columns are the rows `row..row + 16` of a tile: for a product with its transpose.
template <int D> __device__ __forceinline__ void load_b_rows(uint32_t (&b)[2][2], const bf16 *tile, int row, int column) {
    const int lane = threadIdx.x % WARP;
    uint32_t four[4];
    load_matrices<false>(four, tile + (row + lane / 16 * 8 + lane % 8) * ROW<D> + column + lane / 8 % 2 * 8);
    b[0][0] = four[0], b[0][1] = four[1], b[1][0] = four[2], b[1][1] = four[3];
}

// Two `b: [16, 8]` side by side from rows `row..` and columns `column..column + 16` of a tile, as they stand.
template <int D> __device__ __forceinline__ void load_b(uint32_t (&b)[2][2], const bf16 *tile, int row, int column) {
    const int lane = threadIdx.x % WARP;
    uint32_t four[4];
    load_matrices<true>(four, tile + (row + lane % 16) * ROW<D> + column + lane / 16 * 8);
    b[0][0] = four[0], b[0][1] = four[1], b[1][0] = four[2], b[1][1] = four[3];
}

// Copies rows `first..first + ROWS`, those below `limit`, of a matrix of rows `stride` apart into a tile; zeros elsewhere.
// `dim` columns, a multiple of eight, of at most D.
template <int D, int ROWS>
__device__ __forceinline__ void load_tile(bf16 *tile, const bf16 *from, size_t stride, uint32_t first, uint32_t limit,
                                          uint32_t dim) {
    constexpr int PACKS = D / 8;
    for (int i = threadIdx.x; i < ROWS * PACKS; i += blockDim.x) {
        const uint32_t row = i / PACKS, column = i % PACKS * 8;
        uint4 value = make_uint4(0, 0, 0, 0);
        if (first + row < limit && column < dim) {
            value = *reinterpret_cast<const uint4 *>(from + size_t(first + row) * stride + column);
        }
        *reinterpret_cast<uint4 *>(tile + row * ROW<D> + column) = value;
    }
}
