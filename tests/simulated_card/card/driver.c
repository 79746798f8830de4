/* The few of the driver's functions that frameworks call past the runtime. */
#include <stdio.h>
#include <string.h>
#include "card.h"
int cuInit(unsigned flags) { return simulated_cards() ? 0 : 100; }
int cuDriverGetVersion(int *v) { *v = 13000; return 0; }
int cuDeviceGetCount(int *n) { *n = simulated_cards(); return 0; }
int cuDeviceGet(int *d, int i) { *d = i; return i >= 0 && i < simulated_cards() ? 0 : 101; }
int cuDeviceGetName(char *text, int n, int d) { snprintf(text, n, "%s", simulated_card()->name); return 0; }
int cuDeviceTotalMem_v2(size_t *n, int d) { *n = simulated_memory(); return 0; }
extern int cudaDeviceGetAttribute(int *, int, int);
int cuDeviceGetAttribute(int *v, int what, int d) { return cudaDeviceGetAttribute(v, what, d); }
static int context;
int cuCtxGetCurrent(void **c) { *c = &context; return 0; }
int cuCtxSetCurrent(void *c) { return 0; }
int cuCtxGetDevice(int *d) { *d = 0; return 0; }
int cuDevicePrimaryCtxRetain(void **c, int d) { *c = &context; return 0; }
int cuDevicePrimaryCtxGetState(int d, unsigned *flags, int *active) { if (flags) *flags = 0; *active = 1; return 0; }
int cuGetErrorString(int e, const char **text) { *text = e ? "simulated driver: error" : "no error"; return 0; }
int cuGetErrorName(int e, const char **text) { *text = e ? "CUDA_ERROR_SIMULATED" : "CUDA_SUCCESS"; return 0; }
int cuPointerGetAttribute(void *data, int what, unsigned long long p) { *(int *)data = 0; return 0; }
int cuFuncGetAttribute(int *v, int what, void *f) { *v = 0; return 0; }
int cuOccupancyMaxActiveBlocksPerMultiprocessor(int *n, void *f, int b, size_t s) { *n = 2; return 0; }
