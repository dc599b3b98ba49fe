// Attention of new positions over a cache of blocks, and writing to it.
//
// keys, values: [blocks * BLOCK, kv_heads, HEAD_DIM], one layer's. Position `p` of a sequence lies in row
// `table[p / BLOCK] * BLOCK + p % BLOCK`, its slot. tables: [sequences, width].

// Positions of a block.
#define BLOCK 16u

// Query heads that one key-value head may serve.
#define MOST_SERVED 16u

// Columns that a lane owns.
#define OWN_COLUMNS ((HEAD_DIM + 31) / 32)

// One float between rows, so that lanes that read down a column meet different banks.
#define TILE_STRIDE (HEAD_DIM + 1)

// 32 positions of one key-value head into a tile, zero from `length` on.
inline void load_positions(
    threadgroup float* tile,
    device const scalar* cache,
    device const uint* table,
    uint first,
    uint length,
    uint stride,
    uint column,
    uint thread_index,
    uint threads
) {
    for (uint i = thread_index; i < LANES * HEAD_DIM; i += threads) {
        const uint position = first + i / HEAD_DIM;
        const uint d = i % HEAD_DIM;
        float value = 0.0f;
        if (position < length) {
            const ulong slot = ulong(table[position / BLOCK]) * ulong(BLOCK) + ulong(position % BLOCK);
            value = float(cache[slot * ulong(stride) + ulong(column + d)]);
        }
        tile[i / HEAD_DIM * TILE_STRIDE + d] = value;
    }
}

// One group a token and key-value head, one SIMD-group a query head that it serves: a lane scores one position of 32, then
// sums its columns of their values. q, out: [tokens, heads, HEAD_DIM]; a token sees positions up to its own.
kernel void decode_attention(
    device const scalar* q [[buffer(0)]],
    device const scalar* keys [[buffer(1)]],
    device const scalar* values [[buffer(2)]],
    device const uint* tables [[buffer(3)]],
    device const uint* owners [[buffer(4)]],
    device const uint* positions [[buffer(5)]],
    device scalar* out [[buffer(6)]],
    constant uint& width [[buffer(7)]],
    constant uint& kv_heads [[buffer(8)]],
    constant float& scale [[buffer(9)]],
    uint3 group [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]],
    uint simd_index [[simdgroup_index_in_threadgroup]],
    uint simd_count [[simdgroups_per_threadgroup]]
) {
    threadgroup float queries[MOST_SERVED * HEAD_DIM];
    threadgroup float tile[LANES * TILE_STRIDE];
    threadgroup float all_weights[MOST_SERVED * LANES];
    const uint threads = simd_count * LANES;
    const uint token = group.x;
    const uint kv_head = group.y;
    const uint length = positions[token] + 1u;
    const uint stride = kv_heads * HEAD_DIM;
    device const uint* table = tables + ulong(owners[token]) * ulong(width);
    const ulong start = (ulong(token) * ulong(kv_heads) + ulong(kv_head)) * ulong(simd_count * HEAD_DIM);
    for (uint i = thread_index; i < simd_count * HEAD_DIM; i += threads) {
        queries[i] = float(q[start + i]) * scale;
    }
    threadgroup const float* query = queries + simd_index * HEAD_DIM;
    threadgroup float* weights = all_weights + simd_index * LANES;
    float highest = LOWEST;
    float sum = 0.0f;
    float mixed[OWN_COLUMNS];
    for (uint c = 0; c < OWN_COLUMNS; ++c) {
        mixed[c] = 0.0f;
    }
    for (uint first = 0; first < length; first += LANES) {
        threadgroup_barrier(mem_flags::mem_threadgroup);
        load_positions(tile, keys, table, first, length, stride, kv_head * HEAD_DIM, thread_index, threads);
        threadgroup_barrier(mem_flags::mem_threadgroup);
        float score = 0.0f;
        for (uint d = 0; d < HEAD_DIM; ++d) {
            score += query[d] * tile[lane * TILE_STRIDE + d];
        }
        const bool seen = first + lane < length;
        const float best = max(highest, simd_max(seen ? score : LOWEST));
        const float weight = seen ? exp(score - best) : 0.0f;
        const float shrink = exp(highest - best);
        sum = sum * shrink + simd_sum(weight);
        highest = best;
        weights[lane] = weight;
        threadgroup_barrier(mem_flags::mem_threadgroup);
        load_positions(tile, values, table, first, length, stride, kv_head * HEAD_DIM, thread_index, threads);
        threadgroup_barrier(mem_flags::mem_threadgroup);
        for (uint c = 0; c < OWN_COLUMNS; ++c) {
            const uint column = c * LANES + lane;
            if (column < HEAD_DIM) {
                float total = mixed[c] * shrink;
                for (uint j = 0; j < LANES; ++j) {
                    total += weights[j] * tile[j * TILE_STRIDE + column];
                }
                mixed[c] = total;
            }
        }
    }
    for (uint c = 0; c < OWN_COLUMNS; ++c) {
        const uint column = c * LANES + lane;
        if (column < HEAD_DIM) {
            out[start + simd_index * HEAD_DIM + column] = scalar(mixed[c] / sum);
        }
    }
}

// One thread a pair of columns of `new_keys, new_values: [tokens, stride]`: a row goes to its slot of the cache, the keys
// rotated on their way. cosines, sines: [positions, half].
kernel void rotate_into_cache(
    device const scalar* new_keys [[buffer(0)]],
    device const scalar* new_values [[buffer(1)]],
    device const uint* slots [[buffer(2)]],
    device scalar* keys [[buffer(3)]],
    device scalar* values [[buffer(4)]],
    constant uint& stride [[buffer(5)]],
    constant uint& pairs [[buffer(6)]],
    device const uint* positions [[buffer(7)]],
    device const float* cosines [[buffer(8)]],
    device const float* sines [[buffer(9)]],
    uint group [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint simd_count [[simdgroups_per_threadgroup]]
) {
    const uint pair = group * simd_count * LANES + thread_index;
    if (pair >= pairs) {
        return;
    }
    const uint half_dim = HEAD_DIM / 2;
    const uint head = pair / half_dim;
    const uint i = pair % half_dim;
    const uint token = head * HEAD_DIM / stride;
    const ulong angle = ulong(positions[token]) * ulong(half_dim) + ulong(i);
    const float c = cosines[angle];
    const float s = sines[angle];
    const ulong from = ulong(head) * ulong(HEAD_DIM) + ulong(i);
    const ulong to = ulong(slots[token]) * ulong(stride) + from - ulong(token) * ulong(stride);
    const float a = float(new_keys[from]);
    const float b = float(new_keys[from + half_dim]);
    keys[to] = scalar(a * c - b * s);
    keys[to + half_dim] = scalar(b * c + a * s);
    values[to] = new_values[from];
    values[to + half_dim] = new_values[from + half_dim];
}
