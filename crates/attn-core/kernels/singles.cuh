// Attention of f32 with f32 multiply-adds: tensor cores would round the inputs. The same walk over the keys as in
// halves.cuh, with R x 4 scores and R rows of the output per thread; keys and values take turns in one tile. The more
// rows, the fewer loads from shared memory per multiply-add.
#pragma once
#include "call.cuh"

// s = a b^T, for R neighbouring rows of `a` and N rows of `b`, 16 apart, in shared memory, over `d` columns, a multiple
// of 4.
template <int LD, int R, int N>
__device__ __forceinline__ void row_products(float (&s)[R][N], const float *a, const float *b, int d) {
#pragma unroll
    for (int i = 0; i < R; i++)
#pragma unroll
        for (int j = 0; j < N; j++) s[i][j] = 0.0f;
#pragma unroll 4
    for (int column = 0; column < d; column += 4) {
        float4 left[R], right[N];
#pragma unroll
        for (int i = 0; i < R; i++) left[i] = *(const float4 *)(a + i * LD + column);
#pragma unroll
        for (int j = 0; j < N; j++) right[j] = *(const float4 *)(b + 16 * j * LD + column);
#pragma unroll
        for (int i = 0; i < R; i++)
#pragma unroll
            for (int j = 0; j < N; j++) {
                s[i][j] = fmaf(left[i].x, right[j].x, s[i][j]);
                s[i][j] = fmaf(left[i].y, right[j].y, s[i][j]);
                s[i][j] = fmaf(left[i].z, right[j].z, s[i][j]);
                s[i][j] = fmaf(left[i].w, right[j].w, s[i][j]);
            }
    }
}

// out += s b, for R neighbouring rows of `s` and the N rows of `b` in shared memory, of whose columns the first `d` count:
// the thread's are 64 n + j from where `b` points.
template <int LD_S, int LD, int N, int R, int COLUMNS>
__device__ __forceinline__ void add_products(float (&out)[R][COLUMNS][4], const float *s, const float *b, int d) {
#pragma unroll 2
    for (int row = 0; row < N; row += 4) {
        float left[R][4];
#pragma unroll
        for (int i = 0; i < R; i++) {
            float4 x = *(const float4 *)(s + i * LD_S + row);
            left[i][0] = x.x, left[i][1] = x.y, left[i][2] = x.z, left[i][3] = x.w;
        }
#pragma unroll
        for (int j = 0; j < 4; j++)
#pragma unroll
            for (int n = 0; n < COLUMNS; n++) {
                if (n * 64 >= d) break;
                float4 right = *(const float4 *)(b + (row + j) * LD + n * 64);
#pragma unroll
                for (int i = 0; i < R; i++) {
                    out[i][n][0] = fmaf(left[i][j], right.x, out[i][n][0]);
                    out[i][n][1] = fmaf(left[i][j], right.y, out[i][n][1]);
                    out[i][n][2] = fmaf(left[i][j], right.z, out[i][n][2]);
                    out[i][n][3] = fmaf(left[i][j], right.w, out[i][n][3]);
                }
            }
    }
}

// D: head dims up to it, a multiple of 64. TY times R rows.
template <int D, int TY, int R> struct Singles {
    static constexpr int THREADS = TY * 16, BM = TY * R, BN = 64;
    // A row and 16 bytes: eight rows read side by side then lie in different banks.
    static constexpr int LD = D + 4, LD_WEIGHTS = BN + 4;

    const Call &c;
    float *q, *tile, *weights;
    int b, kv_head, first_row, x, y;
    Row rows[R];
    Softmax softmax[R];
    float out[R][D / 64][4];

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
        for (int i = 0; i < R; i++) {
            rows[i].set(c, b, kv_head, first_row + y * R + i);
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

    // A thread's scores are of rows R y + i and keys x + 16 j.
    __device__ __forceinline__ void weigh(float (&s)[R][4], float scale) {
#pragma unroll
        for (int i = 0; i < R; i++) {
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
                weights[(y * R + i) * LD_WEIGHTS + x + 16 * j] = weight;
            }
#pragma unroll
            for (int n = 0; n < D / 64; n++)
#pragma unroll
                for (int j = 0; j < 4; j++) out[i][n][j] *= factor;
        }
    }

    // A thread's output is of rows R y + i and columns 64 n + 4 x + j.
    __device__ void store() {
        int64_t all = (int64_t)c.b * c.h * c.tq;
        int count = c.tq * (c.h / c.h_kv);
#pragma unroll
        for (int i = 0; i < R; i++) {
#pragma unroll
            for (int lanes = 1; lanes < 16; lanes *= 2) {
                softmax[i].sum += __shfl_xor_sync(~0u, softmax[i].sum, lanes);
            }
            if (first_row + y * R + i >= count) continue;
            int64_t row = rows[i].flat(c, b);
            float factor = c.splits > 1 ? 1.0f : softmax[i].inverse();
            float *to = (float *)c.out + row * c.dv;
            if (c.splits > 1) {
                to = c.partial_out + (blockIdx.z * all + row) * c.dv;
                float *stats = c.partial_stats + (blockIdx.z * all + row) * 2;
                if (x == 0) stats[0] = softmax[i].largest, stats[1] = softmax[i].sum;
            } else if (c.log_sums && x == 0) {
                c.log_sums[row] = softmax[i].log_sum();
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
            float s[R][4];
            row_products<LD>(s, q + y * R * LD, tile + x * LD, c.d);
            __syncthreads();
            load_tile(c.v, c.v_strides, c.dv, columns, key);
            auto each = [&](auto f) {
#pragma unroll
                for (int i = 0; i < R; i++)
#pragma unroll
                    for (int j = 0; j < 4; j++) f(rows[i], s[i][j], key + x + 16 * j);
            };
            cap_scores(c, each);
            float scale = finish_scores(c, tiles.whole(key, BN), each);
            weigh(s, scale);
            copies_done();
            add_products<LD_WEIGHTS, LD, BN>(out, weights + y * R * LD_WEIGHTS, tile + x * 4, c.dv);
            __syncthreads();
        }
        store();
    }
};

template <int D, int TY, int R> __device__ void attend_singles(const Call &c) {
    extern __shared__ __align__(16) char shared[];
    Singles<D, TY, R>(c, shared).run();
}

// As ENTRY_HALVES, with blocks of TY times R rows, 64.
#define ENTRY_SINGLES(D, TY, R, BLOCKS) \
    extern "C" __global__ __launch_bounds__(TY * 16, BLOCKS) void attend_many(const __grid_constant__ Call c) { \
        attend_singles<D, TY, R>(c); \
    } \
    extern "C" __global__ __launch_bounds__(64) void attend_few(const __grid_constant__ Call c) { \
        attend_singles<D, 4, 4>(c); \
    } \
    extern "C" __global__ void combine(const __grid_constant__ Call c) { combine_splits<float>(c); }
