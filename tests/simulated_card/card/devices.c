/* The simulated card's hardware: which cards there are, what they say of themselves, streams, events,
 * errors. Everything is done at once. */
#define _GNU_SOURCE
#include <cuda_runtime_api.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "card.h"

static const struct card CARDS[] = {
    {"h200", "Simulated H200", 9, 0, 132, 150109880320u, 62914560, 49152, 232448, 233472, 2048, 32, 1980000, 3201000, 6144},
    {"a100", "Simulated A100-80GB", 8, 0, 108, 85095874560u, 41943040, 49152, 166912, 167936, 2048, 32, 1410000, 1593000, 5120},
    {"rtx3090", "Simulated RTX 3090", 8, 6, 82, 25435766784u, 6291456, 49152, 101376, 102400, 1536, 16, 1695000, 9751000, 384},
    {"t4", "Simulated T4", 7, 5, 40, 15828320256u, 4194304, 49152, 65536, 65536, 1024, 16, 1590000, 5001000, 256},
};
static __thread int current;
static __thread cudaError_t last;

size_t simulated_setting(const char *name, size_t otherwise) {
    const char *text = getenv(name);
    return text && *text ? strtoull(text, NULL, 0) : otherwise;
}

const struct card *simulated_card(void) {
    static const struct card *chosen;
    if (!chosen) {
        const char *wanted = getenv("SIMULATED_CARD");
        chosen = CARDS;
        for (size_t i = 0; wanted && i < sizeof CARDS / sizeof *CARDS; i++)
            if (!strcmp(wanted, CARDS[i].key)) chosen = CARDS + i;
    }
    return chosen;
}

/* As the driver reads CUDA_VISIBLE_DEVICES: numbers in order, up to the first that is no card. */
int simulated_number(int device) {
    int there = (int)simulated_setting("SIMULATED_CARD_DEVICES", 1), seen = 0;
    const char *at = getenv("CUDA_VISIBLE_DEVICES");
    if (!at) return device >= 0 && device < there ? device : -1;
    while (*at) {
        char *end;
        long number = strtol(at, &end, 10);
        if (end == at || number < 0 || number >= there) return -1;
        if (seen++ == device) return (int)number;
        at = *end == ',' ? end + 1 : end;
        if (*end && *end != ',') return -1;
    }
    return -1;
}

int simulated_cards(void) {
    int n = 0;
    while (simulated_number(n) >= 0) n++;
    return n;
}

size_t simulated_memory(void) { return simulated_setting("SIMULATED_CARD_MEMORY", simulated_card()->memory); }
int simulated_says(void) { return (int)simulated_setting("SIMULATED_CARD_LOG", 0); }
int simulated_current(void) { return current; }
int simulated_said(int error) { if (error) last = error; return error; }

void simulated_stub(const char *library, const char *name) {
    const char *path = getenv("SIMULATED_CARD_STUBS");
    if (simulated_says()) fprintf(stderr, "simulated card: stub %s %s\n", library, name);
    if (path && *path) {
        FILE *file = fopen(path, "a");
        if (file) fprintf(file, "%s %s\n", library, name), fclose(file);
    }
}

#if CUDART_VERSION >= 13000
#define STUB_VERSION 13000
#else
#define STUB_VERSION CUDART_VERSION
#endif

/* ---- devices ---- */
cudaError_t cudaGetDeviceCount(int *n) { *n = simulated_cards(); return *n ? cudaSuccess : simulated_said(cudaErrorNoDevice); }
cudaError_t cudaGetDevice(int *d) { *d = current; return cudaSuccess; }
cudaError_t cudaSetDevice(int d) {
    if (d < 0 || d >= simulated_cards()) return simulated_said(cudaErrorInvalidDevice);
    current = d;
    return cudaSuccess;
}
static void fill(struct cudaDeviceProp *p, int device) {
    int number = simulated_number(device);
    const struct card *c = simulated_card();
    memset(p, 0, sizeof *p);
    snprintf(p->name, sizeof p->name, "%s", c->name);
    memset(&p->uuid, 0x11 * (number + 1), sizeof p->uuid);
    p->totalGlobalMem = simulated_memory();
    p->sharedMemPerBlock = c->shared_block;
    p->regsPerBlock = p->regsPerMultiprocessor = 65536;
    p->warpSize = 32;
    p->memPitch = 2147483647;
    p->maxThreadsPerBlock = 1024;
    p->maxThreadsDim[0] = p->maxThreadsDim[1] = 1024, p->maxThreadsDim[2] = 64;
    p->maxGridSize[0] = 2147483647, p->maxGridSize[1] = p->maxGridSize[2] = 65535;
    p->totalConstMem = 65536;
    p->major = c->major, p->minor = c->minor;
    p->textureAlignment = 512, p->texturePitchAlignment = 32;
    p->multiProcessorCount = c->processors;
    p->canMapHostMemory = p->concurrentKernels = p->unifiedAddressing = 1;
    p->pciBusID = number + 1;
    p->asyncEngineCount = 3;
    p->memoryBusWidth = c->bus_bits;
    p->l2CacheSize = (int)c->l2;
    p->maxThreadsPerMultiProcessor = c->threads_processor;
    p->streamPrioritiesSupported = p->globalL1CacheSupported = p->localL1CacheSupported = 1;
    p->sharedMemPerMultiprocessor = c->shared_processor;
    p->managedMemory = p->cooperativeLaunch = 1;
    p->sharedMemPerBlockOptin = c->shared_optin;
    p->maxTexture1D = 131072;
#if CUDART_VERSION >= 11000
    p->maxBlocksPerMultiProcessor = c->blocks_processor;
    p->reservedSharedMemPerBlock = c->major >= 8 ? 1024 : 0;
#endif
#if CUDART_VERSION < 13000
    p->clockRate = c->clock_khz, p->memoryClockRate = c->memory_khz;
#endif
}
cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *p, int device) { fill(p, device); return cudaSuccess; }
cudaError_t cudaDeviceGetAttribute(int *v, enum cudaDeviceAttr what, int device) {
    struct cudaDeviceProp p;
    fill(&p, device);
    const struct card *c = simulated_card();
    switch ((int)what) {
#define IS(number, value) case number: *v = (int)(value); break;
    IS(cudaDevAttrMaxThreadsPerBlock, 1024) IS(cudaDevAttrMaxBlockDimX, 1024)
    IS(cudaDevAttrMaxBlockDimY, 1024) IS(cudaDevAttrMaxBlockDimZ, 64)
    IS(cudaDevAttrMaxGridDimX, 2147483647) IS(cudaDevAttrMaxGridDimY, 65535)
    IS(cudaDevAttrMaxGridDimZ, 65535) IS(cudaDevAttrMaxSharedMemoryPerBlock, c->shared_block)
    IS(cudaDevAttrTotalConstantMemory, 65536) IS(cudaDevAttrWarpSize, 32)
    IS(cudaDevAttrMaxRegistersPerBlock, 65536) IS(cudaDevAttrClockRate, c->clock_khz)
    IS(cudaDevAttrTextureAlignment, 512) IS(cudaDevAttrMultiProcessorCount, c->processors)
    IS(cudaDevAttrCanMapHostMemory, 1) IS(cudaDevAttrConcurrentKernels, 1)
    IS(cudaDevAttrPciBusId, simulated_number(device) + 1) IS(cudaDevAttrMemoryClockRate, c->memory_khz)
    IS(cudaDevAttrGlobalMemoryBusWidth, c->bus_bits) IS(cudaDevAttrL2CacheSize, c->l2)
    IS(cudaDevAttrMaxThreadsPerMultiProcessor, c->threads_processor)
    IS(cudaDevAttrAsyncEngineCount, 3) IS(cudaDevAttrUnifiedAddressing, 1)
    IS(cudaDevAttrComputeCapabilityMajor, c->major) IS(cudaDevAttrComputeCapabilityMinor, c->minor)
    IS(cudaDevAttrStreamPrioritiesSupported, 1)
    IS(cudaDevAttrMaxSharedMemoryPerMultiprocessor, c->shared_processor)
    IS(cudaDevAttrMaxRegistersPerMultiprocessor, 65536) IS(cudaDevAttrManagedMemory, 1)
    IS(cudaDevAttrCooperativeLaunch, 1) IS(cudaDevAttrMaxSharedMemoryPerBlockOptin, c->shared_optin)
    IS(cudaDevAttrMaxBlocksPerMultiprocessor, c->blocks_processor)
    IS(cudaDevAttrReservedSharedMemoryPerBlock, c->major >= 8 ? 1024 : 0)
#undef IS
    default: *v = 0;
        if (simulated_says()) fprintf(stderr, "simulated card: attribute %d is 0\n", (int)what);
    }
    return cudaSuccess;
}
cudaError_t cudaDeviceCanAccessPeer(int *can, int a, int b) { *can = 0; return cudaSuccess; }
cudaError_t cudaDeviceGetPCIBusId(char *text, int n, int device) { snprintf(text, n, "0000:%02x:00.0", simulated_number(device) + 1); return cudaSuccess; }
cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest) { if (least) *least = 0; if (greatest) *greatest = -5; return cudaSuccess; }
cudaError_t cudaDriverGetVersion(int *v) { *v = STUB_VERSION; return cudaSuccess; }
cudaError_t cudaRuntimeGetVersion(int *v) { *v = STUB_VERSION; return cudaSuccess; }

/* ---- errors ---- */
cudaError_t cudaGetLastError(void) { cudaError_t e = last; last = cudaSuccess; return e; }
cudaError_t cudaPeekAtLastError(void) { return last; }
const char *cudaGetErrorName(cudaError_t e) { return e ? "cudaErrorSimulated" : "cudaSuccess"; }
const char *cudaGetErrorString(cudaError_t e) {
    return e == cudaErrorMemoryAllocation ? "out of memory" : e ? "simulated card: error" : "no error";
}

/* ---- streams and events: everything is done at once ---- */
static void *handle(void) { return calloc(1, sizeof(struct timespec)); }
cudaError_t cudaStreamCreate(cudaStream_t *s) { *s = handle(); return cudaSuccess; }
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *s, unsigned f) { *s = handle(); return cudaSuccess; }
cudaError_t cudaStreamCreateWithPriority(cudaStream_t *s, unsigned f, int p) { *s = handle(); return cudaSuccess; }
cudaError_t cudaStreamDestroy(cudaStream_t s) { return cudaSuccess; }
cudaError_t cudaStreamGetPriority(cudaStream_t s, int *p) { *p = 0; return cudaSuccess; }
cudaError_t cudaStreamIsCapturing(cudaStream_t s, enum cudaStreamCaptureStatus *c) { *c = cudaStreamCaptureStatusNone; return cudaSuccess; }
cudaError_t cudaStreamAddCallback(cudaStream_t s, cudaStreamCallback_t f, void *data, unsigned flags) { f(s, cudaSuccess, data); return cudaSuccess; }
cudaError_t cudaLaunchHostFunc(cudaStream_t s, cudaHostFn_t f, void *data) { f(data); return cudaSuccess; }
#if CUDART_VERSION >= 13000
cudaError_t cudaStreamGetCaptureInfo(cudaStream_t s, enum cudaStreamCaptureStatus *c, unsigned long long *id, cudaGraph_t *g, const cudaGraphNode_t **d, const cudaGraphEdgeData **e, size_t *n) {
    *c = cudaStreamCaptureStatusNone;
    if (id) *id = 0;
    if (n) *n = 0;
    return cudaSuccess;
}
#else
cudaError_t cudaStreamGetCaptureInfo(cudaStream_t s, enum cudaStreamCaptureStatus *c, unsigned long long *id) {
    *c = cudaStreamCaptureStatusNone;
    if (id) *id = 0;
    return cudaSuccess;
}
#endif
cudaError_t cudaEventCreate(cudaEvent_t *e) { *e = handle(); return cudaSuccess; }
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *e, unsigned f) { *e = handle(); return cudaSuccess; }
cudaError_t cudaEventDestroy(cudaEvent_t e) { free(e); return cudaSuccess; }
cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t s) { clock_gettime(CLOCK_MONOTONIC, (void *)e); return cudaSuccess; }
cudaError_t cudaEventRecordWithFlags(cudaEvent_t e, cudaStream_t s, unsigned f) { return cudaEventRecord(e, s); }
cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t a, cudaEvent_t b) {
    struct timespec *x = (void *)a, *y = (void *)b;
    *ms = (float)((y->tv_sec - x->tv_sec) * 1e3 + (y->tv_nsec - x->tv_nsec) / 1e6);
    return cudaSuccess;
}

