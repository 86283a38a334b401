// One attention call as the kernels see it: places and strides of the tensors, which keys a query sees, and the bias.
//
// The query heads that share a key head are stacked: a "row" is (token, head within the group), token by token, so that
// keys and values are read once per group, whether a call has one token or thousands. Scores are kept in units of log 2.
#pragma once
#include <math.h>
#include <stddef.h>
#include <stdint.h>

enum Bias { BIAS_NONE = 0, BIAS_LINEAR = 1, BIAS_RELATIVE = 2, BIAS_DENSE = 3 };

// The same fields in the same order as `Call` in backends/cuda/call.rs.
struct Call {
    const void *q, *k, *v;
    void *out;                 // (b, tq, h, dv), contiguous, as the layer wants it
    const int64_t *rows;       // (b, 2): the slots that hold real tokens, or null
    const float *bias;         // slopes (h,), table (h, n) or a dense bias, by bias_kind
    float *partial_out;        // (splits, b * tq * h, dv), if there are several splits
    float *partial_stats;      // (splits, b * tq * h, 2): largest score and sum
    float *log_sums;           // (b, tq, h): log2 of each row's sum of weights, if gradients may follow, or null
    int64_t q_strides[3];      // batch, head, token; in elements, as everywhere
    int64_t k_strides[3];
    int64_t v_strides[3];
    int64_t bias_strides[4];   // batch, head, query, key of a dense bias; of a table [1] is n
    int64_t bias_first;        // the distance of a table's column 0
    int64_t q_start, k_start;  // slots of the first query and key
    int64_t window, chunk;     // 0: none
    int32_t b, h, h_kv, tq, tk, d, dv;
    int32_t bias_kind;
    int32_t causal;
    int32_t aligned;           // every row of q, k and v starts at a multiple of 16 bytes and is one long
    int32_t splits;
    float scale;
    float softcap;             // 0: none
};

// backends/cuda/call.rs asserts the same of its `Call`.
static_assert(sizeof(Call) == 272, "Call has another size in Rust");
static_assert(offsetof(Call, log_sums) == 64 && offsetof(Call, q_strides) == 72, "Call differs from Rust's");
static_assert(offsetof(Call, bias_strides) == 144 && offsetof(Call, bias_first) == 176, "Call differs from Rust's");
static_assert(offsetof(Call, chunk) == 208 && offsetof(Call, b) == 216, "Call differs from Rust's");
static_assert(offsetof(Call, bias_kind) == 244 && offsetof(Call, softcap) == 264, "Call differs from Rust's");

constexpr float LOG2E = 1.4426950408889634f;

__device__ __forceinline__ float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

struct Range {
    int start, end;
};

// Mask::visible, counted from the first key. Both ends grow with the token.
__device__ inline Range visible(const Call &c, int b, int token) {
    int64_t q = c.q_start + token;
    int64_t start = c.k_start, end = c.k_start + c.tk;
    if (c.causal) end = min(end, q + 1);
    if (c.window) {
        start = max(start, q + 1 - c.window);
        end = min(end, q + c.window);
    }
    int64_t first = 0;
    if (c.rows) {
        first = c.rows[2 * b];
        start = max(start, first);
        end = min(end, c.rows[2 * b + 1]);
    }
    if (c.chunk) {
        int64_t block = first + max(q - first, (int64_t)0) / c.chunk * c.chunk;
        start = max(start, block);
        end = min(end, block + c.chunk);
    }
    start = min(start - c.k_start, (int64_t)c.tk);
    end = max(end - c.k_start, start);
    return {(int)start, (int)end};
}

// The tiles of BN keys that a block of rows has to look at, and those among them that it sees whole.
struct Tiles {
    int first, end;
    int whole_start, whole_end;  // keys that every row of the block sees

    __device__ Tiles(const Call &c, int b, int first_token, int last_token, int bn) {
        Range a = visible(c, b, first_token), z = visible(c, b, last_token);
        whole_start = z.start;
        whole_end = a.end;
        first = a.start / bn;
        end = z.end > a.start ? (z.end + bn - 1) / bn : first;
        int share = (end - first + c.splits - 1) / c.splits;
        first = min(first + (int)blockIdx.z * share, end);
        end = min(first + share, end);
    }

    __device__ bool whole(int key, int bn) const { return key >= whole_start && key + bn <= whole_end; }
};

// What a thread knows of one of its rows.
struct Row {
    int start, end;     // the keys it sees
    int token, head;
    float place;        // of its query, counted from the first key
    float slope;
    const float *bias;  // indexed by the key

    // Rows past the last one are computed as the last and thrown away.
    __device__ void set(const Call &c, int b, int kv_head, int index) {
        int group = c.h / c.h_kv;
        index = min(index, c.tq * group - 1);
        token = index / group;
        head = kv_head * group + index % group;
        Range seen = visible(c, b, token);
        start = seen.start;
        end = seen.end;
        int64_t q = c.q_start + token - c.k_start;
        place = (float)q;
        slope = c.bias_kind == BIAS_LINEAR ? c.bias[head] * LOG2E : 0.0f;
        bias = c.bias;
        if (c.bias_kind == BIAS_RELATIVE) bias += head * c.bias_strides[1] - c.bias_first - q;
        if (c.bias_kind == BIAS_DENSE) {
            bias += b * c.bias_strides[0] + head * c.bias_strides[1] + token * c.bias_strides[2];
        }
    }

    // Its place in the output, in rows.
    __device__ int64_t flat(const Call &c, int b) const { return ((int64_t)b * c.tq + token) * c.h + head; }
};

// The bends of a softcap, whose scale is part of them. `each` calls its argument with every (row, score, key) of the
// thread.
template <class Each> __device__ __forceinline__ void cap_scores(const Call &c, Each each) {
    if (c.softcap > 0.0f) {
        float in = c.scale / c.softcap, out = c.softcap * LOG2E;
        each([=](const Row &, float &s, int) { s = out * tanhf(s * in); });
    }
}

// From products q k, through cap_scores, to scores: scale, bias, mask. Returns what the results still have to be
// multiplied by, a positive number.
template <class Each> __device__ __forceinline__ float finish_scores(const Call &c, bool whole, Each each) {
    float scale = c.softcap > 0.0f ? 1.0f : c.scale * LOG2E, rest = 1.0f;
    if (c.bias_kind == BIAS_NONE && scale > 0.0f) {
        rest = scale;
    } else if (scale != 1.0f) {
        each([=](const Row &, float &s, int) { s *= scale; });
    }
    if (c.bias_kind == BIAS_LINEAR) {
        each([](const Row &row, float &s, int key) { s = fmaf(row.slope, (float)key - row.place, s); });
    } else if (c.bias_kind == BIAS_RELATIVE) {
        int last = c.tk - 1;
        each([=](const Row &row, float &s, int key) { s = fmaf(row.bias[min(key, last)], LOG2E, s); });
    } else if (c.bias_kind == BIAS_DENSE) {
        int64_t last = c.tk - 1, stride = c.bias_strides[3];
        each([=](const Row &row, float &s, int key) {
            s = fmaf(row.bias[min((int64_t)key, last) * stride], LOG2E, s);
        });
    }
    if (!whole) {
        each([](const Row &row, float &s, int key) {
            if (key < row.start || key >= row.end) s = -INFINITY;
        });
    }
    return rest;
}

// The largest score so far, and the sum of the weights relative to it.
struct Softmax {
    float largest = -INFINITY, sum = 0.0f;

    // Takes the largest score of a tile; returns the factor for what was summed before it.
    __device__ __forceinline__ float raise(float score) {
        float old = largest;
        largest = fmaxf(old, score);
        float factor = exp2_fast(old - base());
        sum *= factor;
        return factor;
    }

    // What weights are relative to: finite, also while every key was hidden.
    __device__ __forceinline__ float base() const { return largest == -INFINITY ? 0.0f : largest; }

    // One over the sum; 0 for a query that saw no key.
    __device__ __forceinline__ float inverse() const { return sum > 0.0f ? 1.0f / sum : 0.0f; }

    // log2 of the sum; infinite for a query that saw no key, so that its weights are 0 when they are computed again.
    __device__ __forceinline__ float log_sum() const { return sum > 0.0f ? base() + log2f(sum) : INFINITY; }
};

// Adds up the splits of a call: one block of 32 x n threads per output row, n at most MOST_WARPS; a warp takes every n-th
// split.
template <class T> __device__ void combine_splits(const Call &c) {
    constexpr int WIDTH = 256, MOST_WARPS = 8;
    __shared__ float sums[MOST_WARPS][WIDTH], stats[MOST_WARPS];
    int64_t rows = (int64_t)c.b * c.h * c.tq, row = blockIdx.x;
    int lane = threadIdx.x, warp = threadIdx.y, warps = blockDim.y;
    Softmax all;
    for (int i = lane; i < c.splits; i += 32) {
        all.largest = fmaxf(all.largest, c.partial_stats[(i * rows + row) * 2]);
    }
    for (int lanes = 16; lanes; lanes /= 2) {
        all.largest = fmaxf(all.largest, __shfl_xor_sync(~0u, all.largest, lanes));
    }
    float out[WIDTH / 32] = {}, base = all.base();
#pragma unroll 4
    for (int i = warp; i < c.splits; i += warps) {
        const float *part = c.partial_stats + (i * rows + row) * 2;
        float weight = exp2_fast(part[0] - base);
        all.sum += part[1] * weight;
#pragma unroll
        for (int n = 0; n < WIDTH / 32; n++) {
            if (n * 32 + lane < c.dv) out[n] += weight * c.partial_out[(i * rows + row) * c.dv + n * 32 + lane];
        }
    }
#pragma unroll
    for (int n = 0; n < WIDTH / 32; n++) sums[warp][n * 32 + lane] = out[n];
    if (lane == 0) stats[warp] = all.sum;
    __syncthreads();
    all.sum = 0.0f;
    for (int i = 0; i < warps; i++) all.sum += stats[i];
    if (c.log_sums && lane == 0 && warp == 0) c.log_sums[row] = all.log_sum();
    for (int column = warp * 32 + lane; column < c.dv; column += 32 * warps) {
        float sum = 0.0f;
        for (int i = 0; i < warps; i++) sum += sums[i][column];
        ((T *)c.out)[row * c.dv + column] = (T)(sum * all.inverse());
    }
}

// Copies 16 bytes from device to shared memory, or zeros where there is nothing to read.
__device__ __forceinline__ void copy16(void *to, const void *from, bool valid) {
#if __CUDA_ARCH__ >= 800
    uint32_t place = (uint32_t)__cvta_generic_to_shared(to);
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(place), "l"(from), "r"(valid ? 16 : 0));
#else
    *(int4 *)to = valid ? *(const int4 *)from : make_int4(0, 0, 0, 0);
#endif
}

// Waits for every copy16 of the block.
__device__ __forceinline__ void copies_done() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_all;" ::: "memory");
#endif
    __syncthreads();
}

// Starts copying ROWS rows of COLUMNS numbers to shared memory, LD apart, zeros past column `d`; columns from `columns`
// on are left alone. `from(i)` is row i's place in device memory, or null for a row of zeros; `any` is a place that may be
// named without being read.
template <int ROWS, int COLUMNS, int LD, int THREADS, class T, class From>
__device__ __forceinline__ void load_rows(T *to, int d, int columns, bool aligned, const T *any, From from) {
    // 16 bytes a thread and step: a thread stays in its column.
    constexpr int WIDTH = 16 / sizeof(T), STEPS = COLUMNS / WIDTH, AT_ONCE = THREADS / STEPS;
    static_assert(THREADS % STEPS == 0 && ROWS % AT_ONCE == 0, "every thread copies as much");
    int column = threadIdx.x % STEPS * WIDTH, first = threadIdx.x / STEPS;
    if (column >= columns) return;
    to += first * LD + column;
    if (aligned) {
#pragma unroll 8
        for (int i = 0; i < ROWS; i += AT_ONCE) {
            const T *source = from(first + i);
            bool valid = source && column < d;
            copy16(to + i * LD, valid ? source + column : any, valid);
        }
    } else {
        for (int i = 0; i < ROWS; i += AT_ONCE) {
            const T *source = from(first + i);
#pragma unroll
            for (int j = 0; j < WIDTH; j++) to[i * LD + j] = source && column + j < d ? source[column + j] : (T)0.0f;
        }
    }
}
