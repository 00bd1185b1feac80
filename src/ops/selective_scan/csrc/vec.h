// Vectors of LANES floats and the few functions of them that the kernels need. Included once per instruction set,
// inside a namespace, with LANES (4, 8 or 16) defined. No -ffast-math: NaN and Inf have to come through.

typedef float vf __attribute__((vector_size(LANES * 4)));
typedef int32_t vi __attribute__((vector_size(LANES * 4)));
typedef float vfu __attribute__((vector_size(LANES * 4), aligned(4), may_alias));

#define INLINE static inline __attribute__((always_inline))

INLINE vf load(const float* p) { return *(const vf*)p; }
INLINE vf loadu(const float* p) { return *(const vfu*)p; }
INLINE void store(float* p, vf x) { *(vf*)p = x; }
INLINE void storeu(float* p, vf x) { *(vfu*)p = x; }
INLINE vf splat(float x) { return x - vf{}; }

// 2^x by 2^round(x) * p(x - round(x)), p(f) = 1 + f q(f) with q a minimax polynomial: relative error 2e-7, and for
// small x the error is relative to x, so that decays close to 1 do not drift over long sequences. NEAR promises that
// every |x| is below NEAR_LIMIT: then 2^round(x) is a normal number and is added to p's exponent in one step.
const float NEAR_LIMIT = 125.0f;

template <bool NEAR = false>
INLINE vf exp2v(vf x) {
#if LANES == 16
    const vf v = (vf)_mm512_reduce_ps((__m512)x, 0x08);
#else
    const vf low = x < splat(-152.0f) ? splat(-152.0f) : x, safe = NEAR ? x : low > splat(129.0f) ? splat(129.0f) : low;
    const vf magic = splat(12582912.0f);
    const vf shifted = safe + magic;
    const vf v = safe - (shifted - magic);
#endif
    vf p = splat(0.0013381302537320797f) * v + splat(0.009666368515385448f);
    p = p * v + splat(0.05550381013796457f);
    p = p * v + splat(0.2402234903802036f);
    p = p * v + splat(0.6931471805599453f);
    p = p * v + splat(1.0f);
#if LANES == 16
    return (vf)_mm512_scalef_ps((__m512)p, _mm512_roundscale_ps((__m512)x, 0x08));
#else
    const vi k = (vi)shifted - (vi)magic;
    if (NEAR) return (vf)((vi)p + (k << 23));
    const vi half = k >> 1;  // in two factors, so that subnormal results round as they should
    const vf scaled = p * (vf)((half + 127) << 23) * (vf)((k - half + 127) << 23);
    return x != x ? x : scaled;
#endif
}

// Whether |x| < limit in all lanes; false for NaN.
INLINE bool all_below(vf x, float limit) {
    const vi inside = (x < splat(limit)) & (x > splat(-limit));
#if LANES == 8
    return _mm256_movemask_ps((__m256)inside) == 0xff;
#else
    for (int j = 0; j < LANES; ++j)
        if (!inside[j]) return false;
    return true;
#endif
}

INLINE vf expv(vf x) { return exp2v(x * splat(1.4426950408889634f)); }

INLINE vf sigmoid(vf x) { return splat(1.0f) / (splat(1.0f) + expv(-x)); }

// softplus(x) = max(x, 0) + log1p(exp(-|x|)), log1p by the atanh series in s = e / (2 + e); its derivative with it.
INLINE vf softplus(vf x, vf* derivative) {
    const vf e = expv(x > vf{} ? -x : x);
    const vf s = e / (splat(2.0f) + e), w = s * s;
    vf p = splat(0.2815777836310908f) * w + splat(0.27965157745197267f);
    p = p * w + splat(0.40024595230703747f);
    p = p * w + splat(0.6666632164137777f);
    p = p * w + splat(2.0f);
    if (derivative) {
        const vf r = splat(1.0f) / (splat(1.0f) + e);
        *derivative = x > vf{} ? r : e * r;
    }
    return (x > vf{} ? x : vf{}) + s * p;
}

// Four vectors -> one whose 128-bit quarters hold partial sums of (v0, v1, v2, v3).
INLINE vf fold4(vf v0, vf v1, vf v2, vf v3) {
#if LANES == 16
    const __m512 a = _mm512_add_ps(_mm512_unpacklo_ps((__m512)v0, (__m512)v1), _mm512_unpackhi_ps((__m512)v0, (__m512)v1));
    const __m512 b = _mm512_add_ps(_mm512_unpacklo_ps((__m512)v2, (__m512)v3), _mm512_unpackhi_ps((__m512)v2, (__m512)v3));
    return (vf)_mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(a), _mm512_castps_pd(b))),
                             _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(a), _mm512_castps_pd(b))));
#else
    vf out;
    for (int q = 0; q < LANES; q += 4) {
        out[q] = (v0[q] + v0[q + 2]) + (v0[q + 1] + v0[q + 3]);
        out[q + 1] = (v1[q] + v1[q + 2]) + (v1[q + 1] + v1[q + 3]);
        out[q + 2] = (v2[q] + v2[q + 2]) + (v2[q + 1] + v2[q + 3]);
        out[q + 3] = (v3[q] + v3[q + 2]) + (v3[q + 1] + v3[q + 3]);
    }
    return out;
#endif
}

// The quarters of fold4 added up: the four sums over lanes.
INLINE void add_sums4(float* p, vf folded, bool assign) {
    typedef float v4 __attribute__((vector_size(16)));
    typedef float v4u __attribute__((vector_size(16), aligned(4), may_alias));
    union {
        vf whole;
        v4 quarter[LANES / 4];
    } x = {folded};
    v4 s = x.quarter[0];
    for (int q = 1; q < LANES / 4; ++q) s += x.quarter[q];
    *(v4u*)p = assign ? s : s + *(v4u*)p;
}

#if LANES == 16
// Four fold4 results -> the sixteen sums over lanes, in order.
INLINE vf fold16(vf q0, vf q1, vf q2, vf q3) {
    const __m512 a = _mm512_add_ps(_mm512_shuffle_f32x4((__m512)q0, (__m512)q1, 0x88),
                                   _mm512_shuffle_f32x4((__m512)q0, (__m512)q1, 0xdd));
    const __m512 b = _mm512_add_ps(_mm512_shuffle_f32x4((__m512)q2, (__m512)q3, 0x88),
                                   _mm512_shuffle_f32x4((__m512)q2, (__m512)q3, 0xdd));
    return (vf)_mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
}
#endif

// ---- tiles: `steps` time steps of `width` channels, float, time-major, from and to arrays of any stride and type ----

INLINE float from_bf16(uint16_t x) {
    union {
        uint32_t i;
        float f;
    } v = {(uint32_t)x << 16};
    return v.f;
}

INLINE uint16_t to_bf16(float x) {
    union {
        float f;
        uint32_t i;
    } v = {x};
    const uint32_t rounded = (v.i + 0x7fffu + ((v.i >> 16) & 1u)) >> 16;
    return (uint16_t)(x != x ? 0x7fc0u : rounded);
}

INLINE float from_f16(uint16_t x) {
    const uint32_t sign = (uint32_t)(x & 0x8000u) << 16, body = (uint32_t)(x & 0x7fffu) << 13;
    union {
        uint32_t i;
        float f;
    } v = {body}, scale = {0x77800000u};  // 2^112 moves the exponent from bias 15 to 127, subnormals included
    v.f *= scale.f;
    if ((x & 0x7c00u) == 0x7c00u) v.i |= 0x7f800000u;
    v.i |= sign;
    return v.f;
}

INLINE uint16_t to_f16(float x) {
    union {
        float f;
        uint32_t i;
    } v = {x};
    const uint32_t sign = (v.i >> 16) & 0x8000u;
    v.i &= 0x7fffffffu;
    uint32_t r;
    if (v.i > 0x7f800000u) {
        r = 0x7e00u;
    } else if (v.i >= 0x477ff000u) {  // rounds to 65536 or more
        r = 0x7c00u;
    } else if (v.i < 0x38800000u) {  // subnormal: let the addition of 0.5 do the rounding
        v.f += 0.5f;
        r = v.i - 0x3f000000u;
    } else {
        r = (v.i + 0xfffu + ((v.i >> 13) & 1u) - 0x38000000u) >> 13;
    }
    return (uint16_t)(r | sign);
}

template <int64_t type>
INLINE float read_one(const char* p, int64_t i) {
    if (type == BF16) return from_bf16(((const uint16_t*)p)[i]);
    if (type == F16) return from_f16(((const uint16_t*)p)[i]);
    return ((const float*)p)[i];
}

template <int64_t type>
INLINE void write_one(char* p, int64_t i, float x) {
    if (type == BF16)
        ((uint16_t*)p)[i] = to_bf16(x);
    else if (type == F16)
        ((uint16_t*)p)[i] = to_f16(x);
    else
        ((float*)p)[i] = x;
}

// Where a tile lies: steps [t0, t0 + steps) in the order of time, mirrored when time runs backwards.
struct Span {
    int64_t b, row0, rows, t0, steps, length;
    bool reverse;
};

template <int64_t type>
static void read_tile_as(const Array& x, const Span& s, float* dst, int64_t width) {
    const int64_t size = type == F32 ? 4 : 2, first = s.reverse ? s.length - 1 - s.t0 : s.t0;
    const int64_t step = s.reverse ? -x.time : x.time;
    const char* base = x.data + size * (s.b * x.batch + s.row0 * x.row + first * x.time);
    if (type == F32 && x.row == 1 && s.rows == width && width % LANES == 0) {
        for (int64_t i = 0; i < s.steps; ++i)
            for (int64_t j = 0; j < width; j += LANES)
                store(dst + i * width + j, loadu((const float*)base + i * step + j));
        return;
    }
    if (x.row == 1) {
        for (int64_t i = 0; i < s.steps; ++i) {
            for (int64_t j = 0; j < s.rows; ++j) dst[i * width + j] = read_one<type>(base + size * i * step, j);
            for (int64_t j = s.rows; j < width; ++j) dst[i * width + j] = 0.0f;
        }
        return;
    }
    for (int64_t j = 0; j < width; ++j)
        for (int64_t i = 0; i < s.steps; ++i)
            dst[i * width + j] = j < s.rows ? read_one<type>(base, j * x.row + i * step) : 0.0f;
}

template <int64_t type>
static void write_tile_as(const Array& x, const Span& s, const float* src, int64_t width) {
    const int64_t size = type == F32 ? 4 : 2, first = s.reverse ? s.length - 1 - s.t0 : s.t0;
    const int64_t step = s.reverse ? -x.time : x.time;
    char* base = x.data + size * (s.b * x.batch + s.row0 * x.row + first * x.time);
    if (type == F32 && x.row == 1 && s.rows == width && width % LANES == 0) {
        for (int64_t i = 0; i < s.steps; ++i)
            for (int64_t j = 0; j < width; j += LANES)
                storeu((float*)base + i * step + j, load(src + i * width + j));
        return;
    }
    if (x.row == 1) {
        for (int64_t i = 0; i < s.steps; ++i)
            for (int64_t j = 0; j < s.rows; ++j) write_one<type>(base + size * i * step, j, src[i * width + j]);
        return;
    }
    for (int64_t j = 0; j < s.rows; ++j)
        for (int64_t i = 0; i < s.steps; ++i) write_one<type>(base, j * x.row + i * step, src[i * width + j]);
}

static void read_tile(const Array& x, const Span& s, float* dst, int64_t width) {
    if (x.dtype == BF16)
        read_tile_as<BF16>(x, s, dst, width);
    else if (x.dtype == F16)
        read_tile_as<F16>(x, s, dst, width);
    else
        read_tile_as<F32>(x, s, dst, width);
}

static void write_tile(const Array& x, const Span& s, const float* src, int64_t width) {
    if (x.dtype == BF16)
        write_tile_as<BF16>(x, s, src, width);
    else if (x.dtype == F16)
        write_tile_as<F16>(x, s, src, width);
    else
        write_tile_as<F32>(x, s, src, width);
}
