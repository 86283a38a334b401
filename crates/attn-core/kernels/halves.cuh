// Attention of bf16 and f16 on tensor cores (mma.sync, from compute capability 8.0), after FlashAttention-2: a block owns
// BM rows, walks the keys BN at a time, and keeps scores, softmax and output in registers. While a tile's scores are
// computed its values arrive, and the next tile's keys while its values are used.
#pragma once
#include "call.cuh"
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#if __CUDA_ARCH__ >= 800

__device__ __forceinline__ void mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, __nv_bfloat16) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ void mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, __half) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ uint32_t pair(float low, float high, __nv_bfloat16) {
    __nv_bfloat162 x = __floats2bfloat162_rn(low, high);
    return *(uint32_t *)&x;
}

__device__ __forceinline__ uint32_t pair(float low, float high, __half) {
    __half2 x = __floats2half2_rn(low, high);
    return *(uint32_t *)&x;
}

// Four 8 x 8 matrices whose rows the lanes point to, eight lanes a matrix.
__device__ __forceinline__ void load_matrices(uint32_t (&r)[4], const void *row) {
    uint32_t place = (uint32_t)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(place));
}

__device__ __forceinline__ void load_transposed(uint32_t (&r)[4], const void *row) {
    uint32_t place = (uint32_t)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(place));
}

// s = a b^T, for a warp's 16 rows of `a` and the N rows of `b` in shared memory, over `d` of their D columns. A thread of
// the warp holds parts of rows lane / 4 and lane / 4 + 8, two neighbouring columns of every eight.
template <class T, int D, int LD, int N>
__device__ __forceinline__ void row_products(float (&s)[N / 8][4], const T *a, const T *b, int d) {
    int lane = threadIdx.x % 32;
#pragma unroll
    for (int n = 0; n < N / 8; n++) s[n][0] = s[n][1] = s[n][2] = s[n][3] = 0.0f;
#pragma unroll
    for (int step = 0; step < D / 16; step++) {
        if (step * 16 >= d) break;
        uint32_t left[4];
        load_matrices(left, a + lane % 16 * LD + step * 16 + lane / 16 * 8);
#pragma unroll
        for (int n = 0; n < N / 16; n++) {
            uint32_t right[4];
            load_matrices(right, b + (n * 16 + lane / 16 * 8 + lane % 8) * LD + step * 16 + lane / 8 % 2 * 8);
            mma(s[2 * n], left, right[0], right[1], T());
            mma(s[2 * n + 1], left, right[2], right[3], T());
        }
    }
}

// out += s b, for s as row_products leaves it and the N rows of `b`, of whose columns the first `d` count.
template <class T, int D, int LD, int N>
__device__ __forceinline__ void add_products(float (&out)[D / 8][4], const float (&s)[N / 8][4], const T *b, int d) {
    int lane = threadIdx.x % 32;
#pragma unroll
    for (int step = 0; step < N / 16; step++) {
        uint32_t left[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const float(&x)[4] = s[2 * step + i / 2];
            left[i] = pair(x[i % 2 * 2], x[i % 2 * 2 + 1], T());
        }
#pragma unroll
        for (int n = 0; n < D / 16; n++) {
            if (n * 16 >= d) break;
            uint32_t right[4];
            load_transposed(right, b + (step * 16 + lane % 16) * LD + n * 16 + lane / 16 * 8);
            mma(out[2 * n], left, right[0], right[1], T());
            mma(out[2 * n + 1], left, right[2], right[3], T());
        }
    }
}

// D: head dims up to it. A block has WARPS warps of 16 rows.
template <class T, int D, int WARPS, int BN> struct Halves {
    static constexpr int THREADS = WARPS * 32, BM = WARPS * 16;
    // A row and 16 bytes: the eight rows of a matrix then lie in different banks.
    static constexpr int LD = D + 8;

    const Call &c;
    T *q, *k, *v;
    int b, kv_head, first_row, lane, warp;
    Row rows[2];
    Softmax softmax[2];
    float out[D / 8][4];

    __device__ Halves(const Call &c, char *shared) : c(c) {
        q = (T *)shared;
        k = q + BM * LD;
        v = k + BN * LD;
        b = blockIdx.y / c.h_kv;
        kv_head = blockIdx.y % c.h_kv;
        // The last rows see most keys under a causal mask: they start first.
        first_row = (gridDim.x - 1 - blockIdx.x) * BM;
        lane = threadIdx.x % 32;
        warp = threadIdx.x / 32;
#pragma unroll
        for (int n = 0; n < D / 8; n++) out[n][0] = out[n][1] = out[n][2] = out[n][3] = 0.0f;
        for (int i = 0; i < 2; i++) rows[i].set(c, b, kv_head, first_row + warp * 16 + lane / 4 + 8 * i);
    }

    __device__ void load_queries() {
        const T *base = (const T *)c.q + b * c.q_strides[0];
        int group = c.h / c.h_kv, count = c.tq * group;
        load_rows<BM, D, LD, THREADS>(q, c.d, (c.d + 15) / 16 * 16, c.aligned, base, [&](int i) {
            int row = first_row + i;
            int64_t place = (kv_head * group + row % group) * c.q_strides[1] + row / group * c.q_strides[2];
            return row < count ? base + place : nullptr;
        });
    }

    __device__ void load_tile(T *to, const void *from, const int64_t *strides, int d, int key) {
        const T *base = (const T *)from + b * strides[0] + kv_head * strides[1];
        load_rows<BN, D, LD, THREADS>(to, d, (d + 15) / 16 * 16, c.aligned, base, [&](int i) {
            return key + i < c.tk ? base + (key + i) * strides[2] : nullptr;
        });
    }

    // Scores, times `scale`, become weights, and what was summed before is brought to their scale.
    __device__ __forceinline__ void weigh(float (&s)[BN / 8][4], float scale) {
#pragma unroll
        for (int i = 0; i < 2; i++) {
            float largest = -INFINITY;
#pragma unroll
            for (int n = 0; n < BN / 8; n++) largest = fmaxf(largest, fmaxf(s[n][2 * i], s[n][2 * i + 1]));
            largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, 1));
            largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, 2));
            float factor = softmax[i].raise(largest * scale), base = -softmax[i].base(), sum = 0.0f;
#pragma unroll
            for (int n = 0; n < BN / 8; n++)
#pragma unroll
                for (int j = 2 * i; j < 2 * i + 2; j++) {
                    s[n][j] = exp2_fast(fmaf(s[n][j], scale, base));
                    sum += s[n][j];
                }
            softmax[i].sum += sum;
#pragma unroll
            for (int n = 0; n < D / 8; n++) {
                out[n][2 * i] *= factor;
                out[n][2 * i + 1] *= factor;
            }
        }
    }

    __device__ void store() {
        int64_t all = (int64_t)c.b * c.h * c.tq;
        int count = c.tq * (c.h / c.h_kv);
#pragma unroll
        for (int i = 0; i < 2; i++) {
            softmax[i].sum += __shfl_xor_sync(~0u, softmax[i].sum, 1);
            softmax[i].sum += __shfl_xor_sync(~0u, softmax[i].sum, 2);
            if (first_row + warp * 16 + lane / 4 + 8 * i >= count) continue;
            int64_t row = rows[i].flat(c, b);
            float factor = c.splits > 1 ? 1.0f : softmax[i].inverse();
            if (c.splits > 1 && lane % 4 == 0) {
                float *stats = c.partial_stats + (blockIdx.z * all + row) * 2;
                stats[0] = softmax[i].largest;
                stats[1] = softmax[i].sum;
            } else if (c.log_sums && lane % 4 == 0) {
                c.log_sums[row] = softmax[i].log_sum();
            }
#pragma unroll
            for (int n = 0; n < D / 8; n++)
#pragma unroll
                for (int j = 0; j < 2; j++) {
                    int column = n * 8 + lane % 4 * 2 + j;
                    float x = out[n][2 * i + j] * factor;
                    if (column >= c.dv) continue;
                    if (c.splits > 1) {
                        c.partial_out[(blockIdx.z * all + row) * c.dv + column] = x;
                    } else {
                        ((T *)c.out)[row * c.dv + column] = (T)x;
                    }
                }
        }
    }

    __device__ void run() {
        int group = c.h / c.h_kv, last_row = min(first_row + BM, c.tq * group) - 1;
        Tiles tiles(c, b, first_row / group, last_row / group, BN);
        if (tiles.first < tiles.end) {
            load_queries();
            load_tile(k, c.k, c.k_strides, c.d, tiles.first * BN);
        }
        for (int tile = tiles.first; tile < tiles.end; tile++) {
            int key = tile * BN;
            copies_done();
            load_tile(v, c.v, c.v_strides, c.dv, key);
            float s[BN / 8][4];
            row_products<T, D, LD, BN>(s, q + warp * 16 * LD, k, c.d);
            copies_done();
            if (tile + 1 < tiles.end) load_tile(k, c.k, c.k_strides, c.d, key + BN);
            auto each = [&](auto f) {
#pragma unroll
                for (int n = 0; n < BN / 8; n++)
#pragma unroll
                    for (int j = 0; j < 4; j++) f(rows[j / 2], s[n][j], key + n * 8 + lane % 4 * 2 + j % 2);
            };
            cap_scores(c, each);
            float scale = finish_scores(c, tiles.whole(key, BN), each);
            weigh(s, scale);
            add_products<T, D, LD, BN>(out, s, v, c.dv);
        }
        store();
    }
};

#endif

template <class T, int D, int WARPS, int BN> __device__ void attend_halves(const Call &c) {
#if __CUDA_ARCH__ >= 800
    extern __shared__ __align__(16) char shared[];
    Halves<T, D, WARPS, BN>(c, shared).run();
#endif
}

// One file per dtype and head dim has these kernels: blocks of 64 rows, of 16 (decoding), and the sum of splits. BLOCKS:
// how many fit a multiprocessor at a time; it bounds the registers.
#define ENTRY_HALVES(T, D, BLOCKS) \
    extern "C" __global__ __launch_bounds__(128, BLOCKS) void attend_many(const __grid_constant__ Call c) { \
        attend_halves<T, D, 4, 64>(c); \
    } \
    extern "C" __global__ __launch_bounds__(32) void attend_few(const __grid_constant__ Call c) { \
        attend_halves<T, D, 1, 64>(c); \
    } \
    extern "C" __global__ void combine(const __grid_constant__ Call c) { combine_splits<T>(c); }
