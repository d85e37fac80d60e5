/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/*
 * Source NAT to the node's internal address: for backends on other nodes, and for pods that reach
 * themselves through a service. Two entries a flow in one LRU: the tuple before, and that of the answers.
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

/* The mapping lives as long as a flow with the same signs of life would. */
INLINE void nat_touch(const struct tb_pkt *p, struct tb_nat *nat, int way)
{
	/* An error speaks of a flow without being part of it. */
	if (p->is_error)
		return;
	nat->flags |= ct_signs(p, way, nat->flags);
	nat->expires_ns = p->now + ct_life(p->tproto, nat->flags);
}

/* Claims one port for the answers; p->nat holds the value. A mapping whose flow is over gives way. */
INLINE int claim_port(struct tb_pkt *p, const union tb_addr *self, __be16 port)
{
	int echo = p->tproto == TB_ICMP || p->tproto == TB_ICMPV6;
	struct tb_nat *known;

	key_set(&p->key, &p->ndst, self, echo ? 0 : p->ndport, port, p->tproto, TB_NAT_IN);
	known = bpf_map_lookup_elem(&tb_nat, &p->key);
	if (known) {
		if (addr_eq(&known->addr, &p->src) && known->port == p->sport && known->rev_nat == p->rev_nat) {
			/* A new connection of the same tuple starts with no memory of the old one. */
			if (p->tproto == TB_TCP && (p->tcp_flags & (TB_SYN | TB_ACK)) == TB_SYN && !p->is_error)
				known->flags = 0;
			nat_touch(p, known, 0);
			return 1;
		}
		if (known->expires_ns >= p->now)
			return 0;
		/* Two CPUs may see it expired: only one of them inserts. */
		bpf_map_delete_elem(&tb_nat, &p->key);
	}
	return bpf_map_update_elem(&tb_nat, &p->key, &p->nat, BPF_NOEXIST) == 0;
}

GLOBAL int tb_snat(void)
{
	struct tb_pkt *p = tb_pkt();
	struct tb_config *cfg = tb_cfg();
	__u32 i, hash, step, range;
	union tb_addr *self;
	struct tb_nat *known;
	__be16 port = 0;

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
	key_set(&p->key, &p->src, &p->ndst, p->sport, p->ndport, p->tproto, TB_NAT_OUT);
	known = bpf_map_lookup_elem(&tb_nat, &p->key);
	if (known) {
		port = known->port;
		if (claim_port(p, self, port))
			goto done;
	} else if (p->is_error) {
		return DROP(p, TB_DROP_UNKNOWN_CT, "ICMP error belongs to no translated flow", "none; the flow is gone");
	}
	range = (__u32)cfg->snat_port_max - cfg->snat_port_min + 1;
	if (cfg->snat_port_max < cfg->snat_port_min)
		range = 1;
	hash = flow_hash(&p->src, &p->ndst, p->sport, p->ndport, p->tproto);
	/* Each flow walks in steps of its own, so that ports in use do not pile up into long runs. */
	step = hash >> 16 | 1;
	for (i = 0; i < TB_PORT_TRIES; i++) {
		port = bswap16((__u16)(cfg->snat_port_min + (hash + i * step) % range));
		if (claim_port(p, self, port))
			goto pair;
	}
	return DROP(p, TB_DROP_NAT_NO_MAPPING, "no free SNAT port towards this backend", "widen the SNAT port range or raise datapath.maps.nat");
pair:
	p->nat.addr = *self;
	p->nat.port = port;
	key_set(&p->key, &p->src, &p->ndst, p->sport, p->ndport, p->tproto, TB_NAT_OUT);
	bpf_map_update_elem(&tb_nat, &p->key, &p->nat, BPF_ANY);
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

	if (!p)
		return 0;
	key_set(&p->key, &p->src, &p->dst, p->sport, p->dport, p->tproto, TB_NAT_IN);
	nat = bpf_map_lookup_elem(&tb_nat, &p->key);
	if (!nat)
		return 0;
	nat_touch(p, nat, 1);
	p->ndst = nat->addr;
	p->ndport = nat->port;
	p->edst = nat->addr;
	p->edport = nat->port;
	p->reply = 1;
	if (nat->rev_nat) {
		unmask(p, nat->rev_nat);
		service_answered(p, &p->ndst, p->ndport, ct_signs(p, 1, 0));
	}
	return 1;
}

#undef TB_FILE_ID
#endif
