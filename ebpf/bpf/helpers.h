/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/* The kernel helpers that the programs call, by their stable numbers, and byte order. */
#ifndef TB_HELPERS_H
#define TB_HELPERS_H

#include <linux/bpf.h>

/*
 * What a program is given differs between hooks. The headers that both share see a TB_CTX: a socket buffer, or in an object
 * that defines TB_XDP a bare frame. A helper has the same name in both, and in the latter another number or, where there is
 * none, a stand-in (frame.h).
 */
#ifdef TB_XDP
#define TB_CTX struct xdp_md
#define TB_LOAD BPF_FUNC_xdp_load_bytes
#define TB_STORE BPF_FUNC_xdp_store_bytes
#else
#define TB_CTX struct __sk_buff
#define TB_LOAD BPF_FUNC_skb_load_bytes
#define TB_STORE BPF_FUNC_skb_store_bytes
#endif

#define SEC(name) __attribute__((section(name), used))
#define INLINE static __attribute__((always_inline)) inline
/* A global function is verified once, for itself; its cost does not multiply with its callers. */
#define GLOBAL __attribute__((noinline))
#define __uint(name, val) int(*name)[val]
#define __type(name, val) typeof(val) *name
#define LIBBPF_PIN_BY_NAME 1

#define likely(x) __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)

#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define bswap16(x) ((__u16)__builtin_bswap16(x))
#define bswap32(x) __builtin_bswap32(x)
#else
#define bswap16(x) ((__u16)(x))
#define bswap32(x) (x)
#endif

/* BPF_F_IPV6 of newer headers: an IPv6 address changes, so a sum over the whole packet (CHECKSUM_COMPLETE) stays. */
#define TB_F_IPV6 (1ull << 7)

#define ENOMEM 12
#define EBUSY 16
#define EEXIST 17
#define E2BIG 7
#define SEC_NS 1000000000ull
#define EDEADLK 35
#define ETIMEDOUT 110
#define ECONNREFUSED 111

static void *(*const bpf_map_lookup_elem)(void *map, const void *key) = (void *)BPF_FUNC_map_lookup_elem;
static long (*const bpf_map_update_elem)(void *map, const void *key, const void *value, __u64 flags) = (void *)BPF_FUNC_map_update_elem;
static long (*const bpf_map_delete_elem)(void *map, const void *key) = (void *)BPF_FUNC_map_delete_elem;
static __u64 (*const bpf_ktime_get_ns)(void) = (void *)BPF_FUNC_ktime_get_ns;
static __u64 (*const bpf_get_socket_cookie)(void *ctx) = (void *)BPF_FUNC_get_socket_cookie;
static __u64 (*const bpf_get_netns_cookie)(void *ctx) = (void *)BPF_FUNC_get_netns_cookie;
static int (*const bpf_set_retval)(int retval) = (void *)BPF_FUNC_set_retval;
static long (*const bpf_skb_load_bytes)(const TB_CTX *skb, __u32 off, void *to, __u32 len) = (void *)TB_LOAD;
static long (*const bpf_skb_store_bytes)(TB_CTX *skb, __u32 off, const void *from, __u32 len, __u64 flags) = (void *)TB_STORE;
static __s64 (*const bpf_csum_diff)(__be32 *from, __u32 from_size, __be32 *to, __u32 to_size, __u32 seed) = (void *)BPF_FUNC_csum_diff;
static long (*const bpf_redirect)(__u32 ifindex, __u64 flags) = (void *)BPF_FUNC_redirect;
static long (*const bpf_redirect_peer)(__u32 ifindex, __u64 flags) = (void *)BPF_FUNC_redirect_peer;
static long (*const bpf_redirect_neigh)(__u32 ifindex, struct bpf_redir_neigh *params, int plen, __u64 flags) = (void *)BPF_FUNC_redirect_neigh;
static long (*const bpf_skb_get_tunnel_key)(struct __sk_buff *skb, struct bpf_tunnel_key *key, __u32 size, __u64 flags) = (void *)BPF_FUNC_skb_get_tunnel_key;
static long (*const bpf_skb_set_tunnel_key)(struct __sk_buff *skb, struct bpf_tunnel_key *key, __u32 size, __u64 flags) = (void *)BPF_FUNC_skb_set_tunnel_key;
static long (*const bpf_skb_change_type)(struct __sk_buff *skb, __u32 type) = (void *)BPF_FUNC_skb_change_type;
static long (*const bpf_skb_change_tail)(struct __sk_buff *skb, __u32 len, __u64 flags) = (void *)BPF_FUNC_skb_change_tail;
static long (*const bpf_fib_lookup)(void *ctx, struct bpf_fib_lookup *params, int plen, __u32 flags) = (void *)BPF_FUNC_fib_lookup;
static long (*const bpf_loop)(__u32 times, void *callback, void *context, __u64 flags) = (void *)BPF_FUNC_loop;
static long (*const bpf_skb_set_tstamp)(struct __sk_buff *skb, __u64 tstamp, __u32 type) = (void *)BPF_FUNC_skb_set_tstamp;
#ifndef TB_XDP
static long (*const bpf_l3_csum_replace)(struct __sk_buff *skb, __u32 off, __u64 from, __u64 to, __u64 flags) = (void *)BPF_FUNC_l3_csum_replace;
static long (*const bpf_l4_csum_replace)(struct __sk_buff *skb, __u32 off, __u64 from, __u64 to, __u64 flags) = (void *)BPF_FUNC_l4_csum_replace;
static long (*const bpf_skb_change_head)(struct __sk_buff *skb, __u32 len, __u64 flags) = (void *)BPF_FUNC_skb_change_head;
static long (*const bpf_skb_adjust_room)(struct __sk_buff *skb, __s32 len_diff, __u32 mode, __u64 flags) = (void *)BPF_FUNC_skb_adjust_room;
INLINE __u32 ctx_ifindex(const TB_CTX *ctx)
{
	return ctx->ifindex;
}

INLINE __u32 ctx_len(TB_CTX *ctx)
{
	return ctx->len;
}

INLINE __be16 ctx_protocol(TB_CTX *ctx)
{
	return ctx->protocol;
}

INLINE __u32 ctx_mark(const TB_CTX *ctx)
{
	return ctx->mark;
}

/* Payload of each packet that this one becomes on the wire; 0: it is one. */
INLINE __u32 ctx_gso_size(const TB_CTX *ctx)
{
	return ctx->gso_size;
}
#endif

static void *(*const bpf_ringbuf_reserve)(void *ringbuf, __u64 size, __u64 flags) = (void *)BPF_FUNC_ringbuf_reserve;
static void (*const bpf_ringbuf_submit)(void *data, __u64 flags) = (void *)BPF_FUNC_ringbuf_submit;

#ifdef TB_XDP
#include "frame.h"
#endif

#endif
