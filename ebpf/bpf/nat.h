/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/*
 * Source NAT: to the node's internal address for backends on other nodes and for pods that reach themselves through a
 * service, to an address of the outside for what pods send out of the mesh (egress.h). Two entries a flow: the tuple
 * before, and that of the answers. Like conntrack they begin in an LRU, where a flood evicts its like, and move together
 * to a hash when the flow was answered.
 */
#ifndef TB_NAT_H
#define TB_NAT_H

#include "ct.h"
#include "lb.h"

#define TB_FILE_ID 5
/* Ports among which the mapping of a flow under way is looked for. */
#define TB_PORT_TRIES 64
/* How long a destination whose ports are all taken is not searched again, unless one of them ends before. */
#define TB_SNAT_FULL_NS (SEC_NS / 10)

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
	return addr_eq(&nat->addr, &p->src) && nat->port == p->sport && nat->rev_nat == p->nat.rev_nat;
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

		if (ended >= p->now) {
			if (ended < p->walk.ends)
				p->walk.ends = ended;
			return NAT_TAKEN;
		}
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

INLINE void begin_walk(struct tb_pkt *p, const struct tb_config *cfg)
{
	__u32 hash = flow_hash(&p->src, &p->ndst, p->sport, p->ndport, p->tproto), range = 1;

	if (p->tproto != TB_SCTP && cfg->snat_port_max > cfg->snat_port_min)
		range = (__u32)cfg->snat_port_max - cfg->snat_port_min + 1;
	/* SCTP keeps its port, or has none. */
	p->walk.first = p->tproto == TB_SCTP ? bswap16(p->sport) : cfg->snat_port_min;
	p->walk.range = range;
	p->walk.prime = p->tproto != TB_SCTP && cfg->snat_walk > range ? cfg->snat_walk : range;
	p->walk.start = hash;
	p->walk.step = p->walk.prime > 1 ? 1 + (hash >> 16) % (p->walk.prime - 1) : 1;
	p->walk.claimed = NAT_TAKEN;
	p->walk.port = 0;
}

/* The port of the n-th step; 0: none. The prime may lie a little above the number of ports. */
INLINE __be16 port_of_step(const struct tb_walk *walk, __u32 n)
{
	__u32 place = ((__u64)walk->start + (__u64)n * walk->step) % walk->prime;

	return place < walk->range ? bswap16((__u16)(walk->first + place)) : 0;
}

INLINE const union tb_addr *snat_self(const struct tb_pkt *p, struct tb_config *cfg)
{
	return addr_zero(&p->snat_to) ? internal_addr(cfg, p->family) : &p->snat_to;
}

/* Steps to the first port that is free; that of a flow that is over is. */
static long claim_step(__u32 n, __attribute__((unused)) void *context)
{
	struct tb_pkt *p = tb_pkt();
	struct tb_config *cfg = tb_cfg();

	if (!p || !cfg)
		return 1;
	p->walk.port = port_of_step(&p->walk, n);
	if (!p->walk.port)
		return 0;
	p->walk.claimed = claim_port(p, snat_self(p, cfg), p->walk.port);
	return p->walk.claimed != NAT_TAKEN;
}

/* Steps to the port that the flow has already. */
static long recall_step(__u32 n, __attribute__((unused)) void *context)
{
	struct tb_pkt *p = tb_pkt();
	struct tb_config *cfg = tb_cfg();
	struct tb_nat *known;
	__u8 half;

	if (!p || !cfg)
		return 1;
	p->walk.port = port_of_step(&p->walk, n);
	if (!p->walk.port)
		return 0;
	answers_key(p, snat_self(p, cfg), p->walk.port);
	known = nat_get(p, &half);
	if (!known || !nat_mine(p, known))
		return 0;
	p->walk.claimed = claim_port(p, snat_self(p, cfg), p->walk.port);
	return 1;
}

/*
 * Claims a port as long as one is free. Where none is, the walk is as long as the range: its destination is not searched
 * again until a mapping ends, or for a moment.
 */
GLOBAL int tb_claim(void)
{
	struct tb_pkt *p = tb_pkt();
	struct tb_config *cfg = tb_cfg();
	__u64 *until, ends;

	if (!p || !cfg)
		return NAT_TAKEN;
	answers_key(p, snat_self(p, cfg), 0);
	until = p->tproto != TB_SCTP ? bpf_map_lookup_elem(&tb_snat_full, &p->key) : 0;
	if (until && *until > p->now)
		return NAT_TAKEN;
	p->walk.ends = p->now + TB_SNAT_FULL_NS;
	bpf_loop(p->walk.prime, claim_step, 0, 0);
	if (p->walk.claimed != NAT_TAKEN || p->tproto == TB_SCTP)
		return p->walk.claimed;
	answers_key(p, snat_self(p, cfg), 0);
	ends = p->walk.ends;
	bpf_map_update_elem(&tb_snat_full, &p->key, &ends, BPF_ANY);
	return NAT_TAKEN;
}

GLOBAL int tb_snat(void)
{
	struct tb_pkt *p = tb_pkt();
	struct tb_config *cfg = tb_cfg();
	const union tb_addr *self;
	int claimed = NAT_TAKEN;
	struct tb_nat *known;
	__be16 port = 0;
	__u8 half;

	if (!p || !cfg)
		return TC_ACT_SHOT;
	self = snat_self(p, cfg);
	if (addr_zero(self))
		return DROP(p, TB_DROP_NAT_NO_MAPPING, "the node has no internal address of this family", "give the node a pod CIDR of the family and restart the agent");
	__builtin_memset(&p->nat, 0, sizeof(p->nat));
	p->nat.created_ns = p->now;
	p->nat.addr = p->src;
	p->nat.port = p->sport;
	/* Out of the mesh the pod's own entry knows the frontend. */
	p->nat.rev_nat = addr_zero(&p->snat_to) ? p->rev_nat : 0;
	nat_touch(p, &p->nat, 0);
	begin_walk(p, cfg);
	key_set(&p->key, &p->src, &p->ndst, p->sport, p->ndport, p->tproto, TB_NAT_OUT);
	known = nat_get(p, &half);
	/* One that leads to another address is of before a change of configuration. */
	if (known && addr_eq(&known->addr, self)) {
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
		bpf_loop(TB_PORT_TRIES, recall_step, 0, 0);
		claimed = p->walk.claimed;
	}
	if (claimed == NAT_TAKEN)
		claimed = tb_claim();
	if (claimed != NAT_HALF && claimed != NAT_FULL)
		return DROP(p, TB_DROP_NAT_NO_MAPPING, "all SNAT ports towards this destination are taken", "widen datapath.snat_ports; tombolo conntrack snat --ip says who has them");
	port = p->walk.port;
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
