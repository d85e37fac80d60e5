/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/* Services: frontend to backend by Maglev, remembered per client in a SERVICE entry. */
#ifndef TB_LB_H
#define TB_LB_H

#include "ct.h"

#define TB_FILE_ID 6

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
	h = mix(h, proto);
	h ^= h >> 16;
	h *= 0x85ebca6b;
	h ^= h >> 13;
	h *= 0xc2b2ae35;
	return h ^ h >> 16;
}

INLINE int to_backend(struct tb_pkt *p, const struct tb_backend *b, __u32 rev_nat)
{
	p->rev_nat = rev_nat;
	p->orig_dst = p->dst;
	p->orig_dport = p->dport;
	p->translated = 1;
	p->ndst = b->addr;
	p->ndport = b->port;
	p->edst = b->addr;
	p->edport = b->port;
	return 1;
}

/* The backend that a client met last, if that is not too long ago and new flows may still go there. */
INLINE struct tb_backend *met_before(const struct tb_pkt *p, const struct tb_service *svc, __u32 scope, __u32 *id)
{
	struct tb_affinity_key key = { .client = p->src, .rev_nat = svc->rev_nat };
	struct tb_member_key member = { .rev_nat = svc->rev_nat, .scope = scope };
	struct tb_affinity *met = bpf_map_lookup_elem(&tb_affinity, &key);
	struct tb_backend *b;

	if (!met || met->last_ns + svc->affinity_secs * SEC_NS < p->now)
		return 0;
	*id = met->backend;
	member.backend = *id;
	if (!bpf_map_lookup_elem(&tb_members, &member))
		return 0;
	b = bpf_map_lookup_elem(&tb_backends, id);
	return b && b->port == met->port && addr_eq(&b->addr, &met->addr) ? b : 0;
}

INLINE void remember(const struct tb_pkt *p, const struct tb_service *svc, __u32 id, const struct tb_backend *b)
{
	struct tb_affinity_key key = { .client = p->src, .rev_nat = svc->rev_nat };
	struct tb_affinity met = { .last_ns = p->now, .backend = id, .port = b->port, .addr = b->addr };

	/* Without room the client's next flow is hashed, to the same backend while the backends stay the same. */
	bpf_map_update_elem(&tb_affinity, &key, &met, BPF_ANY);
}

/* The backend in the slot of the flow, or of the client alone: then all nodes choose alike for it. */
INLINE struct tb_backend *hashed(const struct tb_pkt *p, const struct tb_service *svc, __u32 *id)
{
	__be16 sport = svc->affinity_secs ? 0 : p->sport;
	__u32 slot = flow_hash(&p->src, &p->dst, sport, p->dport, p->tproto) % svc->maglev_size + svc->maglev_offset;
	__u32 *found = bpf_map_lookup_elem(&tb_maglev, &slot);

	if (!found)
		return 0;
	*id = *found;
	return bpf_map_lookup_elem(&tb_backends, id);
}

INLINE int choose_backend(struct tb_pkt *p, const struct tb_service *svc, __u32 scope)
{
	struct tb_backend *b = 0;
	__u32 id = 0;
	int act;

	if (!svc->maglev_size && svc->flags & TB_SVC_LOCAL_ONLY)
		return DROP(p, TB_DROP_NO_SERVICE, "the service's traffic policy is Local, and it has no backend on this node", "ask a node that has one: tombolo show slices; or use the policy Cluster");
	if (!svc->maglev_size) {
		p->refuse = 1;
		return DROP(p, TB_DROP_NO_SERVICE, "the service has no backend", "tombolo show services; check the pods' readiness and the selector");
	}
	if (svc->affinity_secs)
		b = met_before(p, svc, scope, &id);
	if (!b)
		b = hashed(p, svc, &id);
	if (!b)
		return DROP(p, TB_DROP_NO_SERVICE, "the chosen backend is not written", "tombolo show backends; wait for the agent or restart it");
	ct_blank(p);
	p->ct.rev_nat = svc->rev_nat;
	p->ct.backend = id;
	p->ct.backend_addr = b->addr;
	p->ct.backend_port = b->port;
	key_set(&p->key, &p->src, &p->dst, p->sport, p->dport, p->tproto, TB_CT_SERVICE);
	act = ct_create(p);
	if (act != TB_GO)
		return act;
	if (svc->affinity_secs)
		remember(p, svc, id, b);
	return to_backend(p, b, svc->rev_nat);
}

/* The backend of a remembered flow: none if its number was given to another since. */
INLINE struct tb_backend *backend_of(const struct tb_ct *ct)
{
	struct tb_backend *b = bpf_map_lookup_elem(&tb_backends, &ct->backend);

	return b && b->port == ct->backend_port && addr_eq(&b->addr, &ct->backend_addr) ? b : 0;
}

/* Whether a service that takes some clients only takes this one. */
INLINE int in_ranges(const struct tb_pkt *p, __u32 rev_nat)
{
	struct tb_range_key key = { .prefixlen = 32 + 128, .rev_nat = rev_nat };

	__builtin_memcpy(key.addr, p->src.b, 16);
	return bpf_map_lookup_elem(&tb_ranges, &key) != 0;
}

/* 1: translated to a backend. TB_GO: no service address. Else dropped. */
GLOBAL int tb_service(__u32 scope)
{
	struct tb_pkt *p = tb_pkt();
	struct tb_service_key key = {};
	struct tb_service *svc;
	struct tb_backend *b;
	struct tb_ct *ct;
	__u8 half;

	if (!p)
		return TC_ACT_SHOT;
	key.addr = p->dst;
	key.port = p->dport;
	key.proto = p->tproto;
	key.scope = scope;
	svc = bpf_map_lookup_elem(&tb_services, &key);
	/* What is not served of an address of the node is the node's. */
	if (!svc && p->where == TB_HOST)
		return TB_GO;
	if (!svc) {
		key.port = 0;
		key.proto = 0;
		if (bpf_map_lookup_elem(&tb_services, &key)) {
			/* Whoever scans from outside is told nothing. */
			p->refuse = scope == TB_SCOPE_INTERNAL;
			return DROP(p, TB_DROP_NO_SERVICE, "the service address has no such port", "tombolo show services; use a port that the service has");
		}
		return TB_GO;
	}
	/* Each packet is asked, so that a flow ends with what let it in. */
	if (svc->flags & TB_SVC_SOURCE_RANGE && !in_ranges(p, svc->rev_nat))
		return DROP(p, TB_DROP_NOT_IN_RANGE, "the service does not take clients with this address", "add it to spec.loadBalancerSourceRanges of the Service; tombolo show frontends");
	key_set(&p->key, &p->src, &p->dst, p->sport, p->dport, p->tproto, TB_CT_SERVICE);
	ct = ct_get(p, &half);
	if (ct) {
		b = backend_of(ct);
		if (b) {
			ct_touch(p, ct, half, 0);
			return to_backend(p, b, svc->rev_nat);
		}
		p->stale = !half;
	}
	if (p->is_error)
		return DROP(p, TB_DROP_UNKNOWN_CT, "ICMP error to a service address belongs to no flow", "none; the flow is gone");
	return choose_backend(p, svc, scope);
}

#undef TB_FILE_ID
#endif
