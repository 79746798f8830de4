/* What the simulated card's libraries say about the hardware, and share among one another.
 *
 * SIMULATED_CARD: h200 (default), a100, rtx3090, t4. SIMULATED_CARD_DEVICES: how many (1), of which
 * CUDA_VISIBLE_DEVICES shows some. SIMULATED_CARD_MEMORY: bytes of each. SIMULATED_CARD_GRANULE:
 * bytes of a page of memory (2 MiB, as the driver's), which small allocations share.
 * SIMULATED_CARD_ZEROS=1: what is copied back is zeros. SIMULATED_CARD_COPY_LIMIT: bytes; longer
 * copies do nothing. SIMULATED_CARD_STUBS: a file to which the name of every function is added that
 * is reached and that nobody wrote. SIMULATED_CARD_LOG: 1 tells of them on standard error, 2 of
 * every call.
 */
#ifndef CARD_H
#define CARD_H
#include <stddef.h>
struct card {
    const char *key, *name;
    int major, minor, processors;
    size_t memory, l2, shared_block, shared_optin, shared_processor;
    int threads_processor, blocks_processor, clock_khz, memory_khz, bus_bits;
};
const struct card *simulated_card(void);
int simulated_cards(void);                /* that the process sees */
int simulated_number(int device);         /* which card a visible device is; -1: none */
size_t simulated_setting(const char *name, size_t otherwise);
size_t simulated_memory(void);            /* bytes of each card */
int simulated_says(void);
void simulated_stub(const char *library, const char *name);
int simulated_said(int error);            /* remembers an error for cudaGetLastError */
int simulated_current(void);              /* the thread's device */
#endif
