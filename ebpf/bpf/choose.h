/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/* Who of a service's backends it shall be: for packets (lb.h) and for sockets (sock.bpf.c). Needs no scratch. */
#ifndef TB_CHOOSE_H
#define TB_CHOOSE_H

#include "addr.h"
#include "maps.h"

INLINE __u32 rotl(__u32 x, int n)
{
	return x << n | x >> (32 - n);
}

INLINE __u32 mix(__u32 h, __u32 k)
{
	k *= 0xcc9e2d51;
	k = rotl(k, 15) * 0x1b873593;
	return rotl(h ^ k, 13) * 5 + 0xe6546b64;
}

INLINE __u32 mixed(__u32 h)
{
	h ^= h >> 16;
	h *= 0x85ebca6b;
	h ^= h >> 13;
	h *= 0xc2b2ae35;
	return h ^ h >> 16;
}

/* MurmurHash3 over the tuple in network order: equal on all nodes, and in model/src/hash.rs. */
INLINE __u32 flow_hash(const union tb_addr *src, const union tb_addr *dst, __be16 sport, __be16 dport, __u8 proto)
{
	__u32 h = 0x746f6d62;
	int i;

	for (i = 0; i < 4; i++)
		h = mix(h, bswap32(src->w[i]));
	for (i = 0; i < 4; i++)
		h = mix(h, bswap32(dst->w[i]));
	h = mix(h, (__u32)bswap16(sport) << 16 | bswap16(dport));
	return mixed(mix(h, proto));
}

/* A number that says nothing about a packet: a socket's or a namespace's cookie. */
INLINE __u32 cookie_hash(__u64 cookie)
{
	return mixed(mix(mix(0x746f6d62, cookie), cookie >> 32));
}

/* The backend of a number that was noted: none if the number was given to another since. */
INLINE struct tb_backend *still(__u32 id, const union tb_addr *addr, __be16 port)
{
	struct tb_backend *b = bpf_map_lookup_elem(&tb_backends, &id);

	return b && b->port == port && addr_eq(&b->addr, addr) ? b : 0;
}

/* The backend that a client met last, if that is not too long ago and new flows may still go there. */
INLINE struct tb_backend *met_before(const struct tb_affinity_key *who, const struct tb_service *svc, __u32 scope,
				     __u64 now, __u32 *id)
{
	struct tb_member_key member = { .rev_nat = svc->rev_nat, .scope = scope };
	struct tb_affinity *met = bpf_map_lookup_elem(&tb_affinity, who);

	if (!met || met->last_ns + svc->affinity_secs * SEC_NS < now)
		return 0;
	*id = met->backend;
	member.backend = *id;
	if (!bpf_map_lookup_elem(&tb_members, &member))
		return 0;
	return still(*id, &met->addr, met->port);
}

/* Whether a service that takes some clients only takes this one. */
INLINE int in_ranges(const union tb_addr *client, __u32 rev_nat)
{
	struct tb_range_key key = { .prefixlen = 32 + 128, .rev_nat = rev_nat };

	__builtin_memcpy(key.addr, client->b, 16);
	return bpf_map_lookup_elem(&tb_ranges, &key) != 0;
}

INLINE void remember(const struct tb_affinity_key *who, __u64 now, __u32 id, const struct tb_backend *b)
{
	struct tb_affinity met = { .last_ns = now, .backend = id, .port = b->port, .addr = b->addr };

	/* Without room the client's next flow is hashed, to the same backend while the backends stay the same. */
	bpf_map_update_elem(&tb_affinity, who, &met, BPF_ANY);
}

/* The backend in the slot of a hash. The service has slots. */
INLINE struct tb_backend *in_slot(const struct tb_service *svc, __u32 hash, __u32 *id)
{
	__u32 slot = hash % svc->maglev_size + svc->maglev_offset;
	__u32 *found = bpf_map_lookup_elem(&tb_maglev, &slot);

	if (!found)
		return 0;
	*id = *found;
	return bpf_map_lookup_elem(&tb_backends, id);
}

#endif
