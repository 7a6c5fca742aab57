/* key_prep.h - RWKV-7's preparation of the keys, per token and head.
 *
 *   ar = sigma(a)          in-context learning rate        q = k0 k_k,  khat = q / max(|q|_2 over the head, 1e-12)
 *   alpha = -khat          beta = khat ar                  k = k0 (1 + (ar - 1) k_a)
 *
 * Backward, given dk, dalpha, dbeta:
 *   dkhat = -dalpha + dbeta ar          dar = dbeta khat + dk k0 k_a         da = dar ar (1 - ar)
 *   dq = (dkhat - khat <khat, dkhat>) / |q|      (dkhat / 1e-12 when |q| < 1e-12)
 *   dk0 = dk (1 + (ar - 1) k_a) + dq k_k,   dk_k += sum dq k0,   dk_a += sum dk k0 (ar - 1) */
#ifndef RK_OPS_KEY_PREP_H
#define RK_OPS_KEY_PREP_H

#define RK_KEY_PREP_FIELDS(T, T6, I, F, IDS)                                             \
    T(k0) T(a) /* (B,T,H,N); a before its sigmoid */ T(k_k) T(k_a) /* (C) */               \
    T(k) T(alpha) T(beta) /* (B,T,H,N) written */                                          \
    T(dk) T(dalpha) T(dbeta) /* (B,T,H,N) */                                               \
    T(dk0) T(da) /* (B,T,H,N) written; dk0 may be dk */ T(dk_k) T(dk_a) /* (C) added to */
RK_ARGS_STRUCT(RkKeyPrep, RK_KEY_PREP_FIELDS)

#endif
