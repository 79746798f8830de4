/* cuDNN's answers where a 0 would not do. Work spaces are SIMULATED_CARD_CUDNN_WORKSPACE bytes (0); what
 * recurrent layers reserve is made up. Types are plain, so that versions 8 and 9 both fit. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "card.h"
#ifndef DNN_VERSION
#define DNN_VERSION 92000
#endif
#ifndef DNN_CUDART
#define DNN_CUDART 13000
#endif
typedef int cudnnStatus_t;
static long space(void) { const char *t = getenv("SIMULATED_CARD_CUDNN_WORKSPACE"); return t ? atol(t) : 0; }

size_t cudnnGetVersion(void) { return DNN_VERSION; }
size_t cudnnGetCudartVersion(void) { return DNN_CUDART; }
cudnnStatus_t cudnnGetProperty(int what, int *v) {
    int major = DNN_VERSION >= 90000 ? 10000 : 1000;
    *v = what == 0 ? DNN_VERSION / major : what == 1 ? DNN_VERSION % major / 100 : DNN_VERSION % 100;
    return 0;
}
const char *cudnnGetErrorString(int e) { return e ? "simulated cuDNN: error" : "CUDNN_STATUS_SUCCESS"; }
void cudnnGetLastErrorString(char *text, size_t n) { if (n) *text = 0; }
cudnnStatus_t cudnnCreate(void **h) { *h = calloc(1, 64); return 0; }

/* ---- descriptors ---- */
struct tensor { int type, n, dims[8], strides[8]; };
struct rnn { int cell, bias, both, input, hidden, projection, layers, element; };
struct data { int length, batch, vector; };
#define MAKES(name) cudnnStatus_t name(void **d) { *d = calloc(1, 256); return 0; }
MAKES(cudnnCreateTensorDescriptor)
MAKES(cudnnCreateFilterDescriptor)
MAKES(cudnnCreateConvolutionDescriptor)
MAKES(cudnnCreateActivationDescriptor)
MAKES(cudnnCreatePoolingDescriptor)
MAKES(cudnnCreateLRNDescriptor)
MAKES(cudnnCreateOpTensorDescriptor)
MAKES(cudnnCreateReduceTensorDescriptor)
MAKES(cudnnCreateSeqDataDescriptor)
MAKES(cudnnCreateAttnDescriptor)
MAKES(cudnnCreateDropoutDescriptor)
MAKES(cudnnCreateRNNDescriptor)
MAKES(cudnnCreateRNNDataDescriptor)
MAKES(cudnnCreateCTCLossDescriptor)
MAKES(cudnnCreateSpatialTransformerDescriptor)
cudnnStatus_t cudnnSetTensorNdDescriptor(struct tensor *t, int type, int n, const int *dims, const int *strides) {
    t->type = type, t->n = n;
    memcpy(t->dims, dims, n * sizeof *dims);
    memcpy(t->strides, strides, n * sizeof *strides);
    return 0;
}
cudnnStatus_t cudnnGetTensorNdDescriptor(struct tensor *t, int n, int *type, int *have, int *dims, int *strides) {
    *type = t->type, *have = t->n;
    for (int i = 0; i < t->n && i < n; i++) dims[i] = t->dims[i], strides[i] = t->strides[i];
    return 0;
}
cudnnStatus_t cudnnSetFilterNdDescriptor(struct tensor *t, int type, int format, int n, const int *dims) {
    t->type = type, t->n = n;
    memcpy(t->dims, dims, n * sizeof *dims);
    return 0;
}
cudnnStatus_t cudnnGetFilterNdDescriptor(struct tensor *t, int n, int *type, int *format, int *have, int *dims) {
    *type = t->type, *format = 0, *have = t->n;
    for (int i = 0; i < t->n && i < n; i++) dims[i] = t->dims[i];
    return 0;
}

/* ---- the graph interface: one engine, whatever is asked ---- */
struct backend { int type; };
cudnnStatus_t cudnnBackendCreateDescriptor(int type, struct backend **d) { *d = calloc(1, 64); (*d)->type = type; return 0; }
cudnnStatus_t cudnnBackendDestroyDescriptor(struct backend *d) { free(d); return 0; }
cudnnStatus_t cudnnBackendGetAttribute(struct backend *d, int name, int type, int64_t asked, int64_t *have, void *to) {
    int64_t count = 0;
    switch (name) {
    case 202: case 300: count = 1; break;                                /* results, engine */
    case 303: case 402: count = 1; if (to) *(int64_t *)to = space(); break; /* work space */
    case 802: count = 1; if (to) *(int64_t *)to = 1; break;              /* number of engines */
    case 1301: count = 1; if (to) *(int64_t *)to = 0; break;             /* index of an engine */
    }
    if (have) *have = count;
    return 0;
}

/* ---- older convolutions ---- */
struct performance { int algorithm, status; float time; size_t memory; int deterministic, math, reserved[3]; };
static int found(int *n, struct performance *p) {
    *n = 1;
    memset(p, 0, sizeof *p);
    p->algorithm = 1, p->memory = (size_t)space(), p->deterministic = 1, p->time = 1;
    return 0;
}
cudnnStatus_t cudnnGetConvolutionForwardAlgorithm_v7(void *h, void *a, void *b, void *c, void *d, int asked, int *n, struct performance *p) { return found(n, p); }
cudnnStatus_t cudnnGetConvolutionBackwardDataAlgorithm_v7(void *h, void *a, void *b, void *c, void *d, int asked, int *n, struct performance *p) { return found(n, p); }
cudnnStatus_t cudnnGetConvolutionBackwardFilterAlgorithm_v7(void *h, void *a, void *b, void *c, void *d, int asked, int *n, struct performance *p) { return found(n, p); }
cudnnStatus_t cudnnFindConvolutionForwardAlgorithm(void *h, void *a, void *b, void *c, void *d, int asked, int *n, struct performance *p) { return found(n, p); }
cudnnStatus_t cudnnFindConvolutionBackwardDataAlgorithm(void *h, void *a, void *b, void *c, void *d, int asked, int *n, struct performance *p) { return found(n, p); }
cudnnStatus_t cudnnFindConvolutionBackwardFilterAlgorithm(void *h, void *a, void *b, void *c, void *d, int asked, int *n, struct performance *p) { return found(n, p); }
cudnnStatus_t cudnnFindConvolutionForwardAlgorithmEx(void *h, void *a, void *x, void *b, void *w, void *c, void *d, void *y, int asked, int *n, struct performance *p, void *s, size_t m) { return found(n, p); }
cudnnStatus_t cudnnFindConvolutionBackwardDataAlgorithmEx(void *h, void *a, void *x, void *b, void *w, void *c, void *d, void *y, int asked, int *n, struct performance *p, void *s, size_t m) { return found(n, p); }
cudnnStatus_t cudnnFindConvolutionBackwardFilterAlgorithmEx(void *h, void *a, void *x, void *b, void *w, void *c, void *d, void *y, int asked, int *n, struct performance *p, void *s, size_t m) { return found(n, p); }
cudnnStatus_t cudnnGetConvolutionForwardWorkspaceSize(void *h, void *a, void *b, void *c, void *d, int algorithm, size_t *n) { *n = space(); return 0; }
cudnnStatus_t cudnnGetConvolutionBackwardDataWorkspaceSize(void *h, void *a, void *b, void *c, void *d, int algorithm, size_t *n) { *n = space(); return 0; }
cudnnStatus_t cudnnGetConvolutionBackwardFilterWorkspaceSize(void *h, void *a, void *b, void *c, void *d, int algorithm, size_t *n) { *n = space(); return 0; }

/* ---- BatchNorm, dropout ---- */
cudnnStatus_t cudnnGetBatchNormalizationTrainingExReserveSpaceSize(void *h, int mode, int ops, void *a, void *x, size_t *n) { *n = 0; return 0; }
cudnnStatus_t cudnnGetBatchNormalizationForwardTrainingExWorkspaceSize(void *h, int mode, int ops, void *x, void *z, void *y, void *s, void *a, size_t *n) { *n = 0; return 0; }
cudnnStatus_t cudnnGetBatchNormalizationBackwardExWorkspaceSize(void *h, int mode, int ops, void *x, void *y, void *dy, void *dz, void *dx, void *s, void *a, size_t *n) { *n = 0; return 0; }
cudnnStatus_t cudnnDropoutGetStatesSize(void *h, size_t *n) { *n = (size_t)simulated_card()->processors * simulated_card()->threads_processor * 48; return 0; }
cudnnStatus_t cudnnDropoutGetReserveSpaceSize(struct tensor *t, size_t *n) {
    *n = 1;
    for (int i = 0; i < t->n; i++) *n *= t->dims[i];
    return 0;
}
cudnnStatus_t cudnnGetReductionWorkspaceSize(void *h, void *d, void *a, void *c, size_t *n) { *n = 0; return 0; }
cudnnStatus_t cudnnGetCTCLossWorkspaceSize(void *h, void *p, void *g, void *l, void *ll, void *il, int algorithm, void *d, size_t *n) { *n = 1 << 20; return 0; }
cudnnStatus_t cudnnGetCTCLossWorkspaceSize_v8(void *h, int algorithm, void *d, void *p, void *g, size_t *n) { *n = 1 << 20; return 0; }

/* ---- recurrent layers: all matrices first, then all biases ---- */
static const int GATES[] = {1, 1, 4, 3}; /* ReLU, tanh, LSTM, GRU */
cudnnStatus_t cudnnSetRNNDescriptor_v8(struct rnn *r, int algo, int cell, int bias, int both, int mode, int type, int precision, int math, int input, int hidden, int projection, int layers, void *dropout, unsigned flags) {
    *r = (struct rnn){cell, bias, both, input, hidden, projection, layers, type == 2 || type == 9 ? 2 : type == 1 ? 8 : 4};
    return 0;
}
cudnnStatus_t cudnnSetRNNDataDescriptor(struct data *d, int type, int layout, int length, int batch, int vector, const int *lengths, void *fill) {
    *d = (struct data){length, batch, vector};
    return 0;
}
static size_t columns(const struct rnn *r, int pseudo, int id) {
    int first = pseudo / (r->both + 1) == 0;
    if (id >= GATES[r->cell]) return r->projection ? r->projection : r->hidden;
    return first ? r->input : (size_t)(r->projection ? r->projection : r->hidden) * (r->both + 1);
}
static size_t weights(const struct rnn *r, int until, int linear) { /* elements before */
    size_t n = 0;
    for (int p = 0; p <= until; p++)
        for (int i = 0; i < 2 * GATES[r->cell] && (p < until || i < linear); i++) n += columns(r, p, i) * r->hidden;
    return n;
}
cudnnStatus_t cudnnGetRNNWeightSpaceSize(void *h, struct rnn *r, size_t *n) {
    int pseudo = r->layers * (r->both + 1);
    *n = (weights(r, pseudo, 0) + (r->bias ? (size_t)pseudo * 2 * GATES[r->cell] * r->hidden : 0)) * r->element;
    return 0;
}
cudnnStatus_t cudnnGetRNNWeightParams(void *h, struct rnn *r, int pseudo, size_t size, char *space_, int id, struct tensor *m, void **matrix, struct tensor *b, void **bias) {
    int gates = GATES[r->cell], all = r->layers * (r->both + 1), width = (int)columns(r, pseudo, id);
    struct tensor unused;
    if (!m) m = &unused;
    if (!b) b = &unused;
    m->type = b->type = 0, m->n = b->n = 3;
    m->dims[0] = b->dims[0] = 1, m->dims[1] = b->dims[1] = r->hidden, m->dims[2] = width, b->dims[2] = 1;
    if (matrix) *matrix = space_ + weights(r, pseudo, id) * r->element;
    if (bias) *bias = r->bias ? space_ + (weights(r, all, 0) + ((size_t)pseudo * 2 * gates + id) * r->hidden) * r->element : NULL;
    return 0;
}
cudnnStatus_t cudnnGetRNNTempSpaceSizes(void *h, struct rnn *r, int mode, struct data *x, size_t *work, size_t *reserve) {
    size_t step = (size_t)x->length * x->batch * r->hidden * (r->both + 1) * r->element;
    if (work) *work = step * (GATES[r->cell] + 1) * 2;
    if (reserve) *reserve = mode == 1 ? step * r->layers * (GATES[r->cell] + 2) : 0;
    return 0;
}

/* ---- what MXNet asks of version 8 ---- */
cudnnStatus_t cudnnGetConvolutionForwardAlgorithmMaxCount(void *h, int *n) { *n = 8; return 0; }
cudnnStatus_t cudnnGetConvolutionBackwardDataAlgorithmMaxCount(void *h, int *n) { *n = 7; return 0; }
cudnnStatus_t cudnnGetConvolutionBackwardFilterAlgorithmMaxCount(void *h, int *n) { *n = 7; return 0; }
cudnnStatus_t cudnnSetTensor4dDescriptor(struct tensor *t, int format, int type, int n, int c, int h, int w) {
    *t = (struct tensor){type, 4, {n, c, h, w}, {c * h * w, h * w, w, 1}};
    return 0;
}
cudnnStatus_t cudnnSetRNNDescriptor_v6(void *h, struct rnn *r, int hidden, int layers, void *dropout, int mode, int direction, int cell, int algo, int type) {
    *r = (struct rnn){cell, 1, direction, hidden, hidden, 0, layers, type == 2 ? 2 : type == 1 ? 8 : 4};
    return 0;
}
cudnnStatus_t cudnnGetRNNParamsSize(void *h, struct rnn *r, struct tensor *x, size_t *n, int type) {
    r->input = x->dims[1];
    return cudnnGetRNNWeightSpaceSize(h, r, n);
}
cudnnStatus_t cudnnGetRNNWorkspaceSize(void *h, struct rnn *r, int length, struct tensor **x, size_t *n) {
    struct data d = {length, x[0]->dims[0], x[0]->dims[1]};
    return cudnnGetRNNTempSpaceSizes(h, r, 1, &d, n, NULL);
}
cudnnStatus_t cudnnGetRNNTrainingReserveSize(void *h, struct rnn *r, int length, struct tensor **x, size_t *n) {
    struct data d = {length, x[0]->dims[0], x[0]->dims[1]};
    return cudnnGetRNNTempSpaceSizes(h, r, 1, &d, NULL, n);
}
