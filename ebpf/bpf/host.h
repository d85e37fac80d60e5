/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/*
 * The node's own traffic under the policy for nodes, if there is one. Flows are tracked for that alone, under kinds of their
 * own: without such a policy none of this costs more than a look at the configuration.
 *
 * Never judged: what the node forwards for others, ICMP errors (the node's sockets know what they asked for), neighbour
 * discovery, multicast, and what carries the mesh itself, VXLAN and WireGuard between known nodes: what is inside is
 * judged when it comes out, and no policy may cut the line over which its correction would come.
 */
#ifndef TB_HOST_H
#define TB_HOST_H

#include "endpoint.h"

#define TB_FILE_ID 11

INLINE int carries_mesh(const struct tb_pkt *p, const struct tb_config *cfg, const union tb_addr *peer)
{
	if (p->tproto != TB_UDP)
		return 0;
	if (p->ndport != bswap16(cfg->vxlan_port) && !(cfg->wireguard_port && p->ndport == bswap16(cfg->wireguard_port)))
		return 0;
	return is_node(peer);
}

/* Protocols without ports, and fragments whose first part nobody saw. Without the first the later ones are nothing. */
GLOBAL int tb_host_untracked(__u32 identity, __u32 dir)
{
	struct tb_pkt *p = tb_pkt();
	struct tb_config *cfg = tb_cfg();

	if (!p || !cfg)
		return TC_ACT_SHOT;
	p->reason = 0;
	if (!cfg->host_policy_id || p->frag == TB_FRAG_LATER || p->is_error)
		return TB_GO;
	p->tproto = p->proto;
	p->untracked = 1;
	return tb_verdict(cfg->host_policy_id, identity, dir, 0);
}

/* The flow of p->key, in the direction in which it is opened. */
INLINE int host_flow(struct tb_pkt *p, __u32 policy_id, __u32 identity, __u32 dir)
{
	struct tb_ct *ct;
	__u8 half;
	int act;

	ct = ct_get(p, &half);
	if (ct) {
		if (!verdict_cached(ct, policy_id, identity)) {
			act = tb_verdict(policy_id, identity, dir, p->ndport);
			if (act != TB_GO)
				return act;
			ct->identity = identity;
			ct->policy_id = policy_id;
			ct->policy_revision = p->policy_revision;
		}
		ct_touch(p, ct, half, 0);
		return TB_GO;
	}
	act = tb_verdict(policy_id, identity, dir, p->ndport);
	if (act != TB_GO)
		return act;
	ct_blank(p);
	p->ct.identity = identity;
	p->ct.policy_id = policy_id;
	p->ct.policy_revision = p->policy_revision;
	return ct_create(p);
}

/* 1: an answer to the flow of p->key, which is still allowed. TB_GO: not one. Else dropped. */
INLINE int host_answer(struct tb_pkt *p, __u32 policy_id, __u32 dir)
{
	struct tb_ct *ct;
	__u8 half;
	int act;

	ct = ct_get(p, &half);
	if (!ct)
		return TB_GO;
	p->reply = 1;
	act = answer_verdict(p, ct, policy_id, dir, p->nsport);
	if (act != TB_GO)
		return act;
	ct_touch(p, ct, half, 1);
	return 1;
}

/* A packet for the node (dir 0; src_identity is set), or of it (1; dst_identity is set). */
GLOBAL int tb_host(__u32 dir)
{
	struct tb_pkt *p = tb_pkt();
	struct tb_config *cfg = tb_cfg();
	__u32 policy_id;
	int act;

	if (!p || !cfg)
		return TC_ACT_SHOT;
	policy_id = cfg->host_policy_id;
	if (dir)
		p->src_identity = TB_ID_HOST;
	else
		p->dst_identity = TB_ID_HOST;
	if (!policy_id || p->is_error || carries_mesh(p, cfg, dir ? &p->ndst : &p->nsrc))
		return TB_GO;
	/* An answer is one to a flow that was opened the other way. */
	key_set(&p->key, &p->ndst, &p->nsrc, p->ndport, p->nsport, p->tproto, dir ? TB_CT_HOST_IN : TB_CT_HOST_OUT);
	act = host_answer(p, policy_id, !dir);
	if (act != TB_GO)
		return act == 1 ? TB_GO : act;
	key_set(&p->key, &p->nsrc, &p->ndst, p->nsport, p->ndport, p->tproto, dir ? TB_CT_HOST_OUT : TB_CT_HOST_IN);
	return host_flow(p, policy_id, dir ? p->dst_identity : p->src_identity, !!dir);
}

#undef TB_FILE_ID
#endif
