// The C interface of the compiled kernels: instruction sets, threads, and the entry points that cpu.py calls.
#include <cstring>

#include "args.h"

#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#define X86 1
#endif

#ifdef _OPENMP
#include <omp.h>
#endif

#if defined(X86) && defined(__GNUC__) && !defined(__clang__)
#define WIDE_VECTORS 1
#pragma GCC push_options
#pragma GCC target("avx512f,avx512dq,avx512bw,avx512vl,avx2,fma,bmi,bmi2")
namespace avx512 {
#define LANES 16
#include "vec.h"

#include "scan_tile.h"

#include "scan_kernel.h"

#include "conv_kernel.h"

#include "norm_kernel.h"
#undef LANES
}  // namespace avx512
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx2,fma,bmi,bmi2")
namespace avx2 {
#define LANES 8
#undef INLINE
#undef CONV_BLOCK
#undef CONV_TILE
#include "vec.h"

#include "scan_tile.h"

#include "scan_kernel.h"

#include "conv_kernel.h"

#include "norm_kernel.h"
#undef LANES
}  // namespace avx2
#pragma GCC pop_options
#endif

namespace base {
#define LANES 4
#undef INLINE
#undef CONV_BLOCK
#undef CONV_TILE
#include "vec.h"

#include "scan_tile.h"

#include "scan_kernel.h"

#include "conv_kernel.h"

#include "norm_kernel.h"
}  // namespace base

namespace {

struct Kernels {
    int64_t lanes, conv_block;
    int64_t (*scan_work)(int64_t, int64_t, int64_t, bool);
    void (*scan_tasks)(const ScanArgs&, int64_t, int64_t, int64_t, bool);
    void (*scan_reduce_block)(const ScanArgs&, int64_t);
    int64_t (*conv_work)(int64_t);
    void (*conv_tasks)(const ConvArgs&, int64_t, int64_t, int64_t, bool);
    void (*norm_forward_rows)(const NormArgs&, int64_t, int64_t);
    void (*norm_backward_rows)(const NormArgs&, int64_t, int64_t, int64_t);
};

#define KERNELS(ns, lanes) \
    {lanes,          CONV_BLOCK,     ns::scan_work_size,    ns::scan_tasks,        ns::scan_reduce_block, \
     ns::conv_work_size, ns::conv_tasks, ns::norm_forward_rows, ns::norm_backward_rows}

const Kernels base_kernels = KERNELS(base, 4);
#ifdef WIDE_VECTORS
const Kernels avx2_kernels = KERNELS(avx2, 8);
const Kernels avx512_kernels = KERNELS(avx512, 16);
#endif

const Kernels* select(int64_t most_lanes) {
#ifdef WIDE_VECTORS
    __builtin_cpu_init();
    const bool has2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const bool has512 = has2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
    if (has512 && most_lanes >= 16) return &avx512_kernels;
    if (has2 && most_lanes >= 8) return &avx2_kernels;
#endif
    return &base_kernels;
}

const Kernels* active = select(16);

// body(i) for i in [0, count), one share per thread; the pool is the one PyTorch itself uses.
template <typename F>
void parallel(int64_t count, const F& body) {
#ifdef _OPENMP
    if (count > 1) {
#pragma omp parallel for num_threads(count) schedule(static, 1)
        for (int64_t i = 0; i < count; ++i) body(i);
        return;
    }
#endif
    for (int64_t i = 0; i < count; ++i) body(i);
}

int64_t shares(int64_t threads, int64_t tasks) { return threads < tasks ? threads : tasks; }

}  // namespace

extern "C" {

int64_t kernels_abi() { return ABI; }

// Uses at most this many lanes from now on; returns how many that are. For tests.
int64_t kernels_use_lanes(int64_t most) {
    active = select(most);
    return active->lanes;
}

int64_t scan_work_floats(int64_t tile, int64_t padded_states, int64_t channels, int64_t backward) {
    const int64_t blocks = (channels + active->lanes - 1) / active->lanes;
    return (active->scan_work(tile, padded_states, blocks, backward != 0) + 15) / 16 * 16;
}

int64_t conv_work_floats(int64_t width) { return (active->conv_work(width) + 15) / 16 * 16; }

void scan_forward(const ScanArgs* a) {
    const int64_t tasks = a->batch * ((a->channels + active->lanes - 1) / active->lanes);
    const int64_t n = shares(a->threads, tasks);
    parallel(n, [&](int64_t i) { active->scan_tasks(*a, tasks * i / n, tasks * (i + 1) / n, i, false); });
}

void scan_backward(const ScanArgs* a) {
    const int64_t blocks = (a->channels + active->lanes - 1) / active->lanes, tasks = a->batch * blocks;
    const int64_t n = shares(a->threads, tasks), item = a->length * ((a->states + 3) / 4 * 4);
    parallel(n, [&](int64_t i) { active->scan_tasks(*a, tasks * i / n, tasks * (i + 1) / n, i, true); });
    // Shares that began inside a batch item: add their sums to the item's, in the order of the shares.
    for (int64_t i = 1; i < n; ++i) {
        const int64_t first = tasks * i / n;
        if (first % blocks == 0) continue;
        const float* from = a->extra + 2 * i * item;
        float *toB = a->gB + first / blocks * item, *toC = a->gC + first / blocks * item;
        for (int64_t r = 0; r < item; ++r) toB[r] += from[r];
        for (int64_t r = 0; r < item; ++r) toC[r] += from[item + r];
    }
    for (int64_t block = 0; block < blocks; ++block) active->scan_reduce_block(*a, block);
}

void conv_forward(const ConvArgs* a) {
    const int64_t tasks = a->batch * ((a->channels + active->conv_block - 1) / active->conv_block);
    const int64_t n = shares(a->threads, tasks);
    parallel(n, [&](int64_t i) { active->conv_tasks(*a, tasks * i / n, tasks * (i + 1) / n, i, false); });
}

void conv_backward(const ConvArgs* a) {
    const int64_t tasks = a->batch * ((a->channels + active->conv_block - 1) / active->conv_block);
    const int64_t n = shares(a->threads, tasks), width = a->width;
    parallel(n, [&](int64_t i) { active->conv_tasks(*a, tasks * i / n, tasks * (i + 1) / n, i, true); });
    for (int64_t e = 0; e < a->channels; ++e)
        for (int64_t k = 0; k <= width; ++k) {
            float total = 0.0f;
            for (int64_t b = 0; b < a->batch; ++b) total += a->partial[(b * a->channels + e) * (width + 1) + k];
            if (k < width)
                a->dweight[e * width + k] = total;
            else if (a->dbias)
                a->dbias[e] = total;
        }
}

void norm_forward(const NormArgs* a) {
    const int64_t n = shares(a->threads, a->rows);
    parallel(n, [&](int64_t i) { active->norm_forward_rows(*a, a->rows * i / n, a->rows * (i + 1) / n); });
}

void norm_backward(const NormArgs* a) {
    const int64_t n = shares(a->threads, a->rows);
    parallel(n, [&](int64_t i) { active->norm_backward_rows(*a, a->rows * i / n, a->rows * (i + 1) / n, i); });
    for (int64_t j = 0; j < a->dim; ++j) {
        float total = 0.0f;
        for (int64_t i = 0; i < n; ++i) total += a->partial[i * a->dim + j];
        a->dweight[j] = total;
    }
}

}  // extern "C"
