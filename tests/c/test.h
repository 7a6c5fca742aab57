/* test.h - checks that count instead of stopping. A test is a plain executable: functions of checks, then
 * `return test_summary();` from main. */
#ifndef RK_TEST_H
#define RK_TEST_H

#include <math.h>
#include <stdatomic.h>
#include <stdio.h>

static atomic_int test_passed, test_failed; /* atomic: tasks on other threads check too */

static inline int test_record(int ok, const char *file, int line, const char *text) {
    if (ok) {
        atomic_fetch_add(&test_passed, 1);
    } else {
        atomic_fetch_add(&test_failed, 1);
        printf("%s:%d: failed: %s\n", file, line, text);
    }
    return ok;
}

static inline int test_near(double got, double want, double tol, const char *file, int line, const char *text) {
    int ok = got == want || fabs(got - want) <= tol; /* NaN fails */
    if (!test_record(ok, file, line, text)) printf("    got %.17g, want %.17g, tolerance %.3g\n", got, want, tol);
    return ok;
}

#define CHECK(cond) test_record(!!(cond), __FILE__, __LINE__, #cond)
#define CHECK_NEAR(got, want, tol) test_near((got), (want), (tol), __FILE__, __LINE__, #got " ~ " #want)

static inline int test_summary(void) {
    printf("%d passed, %d failed\n", atomic_load(&test_passed), atomic_load(&test_failed));
    return test_failed || !test_passed;
}

#endif
