// A tile of the scan in one thread's workspace, and how inputs get there. Included after vec.h.

struct Tile {  // views into one thread's workspace
    float *u, *dt, *sig, *z, *add, *y, *g, *B, *C, *states, *decays, *dA;
    float *slots;  // of every block, what outlives a tile: A, log2(e) A, the carried state (or its gradient), D, bias
    float *A, *A2, *carry, *D, *bias;  // the slot of the block at work
    struct {
        const char* row;
        int64_t step;
    } ahead[10];  // rows to fetch while a tile is computed: first the next tile's inputs, then this tile's outputs
    int reads, aheads;
};

static int64_t scan_slot(int64_t np) { return 3 * np * LANES + 2 * LANES; }

static int64_t scan_work_size(int64_t tile, int64_t np, int64_t blocks, bool backward) {
    const int64_t steps = tile * LANES, rows = np * LANES;
    const int64_t forward = 5 * steps + 2 * tile * np + blocks * scan_slot(np);
    return backward ? forward + 2 * steps + (2 * tile + 2) * rows : forward;
}

static Tile carve(float* work, int64_t tile, int64_t np, int64_t blocks, bool backward) {
    const int64_t steps = tile * LANES, rows = np * LANES;
    Tile w = {};
    auto take = [&](int64_t n) {
        float* p = work;
        work += n;
        return p;
    };
    w.slots = take(blocks * scan_slot(np));
    w.u = take(steps), w.dt = take(steps), w.z = take(steps), w.add = take(steps), w.y = take(steps);
    w.B = take(tile * np), w.C = take(tile * np);
    if (backward) {
        w.g = take(steps), w.sig = take(steps), w.dA = take(rows);
        w.states = take((tile + 1) * rows), w.decays = take(tile * rows);
    }
    return w;
}

static void enter_block(int64_t block, int64_t np, Tile& w) {
    const int64_t rows = np * LANES;
    w.A = w.slots + block * scan_slot(np);
    w.A2 = w.A + rows, w.carry = w.A2 + rows, w.D = w.carry + rows, w.bias = w.D + LANES;
}

static void load_constants(const ScanArgs& a, int64_t block, int64_t np, Tile& w) {
    enter_block(block, np, w);
    for (int64_t j = 0; j < LANES; ++j) {
        const int64_t e = block * LANES + j;
        const bool in = e < a.channels;
        w.D[j] = in && a.D ? a.D[e] : 0.0f;
        w.bias[j] = in && a.bias ? a.bias[e] : 0.0f;
        for (int64_t n = 0; n < np; ++n) {
            const float x = in && n < a.states ? a.A[e * a.states + n] : 0.0f;
            w.A[n * LANES + j] = x;
            w.A2[n * LANES + j] = x * 1.4426950408889634f;
        }
    }
}

// Channels innermost in memory make a tile's rows far apart, which no hardware prefetcher follows.
static void look_ahead(const ScanArgs& a, int64_t b, int64_t block, int64_t t0, const Array* const* arrays, Tile& w) {
    if (t0 < 0 || t0 >= a.length || block * LANES >= a.channels) return;
    for (; *arrays; ++arrays) {
        const Array& x = **arrays;
        if (!x.data || x.row != 1) continue;
        const int64_t size = x.dtype == F32 ? 4 : 2, first = a.reverse ? a.length - 1 - t0 : t0;
        w.ahead[w.aheads].row = x.data + size * (b * x.batch + block * LANES + first * x.time);
        w.ahead[w.aheads++].step = size * (a.reverse ? -x.time : x.time);
    }
}

// What all blocks share of a tile: B and C.
static void load_states(const ScanArgs& a, int64_t b, int64_t t0, int64_t np, Tile& w) {
    const int64_t steps = a.length - t0 < a.tile ? a.length - t0 : a.tile;
    const Span s = {b, 0, a.states, t0, steps, a.length, a.reverse != 0};
    read_tile(a.B, s, w.B, np);
    read_tile(a.C, s, w.C, np);
}

static Span load_tile(const ScanArgs& a, int64_t b, int64_t block, int64_t t0, Tile& w) {
    const int64_t left = a.channels - block * LANES, steps = a.length - t0 < a.tile ? a.length - t0 : a.tile;
    const Span s = {b, block * LANES, left < LANES ? left : LANES, t0, steps, a.length, a.reverse != 0};
    read_tile(a.u, s, w.u, LANES);
    read_tile(a.delta, s, w.dt, LANES);
    if (a.z.data) read_tile(a.z, s, w.z, LANES);
    if (a.add.data) read_tile(a.add, s, w.add, LANES);
    if (a.bias || a.softplus) {
        const vf bias = load(w.bias);
        for (int64_t i = 0; i < steps * LANES; i += LANES) {
            vf x = load(w.dt + i) + bias;
            if (a.softplus) {
                vf slope;
                x = softplus(x, w.sig ? &slope : nullptr);
                if (w.sig) store(w.sig + i, slope);
            }
            store(w.dt + i, x);
        }
    }
    return s;
}
