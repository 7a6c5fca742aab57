/* parallel.h - the one entry point for threads.
 *
 * Work is cut into tasks that own disjoint outputs; how the tasks are cut depends on shapes only, never on the
 * number of threads, so results are the same bits for any thread count. Which thread runs a task is not fixed.
 *
 * Inside a task subnormal numbers are zero, on whichever thread it runs: an operation that meets one takes about 150 cycles
 * instead of 4, and a moment that decays unused spends thousands of steps among them. The caller's mode is as before
 * afterwards. */
#ifndef RK_BASE_PARALLEL_H
#define RK_BASE_PARALLEL_H

#include <stddef.h>

enum { RK_MAX_THREADS = 256 };

/* Runs fn(ctx, task) for every task in [0, n_tasks), on at most rk_num_threads() threads, the caller among them; returns
 * when all are done. A call from inside a task, or while another Python thread is inside, runs inline on the caller. */
typedef void (*RkTaskFn)(void *ctx, size_t task);
void rk_parallel(size_t n_tasks, RkTaskFn fn, void *ctx);

void rk_set_num_threads(int n);
int rk_num_threads(void);

/* Scratch memory of the thread that calls, at least `bytes`, 64-byte aligned; contents are undefined. Valid inside a
 * task; a task inside a task has its own. It grows on first use and is kept. NULL when memory is exhausted. */
void *rk_thread_scratch(size_t bytes);
size_t rk_thread_scratch_total(void);

#endif
