// Causal grouped-query attention over packed sequences, `softmax(q k^T scale) v` within each sequence, and its backward
// (Dao et al. 2022, arXiv 2205.14135). Nothing is as large as time squared: scores live a tile at a time.
//
// In all three tiled kernels a SIMD-group owns eight rows (queries, or keys in the gradient of keys and values) and goes
// through the other side tile by tile; products are of 8 x 8 matrices. A lane works on row `lane / 4` of its SIMD-group's
// scores, on every fourth column from `lane % 4` on, so that four neighbours hold a row's maximum and sum.
//
// q, out: [tokens, heads, HEAD_DIM]; k, v: [tokens, kv_heads, HEAD_DIM]; lse, delta: [heads, tokens], f32.
// blocks: [n, 3], the first row of a block, and the first row and the end of its sequence.
// HEAD_DIM is a multiple of 8 and at most 128: tiles then fit into 32 KiB.

#define MATRICES (HEAD_DIM / 8)

// Rows of the other side in a tile, and SIMD-groups, forward.
#define KEYS 16u
#define SIMDS 4u

// The same backward, where twice as much lies in a tile.
#if HEAD_DIM > 64
#define BACK_TILE 8u
#define BACK_SIMDS 2u
#else
#define BACK_TILE 16u
#define BACK_SIMDS 4u
#endif

// Rows `first ..` of one head into a tile; zero from `last` on.
inline void load_tile(
    threadgroup float* tile,
    device const scalar* from,
    uint first,
    uint last,
    uint rows,
    uint stride,
    uint column,
    uint thread_index,
    uint threads
) {
    for (uint i = thread_index; i < rows * HEAD_DIM; i += threads) {
        const uint row = first + i / HEAD_DIM;
        const ulong at = ulong(row) * ulong(stride) + ulong(column + i % HEAD_DIM);
        tile[i] = row < last ? float(from[at]) : 0.0f;
    }
}

// Eight rows of a tile back to one head of the rows `first ..` before `last`.
inline void store_rows(
    threadgroup const float* tile, device scalar* to, uint first, uint last, uint stride, uint column, uint lane
) {
    for (uint i = lane; i < 8u * HEAD_DIM; i += LANES) {
        const uint row = first + i / HEAD_DIM;
        if (row < last) {
            to[ulong(row) * ulong(stride) + ulong(column + i % HEAD_DIM)] = scalar(tile[i]);
        }
    }
}

// `a b^T` of eight rows of each, into an 8 x 8 part of scores.
inline void product_of_rows(
    threadgroup const float* a, threadgroup const float* b, threadgroup float* to, uint stride
) {
    simdgroup_float8x8 sum = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
    UNROLL
    for (uint d = 0; d < MATRICES; ++d) {
        simdgroup_float8x8 left;
        simdgroup_float8x8 right;
        simdgroup_load(left, a + 8u * d, HEAD_DIM);
        simdgroup_load(right, b + 8u * d, HEAD_DIM, ulong2(0, 0), true);
        simdgroup_multiply_accumulate(sum, left, right, sum);
    }
    simdgroup_store(sum, to, stride);
}

// out, and lse: the logarithm of each query's sum of exponentials. One group a block of queries and head.
kernel void attention(
    device const scalar* q [[buffer(0)]],
    device const scalar* k [[buffer(1)]],
    device const scalar* v [[buffer(2)]],
    device scalar* out [[buffer(3)]],
    device float* lse [[buffer(4)]],
    device const uint* blocks [[buffer(5)]],
    constant uint& tokens [[buffer(6)]],
    constant uint& heads [[buffer(7)]],
    constant uint& kv_heads [[buffer(8)]],
    constant float& scale [[buffer(9)]],
    uint3 group [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]],
    uint simd_index [[simdgroup_index_in_threadgroup]]
) {
    threadgroup float queries[SIMDS * 8u * HEAD_DIM];
    threadgroup float tile[KEYS * HEAD_DIM];
    threadgroup float all_scores[SIMDS * 8u * KEYS];
    threadgroup float all_diagonals[SIMDS * 64u];
    const uint head = group.y;
    const uint column = head / (heads / kv_heads) * HEAD_DIM;
    const uint kv_stride = kv_heads * HEAD_DIM;
    const uint first = blocks[3u * group.x];
    const uint start = blocks[3u * group.x + 1u];
    const uint end = blocks[3u * group.x + 2u];
    const uint last = min(end, first + SIMDS * 8u);
    load_tile(queries, q, first, last, SIMDS * 8u, heads * HEAD_DIM, head * HEAD_DIM, thread_index, SIMDS * LANES);

    threadgroup float* own_queries = queries + simd_index * 8u * HEAD_DIM;
    threadgroup float* scores = all_scores + simd_index * 8u * KEYS;
    threadgroup float* diagonal = all_diagonals + simd_index * 64u;
    const uint own_first = first + simd_index * 8u;
    const uint row = lane / 4u;
    const uint part = lane % 4u;
    const uint query = own_first + row;
    float highest = LOWEST;
    float sum = 0.0f;
    simdgroup_float8x8 mixed[MATRICES];
    UNROLL
    for (uint d = 0; d < MATRICES; ++d) {
        mixed[d] = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
    }

    for (uint key = start; key < last; key += KEYS) {
        // The same in all lanes of a SIMD-group.
        const bool sees = key <= own_first + 7u;
        threadgroup_barrier(mem_flags::mem_threadgroup);
        load_tile(tile, k, key, last, KEYS, kv_stride, column, thread_index, SIMDS * LANES);
        threadgroup_barrier(mem_flags::mem_threadgroup);
        if (sees) {
            for (uint block = 0; block < KEYS; block += 8u) {
                product_of_rows(own_queries, tile + block * HEAD_DIM, scores + block, KEYS);
            }
            simdgroup_barrier(mem_flags::mem_threadgroup);
            float best = highest;
            for (uint j = part; j < KEYS; j += 4u) {
                if (key + j <= query && key + j < last) {
                    best = max(best, scores[row * KEYS + j] * scale);
                }
            }
            best = max(best, simd_shuffle_xor(best, ushort(1)));
            best = max(best, simd_shuffle_xor(best, ushort(2)));
            float added = 0.0f;
            for (uint j = part; j < KEYS; j += 4u) {
                const bool seen = key + j <= query && key + j < last;
                const float weight = seen ? exp(scores[row * KEYS + j] * scale - best) : 0.0f;
                scores[row * KEYS + j] = weight;
                added += weight;
            }
            added += simd_shuffle_xor(added, ushort(1));
            added += simd_shuffle_xor(added, ushort(2));
            const float shrink = exp(highest - best);
            sum = sum * shrink + added;
            highest = best;
            // What was summed so far is relative to the old maximum: rows times their factor, as a product.
            diagonal[row * 8u + 2u * part] = row == 2u * part ? shrink : 0.0f;
            diagonal[row * 8u + 2u * part + 1u] = row == 2u * part + 1u ? shrink : 0.0f;
            simdgroup_barrier(mem_flags::mem_threadgroup);
            if (simd_min(shrink) < 1.0f) {
                simdgroup_float8x8 factors;
                simdgroup_load(factors, diagonal, 8);
                UNROLL
                for (uint d = 0; d < MATRICES; ++d) {
                    simdgroup_float8x8 shrunk;
                    simdgroup_multiply(shrunk, factors, mixed[d]);
                    mixed[d] = shrunk;
                }
            }
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
        load_tile(tile, v, key, last, KEYS, kv_stride, column, thread_index, SIMDS * LANES);
        threadgroup_barrier(mem_flags::mem_threadgroup);
        if (sees) {
            for (uint block = 0; block < KEYS; block += 8u) {
                simdgroup_float8x8 weights;
                simdgroup_load(weights, scores + block, KEYS);
                UNROLL
                for (uint d = 0; d < MATRICES; ++d) {
                    simdgroup_float8x8 values;
                    simdgroup_load(values, tile + block * HEAD_DIM + 8u * d, HEAD_DIM);
                    simdgroup_multiply_accumulate(mixed[d], weights, values, mixed[d]);
                }
            }
        }
    }

    // Rows beyond the sequence have seen nothing and are not written.
    const float inverse = sum > 0.0f ? 1.0f / sum : 0.0f;
    simdgroup_barrier(mem_flags::mem_threadgroup);
    diagonal[row * 8u + 2u * part] = row == 2u * part ? inverse : 0.0f;
    diagonal[row * 8u + 2u * part + 1u] = row == 2u * part + 1u ? inverse : 0.0f;
    simdgroup_barrier(mem_flags::mem_threadgroup);
    simdgroup_float8x8 factors;
    simdgroup_load(factors, diagonal, 8);
    UNROLL
    for (uint d = 0; d < MATRICES; ++d) {
        simdgroup_float8x8 divided;
        simdgroup_multiply(divided, factors, mixed[d]);
        simdgroup_store(divided, own_queries + 8u * d, HEAD_DIM);
    }
    simdgroup_barrier(mem_flags::mem_threadgroup);
    store_rows(own_queries, out, own_first, last, heads * HEAD_DIM, head * HEAD_DIM, lane);
    if (part == 0 && query < last) {
        lse[ulong(head) * ulong(tokens) + ulong(query)] = highest + log(sum);
    }
}

// delta: the product of each query's output and its gradient. One SIMD-group a token and head.
kernel void attention_delta(
    device const scalar* out [[buffer(0)]],
    device const scalar* g [[buffer(1)]],
    device float* delta [[buffer(2)]],
    constant uint& tokens [[buffer(3)]],
    constant uint& heads [[buffer(4)]],
    uint group [[threadgroup_position_in_grid]],
    uint lane [[thread_index_in_simdgroup]],
    uint simd_index [[simdgroup_index_in_threadgroup]],
    uint simd_count [[simdgroups_per_threadgroup]]
) {
    const uint index = group * simd_count + simd_index;
    // The same in all lanes of a SIMD-group.
    if (index >= tokens * heads) {
        return;
    }
    const ulong start = ulong(index) * ulong(HEAD_DIM);
    float sum = 0.0f;
    for (uint d = lane; d < HEAD_DIM; d += LANES) {
        sum += float(out[start + d]) * float(g[start + d]);
    }
    const float total = simd_sum(sum);
    if (lane == 0) {
        delta[ulong(index % heads) * ulong(tokens) + ulong(index / heads)] = total;
    }
}

// `dq = dS k`, `dS = P (g v^T - delta) scale`. One group a block of queries and head.
kernel void attention_backward_queries(
    device const scalar* q [[buffer(0)]],
    device const scalar* k [[buffer(1)]],
    device const scalar* v [[buffer(2)]],
    device const scalar* g [[buffer(3)]],
    device const float* lse [[buffer(4)]],
    device const float* delta [[buffer(5)]],
    device scalar* dq [[buffer(6)]],
    device const uint* blocks [[buffer(7)]],
    constant uint& tokens [[buffer(8)]],
    constant uint& heads [[buffer(9)]],
    constant uint& kv_heads [[buffer(10)]],
    constant float& scale [[buffer(11)]],
    uint3 group [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]],
    uint simd_index [[simdgroup_index_in_threadgroup]]
) {
    threadgroup float queries[BACK_SIMDS * 8u * HEAD_DIM];
    threadgroup float outward[BACK_SIMDS * 8u * HEAD_DIM];
    threadgroup float keys[BACK_TILE * HEAD_DIM];
    threadgroup float values[BACK_TILE * HEAD_DIM];
    threadgroup float all_scores[BACK_SIMDS * 8u * BACK_TILE];
    threadgroup float all_slopes[BACK_SIMDS * 8u * BACK_TILE];
    const uint threads = BACK_SIMDS * LANES;
    const uint head = group.y;
    const uint column = head / (heads / kv_heads) * HEAD_DIM;
    const uint stride = heads * HEAD_DIM;
    const uint kv_stride = kv_heads * HEAD_DIM;
    const uint first = blocks[3u * group.x];
    const uint start = blocks[3u * group.x + 1u];
    const uint end = blocks[3u * group.x + 2u];
    const uint last = min(end, first + BACK_SIMDS * 8u);
    load_tile(queries, q, first, last, BACK_SIMDS * 8u, stride, head * HEAD_DIM, thread_index, threads);
    load_tile(outward, g, first, last, BACK_SIMDS * 8u, stride, head * HEAD_DIM, thread_index, threads);

    threadgroup float* own_queries = queries + simd_index * 8u * HEAD_DIM;
    threadgroup float* own_outward = outward + simd_index * 8u * HEAD_DIM;
    threadgroup float* scores = all_scores + simd_index * 8u * BACK_TILE;
    threadgroup float* slopes = all_slopes + simd_index * 8u * BACK_TILE;
    const uint own_first = first + simd_index * 8u;
    const uint row = lane / 4u;
    const uint part = lane % 4u;
    const uint query = own_first + row;
    const ulong at = ulong(head) * ulong(tokens) + ulong(query);
    const float own_lse = query < last ? lse[at] : 0.0f;
    const float own_delta = query < last ? delta[at] : 0.0f;
    simdgroup_float8x8 sums[MATRICES];
    UNROLL
    for (uint d = 0; d < MATRICES; ++d) {
        sums[d] = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
    }

    for (uint key = start; key < last; key += BACK_TILE) {
        threadgroup_barrier(mem_flags::mem_threadgroup);
        load_tile(keys, k, key, last, BACK_TILE, kv_stride, column, thread_index, threads);
        load_tile(values, v, key, last, BACK_TILE, kv_stride, column, thread_index, threads);
        threadgroup_barrier(mem_flags::mem_threadgroup);
        if (key <= own_first + 7u) {
            for (uint block = 0; block < BACK_TILE; block += 8u) {
                product_of_rows(own_queries, keys + block * HEAD_DIM, scores + block, BACK_TILE);
                product_of_rows(own_outward, values + block * HEAD_DIM, slopes + block, BACK_TILE);
            }
            simdgroup_barrier(mem_flags::mem_threadgroup);
            for (uint j = part; j < BACK_TILE; j += 4u) {
                const uint i = row * BACK_TILE + j;
                const bool seen = key + j <= query && query < last;
                const float weight = seen ? exp(scores[i] * scale - own_lse) : 0.0f;
                slopes[i] = weight * (slopes[i] - own_delta) * scale;
            }
            simdgroup_barrier(mem_flags::mem_threadgroup);
            for (uint block = 0; block < BACK_TILE; block += 8u) {
                simdgroup_float8x8 slope;
                simdgroup_load(slope, slopes + block, BACK_TILE);
                UNROLL
                for (uint d = 0; d < MATRICES; ++d) {
                    simdgroup_float8x8 rows;
                    simdgroup_load(rows, keys + block * HEAD_DIM + 8u * d, HEAD_DIM);
                    simdgroup_multiply_accumulate(sums[d], slope, rows, sums[d]);
                }
            }
        }
    }

    UNROLL
    for (uint d = 0; d < MATRICES; ++d) {
        simdgroup_store(sums[d], own_queries + 8u * d, HEAD_DIM);
    }
    simdgroup_barrier(mem_flags::mem_threadgroup);
    store_rows(own_queries, dq, own_first, last, stride, head * HEAD_DIM, lane);
}

// `dv = P^T g`, `dk = dS^T q`, summed over the query heads that a key serves, in their order. One group a block of keys and
// key-value head; scores are transposed, a row is a key.
kernel void attention_backward_keys(
    device const scalar* q [[buffer(0)]],
    device const scalar* k [[buffer(1)]],
    device const scalar* v [[buffer(2)]],
    device const scalar* g [[buffer(3)]],
    device const float* lse [[buffer(4)]],
    device const float* delta [[buffer(5)]],
    device scalar* dk [[buffer(6)]],
    device scalar* dv [[buffer(7)]],
    device const uint* blocks [[buffer(8)]],
    constant uint& tokens [[buffer(9)]],
    constant uint& heads [[buffer(10)]],
    constant uint& kv_heads [[buffer(11)]],
    constant float& scale [[buffer(12)]],
    uint3 group [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]],
    uint simd_index [[simdgroup_index_in_threadgroup]]
) {
    threadgroup float keys[BACK_SIMDS * 8u * HEAD_DIM];
    threadgroup float values[BACK_SIMDS * 8u * HEAD_DIM];
    threadgroup float queries[BACK_TILE * HEAD_DIM];
    threadgroup float outward[BACK_TILE * HEAD_DIM];
    threadgroup float all_scores[BACK_SIMDS * 8u * BACK_TILE];
    threadgroup float all_slopes[BACK_SIMDS * 8u * BACK_TILE];
    const uint threads = BACK_SIMDS * LANES;
    const uint served = heads / kv_heads;
    const uint column = group.y * HEAD_DIM;
    const uint stride = heads * HEAD_DIM;
    const uint kv_stride = kv_heads * HEAD_DIM;
    const uint first = blocks[3u * group.x];
    const uint end = blocks[3u * group.x + 2u];
    load_tile(keys, k, first, end, BACK_SIMDS * 8u, kv_stride, column, thread_index, threads);
    load_tile(values, v, first, end, BACK_SIMDS * 8u, kv_stride, column, thread_index, threads);

    threadgroup float* own_keys = keys + simd_index * 8u * HEAD_DIM;
    threadgroup float* own_values = values + simd_index * 8u * HEAD_DIM;
    threadgroup float* scores = all_scores + simd_index * 8u * BACK_TILE;
    threadgroup float* slopes = all_slopes + simd_index * 8u * BACK_TILE;
    const uint own_first = first + simd_index * 8u;
    const uint row = lane / 4u;
    const uint part = lane % 4u;
    const uint key = own_first + row;
    simdgroup_float8x8 key_sums[MATRICES];
    simdgroup_float8x8 value_sums[MATRICES];
    UNROLL
    for (uint d = 0; d < MATRICES; ++d) {
        key_sums[d] = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
        value_sums[d] = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
    }

    for (uint head = group.y * served; head < (group.y + 1u) * served; ++head) {
        const ulong by_head = ulong(head) * ulong(tokens);
        for (uint query = first; query < end; query += BACK_TILE) {
            threadgroup_barrier(mem_flags::mem_threadgroup);
            load_tile(queries, q, query, end, BACK_TILE, stride, head * HEAD_DIM, thread_index, threads);
            load_tile(outward, g, query, end, BACK_TILE, stride, head * HEAD_DIM, thread_index, threads);
            threadgroup_barrier(mem_flags::mem_threadgroup);
            if (query + BACK_TILE > own_first) {
                for (uint block = 0; block < BACK_TILE; block += 8u) {
                    product_of_rows(own_keys, queries + block * HEAD_DIM, scores + block, BACK_TILE);
                    product_of_rows(own_values, outward + block * HEAD_DIM, slopes + block, BACK_TILE);
                }
                simdgroup_barrier(mem_flags::mem_threadgroup);
                for (uint j = part; j < BACK_TILE; j += 4u) {
                    const uint i = row * BACK_TILE + j;
                    const bool seen = key <= query + j && query + j < end;
                    const float weight = seen ? exp(scores[i] * scale - lse[by_head + query + j]) : 0.0f;
                    const float less = seen ? delta[by_head + query + j] : 0.0f;
                    scores[i] = weight;
                    slopes[i] = weight * (slopes[i] - less) * scale;
                }
                simdgroup_barrier(mem_flags::mem_threadgroup);
                for (uint block = 0; block < BACK_TILE; block += 8u) {
                    simdgroup_float8x8 weight;
                    simdgroup_float8x8 slope;
                    simdgroup_load(weight, scores + block, BACK_TILE);
                    simdgroup_load(slope, slopes + block, BACK_TILE);
                    UNROLL
                    for (uint d = 0; d < MATRICES; ++d) {
                        simdgroup_float8x8 rows;
                        simdgroup_load(rows, outward + block * HEAD_DIM + 8u * d, HEAD_DIM);
                        simdgroup_multiply_accumulate(value_sums[d], weight, rows, value_sums[d]);
                        simdgroup_load(rows, queries + block * HEAD_DIM + 8u * d, HEAD_DIM);
                        simdgroup_multiply_accumulate(key_sums[d], slope, rows, key_sums[d]);
                    }
                }
            }
        }
    }

    UNROLL
    for (uint d = 0; d < MATRICES; ++d) {
        simdgroup_store(key_sums[d], own_keys + 8u * d, HEAD_DIM);
        simdgroup_store(value_sums[d], own_values + 8u * d, HEAD_DIM);
    }
    simdgroup_barrier(mem_flags::mem_threadgroup);
    store_rows(own_keys, dk, own_first, end, kv_stride, column, lane);
    store_rows(own_values, dv, own_first, end, kv_stride, column, lane);
}
