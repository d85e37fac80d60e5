/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/*
 * Source NAT to the node's internal address: for backends on other nodes, and for pods that reach themselves through a
 * service. Two entries a flow: the tuple before, and that of the answers. Like conntrack they begin in an LRU, where a
 * flood evicts its like, and move together to a hash when the flow was answered.
 */
#ifndef TB_NAT_H
#define TB_NAT_H

#include "ct.h"
#include "lb.h"

#define TB_FILE_ID 5
#define TB_PORT_TRIES 64

INLINE union tb_addr *internal_addr(struct tb_config *cfg, __u8 family)
{
	return family == 4 ? &cfg->internal4 : &cfg->internal6;
}

/* The mapping of p->key. */
INLINE struct tb_nat *nat_get(struct tb_pkt *p, __u8 *half)
{
	struct tb_nat *nat = bpf_map_lookup_elem(&tb_nat, &p->key);

	*half = 0;
	if (nat)
		return nat;
	*half = 1;
	nat = bpf_map_lookup_elem(&tb_nat_half, &p->key);
	if (nat)
		return nat;
	/* Another CPU may have moved it between the two looks. */
	nat = bpf_map_lookup_elem(&tb_nat, &p->key);
	*half = !nat;
	return nat;
}

/* The mapping lives as long as a flow with the same signs of life would. */
INLINE __u16 nat_touch(const struct tb_pkt *p, struct tb_nat *nat, int way)
{
	/* An error speaks of a flow without being part of it. */
	if (p->is_error)
		return 0;
	nat->flags |= ct_signs(p, way, nat->flags);
	nat->expires_ns = p->now + ct_life(p->tproto, nat->flags);
	return nat->flags;
}

/*
 * Moves the answers' entry p->key, and its way out, to the table of answered flows. Where that is full they stay. The
 * element may have become another flow's since it was found, and another CPU may move it at the same time.
 */
INLINE void nat_promote(struct tb_pkt *p, const struct tb_nat *answers, const union tb_addr *client, __be16 client_port)
{
	union tb_addr self = p->key.dst, backend = p->key.src;
	__be16 port = p->key.dport;

	p->nat = *answers;
	if (!addr_eq(&p->nat.addr, client) || p->nat.port != client_port)
		return;
	if (bpf_map_update_elem(&tb_nat, &p->key, &p->nat, BPF_NOEXIST) < 0)
		return;
	bpf_map_delete_elem(&tb_nat_half, &p->key);
	key_set(&p->key, &p->nat.addr, &backend, p->nat.port, p->key.sport, p->tproto, TB_NAT_OUT);
	p->nat.addr = self;
	p->nat.port = port;
	if (bpf_map_update_elem(&tb_nat, &p->key, &p->nat, BPF_ANY) == 0)
		bpf_map_delete_elem(&tb_nat_half, &p->key);
}

INLINE void answers_key(struct tb_pkt *p, const union tb_addr *self, __be16 port)
{
	int echo = p->tproto == TB_ICMP || p->tproto == TB_ICMPV6;

	key_set(&p->key, &p->ndst, self, echo ? 0 : p->ndport, port, p->tproto, TB_NAT_IN);
}

/* Whether a mapping is this packet's flow's. */
INLINE int nat_mine(const struct tb_pkt *p, const struct tb_nat *nat)
{
	return addr_eq(&nat->addr, &p->src) && nat->port == p->sport && nat->rev_nat == p->rev_nat;
}

#define NAT_TAKEN 0
#define NAT_HALF 1 /* claimed; the flow is not answered yet */
#define NAT_FULL 2

/* Claims one port for the answers; p->nat holds the value. A mapping whose flow is over gives way. */
INLINE int claim_port(struct tb_pkt *p, const union tb_addr *self, __be16 port)
{
	struct tb_nat *known;
	__u16 flags;
	__u8 half;

	answers_key(p, self, port);
	known = nat_get(p, &half);
	if (known && nat_mine(p, known)) {
		/* A new connection of the same tuple starts with no memory of the old one. */
		if (p->tproto == TB_TCP && (p->tcp_flags & (TB_SYN | TB_ACK)) == TB_SYN && !p->is_error)
			known->flags = 0;
		flags = nat_touch(p, known, 0);
		if (half && ct_lasts(flags))
			nat_promote(p, known, &p->src, p->sport);
		return half ? NAT_HALF : NAT_FULL;
	}
	if (known) {
		__u64 ended = known->expires_ns;

		if (ended >= p->now)
			return NAT_TAKEN;
		/* Of CPUs that see it expired one has the port, and to the others it is taken: they would delete what that one writes. */
		if (__sync_val_compare_and_swap(&known->expires_ns, ended, p->now + SEC_NS) != ended)
			return NAT_TAKEN;
		if (half)
			bpf_map_delete_elem(&tb_nat_half, &p->key);
		else
			bpf_map_delete_elem(&tb_nat, &p->key);
	}
	return bpf_map_update_elem(&tb_nat_half, &p->key, &p->nat, BPF_NOEXIST) == 0 ? NAT_HALF : NAT_TAKEN;
}

/* The port of the n-th try. Each flow walks in steps of its own, so that ports in use do not pile up into long runs. */
INLINE __be16 port_of_try(const struct tb_config *cfg, __u32 hash, __u32 n)
{
	__u32 range = (__u32)cfg->snat_port_max - cfg->snat_port_min + 1;

	if (cfg->snat_port_max < cfg->snat_port_min)
		range = 1;
	return bswap16((__u16)(cfg->snat_port_min + (hash + n * (hash >> 16 | 1)) % range));
}

GLOBAL int tb_snat(void)
{
	struct tb_pkt *p = tb_pkt();
	struct tb_config *cfg = tb_cfg();
	int claimed = NAT_TAKEN;
	union tb_addr *self;
	struct tb_nat *known;
	__be16 port = 0;
	__u32 hash, i;
	__u8 half;

	if (!p || !cfg)
		return TC_ACT_SHOT;
	self = internal_addr(cfg, p->family);
	if (addr_zero(self))
		return DROP(p, TB_DROP_NAT_NO_MAPPING, "the node has no internal address of this family", "give the node a pod CIDR of the family and restart the agent");
	__builtin_memset(&p->nat, 0, sizeof(p->nat));
	p->nat.created_ns = p->now;
	p->nat.addr = p->src;
	p->nat.port = p->sport;
	p->nat.rev_nat = p->rev_nat;
	nat_touch(p, &p->nat, 0);
	hash = flow_hash(&p->src, &p->ndst, p->sport, p->ndport, p->tproto);
	key_set(&p->key, &p->src, &p->ndst, p->sport, p->ndport, p->tproto, TB_NAT_OUT);
	known = nat_get(p, &half);
	if (known) {
		port = known->port;
		if (claim_port(p, self, port))
			goto done;
	} else if (p->is_error) {
		return DROP(p, TB_DROP_UNKNOWN_CT, "ICMP error belongs to no translated flow", "none; the flow is gone");
	} else if (p->tproto == TB_TCP && !(p->tcp_flags & TB_SYN) && !p->fresh) {
		/*
		 * The flow is under way, and its service knows it: of its two entries the other may be left, and names the
		 * port that its backend knows. A flood of forged packets is new to the service.
		 */
		for (i = 0; i < TB_PORT_TRIES; i++) {
			port = port_of_try(cfg, hash, i);
			answers_key(p, self, port);
			known = nat_get(p, &half);
			if (!known || !nat_mine(p, known))
				continue;
			claimed = claim_port(p, self, port);
			break;
		}
	}
	for (i = 0; i < TB_PORT_TRIES && !claimed; i++) {
		/* SCTP keeps its port, or has none. */
		port = p->tproto == TB_SCTP ? p->sport : port_of_try(cfg, hash, i);
		claimed = claim_port(p, self, port);
	}
	if (!claimed)
		return DROP(p, TB_DROP_NAT_NO_MAPPING, "no free SNAT port towards this backend", "widen the SNAT port range or raise datapath.maps.nat");
	p->nat.addr = *self;
	p->nat.port = port;
	key_set(&p->key, &p->src, &p->ndst, p->sport, p->ndport, p->tproto, TB_NAT_OUT);
	/* A way out that led to another port would be found before this one. */
	if (claimed == NAT_FULL && bpf_map_update_elem(&tb_nat, &p->key, &p->nat, BPF_ANY) == 0) {
		bpf_map_delete_elem(&tb_nat_half, &p->key);
	} else {
		bpf_map_update_elem(&tb_nat_half, &p->key, &p->nat, BPF_ANY);
		bpf_map_delete_elem(&tb_nat, &p->key);
	}
done:
	p->nsrc = *self;
	p->nsport = port;
	return TB_GO;
}

/* Undoes it for an answer. 1: it was one. */
GLOBAL int tb_unsnat(void)
{
	struct tb_pkt *p = tb_pkt();
	struct tb_nat *nat;
	__u32 rev_nat;
	__u16 flags;
	__u8 half;

	if (!p)
		return 0;
	key_set(&p->key, &p->src, &p->dst, p->sport, p->dport, p->tproto, TB_NAT_IN);
	nat = nat_get(p, &half);
	/* What nobody collects lies there long after its end. */
	if (!nat || nat->expires_ns < p->now)
		return 0;
	p->ndst = nat->addr;
	p->ndport = nat->port;
	p->edst = nat->addr;
	p->edport = nat->port;
	p->reply = 1;
	rev_nat = nat->rev_nat;
	flags = nat_touch(p, nat, 1);
	if (half && ct_lasts(flags))
		nat_promote(p, nat, &p->ndst, p->ndport);
	if (rev_nat) {
		unmask(p, rev_nat);
		service_answered(p, &p->ndst, p->ndport, ct_signs(p, 1, 0));
	}
	return 1;
}

#undef TB_FILE_ID
#endif
