/* attention.h - causal softmax attention per sequence and head, after `past` tokens whose keys and values the state holds.
 *
 *   K = (k_past, k), V = (v_past, v)               past + T keys and values of G heads; head h uses those of head h G / H
 *   s_tj = q_t . K_j / sqrt(N)      for j <= past + t
 *   p_tj = softmax over j           y_t = sum_j p_tj V_j
 *
 * No (T,T) tensor exists: the forward saves lse_t = log sum_j exp(s_tj), from which the backward makes p again.
 * Backward: D_t = dy_t . y_t;  ds_tj = p_tj (dy_t . V_j - D_t);  dq_t = sum_j ds_tj K_j / sqrt(N);
 *   dK_j = sum_t ds_tj q_t / sqrt(N) + dk_all_j;   dV_j = sum_t p_tj dy_t + dv_all_j.
 * Sources: Vaswani et al. (2017); grouped heads: Ainslie et al. (2023); one pass with a running maximum: Milakov and
 * Gimelshein (2018), Dao et al. (2022). */
#ifndef RK_OPS_ATTENTION_H
#define RK_OPS_ATTENTION_H

#define RK_ATTENTION_FIELDS(T, T6, I, F, IDS)                                                    \
    T(q) /* (B,T,H,N) */ T(k) T(v) /* (B,T,G,N) */                                               \
    I(past) T(k_past) T(v_past) /* (B,room,G,N), the first `past` tokens; opt where past is 0 */ \
    T(k_all) T(v_all) /* (B,room,G,N) opt, the first past + T tokens written; may be the same    \
                         memory as k_past, v_past in inference */                                \
    T(y) /* (B,T,H,N) written */ T(lse) /* (B,H,T) saved, opt */                                 \
    T(dy) /* (B,T,H,N) */ T(dk_all) T(dv_all) /* (B,room,G,N) opt: zeros */                      \
    T(dq) /* (B,T,H,N) written */ T(dk) T(dv) /* (B,T,G,N) written */                            \
    T(dk_past) T(dv_past) /* (B,room,G,N) opt, the first `past` tokens written */
RK_ARGS_STRUCT(RkAttention, RK_ATTENTION_FIELDS)

/* Whether the first `tokens` tokens of a cache are missing, which is no error only when there are none. */
static inline int rk_attention_check(const RkAttention *o) {
    RK_CHECK(o->past == 0 || (o->k_past.p && o->v_past.p), "attention: %d past tokens, but no keys and values of them", o->past);
    RK_CHECK(o->q.d[2] % o->k.d[2] == 0, "attention: %d heads cannot share %d heads of keys", o->q.d[2], o->k.d[2]);
    return RK_OK;
}

#endif
