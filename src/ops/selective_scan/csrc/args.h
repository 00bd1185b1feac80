// What Python hands over: every field is 64 bits wide, so that one int64 array is the whole interface.
#pragma once
#include <cstdint>

const int64_t ABI = 5;  // raise with every change below; cpu.py checks it

enum DType : int64_t { F32 = 0, BF16 = 1, F16 = 2 };

// A 3-D array: batch, channel (or state), time. Strides in elements.
struct Array {
    char* data;
    int64_t batch, row, time;
    int64_t dtype;
};

struct ScanArgs {
    int64_t batch, channels, length, states;
    int64_t tile;  // steps between two checkpoints
    int64_t reverse, softplus, threads;
    Array u, delta, B, C, z, add, out;      // z.data and add.data may be null
    Array grad, du, ddelta, dz, dadd;       // backward only
    int64_t y_to_dz;                        // dz takes the ungated output instead (the first of two directions)
    const float *A, *D, *bias;              // (E, N), (E), (E) contiguous; D and bias may be null
    float* checkpoints;                     // (batch, blocks, tiles - 1, padded states, lanes); null in inference
    float* work;                            // per thread `work_size` floats
    int64_t work_size;
    float *gB, *gC;                         // (batch, length, padded states): gradients of B and C
    float* extra;                           // (threads, 2, length, padded states): the same, of shares begun mid-item
    float* partial;                         // (batch, blocks, padded states + 2, lanes): dA, dD, dbias per batch item
    float *dA, *dD, *dbias;                 // (E, N), (E), (E); dD and dbias may be null
};

struct ConvArgs {
    int64_t batch, channels, length, width;
    int64_t reverse, silu, threads;
    Array x, out, grad, dx;
    const float *weight, *bias;  // (E, W), (E) contiguous; bias may be null
    float* work;                 // per thread `work_size` floats
    int64_t work_size;
    float* partial;              // (batch, E, W + 1): dweight, dbias per batch item
    float *dweight, *dbias;      // (E, W), (E); dbias may be null
};

struct NormArgs {
    int64_t rows, dim, threads;
    double eps;
    const float *x, *weight, *grad;  // (rows, dim), (dim), (rows, dim)
    float *y, *scale;                // (rows, dim), (rows)
    float *dx, *partial, *dweight;   // (rows, dim), (threads, dim), (dim)
};
