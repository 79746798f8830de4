/* Kernels that do nothing: launches are checked as the driver checks them, and counted. */
#define _GNU_SOURCE
#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "card.h"

/* ---- kernels ---- */
static __thread struct { dim3 grid, block; size_t shared; void *stream; } pushed;
static unsigned long long launches;
void **__cudaRegisterFatBinary(void *binary) { return calloc(1, 64); }
void __cudaRegisterFatBinaryEnd(void **h) {}
void __cudaUnregisterFatBinary(void **h) {}
void __cudaRegisterFunction(void **h, const char *host, char *device, const char *name, int limit, void *a, void *b, void *c, void *d, int *w) {}
void __cudaRegisterVar(void **h, char *host, char *device, const char *name, int ext, size_t size, int constant, int global) {}
void __cudaRegisterManagedVar(void **h, void **host, char *device, const char *name, int ext, size_t size, int constant, int global) { *host = calloc(1, size); }
void __cudaRegisterTexture(void **h, const void *host, const void **device, const char *name, int dim, int norm, int ext) {}
void __cudaRegisterSurface(void **h, const void *host, const void **device, const char *name, int dim, int ext) {}
char __cudaInitModule(void **h) { return 1; }
unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, void *stream) {
    pushed.grid = grid, pushed.block = block, pushed.shared = shared, pushed.stream = stream;
    return 0;
}
cudaError_t __cudaPopCallConfiguration(dim3 *grid, dim3 *block, size_t *shared, void *stream) {
    *grid = pushed.grid, *block = pushed.block, *shared = pushed.shared, *(void **)stream = pushed.stream;
    return cudaSuccess;
}
static cudaError_t launch(dim3 g, dim3 b, size_t shared) {
    launches++;
    int fits = g.x && g.y && g.z && b.x && b.y && b.z && g.y <= 65535 && g.z <= 65535 && b.x * b.y * b.z <= 1024;
    return simulated_said(fits ? cudaSuccess : cudaErrorInvalidConfiguration);
}
cudaError_t cudaLaunchKernel(const void *f, dim3 g, dim3 b, void **args, size_t shared, cudaStream_t s) { return launch(g, b, shared); }
cudaError_t cudaLaunchCooperativeKernel(const void *f, dim3 g, dim3 b, void **args, size_t shared, cudaStream_t s) { return launch(g, b, shared); }
cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *a, const void *f) {
    const struct card *c = simulated_card();
    memset(a, 0, sizeof *a);
    a->maxThreadsPerBlock = 1024;
    a->numRegs = 32;
    a->ptxVersion = a->binaryVersion = c->major * 10 + c->minor;
    a->maxDynamicSharedSizeBytes = (int)c->shared_block;
    return cudaSuccess;
}
static int fitting(int threads, size_t shared) {
    const struct card *c = simulated_card();
    int n = threads ? c->threads_processor / threads : 1;
    if (shared && (int)(c->shared_processor / (shared + 1024)) < n) n = (int)(c->shared_processor / (shared + 1024));
    if (n > c->blocks_processor) n = c->blocks_processor;
    return n < 1 ? 1 : n;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *n, const void *f, int threads, size_t shared) { *n = fitting(threads, shared); return cudaSuccess; }
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *n, const void *f, int threads, size_t shared, unsigned flags) { *n = fitting(threads, shared); return cudaSuccess; }
#if CUDART_VERSION >= 12000
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t *c, const void *f, void **args) { return launch(c->gridDim, c->blockDim, c->dynamicSmemBytes); }
cudaError_t __cudaGetKernel(cudaKernel_t *k, const void *f) { *k = (cudaKernel_t)f; return cudaSuccess; }
cudaError_t __cudaLaunchKernel(cudaKernel_t k, dim3 g, dim3 b, void **args, size_t shared, cudaStream_t s) { return launch(g, b, shared); }

/* ---- the driver's functions, asked by name: those of our libcuda, else one that refuses ---- */
static int refuse(void) { return 801; }
cudaError_t cudaGetDriverEntryPointByVersion(const char *name, void **f, unsigned version, unsigned long long flags, enum cudaDriverEntryPointQueryResult *found) {
    void *driver = dlopen("libcuda.so.1", RTLD_LAZY | RTLD_NOLOAD);
    if (!driver) driver = dlopen("libcuda.so.1", RTLD_LAZY);
    *f = driver ? dlsym(driver, name) : NULL;
    if (!*f) {
        if (simulated_says()) fprintf(stderr, "simulated card: driver function %s refuses\n", name);
        *f = refuse;
    }
    if (found) *found = cudaDriverEntryPointSuccess;
    return cudaSuccess;
}
#endif
__attribute__((destructor)) static void told(void) {
    if (simulated_says() > 1) fprintf(stderr, "simulated card: %llu kernels launched\n", launches);
}
