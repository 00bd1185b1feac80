// RMSNorm over contiguous rows, forward and backward. Included after vec.h.

INLINE float lane_sum(vf x) {
    float total = 0.0f;
    for (int j = 0; j < LANES; ++j) total += x[j];
    return total;
}

static void norm_forward_rows(const NormArgs& a, int64_t first, int64_t last) {
    const int64_t D = a.dim, whole = D / LANES * LANES;
    for (int64_t row = first; row < last; ++row) {
        const float* x = a.x + row * D;
        float* y = a.y + row * D;
        vf squares = {};
        for (int64_t j = 0; j < whole; j += LANES) squares += loadu(x + j) * loadu(x + j);
        float total = lane_sum(squares);
        for (int64_t j = whole; j < D; ++j) total += x[j] * x[j];
        const float scale = 1.0f / __builtin_sqrtf(total / (float)D + (float)a.eps);
        a.scale[row] = scale;
        for (int64_t j = 0; j < whole; j += LANES) storeu(y + j, loadu(x + j) * splat(scale) * loadu(a.weight + j));
        for (int64_t j = whole; j < D; ++j) y[j] = x[j] * scale * a.weight[j];
    }
}

// dx = s (g w - x s^2 mean(g w x)); dweight = sum over rows of g x s, one partial sum per share.
static void norm_backward_rows(const NormArgs& a, int64_t first, int64_t last, int64_t share) {
    const int64_t D = a.dim, whole = D / LANES * LANES;
    float* dweight = a.partial + share * D;
    memset(dweight, 0, D * sizeof(float));
    for (int64_t row = first; row < last; ++row) {
        const float *x = a.x + row * D, *g = a.grad + row * D, scale = a.scale[row];
        float* dx = a.dx + row * D;
        vf products = {};
        for (int64_t j = 0; j < whole; j += LANES) {
            const vf gx = loadu(g + j) * loadu(x + j);
            products += gx * loadu(a.weight + j);
            storeu(dweight + j, loadu(dweight + j) + gx * splat(scale));
        }
        float total = lane_sum(products);
        for (int64_t j = whole; j < D; ++j) {
            total += g[j] * x[j] * a.weight[j];
            dweight[j] += g[j] * x[j] * scale;
        }
        const float back = total * scale * scale / (float)D;
        for (int64_t j = 0; j < whole; j += LANES)
            storeu(dx + j, splat(scale) * (loadu(g + j) * loadu(a.weight + j) - loadu(x + j) * splat(back)));
        for (int64_t j = whole; j < D; ++j) dx[j] = scale * (g[j] * a.weight[j] - x[j] * back);
    }
}
