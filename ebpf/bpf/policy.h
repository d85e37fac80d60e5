/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/* Policy: exact-match entries, asked only in the shapes that the policy has. Any deny wins. */
#ifndef TB_POLICY_H
#define TB_POLICY_H

#include "pkt.h"

#define TB_FILE_ID 3

/*
 * dir: 0 ingress (identity is that of the flow's opener), 1 egress (of whom it was opened to). port is the one the flow was
 * opened to, in network order: of an answer it is the source port.
 */
GLOBAL int tb_verdict(__u32 policy_id, __u32 identity, __u32 dir, __u32 port)
{
	struct tb_pkt *p = tb_pkt();
	struct tb_policy *policy;
	struct tb_rule_key key = {};
	struct tb_rule *rule;
	__u32 shape, shapes, found = 0;

	if (!p)
		return TC_ACT_SHOT;
	p->policy_revision = 0;
	if (!policy_id)
		return TB_GO;
	policy = bpf_map_lookup_elem(&tb_policies, &policy_id);
	if (!policy)
		return DROP(p, TB_DROP_POLICY, "the endpoint's policy is not written", "tombolo show policies; wait for the agent or restart it");
	p->policy_revision = policy->revision;
	if (!(policy->flags & (dir ? TB_POL_EGRESS : TB_POL_INGRESS)))
		return TB_GO;
	p->policed = 1;
	/* Rules know a world of each family: 0.0.0.0/0 says nothing of IPv6. */
	if (identity == TB_ID_WORLD)
		identity = p->family == 4 ? TB_ID_WORLD4 : TB_ID_WORLD6;
	shapes = dir ? policy->shapes_egress : policy->shapes_ingress;
	key.policy_id = policy_id;
	key.dir = dir;
	for (shape = 0; shape < 8; shape++) {
		if (!(shapes & (1u << shape)))
			continue;
		key.identity = shape & TB_SHAPE_ID ? identity : 0;
		key.proto = shape & TB_SHAPE_PROTO ? p->tproto : 0;
		key.port = shape & TB_SHAPE_PORT ? (__be16)port : 0;
		rule = bpf_map_lookup_elem(&tb_rules, &key);
		if (!rule)
			continue;
		p->cookie = rule->cookie;
		if (rule->flags & TB_RULE_DENY)
			return DROP(p, TB_DROP_POLICY_DENY, "a deny rule matches", "tombolo show rules; change the policy that denies");
		found = 1;
	}
	if (!found)
		return DROP(p, TB_DROP_POLICY, "no rule allows it", "tombolo show rules; add a NetworkPolicy that allows it");
	return TB_GO;
}

/* Whether the allow in a conntrack entry still holds. */
INLINE int verdict_cached(const struct tb_ct *ct, __u32 policy_id, __u32 identity)
{
	struct tb_policy *policy;

	if (ct->policy_id != policy_id || ct->identity != identity)
		return 0;
	if (!policy_id)
		return 1;
	policy = bpf_map_lookup_elem(&tb_policies, &policy_id);
	return policy && policy->revision == ct->policy_revision;
}

/* An answer lives by the allow of its flow, and ends with it. */
INLINE int answer_verdict(struct tb_pkt *p, struct tb_ct *ct, __u32 policy_id, __u32 dir, __be16 port)
{
	int act;

	if (verdict_cached(ct, policy_id, ct->identity))
		return TB_GO;
	act = tb_verdict(policy_id, ct->identity, dir, port);
	if (act != TB_GO)
		return act;
	ct->policy_id = policy_id;
	ct->policy_revision = p->policy_revision;
	return TB_GO;
}

#undef TB_FILE_ID
#endif
