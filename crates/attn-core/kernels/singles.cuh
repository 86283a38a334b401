// Attention of f32 with f32 multiply-adds: tensor cores would round the inputs. The same walk over the keys as in
// halves.cuh, with 4 x 4 scores and 4 rows of the output per thread; keys and values take turns in one tile.
#pragma once
#include "call.cuh"

// D: head dims up to it, a multiple of 64. TY times 4 rows.
template <int D, int TY> struct Singles {
    static constexpr int THREADS = TY * 16, BM = TY * 4, BN = 64;
    // A row and 16 bytes: eight rows read side by side then lie in different banks.
    static constexpr int LD = D + 4, LD_WEIGHTS = BN + 4;

    const Call &c;
    float *q, *tile, *weights;
    int b, kv_head, first_row, x, y;
    Row rows[4];
    Softmax softmax[4];
    float out[4][D / 64][4];

    __device__ Singles(const Call &c, char *shared) : c(c) {
        q = (float *)shared;
        tile = q + BM * LD;
        weights = tile + BN * LD;
        b = blockIdx.y / c.h_kv;
        kv_head = blockIdx.y % c.h_kv;
        first_row = (gridDim.x - 1 - blockIdx.x) * BM;
        x = threadIdx.x % 16;
        y = threadIdx.x / 16;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            rows[i].set(c, b, kv_head, first_row + y * 4 + i);
#pragma unroll
            for (int n = 0; n < D / 64; n++) out[i][n][0] = out[i][n][1] = out[i][n][2] = out[i][n][3] = 0.0f;
        }
    }

    __device__ void load_queries() {
        const float *base = (const float *)c.q + b * c.q_strides[0];
        int group = c.h / c.h_kv, count = c.tq * group;
        load_rows<BM, D, LD, THREADS>(q, c.d, (c.d + 3) / 4 * 4, c.aligned, base, [&](int i) {
            int row = first_row + i;
            int64_t place = (kv_head * group + row % group) * c.q_strides[1] + row / group * c.q_strides[2];
            return row < count ? base + place : nullptr;
        });
    }

    __device__ void load_tile(const void *from, const int64_t *strides, int d, int columns, int key) {
        const float *base = (const float *)from + b * strides[0] + kv_head * strides[1];
        load_rows<BN, D, LD, THREADS>(tile, d, columns, c.aligned, base, [&](int i) {
            return key + i < c.tk ? base + (key + i) * strides[2] : nullptr;
        });
    }

    // A thread's scores are of rows 4 y + i and keys x + 16 j.
    __device__ __forceinline__ void scores(float (&s)[4][4]) {
#pragma unroll
        for (int i = 0; i < 4; i++) s[i][0] = s[i][1] = s[i][2] = s[i][3] = 0.0f;
#pragma unroll 4
        for (int column = 0; column < c.d; column += 4) {
            float4 a[4], k[4];
#pragma unroll
            for (int i = 0; i < 4; i++) a[i] = *(const float4 *)(q + (y * 4 + i) * LD + column);
#pragma unroll
            for (int j = 0; j < 4; j++) k[j] = *(const float4 *)(tile + (x + 16 * j) * LD + column);
#pragma unroll
            for (int i = 0; i < 4; i++)
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    s[i][j] = fmaf(a[i].x, k[j].x, s[i][j]);
                    s[i][j] = fmaf(a[i].y, k[j].y, s[i][j]);
                    s[i][j] = fmaf(a[i].z, k[j].z, s[i][j]);
                    s[i][j] = fmaf(a[i].w, k[j].w, s[i][j]);
                }
        }
    }

    __device__ __forceinline__ void weigh(float (&s)[4][4], float scale) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            float largest = fmaxf(fmaxf(s[i][0], s[i][1]), fmaxf(s[i][2], s[i][3]));
#pragma unroll
            for (int lanes = 1; lanes < 16; lanes *= 2) {
                largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, lanes));
            }
            float factor = softmax[i].raise(largest * scale), base = -softmax[i].base();
#pragma unroll
            for (int j = 0; j < 4; j++) {
                float weight = exp2_fast(fmaf(s[i][j], scale, base));
                softmax[i].sum += weight;
                weights[(y * 4 + i) * LD_WEIGHTS + x + 16 * j] = weight;
            }
#pragma unroll
            for (int n = 0; n < D / 64; n++)
#pragma unroll
                for (int j = 0; j < 4; j++) out[i][n][j] *= factor;
        }
    }

    // A thread's output is of rows 4 y + i and columns 64 n + 4 x + j.
    __device__ __forceinline__ void accumulate() {
#pragma unroll 2
        for (int key = 0; key < BN; key += 4) {
            float p[4][4];
#pragma unroll
            for (int i = 0; i < 4; i++) {
                float4 w = *(const float4 *)(weights + (y * 4 + i) * LD_WEIGHTS + key);
                p[i][0] = w.x, p[i][1] = w.y, p[i][2] = w.z, p[i][3] = w.w;
            }
#pragma unroll
            for (int j = 0; j < 4; j++)
#pragma unroll
                for (int n = 0; n < D / 64; n++) {
                    if (n * 64 >= c.dv) break;
                    float4 v = *(const float4 *)(tile + (key + j) * LD + n * 64 + x * 4);
#pragma unroll
                    for (int i = 0; i < 4; i++) {
                        out[i][n][0] = fmaf(p[i][j], v.x, out[i][n][0]);
                        out[i][n][1] = fmaf(p[i][j], v.y, out[i][n][1]);
                        out[i][n][2] = fmaf(p[i][j], v.z, out[i][n][2]);
                        out[i][n][3] = fmaf(p[i][j], v.w, out[i][n][3]);
                    }
                }
        }
    }

    __device__ void store() {
        int64_t all = (int64_t)c.b * c.h * c.tq;
        int count = c.tq * (c.h / c.h_kv);
#pragma unroll
        for (int i = 0; i < 4; i++) {
#pragma unroll
            for (int lanes = 1; lanes < 16; lanes *= 2) {
                softmax[i].sum += __shfl_xor_sync(~0u, softmax[i].sum, lanes);
            }
            if (first_row + y * 4 + i >= count) continue;
            int64_t row = rows[i].flat(c, b);
            float factor = c.splits > 1 ? 1.0f : softmax[i].inverse();
            float *to = (float *)c.out + row * c.dv;
            if (c.splits > 1) {
                to = c.partial_out + (blockIdx.z * all + row) * c.dv;
                float *stats = c.partial_stats + (blockIdx.z * all + row) * 2;
                if (x == 0) stats[0] = softmax[i].largest, stats[1] = softmax[i].sum;
            }
#pragma unroll
            for (int n = 0; n < D / 64; n++)
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    int column = n * 64 + x * 4 + j;
                    if (column < c.dv) to[column] = out[i][n][j] * factor;
                }
        }
    }

    __device__ void run() {
        int group = c.h / c.h_kv, last_row = min(first_row + BM, c.tq * group) - 1;
        Tiles tiles(c, b, first_row / group, last_row / group, BN);
        int columns = (c.dv + 63) / 64 * 64;
        load_queries();
        for (int i = tiles.first; i < tiles.end; i++) {
            int key = i * BN;
            load_tile(c.k, c.k_strides, c.d, (c.d + 3) / 4 * 4, key);
            copies_done();
            float s[4][4];
            scores(s);
            __syncthreads();
            load_tile(c.v, c.v_strides, c.dv, columns, key);
            float scale = finish_scores(c, tiles.whole(key, BN), [&](auto f) {
#pragma unroll
                for (int i = 0; i < 4; i++)
#pragma unroll
                    for (int j = 0; j < 4; j++) f(rows[i], s[i][j], key + x + 16 * j);
            });
            weigh(s, scale);
            copies_done();
            accumulate();
            __syncthreads();
        }
        store();
    }
};

template <int D, int TY> __device__ void attend_singles(const Call &c) {
    extern __shared__ __align__(16) char shared[];
    Singles<D, TY>(c, shared).run();
}

// As ENTRY_HALVES.
#define ENTRY_SINGLES(D) \
    extern "C" __global__ __launch_bounds__(256) void attend_many(const __grid_constant__ Call c) { \
        attend_singles<D, 16>(c); \
    } \
    extern "C" __global__ __launch_bounds__(64) void attend_few(const __grid_constant__ Call c) { \
        attend_singles<D, 4>(c); \
    } \
    extern "C" __global__ void combine(const __grid_constant__ Call c) { combine_splits<float>(c); }
