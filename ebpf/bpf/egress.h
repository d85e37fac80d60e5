/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/*
 * What pods send out of the mesh: by an egress gateway if a policy says so, else under the node's address if it
 * masquerades, else under their own.
 */
#ifndef TB_EGRESS_H
#define TB_EGRESS_H

#include "nat.h"

#define TB_FILE_ID 13

#define TB_NODES_WAY 0 /* no policy says otherwise */
#define TB_AT_GATEWAY 1
#define TB_TO_GATEWAY 2

/* What a policy says of this pod and destination. */
INLINE struct tb_egw *egress_of(struct tb_pkt *p)
{
	p->egw.prefixlen = 256;
	__builtin_memcpy(p->egw.src, p->src.b, 16);
	__builtin_memcpy(p->egw.dst, p->ndst.b, 16);
	return bpf_map_lookup_elem(&tb_egw, &p->egw);
}

INLINE int leave_under(struct tb_pkt *p, const union tb_addr *address, __u32 ifindex)
{
	p->snat_to = *address;
	p->leave_by = ifindex;
	return tb_snat();
}

/*
 * ndst is not of the mesh. TB_GO: p says how it goes on. Else dropped: where a policy wants a gateway, nothing leaves
 * without one.
 */
GLOBAL int tb_leave(void)
{
	struct tb_pkt *p = tb_pkt();
	struct tb_config *cfg = tb_cfg();
	struct tb_egw *egw;

	if (!p || !cfg)
		return TC_ACT_SHOT;
	egw = egress_of(p);
	if (egw && !(egw->flags & TB_EGW_EXCLUDED)) {
		if (!(egw->flags & TB_EGW_LOCAL) && !egw->node)
			return DROP(p, TB_DROP_NO_EGRESS_GATEWAY, "the egress policy of the pod has no gateway that is ready", "tombolo show egress-gateways; label a node for the policy's nodeSelector");
		if (egw->flags & TB_EGW_LOCAL && addr_zero(&egw->address))
			return DROP(p, TB_DROP_NO_EGRESS_IP, "this gateway has no egress address of the family", "tombolo show egress-gateways; give the interface an address or correct egressIP");
		if (egw->flags & TB_EGW_LOCAL)
			return leave_under(p, &egw->address, egw->ifindex);
		p->node = egw->node;
		p->pfx_flags = 0;
		p->by_tunnel = 1;
		return TB_GO;
	}
	if (!(cfg->flags & (p->family == 4 ? TB_CFG_MASQ4 : TB_CFG_MASQ6)))
		return TB_GO;
	p->lpm.prefixlen = 128;
	__builtin_memcpy(p->lpm.addr, p->ndst.b, 16);
	if (bpf_map_lookup_elem(&tb_unmasked, &p->lpm))
		return TB_GO;
	p->masked = 1;
	return leave_under(p, p->family == 4 ? &cfg->underlay4 : &cfg->underlay6, 0);
}

/* A tunnel packet for an address outside the mesh: TB_GO if this node is the sender's gateway for it. */
GLOBAL int tb_leave_here(void)
{
	struct tb_pkt *p = tb_pkt();
	struct tb_egw *egw;

	if (!p)
		return TC_ACT_SHOT;
	egw = p->node || p->pfx_flags & TB_PFX_STRICT ? 0 : egress_of(p);
	if (!egw || !(egw->flags & TB_EGW_LOCAL))
		return DROP(p, TB_DROP_UNROUTABLE, "tunnel packet for an address that is not on this node, which is no gateway for it", "tombolo show endpoints, tombolo show egress-gateways; the sender's view is stale or the pod is gone");
	if (addr_zero(&egw->address))
		return DROP(p, TB_DROP_NO_EGRESS_IP, "this gateway has no egress address of the family", "tombolo show egress-gateways; give the interface an address or correct egressIP");
	return leave_under(p, &egw->address, egw->ifindex);
}

/* An answer from outside the mesh may be for an address that stands for pods, and then it is for one of our ports. */
INLINE int may_turn_back(struct tb_pkt *p, struct tb_config *cfg)
{
	__u16 port = bswap16(p->dport);
	struct tb_endpoint *ep;

	if (addr_eq(&p->dst, internal_addr(cfg, p->family)))
		return 1;
	/* SCTP keeps its port. */
	if (p->tproto != TB_SCTP && (port < cfg->snat_port_min || port > cfg->snat_port_max))
		return 0;
	ep = bpf_map_lookup_elem(&tb_endpoints, &p->dst);
	return !ep || ep->flags & TB_EP_HOST;
}

#undef TB_FILE_ID
#endif
