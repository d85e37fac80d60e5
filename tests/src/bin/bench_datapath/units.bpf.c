/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/*
 * Programs of the bench alone: single lookups to compare with, and turn, which hands a program of the datapath the same
 * packet again and again. Compiled when the bench starts; tb_hosts is the datapath's own map, found by its pin.
 */
#include "helpers.h"

#define PLAIN(name, kind, key_type, value_type, size, extra)                                       \
	struct {                                                                                   \
		__uint(type, kind);                                                                \
		__type(key, key_type);                                                             \
		__type(value, value_type);                                                         \
		__uint(max_entries, size);                                                         \
		__uint(map_flags, extra);                                                          \
	} name SEC(".maps")

struct bytes12 {
	__u32 w[3];
};
struct bytes16 {
	__u32 w[4];
};
struct bytes24 {
	__u32 w[6];
};
struct bytes40 {
	__u32 w[10];
};
struct bytes112 {
	__u64 w[14];
};

/* What the next run does. */
struct turn {
	__u32 v6;      /* how much of head there is: 54 bytes, or 74 */
	__u32 port_at; /* where the packet has the port that changes */
	__u32 first;
	__u32 flows; /* keys or ports in turn, at least one */
	__u32 next;
	__u8 head[76];
};

PLAIN(turns, BPF_MAP_TYPE_ARRAY, __u32, struct turn, 1, 0);
PLAIN(lru, BPF_MAP_TYPE_LRU_HASH, struct bytes40, struct bytes112, 131072, 0);
PLAIN(frontends, BPF_MAP_TYPE_HASH, struct bytes12, struct bytes12, 65536, 0);
PLAIN(ends, BPF_MAP_TYPE_HASH, __u32, __u64, 32768, 0);
PLAIN(policy, BPF_MAP_TYPE_LPM_TRIE, struct bytes12, __u64, 32768, BPF_F_NO_PREALLOC);
PLAIN(cache, BPF_MAP_TYPE_LPM_TRIE, struct bytes24, struct bytes12, 65536, BPF_F_NO_PREALLOC);

struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(key_size, 4);
	__uint(value_size, 4);
	__uint(max_entries, 1);
} jump SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(key_size, 4);
	__uint(value_size, 4);
	__uint(max_entries, 1);
} jump_xdp SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, struct bytes16);
	__type(value, struct bytes12);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} tb_hosts SEC(".maps");

static long (*const bpf_tail_call)(void *ctx, void *programs, __u32 index) = (void *)BPF_FUNC_tail_call;

INLINE struct turn *begin(__u32 *number)
{
	__u32 zero = 0;
	struct turn *turn = bpf_map_lookup_elem(&turns, &zero);

	if (!turn)
		return 0;
	*number = turn->next;
	/* All in turn, but no two neighbours one after the other. */
	turn->next = (turn->next + 7919) % turn->flows;
	return turn;
}

/* Puts the packet back as it was, with the next port, and goes on in the program under test. */
SEC("classifier") int turn(struct __sk_buff *skb)
{
	__u32 number;
	struct turn *turn = begin(&number);
	__u16 port;

	if (!turn)
		return 2;
	if (turn->v6)
		bpf_skb_store_bytes(skb, 0, turn->head, 74, 0);
	else
		bpf_skb_store_bytes(skb, 0, turn->head, 54, 0);
	port = bswap16(turn->first + number);
	bpf_skb_store_bytes(skb, turn->port_at, &port, 2, 0);
	bpf_tail_call(skb, &jump, 0);
	return 2;
}

SEC("classifier") int nothing(struct __sk_buff *skb)
{
	return 0;
}

static long (*const bpf_xdp_store_bytes)(void *ctx, __u32 off, void *from, __u32 len) = (void *)BPF_FUNC_xdp_store_bytes;

/* The same before socket buffers. */
SEC("xdp") int turn_xdp(struct xdp_md *ctx)
{
	__u32 number;
	struct turn *turn = begin(&number);
	__u16 port;

	if (!turn)
		return XDP_ABORTED;
	if (turn->v6)
		bpf_xdp_store_bytes(ctx, 0, turn->head, 74);
	else
		bpf_xdp_store_bytes(ctx, 0, turn->head, 54);
	port = bswap16(turn->first + number);
	bpf_xdp_store_bytes(ctx, turn->port_at, &port, 2);
	bpf_tail_call(ctx, &jump_xdp, 0);
	return XDP_PASS;
}

/* What the lookups below cost without their lookups. */
SEC("classifier") int idle(struct __sk_buff *skb)
{
	__u32 number = 0;

	return begin(&number) && number < 1 << 30 ? 0 : 2;
}

/* Key and value as long as those of a flow. */
SEC("classifier") int lru_hit(struct __sk_buff *skb)
{
	struct bytes40 key = {};

	if (!begin(&key.w[0]))
		return 2;
	return bpf_map_lookup_elem(&lru, &key) ? 0 : 2;
}

/* Service, slot, backend. */
SEC("classifier") int hash_three(struct __sk_buff *skb)
{
	struct bytes12 key = {}, *service, *slot;
	__u32 end;

	if (!begin(&key.w[0]))
		return 2;
	service = bpf_map_lookup_elem(&frontends, &key);
	if (!service)
		return 2;
	key.w[1] = service->w[1];
	slot = bpf_map_lookup_elem(&frontends, &key);
	if (!slot)
		return 2;
	end = slot->w[0];
	return bpf_map_lookup_elem(&ends, &end) ? 0 : 2;
}

/* The peer's identity, protocol and port; then anybody's. */
SEC("classifier") int lpm_pair(struct __sk_buff *skb)
{
	struct bytes12 key = {};
	void *exact, *any;

	if (!begin(&key.w[1]))
		return 2;
	key.w[0] = 64;
	key.w[1] += 65536;
	key.w[2] = 0x901f0600; /* TCP 8080, as bytes */
	exact = bpf_map_lookup_elem(&policy, &key);
	key.w[1] = 0;
	any = bpf_map_lookup_elem(&policy, &key);
	return exact && any ? 0 : 2;
}

SEC("classifier") int lpm_host(struct __sk_buff *skb)
{
	struct bytes24 key = {};
	__u32 number;

	if (!begin(&number))
		return 2;
	key.w[0] = 64;
	key.w[1] = 0x01000000;
	key.w[2] = bswap32(0x0a080000 + number);
	return bpf_map_lookup_elem(&cache, &key) ? 0 : 2;
}

SEC("classifier") int hash_host(struct __sk_buff *skb)
{
	struct bytes16 key = {};
	__u32 number;

	if (!begin(&number))
		return 2;
	key.w[2] = bswap32(0xffff);
	key.w[3] = bswap32(0x0a080000 + number);
	return bpf_map_lookup_elem(&tb_hosts, &key) ? 0 : 2;
}

char _license[] SEC("license") = "Dual BSD/GPL";
