/* err.h - errors are values: 0 or a negative code, with the message kept per thread.
 * The core never prints, exits or aborts; py/ maps codes to Python exceptions. */
#ifndef RK_BASE_ERR_H
#define RK_BASE_ERR_H

enum {
    RK_OK = 0,
    RK_EINVAL = -1,  /* an argument is wrong                -> ValueError          */
    RK_ENOMEM = -2,  /* out of memory                       -> MemoryError         */
    RK_EIO = -3,     /* the operating system refused        -> OSError             */
    RK_EFORMAT = -4, /* a file is not what it claims to be  -> FormatError         */
    RK_EUNSUP = -5,  /* not on this backend                 -> NotImplementedError */
    RK_EDEVICE = -6  /* a device failed or is missing       -> DeviceError         */
};

#ifdef __cplusplus
extern "C" {
#endif

/* Stores the message for this thread and returns `code`, so that `return rk_fail(...)` reads well. */
int rk_fail(int code, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
const char *rk_error(void);

#ifdef __cplusplus
}
#endif

#define RK_TRY(expr)                  \
    do {                              \
        int rk_rc_ = (expr);          \
        if (rk_rc_) return rk_rc_;    \
    } while (0)
#define RK_CHECK(cond, ...)                                   \
    do {                                                      \
        if (!(cond)) return rk_fail(RK_EINVAL, __VA_ARGS__);  \
    } while (0)

#endif
