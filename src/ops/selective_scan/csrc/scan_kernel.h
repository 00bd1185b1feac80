// The scan of one batch item over some blocks of LANES channels, forward and backward. Included after scan_tile.h.
//
// Lanes are channels; the states of a block live in registers, one vector per state. Time is cut into tiles, and all
// blocks pass one tile before any enters the next: memory is then walked through once, in order, however long the
// sequence is, and B and C are read once for all blocks. A tile's inputs are first read into a small time-major buffer
// (any stride, type or direction), where the pointwise parts (softplus, gate, skip) are done as well; padded states and
// channels are zero and add nothing.

// One step of the recurrence for all states: h = 2^(dt A2) h + x B. NEAR as in exp2v.
template <int NP, bool KEEP, bool READ, bool NEAR>
INLINE void step(Tile& w, int64_t i, int64_t np_, vf dt, vf* h) {
    const int64_t np = NP ? NP : np_;
    const vf x = dt * load(w.u + i * LANES);
    const float *Bi = w.B + i * np, *Ci = w.C + i * np;
    vf y0 = {}, y1 = {};
#pragma GCC unroll 16
    for (int64_t n = 0; n < np; n += 2) {
        const vf a0 = exp2v<NEAR>(dt * load(w.A2 + n * LANES)), a1 = exp2v<NEAR>(dt * load(w.A2 + (n + 1) * LANES));
        if (KEEP) {
            store(w.states + (i * np + n) * LANES, h[n]);
            store(w.states + (i * np + n + 1) * LANES, h[n + 1]);
            store(w.decays + (i * np + n) * LANES, a0);
            store(w.decays + (i * np + n + 1) * LANES, a1);
        }
        h[n] = a0 * h[n] + x * splat(Bi[n]);
        h[n + 1] = a1 * h[n + 1] + x * splat(Bi[n + 1]);
        if (READ) {
            y0 += h[n] * splat(Ci[n]);
            y1 += h[n + 1] * splat(Ci[n + 1]);
        }
    }
    if (READ) store(w.y + i * LANES, y0 + y1);
}

// The recurrence over one tile. KEEP stores the state before each step and each decay; READ leaves C.h in w.y.
template <int NP, bool KEEP, bool READ>
static void advance(Tile& w, int64_t steps, int64_t np_, float* carry) {
    const int64_t np = NP ? NP : np_;
    vf h[NP ? NP : 64], most = {};
    for (int64_t n = 0; n < np; ++n) {
        const vf rate = load(w.A2 + n * LANES), size = rate < vf{} ? -rate : rate;
        h[n] = load(carry + n * LANES);
        most = (size > most) | (size != size) ? size : most;  // a NaN stays
    }
    for (int64_t i = 0; i < steps; ++i) {
        int k = 0;
        for (; k < w.reads; ++k) {
            __builtin_prefetch(w.ahead[k].row, 0, 2);
            w.ahead[k].row += w.ahead[k].step;
        }
        for (; k < w.aheads; ++k) {
            __builtin_prefetch(w.ahead[k].row, 1, 2);
            w.ahead[k].row += w.ahead[k].step;
        }
        const vf dt = load(w.dt + i * LANES);
        if (LANES < 16 && all_below(dt * most, NEAR_LIMIT))
            step<NP, KEEP, READ, true>(w, i, np, dt, h);
        else
            step<NP, KEEP, READ, false>(w, i, np, dt, h);
    }
    if (KEEP)
        for (int64_t n = 0; n < np; ++n) store(w.states + (steps * np + n) * LANES, h[n]);
    for (int64_t n = 0; n < np; ++n) store(carry + n * LANES, h[n]);
}

template <int NP>
static void scan_forward(const ScanArgs& a, int64_t b, int64_t first, int64_t last, int64_t np_, Tile& w) {
    const int64_t np = NP ? NP : np_, rows = np * LANES;
    const int64_t blocks = (a.channels + LANES - 1) / LANES, tiles = (a.length + a.tile - 1) / a.tile;
    const Array *const inputs[] = {&a.u, &a.delta, &a.z, &a.add, nullptr}, *const outputs[] = {&a.out, nullptr};
    for (int64_t k = 0; k < tiles; ++k) {
        load_states(a, b, k * a.tile, np, w);
        for (int64_t block = first; block < last; ++block) {
            enter_block(block, np, w);
            if (!k) memset(w.carry, 0, rows * sizeof(float));
            if (k && a.checkpoints)
                memcpy(a.checkpoints + ((b * blocks + block) * (tiles - 1) + k - 1) * rows, w.carry, rows * sizeof(float));
            const Span s = load_tile(a, b, block, k * a.tile, w);
            const bool ends = block + 1 == last;
            w.aheads = 0;
            look_ahead(a, b, ends ? first : block + 1, (k + ends) * a.tile, inputs, w);
            w.reads = w.aheads;
            look_ahead(a, b, block, k * a.tile, outputs, w);
            advance<NP, false, true>(w, s.steps, np, w.carry);
            const vf D = load(w.D);
            if (a.D)
                for (int64_t i = 0; i < s.steps * LANES; i += LANES) store(w.y + i, load(w.y + i) + D * load(w.u + i));
            if (a.add.data)
                for (int64_t i = 0; i < s.steps * LANES; i += LANES) store(w.y + i, load(w.y + i) + load(w.add + i));
            if (a.z.data)
                for (int64_t i = 0; i < s.steps * LANES; i += LANES) {
                    const vf z = load(w.z + i);
                    store(w.y + i, load(w.y + i) * (z * sigmoid(z)));
                }
            write_tile(a.out, s, w.y, LANES);
        }
    }
}

// One tile backwards in time: consumes w.g (gradient of the ungated output), leaves du in w.u and ddelta in w.dt.
template <int NP>
static void retreat(const ScanArgs& a, const Span& s, int64_t np_, Tile& w, vf* dD, vf* dbias, float* gB, float* gC,
                    bool assign) {
    const int64_t np = NP ? NP : np_;
    const vf D = load(w.D);
    vf dh[NP ? NP : 64];
    for (int64_t n = 0; n < np; ++n) dh[n] = load(w.carry + n * LANES);
    vf sumD = {}, sumbias = {};
    for (int64_t i = s.steps - 1; i >= 0; --i) {
        const vf dt = load(w.dt + i * LANES), u = load(w.u + i * LANES), g = load(w.g + i * LANES), x = dt * u;
        const float *Bi = w.B + i * np, *Ci = w.C + i * np;
        const float *before = w.states + i * np * LANES, *after = before + np * LANES, *decay = w.decays + i * np * LANES;
        const int64_t t = s.reverse ? s.length - 1 - (s.t0 + i) : s.t0 + i;
        float *rowB = gB + t * np, *rowC = gC + t * np;
        vf dx = {}, ddt = {};
#if LANES == 16
        vf foldedB[4], foldedC[4];
#endif
#pragma GCC unroll 16
        for (int64_t n = 0; n < np; n += 4) {
            vf vB[4], vC[4];
#pragma GCC unroll 4
            for (int64_t m = 0; m < 4; ++m) {
                vC[m] = g * load(after + (n + m) * LANES);
                const vf d = dh[n + m] + g * splat(Ci[n + m]);
                vB[m] = d * x;
                dx += d * splat(Bi[n + m]);
                const vf q = d * load(decay + (n + m) * LANES);
                const vf p = q * load(before + (n + m) * LANES);
                ddt += p * load(w.A + (n + m) * LANES);
                store(w.dA + (n + m) * LANES, load(w.dA + (n + m) * LANES) + p * dt);
                dh[n + m] = q;
            }
            const vf fB = fold4(vB[0], vB[1], vB[2], vB[3]), fC = fold4(vC[0], vC[1], vC[2], vC[3]);
#if LANES == 16
            if (NP && NP % 16 == 0) {
                foldedB[n / 4 % 4] = fB, foldedC[n / 4 % 4] = fC;
                if (n % 16 == 12) {
                    const vf sB = fold16(foldedB[0], foldedB[1], foldedB[2], foldedB[3]);
                    const vf sC = fold16(foldedC[0], foldedC[1], foldedC[2], foldedC[3]);
                    storeu(rowB + n - 12, assign ? sB : sB + loadu(rowB + n - 12));
                    storeu(rowC + n - 12, assign ? sC : sC + loadu(rowC + n - 12));
                }
                continue;
            }
#endif
            add_sums4(rowB + n, fB, assign);
            add_sums4(rowC + n, fC, assign);
        }
        vf step = ddt + dx * u;
        if (a.softplus) step *= load(w.sig + i * LANES);
        sumbias += step;
        sumD += g * u;
        store(w.u + i * LANES, dx * dt + D * g);
        store(w.dt + i * LANES, step);
    }
    *dD += sumD, *dbias += sumbias;
    for (int64_t n = 0; n < np; ++n) store(w.carry + n * LANES, dh[n]);
}

template <int NP>
static void scan_backward(const ScanArgs& a, int64_t b, int64_t first, int64_t last, int64_t np_, Tile& w, float* gB,
                          float* gC) {
    const int64_t np = NP ? NP : np_, rows = np * LANES;
    const int64_t blocks = (a.channels + LANES - 1) / LANES, tiles = (a.length + a.tile - 1) / a.tile;
    const Array *const inputs[] = {&a.u, &a.delta, &a.z, &a.add, &a.grad, nullptr};
    const Array *const outputs[] = {&a.du, &a.ddelta, &a.dz, &a.dadd, nullptr};
    for (int64_t k = tiles - 1; k >= 0; --k) {
        load_states(a, b, k * a.tile, np, w);
        for (int64_t block = first; block < last; ++block) {
            enter_block(block, np, w);
            float* partial = a.partial + (b * blocks + block) * (rows + 2 * LANES);
            if (k == tiles - 1) {
                memset(w.carry, 0, rows * sizeof(float));
                memset(partial, 0, (rows + 2 * LANES) * sizeof(float));
            }
            const Span s = load_tile(a, b, block, k * a.tile, w);
            read_tile(a.grad, s, w.g, LANES);
            const bool ends = block + 1 == last;
            w.aheads = 0;
            look_ahead(a, b, ends ? first : block + 1, (k - ends) * a.tile, inputs, w);
            w.reads = w.aheads;
            look_ahead(a, b, block, k * a.tile, outputs, w);
            vf carry[64];  // the running state; its copies per step are what the way back needs
            if (k)
                memcpy(carry, a.checkpoints + ((b * blocks + block) * (tiles - 1) + k - 1) * rows, rows * sizeof(float));
            else
                memset(carry, 0, rows * sizeof(float));
            const vf D = load(w.D);
            if (a.z.data) {
                advance<NP, true, true>(w, s.steps, np, (float*)carry);
                for (int64_t i = 0; i < s.steps * LANES; i += LANES) {
                    const vf z = load(w.z + i), g = load(w.g + i), gate = sigmoid(z), silu = z * gate;
                    vf y = load(w.y + i) + D * load(w.u + i);
                    if (a.add.data) y += load(w.add + i);
                    store(w.z + i, a.y_to_dz ? y : g * y * (gate + silu * (splat(1.0f) - gate)));
                    store(w.g + i, g * silu);
                }
                write_tile(a.dz, s, w.z, LANES);
                if (a.dadd.data) write_tile(a.dadd, s, w.g, LANES);
            } else {
                advance<NP, true, false>(w, s.steps, np, (float*)carry);
            }
            vf dD = loadu(partial + rows), dbias = loadu(partial + rows + LANES);
            memset(w.dA, 0, rows * sizeof(float));
            retreat<NP>(a, s, np, w, &dD, &dbias, gB, gC, block == first);
            for (int64_t r = 0; r < rows; r += LANES) storeu(partial + r, loadu(partial + r) + load(w.dA + r));
            storeu(partial + rows, dD);
            storeu(partial + rows + LANES, dbias);
            write_tile(a.du, s, w.u, LANES);
            write_tile(a.ddelta, s, w.dt, LANES);
        }
    }
}

// Tasks [first, last) of this thread; a task is (batch item, channel block), channel blocks running fastest. dB and dC
// of a batch item are summed over blocks in place; a thread that enters in the middle of an item sums into its own slot.
static void scan_tasks(const ScanArgs& a, int64_t first, int64_t last, int64_t thread, bool backward) {
    const int64_t np = (a.states + 3) / 4 * 4, blocks = (a.channels + LANES - 1) / LANES;
    Tile w = carve(a.work + thread * a.work_size, a.tile, np, blocks, backward);
    for (int64_t block = 0; block < blocks; ++block) load_constants(a, block, np, w);
    for (int64_t task = first, next; task < last; task = next) {
        const int64_t b = task / blocks, from = task % blocks;
        next = (b + 1) * blocks < last ? (b + 1) * blocks : last;
        const int64_t to = from + next - task;
        if (!backward) {
            if (np == 16)
                scan_forward<16>(a, b, from, to, np, w);
            else
                scan_forward<0>(a, b, from, to, np, w);
            continue;
        }
        float* gB = from ? a.extra + 2 * thread * a.length * np : a.gB + b * a.length * np;
        float* gC = from ? gB + a.length * np : a.gC + b * a.length * np;
        if (np == 16)
            scan_backward<16>(a, b, from, to, np, w, gB, gC);
        else
            scan_backward<0>(a, b, from, to, np, w, gB, gC);
    }
}

// Sums over the batch, in a fixed order, of what belongs to channels: dA, dD, dbias of one block.
static void scan_reduce_block(const ScanArgs& a, int64_t block) {
    const int64_t np = (a.states + 3) / 4 * 4, blocks = (a.channels + LANES - 1) / LANES, size = (np + 2) * LANES;
    for (int64_t r = 0; r < np + 2; ++r) {
        vf total = {};
        for (int64_t b = 0; b < a.batch; ++b) total += loadu(a.partial + (b * blocks + block) * size + r * LANES);
        for (int64_t j = 0; j < LANES && block * LANES + j < a.channels; ++j) {
            const int64_t e = block * LANES + j;
            if (r < a.states)
                a.dA[e * a.states + r] = total[j];
            else if (r == np && a.dD)
                a.dD[e] = total[j];
            else if (r == np + 1 && a.dbias)
                a.dbias[e] = total[j];
        }
    }
}
