/* The simulated card's memory: address space that nobody touches, counted in pages as the driver
 * counts it. */
#define _GNU_SOURCE
#include <cuda_runtime_api.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include "card.h"

/* ---- memory ---- */
#define FIRST 0x3e0000000000ull /* far from everything else */
#define DEVICES 16
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct block { void *address; size_t size; int device; } *blocks;
static size_t count, room, taken[DEVICES];


static void *reserve(size_t size) {
    static uintptr_t next = FIRST;
    size_t length = (size + 0x1fffff) & ~(size_t)0x1fffff;
    void *at = mmap((void *)next, length, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (at == MAP_FAILED) return NULL;
    next = (uintptr_t)at + length + 0x200000;
    return at;
}

static size_t page(void) { return simulated_setting("SIMULATED_CARD_GRANULE", 2 << 20); }

/* What a card's blocks take of it: long ones whole pages, short ones share theirs. */
static size_t in_use(int device) {
    size_t shared = 0, step = page();
    for (size_t i = 0; i < count; i++)
        if (blocks[i].device == device && blocks[i].size < step) shared += blocks[i].size;
    return taken[device] + (shared + step - 1) / step * step;
}

cudaError_t cudaMalloc(void **pointer, size_t size) {
    const size_t step = page();
    int device = simulated_current();
    size_t length = size < step ? size : (size + step - 1) / step * step;
    pthread_mutex_lock(&lock);
    cudaError_t error = cudaSuccess;
    void *at = NULL;
    if (in_use(device) + length > simulated_memory()) error = cudaErrorMemoryAllocation;
    else if (size && !(at = reserve(length))) error = cudaErrorMemoryAllocation;
    else if (size) {
        if (count == room) blocks = realloc(blocks, (room = room * 2 + 64) * sizeof *blocks);
        blocks[count++] = (struct block){at, length, device};
        if (length >= step) taken[device] += length;
        if (simulated_says() > 1) fprintf(stderr, "simulated card: cudaMalloc(%zu) -> %p\n", size, at);
    }
    *pointer = at;
    pthread_mutex_unlock(&lock);
    return simulated_said(error);
}

cudaError_t cudaFree(void *pointer) {
    if (!pointer) return cudaSuccess;
    pthread_mutex_lock(&lock);
    cudaError_t error = cudaErrorInvalidValue;
    for (size_t i = 0; i < count; i++)
        if (blocks[i].address == pointer) {
            munmap(pointer, (blocks[i].size + 0x1fffff) & ~(size_t)0x1fffff);
            if (blocks[i].size >= page()) taken[blocks[i].device] -= blocks[i].size;
            blocks[i] = blocks[--count];
            error = cudaSuccess;
            break;
        }
    pthread_mutex_unlock(&lock);
    return simulated_said(error);
}
cudaError_t cudaMallocAsync(void **p, size_t n, cudaStream_t s) { return cudaMalloc(p, n); }
cudaError_t cudaFreeAsync(void *p, cudaStream_t s) { return cudaFree(p); }
cudaError_t cudaMemGetInfo(size_t *free_, size_t *total_) {
    *total_ = simulated_memory();
    *free_ = *total_ - in_use(simulated_current());
    return cudaSuccess;
}
cudaError_t cudaHostAlloc(void **p, size_t n, unsigned flags) { return posix_memalign(p, 4096, n ? n : 1) ? cudaErrorMemoryAllocation : cudaSuccess; }
cudaError_t cudaMallocHost(void **p, size_t n) { return cudaHostAlloc(p, n, 0); }
cudaError_t cudaFreeHost(void *p) { free(p); return cudaSuccess; }
cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *a, const void *p) {
    memset(a, 0, sizeof *a);
    a->type = cudaMemoryTypeUnregistered;
    a->device = -1; /* set below where known */
    a->hostPointer = (void *)p;
    pthread_mutex_lock(&lock);
    for (size_t i = 0; i < count; i++) {
        char *b = blocks[i].address;
        if ((char *)p >= b && (char *)p < b + blocks[i].size) {
            a->type = cudaMemoryTypeDevice;
            a->device = blocks[i].device;
            a->devicePointer = (void *)p;
            a->hostPointer = NULL;
        }
    }
    pthread_mutex_unlock(&lock);
    return cudaSuccess;
}

/* ---- copies: short ones are done, so that indices and scalars pass through ---- */
static int on_card(const void *p) { return (uintptr_t)p >= FIRST && (uintptr_t)p < FIRST + (1ull << 44); }
static cudaError_t copy(void *to, const void *from, size_t n) {
    if (on_card(from) && !on_card(to) && simulated_setting("SIMULATED_CARD_ZEROS", 0)) { memset(to, 0, n); return cudaSuccess; }
    if (n && n <= simulated_setting("SIMULATED_CARD_COPY_LIMIT", 1 << 20)) memmove(to, from, n);
    return cudaSuccess;
}
cudaError_t cudaMemcpy(void *to, const void *from, size_t n, enum cudaMemcpyKind k) { return copy(to, from, n); }
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t n, enum cudaMemcpyKind k, cudaStream_t s) { return copy(to, from, n); }
cudaError_t cudaMemcpyPeerAsync(void *to, int a, const void *from, int b, size_t n, cudaStream_t s) { return copy(to, from, n); }
cudaError_t cudaMemcpy2DAsync(void *to, size_t tp, const void *from, size_t fp, size_t w, size_t h, enum cudaMemcpyKind k, cudaStream_t s) {
    for (size_t i = 0; i < h; i++) copy((char *)to + i * tp, (const char *)from + i * fp, w);
    return cudaSuccess;
}
cudaError_t cudaMemset(void *p, int v, size_t n) { if (n <= simulated_setting("SIMULATED_CARD_COPY_LIMIT", 1 << 20)) memset(p, v, n); return cudaSuccess; }
cudaError_t cudaMemsetAsync(void *p, int v, size_t n, cudaStream_t s) { return cudaMemset(p, v, n); }
cudaError_t cudaMemcpyToSymbol(const void *symbol, const void *from, size_t n, size_t at, enum cudaMemcpyKind k) { return cudaSuccess; }
cudaError_t cudaGetSymbolAddress(void **p, const void *symbol) { *p = (void *)symbol; return cudaSuccess; }

