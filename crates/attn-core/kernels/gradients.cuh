// Gradients of one attention call. Weights are computed again from the forward pass's log_sums, so nothing of size
// (tq, tk) exists. With p the weights and g the gradient of the output:
//
//     dv = p^T g    ds = p * (g v^T - delta)    dq = scale ds k    dk = scale ds^T q
//
// where delta is each row's product of output and g. One kernel owns rows and walks the keys for dq, another owns keys
// and walks the rows for dk and dv, which sums the heads of a group: no two blocks add to one number, so results are the
// same from run to run. Both are one walk with the sides exchanged.
#pragma once
#include "call.cuh"

// The same fields in the same order as `Gradients` in backends/cuda/backward.rs.
struct Gradients {
    Call call;               // its `out` is the forward pass's, its log_sums are set, its partial_* unused
    const void *grad;        // (b, h, tq, dv)
    float *deltas;           // (b, tq, h)
    void *dq, *dk, *dv;      // (b, tq, h, d), (b, tk, h_kv, d), (b, tk, h_kv, dv), contiguous
    float *partial;          // (splits, b * tk * h_kv, d + dv), if the rows of a key are split
    float *table;            // (row blocks, b * h, n): what each block of rows adds to a relative table, or null
    int64_t grad_strides[3]; // batch, head, token
};

// backends/cuda/backward.rs asserts the same of its `Gradients`.
static_assert(sizeof(Gradients) == 352 && offsetof(Gradients, grad_strides) == 328, "Gradients differs from Rust's");

// Each row's product of output and gradient; a warp per row.
template <class T> __device__ void row_deltas(const Gradients &g) {
    const Call &c = g.call;
    int64_t row = (int64_t)blockIdx.x * blockDim.y + threadIdx.y;
    if (row >= (int64_t)c.b * c.tq * c.h) return;
    int64_t head = row % c.h, token = row / c.h % c.tq, b = row / c.h / c.tq;
    const T *out = (const T *)c.out + row * c.dv;
    const T *grad = (const T *)g.grad + b * g.grad_strides[0] + head * g.grad_strides[1] + token * g.grad_strides[2];
    float sum = 0.0f;
    for (int column = threadIdx.x; column < c.dv; column += 32) sum += (float)out[column] * (float)grad[column];
    for (int lanes = 16; lanes; lanes /= 2) sum += __shfl_xor_sync(~0u, sum, lanes);
    if (threadIdx.x == 0) g.deltas[row] = sum;
}

// Adds up the splits of dk and dv; a thread per number of a split.
template <class T> __device__ void sum_partial(const Gradients &g) {
    const Call &c = g.call;
    int width = c.d + c.dv;
    int64_t count = (int64_t)c.b * c.tk * c.h_kv * width, i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= count) return;
    float sum = 0.0f;
    for (int split = 0; split < c.splits; split++) sum += g.partial[split * count + i];
    int64_t row = i / width, column = i % width;
    if (column < c.d) {
        ((T *)g.dk)[row * c.d + column] = (T)sum;
    } else {
        ((T *)g.dv)[row * c.dv + column - c.d] = (T)sum;
    }
}

// A row as a tile needs it.
struct SavedRow {
    Row row;
    float log_sum, delta;
};
static_assert(sizeof(SavedRow) == 40, "backward.rs counts on it");

// The first of `count` for which `there` holds; it holds for all after it.
template <class There> __device__ int first_where(int count, There there) {
    int low = 0;
    while (low < count) {
        int middle = (low + count) / 2;
        if (there(middle)) count = middle;
        else low = middle + 1;
    }
    return low;
}

// What a block owns and walks. OF_KEYS: it owns OWN keys and walks the rows of their heads, WALK at a time; else it owns
// OWN rows and walks the keys. Rows have queries and the output's gradients, keys have keys and values; either side of
// a product has both in shared memory, its rows LD apart. STAGES: tiles that are there or on their way.
template <class T, int D, int LD, int OWN, int WALK, int THREADS, int STAGES, bool OF_KEYS> struct Walk {
    static constexpr int ROWS = OF_KEYS ? WALK : OWN, KEYS = OF_KEYS ? OWN : WALK;
    // The products take so many columns at a time: past the last, zeros.
    static constexpr int COLUMNS = sizeof(T) == 4 ? 64 : 16;

    const Gradients &g;
    const Call &c;
    T *own[2], *walk[2];
    SavedRow *rows;
    int b, kv_head, first, group, count;
    int tile, end;

    __device__ Walk(const Gradients &g, char *shared) : g(g), c(g.call) {
        own[0] = (T *)shared;
        own[1] = own[0] + OWN * LD;
        walk[0] = own[1] + OWN * LD;
        walk[1] = walk[0] + STAGES * WALK * LD;
        rows = (SavedRow *)(walk[1] + STAGES * WALK * LD);
        b = blockIdx.y / c.h_kv;
        kv_head = blockIdx.y % c.h_kv;
        group = c.h / c.h_kv;
        count = c.tq * group;
        // Under a causal mask the first keys and the last rows are the most work: they start first.
        first = (OF_KEYS ? blockIdx.x : gridDim.x - 1 - blockIdx.x) * OWN;
        if (OF_KEYS) {
            int last = min(first + OWN, c.tk);
            int from = first_where(c.tq, [&](int token) { return visible(c, b, token).end > first; });
            int to = first_where(c.tq, [&](int token) { return visible(c, b, token).start >= last; });
            tile = from * group / WALK;
            end = to > from ? (to * group + WALK - 1) / WALK : tile;
            int share = (end - tile + c.splits - 1) / c.splits;
            tile = min(tile + (int)blockIdx.z * share, end);
            end = min(tile + share, end);
        } else {
            Tiles tiles(c, b, first / group, (min(first + OWN, count) - 1) / group, WALK);
            tile = tiles.first;
            end = tiles.end;
        }
    }

    // Memory after what the walk takes.
    __device__ float *rest() const { return (float *)(rows + STAGES * ROWS); }

    template <int N> __device__ void load_queries(T *q, T *grad, int from) {
        auto load = [&](T *to, const void *base, const int64_t *strides, int d) {
            const T *start = (const T *)base + b * strides[0];
            load_rows<N, D, LD, THREADS>(to, d, (d + COLUMNS - 1) / COLUMNS * COLUMNS, c.aligned, start, [&](int i) {
                int row = from + i;
                int64_t place = (kv_head * group + row % group) * strides[1] + row / group * strides[2];
                return row < count ? start + place : nullptr;
            });
        };
        load(q, c.q, c.q_strides, c.d);
        load(grad, g.grad, g.grad_strides, c.dv);
    }

    template <int N> __device__ void load_keys(T *k, T *v, int from) {
        auto load = [&](T *to, const void *base, const int64_t *strides, int d) {
            const T *start = (const T *)base + b * strides[0] + kv_head * strides[1];
            load_rows<N, D, LD, THREADS>(to, d, (d + COLUMNS - 1) / COLUMNS * COLUMNS, c.aligned, start, [&](int i) {
                return from + i < c.tk ? start + (from + i) * strides[2] : nullptr;
            });
        };
        load(k, c.k, c.k_strides, c.d);
        load(v, c.v, c.v_strides, c.dv);
    }

    __device__ void load_saved(SavedRow *to, int from) {
        for (int i = threadIdx.x; i < ROWS; i += THREADS) {
            to[i].row.set(c, b, kv_head, from + i);
            int64_t flat = to[i].row.flat(c, b);
            // A row past the last has no weights.
            to[i].log_sum = from + i < count ? c.log_sums[flat] : INFINITY;
            to[i].delta = g.deltas[flat];
        }
    }

    __device__ void load_own() {
        if (OF_KEYS) {
            load_keys<OWN>(own[0], own[1], first);
        } else {
            load_queries<OWN>(own[0], own[1], first);
            load_saved(rows, first);
        }
    }

    __device__ void load_walked(int tile) {
        int stage = tile % STAGES * WALK;
        if (OF_KEYS) {
            load_queries<WALK>(walk[0] + stage * LD, walk[1] + stage * LD, tile * WALK);
            load_saved(rows + stage, tile * WALK);
        } else {
            load_keys<WALK>(walk[0] + stage * LD, walk[1] + stage * LD, tile * WALK);
        }
    }

    // Calls `f` with the first row, among those of all stages, of every tile, when it has arrived; `tile` says which it is.
    template <class F> __device__ __forceinline__ void each_tile(F f) {
        if (tile < end) load_own();
        if (STAGES == 2 && tile < end) load_walked(tile);
        for (; tile < end; tile++) {
            if (STAGES == 1) {
                __syncthreads();
                load_walked(tile);
            }
            copies_done();
            if (STAGES == 2 && tile + 1 < end) load_walked(tile + 1);
            f(tile % STAGES * WALK);
        }
    }

    __device__ const SavedRow &row_of(int mine, int walked) const {
        return rows[OF_KEYS ? tile % STAGES * WALK + walked : mine];
    }

    // From products q k in `s` and g v in `dp` to weights and gradients of the scores. `each` calls its argument with
    // (owned, walked, s, dp) for all numbers of the thread. Without BOTH, only weights are computed.
    template <bool BOTH, class Each> __device__ __forceinline__ void weigh(Each each) {
        int key = OF_KEYS ? first : tile * WALK, row = OF_KEYS ? tile * WALK : first;
        bool whole = key + KEYS <= c.tk;
        if (whole) {
            int last = (min(row + ROWS, count) - 1) / group;
            whole = key >= visible(c, b, last).start && key + KEYS <= visible(c, b, row / group).end;
        }
        auto scores = [&](auto f) {
            each([&](int mine, int walked, float &s, float &) {
                f(row_of(mine, walked).row, s, key + (OF_KEYS ? mine : walked));
            });
        };
        if (BOTH) each([&](int mine, int walked, float &, float &dp) { dp -= row_of(mine, walked).delta; });
        cap_scores(c, scores);
        if (BOTH && c.softcap > 0.0f) {
            float in = 1.0f / (c.softcap * LOG2E);
            each([=](int, int, float &s, float &dp) { dp *= 1.0f - s * in * s * in; });
        }
        float scale = finish_scores(c, whole, scores);
        each([&](int mine, int walked, float &s, float &dp) {
            s = exp2_fast(fmaf(s, scale, -row_of(mine, walked).log_sum));
            if (BOTH) dp *= s;
        });
    }

    // Adds a tile's gradients of the scores, OWN rows of `ds` LD_DS apart, to what the block adds to a relative table.
    template <int LD_DS> __device__ void add_to_table(const float *ds) {
        int first_token = first / group, tokens = (min(first + OWN, count) - 1) / group - first_token + 1;
        int distances = tokens + WALK - 1;
        int64_t columns = c.bias_strides[1];
        float *to = g.table + (((int64_t)blockIdx.x * c.b + b) * c.h + kv_head * group) * columns;
        // The first key's distance from the last token.
        int64_t least = tile * WALK + c.k_start - (c.q_start + first_token + tokens - 1) - c.bias_first;
        for (int i = threadIdx.x; i < group * distances; i += THREADS) {
            int head = i / distances, distance = i % distances;
            float sum = 0.0f;
            for (int token = max(tokens - 1 - distance, 0); token < min(tokens + WALK - 1 - distance, tokens); token++) {
                int row = (first_token + token) * group + head - first;
                if (row >= 0 && row < OWN) sum += ds[row * LD_DS + distance - (tokens - 1) + token];
            }
            int64_t column = least + distance;
            if (column >= 0 && column < columns) to[head * columns + column] += sum;
        }
    }

    // Hands number `column` of owned row or key `i` to dq, or to dk and dv: `which` is 0 for what belongs to the first of
    // the owned tensors, 1 for the second.
    __device__ __forceinline__ void store(int i, int which, int column, float x) {
        int width = which ? c.dv : c.d;
        if (which == 0) x *= c.scale;
        if (column >= width || first + i >= (OF_KEYS ? c.tk : count)) return;
        if (!OF_KEYS) {
            int64_t token = (first + i) / group, head = kv_head * group + (first + i) % group;
            ((T *)g.dq)[(((int64_t)b * c.tq + token) * c.h + head) * c.d + column] = (T)x;
            return;
        }
        int64_t key = ((int64_t)b * c.tk + first + i) * c.h_kv + kv_head;
        if (g.partial) {
            int64_t keys = (int64_t)c.b * c.tk * c.h_kv;
            g.partial[(blockIdx.z * keys + key) * (c.d + c.dv) + which * c.d + column] = x;
        } else {
            ((T *)(which ? g.dv : g.dk))[key * width + column] = (T)x;
        }
    }
};

// The kernels beside the walks, of every file of gradients.
#define ENTRY_SUMS(T) \
    extern "C" __global__ void deltas(const __grid_constant__ Gradients g) { row_deltas<T>(g); } \
    extern "C" __global__ void sum(const __grid_constant__ Gradients g) { sum_partial<T>(g); }
