#include "base/parallel.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <time.h>

#include "base/arena.h"
#include "base/cpu.h"

/* The gate says everything a worker needs to join a region, in one word:
 *     generation (32 bits) | open (1 bit) | workers inside (31 bits).
 * The caller opens it with a new generation; a worker joins by adding one while it is open; the caller closes it when
 * no task is left and waits only for the workers inside. So a worker that sleeps through a region costs nothing. */
#define GATE_OPEN ((uint64_t)1 << 31)
#define GATE_INSIDE (GATE_OPEN - 1)
#define GATE_GENERATION(gate) ((uint32_t)((gate) >> 32))

/* Longest busy wait before a thread sleeps. Waking a sleeper takes 5 to 50 us, the serial code between two regions of
 * a training step less than that; a longer wait would steal the core from whoever else wants it. */
enum { SPIN_NS = 50000, SPIN_CHECK = 32, MAX_LEVELS = 4 };

static struct Pool {
    pthread_mutex_t owner;        /* held by the caller of the running region */
    pthread_mutex_t lock;         /* for the two conditions and the plain integers below */
    pthread_cond_t wake, settled; /* a region opened or the limit fell; the last worker left or exited */
    int alive, limit;             /* workers running; workers with a number above the limit exit */
    atomic_int sleeping;          /* workers waiting on `wake` */
    atomic_int caller_waits;      /* the caller sleeps on `settled` */
    _Atomic uint64_t gate;
    atomic_size_t next; /* first task nobody has taken */
    size_t n_tasks;
    RkTaskFn fn;
    void *ctx;
} pool = {.owner = PTHREAD_MUTEX_INITIALIZER, .lock = PTHREAD_MUTEX_INITIALIZER, .wake = PTHREAD_COND_INITIALIZER,
          .settled = PTHREAD_COND_INITIALIZER};

static atomic_int wanted_threads; /* the pool follows at the next region */
static pthread_once_t once = PTHREAD_ONCE_INIT;
static void init_once(void);

/* ---- what a thread knows about itself ---- */

/* A task that calls rk_parallel runs the inner tasks while its own scratch is in use: one scratch per level. */
typedef struct Scratch { void *p; size_t bytes; } Scratch;
static _Thread_local int level; /* 0 outside of any task */
static _Thread_local Scratch scratch[MAX_LEVELS];
static _Atomic size_t scratch_total;
static pthread_key_t scratch_key; /* only for its destructor: frees the scratch of a thread that ends */

enum { LARGE = 2 << 20 }; /* such scratch, read over and over by matrix products, in huge pages: 4 % there */
static void *scratch_alloc(size_t bytes) { return bytes >= LARGE ? rk_pages_alloc(bytes) : aligned_alloc(64, bytes); }
static void scratch_release(const Scratch *s) {
    if (s->bytes >= LARGE) rk_pages_free(s->p, s->bytes);
    else free(s->p);
}

static void scratch_free(void *first) {
    for (Scratch *s = first; s < (Scratch *)first + MAX_LEVELS; s++) {
        atomic_fetch_sub(&scratch_total, s->bytes);
        scratch_release(s);
        *s = (Scratch){NULL, 0};
    }
}

void *rk_thread_scratch(size_t bytes) {
    if (level >= MAX_LEVELS) return NULL;
    Scratch *s = &scratch[level];
    if (bytes <= s->bytes) return s->p;
    if (bytes > SIZE_MAX - 63) return NULL;
    bytes = (bytes + 63) & ~(size_t)63;
    void *p = scratch_alloc(bytes);
    if (!p) return NULL;
    atomic_fetch_add(&scratch_total, bytes - s->bytes);
    scratch_release(s);
    *s = (Scratch){p, bytes};
    pthread_once(&once, init_once);
    pthread_setspecific(scratch_key, scratch);
    return p;
}

size_t rk_thread_scratch_total(void) { return atomic_load(&scratch_total); }

/* ---- waiting ---- */

static inline void cpu_relax(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static int is_new(uint64_t gate, uint32_t seen) { return (gate & GATE_OPEN) && GATE_GENERATION(gate) != seen; }

/* Waits for a region other than `seen`; 0 when this worker is to exit instead. */
static int wait_for_region(int id, uint32_t seen) {
    int64_t end = now_ns() + SPIN_NS;
    do {
        for (int i = 0; i < SPIN_CHECK; i++) {
            if (is_new(atomic_load(&pool.gate), seen)) return 1;
            cpu_relax();
        }
    } while (now_ns() < end);

    pthread_mutex_lock(&pool.lock);
    atomic_fetch_add(&pool.sleeping, 1);
    while (id <= pool.limit && !is_new(atomic_load(&pool.gate), seen)) pthread_cond_wait(&pool.wake, &pool.lock);
    atomic_fetch_sub(&pool.sleeping, 1);
    int stay = id <= pool.limit;
    pthread_mutex_unlock(&pool.lock);
    return stay;
}

static int workers_inside(void) { return (atomic_load(&pool.gate) & GATE_INSIDE) != 0; }

static void wait_for_workers(void) {
    int64_t end = now_ns() + SPIN_NS;
    do {
        for (int i = 0; i < SPIN_CHECK; i++) {
            if (!workers_inside()) return;
            cpu_relax();
        }
    } while (now_ns() < end);

    pthread_mutex_lock(&pool.lock);
    atomic_store(&pool.caller_waits, 1);
    while (workers_inside()) pthread_cond_wait(&pool.settled, &pool.lock);
    atomic_store(&pool.caller_waits, 0);
    pthread_mutex_unlock(&pool.lock);
}

/* ---- subnormal numbers ---- */

#if defined(__x86_64__)
typedef unsigned FloatMode;
enum { FLUSH = 0x8040 }; /* MXCSR: results to zero, operands as zero */
static FloatMode float_mode(void) { return __builtin_ia32_stmxcsr(); }
static void float_mode_set(FloatMode mode) { __builtin_ia32_ldmxcsr(mode); }
#elif defined(__aarch64__)
typedef uint64_t FloatMode;
enum { FLUSH = 1 << 24 }; /* FPCR.FZ */
static FloatMode float_mode(void) {
    FloatMode mode;
    __asm__ volatile("mrs %0, fpcr" : "=r"(mode));
    return mode;
}
static void float_mode_set(FloatMode mode) { __asm__ volatile("msr fpcr, %0" : : "r"(mode)); }
#else
typedef int FloatMode;
enum { FLUSH = 0 };
static FloatMode float_mode(void) { return 0; }
static void float_mode_set(FloatMode mode) { (void)mode; }
#endif

/* ---- regions ---- */

/* Tasks run with subnormal numbers taken as zero; returns the mode for leave_tasks to bring back. */
static FloatMode enter_tasks(void) {
    FloatMode mode = float_mode();
    if (!level++) float_mode_set(mode | FLUSH);
    return mode;
}

static void leave_tasks(FloatMode mode) {
    if (!--level) float_mode_set(mode);
}

static void take_tasks(void) {
    FloatMode mode = enter_tasks();
    for (size_t task; (task = atomic_fetch_add_explicit(&pool.next, 1, memory_order_relaxed)) < pool.n_tasks;)
        pool.fn(pool.ctx, task);
    leave_tasks(mode);
}

static void run_inline(size_t n_tasks, RkTaskFn fn, void *ctx) {
    FloatMode mode = enter_tasks();
    for (size_t task = 0; task < n_tasks; task++) fn(ctx, task);
    leave_tasks(mode);
}

static void *worker_main(void *arg) {
    int id = (int)(intptr_t)arg;
    uint32_t seen = 0;
    while (wait_for_region(id, seen)) {
        uint64_t gate = atomic_load(&pool.gate);
        if (!is_new(gate, seen) || !atomic_compare_exchange_strong(&pool.gate, &gate, gate + 1)) continue;
        seen = GATE_GENERATION(gate);
        take_tasks();
        gate = atomic_fetch_sub(&pool.gate, 1) - 1;
        if (!(gate & GATE_INSIDE) && atomic_load(&pool.caller_waits)) {
            pthread_mutex_lock(&pool.lock);
            pthread_cond_broadcast(&pool.settled);
            pthread_mutex_unlock(&pool.lock);
        }
    }
    pthread_mutex_lock(&pool.lock);
    pool.alive--;
    pthread_cond_broadcast(&pool.settled);
    pthread_mutex_unlock(&pool.lock);
    return NULL;
}

/* Brings the pool to n - 1 workers; where the system grants fewer threads, to those. Signals stay with the threads
 * that Python knows. Call as the owner. */
static void pool_resize(int n) {
    pthread_mutex_lock(&pool.lock);
    pool.limit = n - 1;
    pthread_cond_broadcast(&pool.wake);
    while (pool.alive > pool.limit) pthread_cond_wait(&pool.settled, &pool.lock);

    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    pthread_attr_t attr;
    pthread_attr_init(&attr);
    pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
    while (pool.alive < pool.limit) {
        pthread_t thread;
        if (pthread_create(&thread, &attr, worker_main, (void *)(intptr_t)(pool.alive + 1))) break;
        pool.alive++;
    }
    pthread_attr_destroy(&attr);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_mutex_unlock(&pool.lock);
}

static void open_gate(size_t n_tasks, RkTaskFn fn, void *ctx) {
    pool.n_tasks = n_tasks;
    pool.fn = fn;
    pool.ctx = ctx;
    atomic_store_explicit(&pool.next, 0, memory_order_relaxed);
    uint32_t generation = GATE_GENERATION(atomic_load(&pool.gate)) + 1;
    if (!generation) generation = 1; /* 0 is what a new worker has seen */
    atomic_store(&pool.gate, (uint64_t)generation << 32 | GATE_OPEN);
    /* The store above and this load are in one total order with a sleeper's count and look at the gate, so either
     * it sees the region or it is counted here. */
    if (!atomic_load(&pool.sleeping)) return;
    pthread_mutex_lock(&pool.lock);
    size_t calls = (size_t)atomic_load(&pool.sleeping);
    if (calls > n_tasks - 1) calls = n_tasks - 1;
    while (calls--) pthread_cond_signal(&pool.wake);
    pthread_mutex_unlock(&pool.lock);
}

void rk_parallel(size_t n_tasks, RkTaskFn fn, void *ctx) {
    int n = rk_num_threads();
    if (n_tasks < 2 || n == 1 || level || pthread_mutex_trylock(&pool.owner)) {
        run_inline(n_tasks, fn, ctx);
        return;
    }
    if (pool.limit != n - 1) pool_resize(n);
    open_gate(n_tasks, fn, ctx);
    take_tasks();
    atomic_fetch_and(&pool.gate, ~GATE_OPEN);
    wait_for_workers();
    pthread_mutex_unlock(&pool.owner);
}

/* ---- settings ---- */

/* Only the forking thread lives on in a child: it starts over with no workers. */
static void after_fork_in_child(void) {
    pool = (struct Pool){.owner = PTHREAD_MUTEX_INITIALIZER, .lock = PTHREAD_MUTEX_INITIALIZER,
                         .wake = PTHREAD_COND_INITIALIZER, .settled = PTHREAD_COND_INITIALIZER};
}

static void init_once(void) {
    pthread_key_create(&scratch_key, scratch_free);
    pthread_atfork(NULL, NULL, after_fork_in_child);
    const char *text = getenv("RWKVTUNE_NUM_THREADS");
    long n = text ? strtol(text, NULL, 10) : 0;
    if (n < 1) n = rk_cpu_count();
    atomic_store(&wanted_threads, n > RK_MAX_THREADS ? RK_MAX_THREADS : (int)n);
}

void rk_set_num_threads(int n) {
    pthread_once(&once, init_once);
    atomic_store(&wanted_threads, n < 1 ? 1 : n > RK_MAX_THREADS ? RK_MAX_THREADS : n);
}

int rk_num_threads(void) {
    pthread_once(&once, init_once);
    return atomic_load_explicit(&wanted_threads, memory_order_relaxed);
}
