/* cuBLASLt: there is always an algorithm, and it needs no work space (SIMULATED_CARD_CUBLASLT_WORKSPACE). */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include "card.h"
struct result { uint64_t algorithm[8]; size_t space; int status; float waves; int reserved[4]; };
int cublasLtMatmulAlgoGetHeuristic(void *h, void *o, void *a, void *b, void *c, void *d, void *p, int asked, struct result *r, int *n) {
    const char *t = getenv("SIMULATED_CARD_CUBLASLT_WORKSPACE");
    memset(r, 0, sizeof *r);
    r->space = t ? strtoull(t, NULL, 0) : 0;
    r->waves = 1;
    *n = asked > 0;
    return 0;
}
