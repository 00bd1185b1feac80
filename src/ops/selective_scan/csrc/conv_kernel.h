// Depthwise causal convolution with optional silu, forward and backward. Included after vec.h.
// Tasks are (batch item, block of CONV_BLOCK channels); time goes in tiles with a halo of width - 1 steps.

#define CONV_BLOCK 64
#define CONV_TILE 64

static int64_t conv_work_size(int64_t width) {
    return (3 * (CONV_TILE + 2 * (width - 1)) + 2 * width + 2) * CONV_BLOCK;
}

static Span conv_span(const ConvArgs& a, int64_t b, int64_t block, int64_t t0, int64_t steps) {
    const int64_t left = a.channels - block * CONV_BLOCK;
    return {b, block * CONV_BLOCK, left < CONV_BLOCK ? left : CONV_BLOCK, t0, steps, a.length, a.reverse != 0};
}

// Rows [t0 - before, t0 + steps) of x, zero where there is no such time.
static void conv_read(const Array& x, Span s, int64_t before, float* dst) {
    int64_t t0 = s.t0 - before, steps = s.steps + before;
    if (t0 < 0) {
        memset(dst, 0, -t0 * CONV_BLOCK * sizeof(float));
        dst -= t0 * CONV_BLOCK, steps += t0, t0 = 0;
    }
    const int64_t inside = s.length - t0 < steps ? s.length - t0 : steps;
    if (inside < steps) memset(dst + inside * CONV_BLOCK, 0, (steps - inside) * CONV_BLOCK * sizeof(float));
    s.t0 = t0, s.steps = inside;
    read_tile(x, s, dst, CONV_BLOCK);
}

// Fetches one row of a block ahead of its use: rows are far apart, which no hardware prefetcher follows.
template <int write>
INLINE void conv_fetch(const ConvArgs& a, const Array& x, int64_t b, int64_t block, int64_t t) {
    if (x.row != 1 || t >= a.length) return;
    const int64_t size = x.dtype == F32 ? 4 : 2, at = a.reverse ? a.length - 1 - t : t;
    const char* row = x.data + size * (b * x.batch + block * CONV_BLOCK + at * x.time);
    for (int64_t byte = 0; byte < size * CONV_BLOCK; byte += 64) __builtin_prefetch(row + byte, write, 2);
}

static void conv_constants(const ConvArgs& a, int64_t block, float* weight, float* bias) {
    for (int64_t j = 0; j < CONV_BLOCK; ++j) {
        const int64_t e = block * CONV_BLOCK + j;
        bias[j] = e < a.channels && a.bias ? a.bias[e] : 0.0f;
        for (int64_t k = 0; k < a.width; ++k)
            weight[k * CONV_BLOCK + j] = e < a.channels ? a.weight[e * a.width + k] : 0.0f;
    }
}

template <int W>
INLINE vf conv_at(const float* x, const float* weight, vf sum, int64_t width_) {
    const int64_t width = W ? W : width_;
#pragma GCC unroll 4
    for (int64_t k = 0; k < width; ++k) sum += load(weight + k * CONV_BLOCK) * load(x + k * CONV_BLOCK);
    return sum;
}

template <int W>
static void conv_forward(const ConvArgs& a, int64_t b, int64_t block, float* work) {
    const int64_t halo = a.width - 1;
    float *weight = work, *bias = weight + a.width * CONV_BLOCK, *x = bias + CONV_BLOCK;
    float* y = x + (CONV_TILE + 2 * halo) * CONV_BLOCK;
    conv_constants(a, block, weight, bias);
    for (int64_t t0 = 0; t0 < a.length; t0 += CONV_TILE) {
        const Span s = conv_span(a, b, block, t0, a.length - t0 < CONV_TILE ? a.length - t0 : CONV_TILE);
        conv_read(a.x, s, halo, x);
        for (int64_t i = 0; i < s.steps; ++i) {
            conv_fetch<0>(a, a.x, b, block, t0 + CONV_TILE + i);
            conv_fetch<1>(a, a.out, b, block, t0 + i);
            for (int64_t j = 0; j < CONV_BLOCK; j += LANES) {
                vf v = conv_at<W>(x + i * CONV_BLOCK + j, weight + j, load(bias + j), a.width);
                if (a.silu) v *= sigmoid(v);
                store(y + i * CONV_BLOCK + j, v);
            }
        }
        write_tile(a.out, s, y, CONV_BLOCK);
    }
}

template <int W>
static void conv_backward(const ConvArgs& a, int64_t b, int64_t block, float* work) {
    const int64_t width = W ? W : a.width, halo = width - 1, tile = (CONV_TILE + 2 * halo) * CONV_BLOCK;
    float *weight = work, *bias = weight + width * CONV_BLOCK, *sums = bias + CONV_BLOCK;
    float *x = sums + (width + 1) * CONV_BLOCK, *g = x + tile, *y = g + tile;
    conv_constants(a, block, weight, bias);
    memset(sums, 0, (width + 1) * CONV_BLOCK * sizeof(float));
    for (int64_t t0 = 0; t0 < a.length; t0 += CONV_TILE) {
        const Span s = conv_span(a, b, block, t0, a.length - t0 < CONV_TILE ? a.length - t0 : CONV_TILE);
        Span wide = s;  // the outputs that these inputs reach
        wide.steps += halo;
        conv_read(a.x, wide, halo, x);
        conv_read(a.grad, wide, 0, g);
        for (int64_t i = 0; i < s.steps; ++i) {
            conv_fetch<1>(a, a.dx, b, block, t0 + i);
            conv_fetch<0>(a, a.x, b, block, t0 + halo + CONV_TILE + i);
            conv_fetch<0>(a, a.grad, b, block, t0 + halo + CONV_TILE + i);
        }
        for (int64_t j = 0; j < CONV_BLOCK; j += LANES) {
            if (a.silu)
                for (int64_t i = 0; i < wide.steps; ++i) {
                    const vf v = conv_at<W>(x + i * CONV_BLOCK + j, weight + j, load(bias + j), width);
                    const vf gate = sigmoid(v);
                    float* p = g + i * CONV_BLOCK + j;
                    store(p, load(p) * (gate + v * gate * (splat(1.0f) - gate)));
                }
            for (int64_t k = 0; k < width; ++k) {
                vf sum = {};
                for (int64_t i = 0; i < s.steps; ++i)
                    sum += load(g + i * CONV_BLOCK + j) * load(x + (i + k) * CONV_BLOCK + j);
                store(sums + k * CONV_BLOCK + j, load(sums + k * CONV_BLOCK + j) + sum);
            }
            vf sum = {};
            for (int64_t i = 0; i < s.steps; ++i) {
                vf dx = {};
#pragma GCC unroll 4
                for (int64_t k = 0; k < width; ++k)
                    dx += load(weight + k * CONV_BLOCK + j) * load(g + (i + width - 1 - k) * CONV_BLOCK + j);
                store(y + i * CONV_BLOCK + j, dx);
                sum += load(g + i * CONV_BLOCK + j);
            }
            store(sums + width * CONV_BLOCK + j, load(sums + width * CONV_BLOCK + j) + sum);
        }
        write_tile(a.dx, s, y, CONV_BLOCK);
    }
    for (int64_t j = 0; j < CONV_BLOCK && block * CONV_BLOCK + j < a.channels; ++j)
        for (int64_t k = 0; k <= width; ++k)
            a.partial[(b * a.channels + block * CONV_BLOCK + j) * (width + 1) + k] = sums[k * CONV_BLOCK + j];
}

static void conv_tasks(const ConvArgs& a, int64_t first, int64_t last, int64_t thread, bool backward) {
    const int64_t blocks = (a.channels + CONV_BLOCK - 1) / CONV_BLOCK;
    float* work = a.work + thread * a.work_size;
    for (int64_t task = first; task < last; ++task) {
        if (a.width == 4)
            backward ? conv_backward<4>(a, task / blocks, task % blocks, work)
                     : conv_forward<4>(a, task / blocks, task % blocks, work);
        else
            backward ? conv_backward<0>(a, task / blocks, task % blocks, work)
                     : conv_forward<0>(a, task / blocks, task % blocks, work);
    }
}
