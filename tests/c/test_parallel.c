/* The thread pool: every task once, whatever the threads, the callers and the nesting. */
#include "base/parallel.h"

#include <float.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/cpu.h"
#include "test.h"

enum { TASKS = 500 };

typedef struct Tally {
    atomic_int count[TASKS];
    atomic_int running, most; /* tasks at one time */
} Tally;

static void count_task(void *ctx, size_t task) {
    Tally *tally = ctx;
    int running = atomic_fetch_add(&tally->running, 1) + 1, most = tally->most;
    while (running > most && !atomic_compare_exchange_weak(&tally->most, &most, running)) {}
    tally->count[task]++;
    if (task % 7 == 0) /* uneven work, so that threads overtake each other */
        for (volatile int i = 0; i < 2000; i++) {}
    tally->running--;
}

/* Whether one region runs each task exactly once, on at most so many threads. */
static int region_is_right_on(size_t n, int threads) {
    static _Thread_local Tally tally;
    memset(&tally, 0, sizeof tally);
    rk_parallel(n, count_task, &tally);
    int right = tally.most <= threads;
    for (size_t i = 0; i < TASKS; i++) right &= tally.count[i] == (i < n);
    return right;
}
static int region_is_right(size_t n) { return region_is_right_on(n, rk_num_threads()); }

static void test_every_task_once(void) {
    const int threads[] = {1, 2, 3, 8, 2, 1, 5};
    const size_t tasks[] = {0, 1, 2, 3, 7, 64, TASKS};
    for (size_t i = 0; i < sizeof threads / sizeof *threads; i++) {
        rk_set_num_threads(threads[i]);
        CHECK(rk_num_threads() == threads[i]);
        for (size_t k = 0; k < sizeof tasks / sizeof *tasks; k++)
            for (int repeat = 0; repeat < 20; repeat++) CHECK(region_is_right(tasks[k]));
    }
}

static void test_limits(void) {
    rk_set_num_threads(0);
    CHECK(rk_num_threads() == 1);
    rk_set_num_threads(RK_MAX_THREADS + 1);
    CHECK(rk_num_threads() == RK_MAX_THREADS);
    rk_set_num_threads(2);
    CHECK(rk_cpu_count() >= 1);
}

/* Two tasks that each wait for the other can only finish on two threads. */
static void meet(void *ctx, size_t task) {
    (void)task;
    atomic_int *arrived = ctx;
    atomic_fetch_add(arrived, 1);
    while (atomic_load(arrived) < 2) usleep(100);
}

static void test_really_parallel(void) {
    rk_set_num_threads(2);
    for (int i = 0; i < 10; i++) {
        atomic_int arrived = 0;
        if (i % 2) usleep(2000); /* the worker is asleep by now */
        rk_parallel(2, meet, &arrived);
        CHECK(arrived == 2);
    }
}

typedef struct Outer { atomic_int inner_tasks, mistakes; } Outer;

static void inner(void *ctx, size_t task) {
    (void)task;
    Outer *outer = ctx;
    atomic_fetch_add(&outer->inner_tasks, 1);
    char *p = rk_thread_scratch(4096);
    if (!p || (uintptr_t)p % 64) outer->mistakes++;
    else memset(p, 0xee, 4096);
}

static void outer_task(void *ctx, size_t task) {
    Outer *outer = ctx;
    unsigned char *p = rk_thread_scratch(1000 + task);
    if (!p || (uintptr_t)p % 64) {
        outer->mistakes++;
        return;
    }
    memset(p, (int)task, 1000);
    rk_parallel(5, inner, outer);
    for (int i = 0; i < 1000; i++) outer->mistakes += p[i] != task; /* the inner tasks had scratch of their own */
}

static void test_nested(void) {
    rk_set_num_threads(3);
    Outer outer = {0, 0};
    rk_parallel(40, outer_task, &outer);
    CHECK(outer.inner_tasks == 200);
    CHECK(outer.mistakes == 0);
    CHECK(rk_thread_scratch_total() >= 4096);
}

enum { MOST = 4 }; /* threads of the pool while many callers use it */
typedef struct Marks { atomic_int next, wrong; } Marks;

/* Scratch of callers that are inside at once must not meet. */
static void mark_scratch(void *ctx, size_t task) {
    (void)task;
    Marks *marks = ctx;
    int *p = rk_thread_scratch(1000 * sizeof *p), mark = atomic_fetch_add(&marks->next, 1);
    for (int i = 0; i < 1000; i++) p[i] = mark;
    sched_yield();
    for (int i = 0; i < 1000; i++) atomic_fetch_add(&marks->wrong, p[i] != mark);
}

static void *caller_main(void *marks) {
    for (int i = 0; i < 300; i++) {
        if (!region_is_right_on((size_t)(i % TASKS), MOST)) atomic_fetch_add(&((Marks *)marks)->wrong, 1);
        rk_parallel(3, mark_scratch, marks);
        if (i % 50 == 0) usleep(200);
    }
    return NULL;
}

static void test_many_callers(void) {
    enum { CALLERS = 4 };
    rk_set_num_threads(3);
    pthread_t callers[CALLERS];
    Marks marks = {0, 0};
    for (int i = 0; i < CALLERS; i++) CHECK(!pthread_create(&callers[i], NULL, caller_main, &marks));
    for (int i = 0; i < 30; i++) { /* resizing while others are inside */
        rk_set_num_threads(1 + i % MOST);
        usleep(300);
    }
    for (int i = 0; i < CALLERS; i++) pthread_join(callers[i], NULL);
    CHECK(marks.next == 3 * 300 * CALLERS);
    CHECK(marks.wrong == 0);
}

#if defined __x86_64__ || defined __aarch64__
static float halved(float x) {
    volatile float y = x;
    y *= 0.5f;
    return y;
}

static void halve_task(void *ctx, size_t task) { ((float *)ctx)[task] = halved(FLT_MIN); }

static void test_subnormals_are_zero_in_tasks_only(void) {
    for (int threads = 1; threads <= 3; threads++) {
        rk_set_num_threads(threads);
        float results[TASKS];
        for (int i = 0; i < TASKS; i++) results[i] = 1;
        rk_parallel(TASKS, halve_task, results);
        rk_parallel(1, halve_task, results); /* runs on the caller alone */
        for (int i = 0; i < TASKS; i++) CHECK(results[i] == 0);
        CHECK(halved(FLT_MIN) > 0);
    }
}
#else
static void test_subnormals_are_zero_in_tasks_only(void) {}
#endif

#ifndef __SANITIZE_THREAD__ /* ThreadSanitizer does not follow a fork of a process with threads */
static void test_fork(void) {
    rk_set_num_threads(3);
    CHECK(region_is_right(100));
    pid_t child = fork();
    if (!child) {
        atomic_int arrived = 0;
        int right = rk_num_threads() == 3 && region_is_right(100);
        rk_parallel(2, meet, &arrived); /* needs a worker of the child's own */
        _exit(right && arrived == 2 ? 0 : 1);
    }
    int status = -1;
    CHECK(waitpid(child, &status, 0) == child);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    CHECK(region_is_right(100));
}
#else
static void test_fork(void) {}
#endif

int main(void) {
    setenv("RWKVTUNE_NUM_THREADS", "3", 1);
    CHECK(rk_num_threads() == 3);
    test_every_task_once();
    test_limits();
    test_really_parallel();
    test_nested();
    test_many_callers();
    test_subnormals_are_zero_in_tasks_only();
    test_fork();
    rk_set_num_threads(2);
    CHECK(region_is_right(TASKS)); /* lets the other workers end */
    return test_summary();
}
