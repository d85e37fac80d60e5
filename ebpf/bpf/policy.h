/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/* Policy: exact-match entries in three tiers, asked only in the shapes that the policy has. */
#ifndef TB_POLICY_H
#define TB_POLICY_H

#include "pkt.h"

#define TB_FILE_ID 3

/*
 * How weighty an entry is within its tier, the largest decides: at one priority a deny before an allow before a pass. Never
 * 0, which is nothing found.
 */
INLINE __u32 precedence(const struct tb_rule *rule)
{
	__u32 weight = rule->flags & TB_RULE_DENY ? 255 : rule->flags & TB_RULE_PASS ? 0 : 1;

	return (0xffffffu - (rule->priority & 0xffffffu)) << 8 | weight;
}

/* Cilium's number for what an entry has: identity, protocol, port. */
INLINE __u8 match_type(const struct tb_rule_key *key)
{
	if (key->port || key->open_bits)
		return key->identity ? TB_MATCH_ID_PORT : TB_MATCH_PORT;
	if (key->proto)
		return key->identity ? TB_MATCH_ID_PROTO : TB_MATCH_PROTO;
	return key->identity ? TB_MATCH_ID : TB_MATCH_ALL;
}

/* Asked from the most specific to the least, so that of equals the most specific is the one that events name. */
INLINE void consider(struct tb_pkt *p, const struct tb_rule_key *key)
{
	struct tb_rule *rule = bpf_map_lookup_elem(&tb_rules, key);
	__u32 weight;

	if (!rule)
		return;
	weight = precedence(rule);
	if (weight <= p->precedence)
		return;
	p->precedence = weight;
	p->cookie = rule->cookie;
	p->match = match_type(key);
}

/* The weightiest entry of a tier that matches; where = direction | tier << 1. Left in p->precedence, 0: none. */
GLOBAL int tb_tier(__u32 policy_id, __u32 identity, __u32 where, __u32 port)
{
	struct tb_pkt *p = tb_pkt();
	__u32 dir = where & 1, tier = where >> 1;
	struct tb_rule_key key = {};
	struct tb_policy *policy;
	__u32 shapes, widths, bit;

	if (!p)
		return TC_ACT_SHOT;
	p->precedence = 0;
	policy = bpf_map_lookup_elem(&tb_policies, &policy_id);
	if (!policy)
		return TB_GO;
	if (tier == TB_TIER_NORMAL) {
		shapes = dir ? policy->shapes_egress : policy->shapes_ingress;
		widths = dir ? policy->widths[1] : policy->widths[0];
	} else if (tier == TB_TIER_ADMIN) {
		shapes = dir ? policy->admin[1] : policy->admin[0];
		widths = dir ? policy->admin[3] : policy->admin[2];
	} else {
		shapes = dir ? policy->baseline[1] : policy->baseline[0];
		widths = dir ? policy->baseline[3] : policy->baseline[2];
	}
	if (!(shapes | widths))
		return TB_GO;
	key.policy_id = policy_id;
	key.dir = dir;
	key.tier = tier;
	key.proto = p->tproto;
	key.port = (__be16)port;
	key.identity = identity;
	if (shapes & (1u << (TB_SHAPE_ID | TB_SHAPE_PROTO | TB_SHAPE_PORT)))
		consider(p, &key);
	key.identity = 0;
	if (shapes & (1u << (TB_SHAPE_PROTO | TB_SHAPE_PORT)))
		consider(p, &key);
	for (bit = 0; widths && bit < 15; bit++) {
		key.open_bits = bit + 1;
		key.port = bswap16(bswap16((__be16)port) & (__u16)(0xffffu << (bit + 1)));
		key.identity = identity;
		if (widths & (1u << (16 + bit)))
			consider(p, &key);
		key.identity = 0;
		if (widths & (1u << bit))
			consider(p, &key);
	}
	key.open_bits = 0;
	key.port = 0;
	key.identity = identity;
	if (shapes & (1u << (TB_SHAPE_ID | TB_SHAPE_PROTO)))
		consider(p, &key);
	key.identity = 0;
	if (shapes & (1u << TB_SHAPE_PROTO))
		consider(p, &key);
	key.proto = 0;
	key.identity = identity;
	if (shapes & (1u << TB_SHAPE_ID))
		consider(p, &key);
	key.identity = 0;
	if (shapes & 1)
		consider(p, &key);
	return TB_GO;
}

/* What a tier says: 0 nothing, or pass; 1 allow; 2 deny. */
INLINE int said(const struct tb_pkt *p)
{
	__u32 weight = p->precedence & 0xff;

	return !weight ? 0 : weight == 255 ? 2 : 1;
}

/*
 * The port that rules go by; of ICMP type and code. Of that only echo is tracked, whose tuple has port 0 at the asked end;
 * other messages are the node's, and speak for themselves.
 */
INLINE __be16 rule_port(const struct tb_pkt *p, __be16 port)
{
	if (p->untracked)
		return p->tproto == TB_ICMP || p->tproto == TB_ICMPV6 ? bswap16((__u16)(p->icmp_type << 8 | p->icmp_code)) : 0;
	if (p->tproto == TB_ICMP)
		return bswap16(port ? 0 : 8 << 8);
	if (p->tproto == TB_ICMPV6)
		return bswap16(port ? 129 << 8 : 128 << 8);
	return port;
}

INLINE int judge(struct tb_pkt *p, const struct tb_policy *policy, __u32 policy_id, __u32 identity, __u32 dir, __be16 port)
{
	__u32 enforced = policy->flags & (dir ? TB_POL_EGRESS : TB_POL_INGRESS);
	__u32 admin = dir ? policy->admin[1] | policy->admin[3] : policy->admin[0] | policy->admin[2];
	__u32 normal = dir ? policy->shapes_egress | policy->widths[1] : policy->shapes_ingress | policy->widths[0];
	__u32 baseline = dir ? policy->baseline[1] | policy->baseline[3] : policy->baseline[0] | policy->baseline[2];
	int found;

	if (!(enforced | admin | normal | baseline))
		return TB_GO;
	p->policed = 1;
	/* Rules know a world of each family: 0.0.0.0/0 says nothing of IPv6. */
	if (identity == TB_ID_WORLD)
		identity = p->family == 4 ? TB_ID_WORLD4 : TB_ID_WORLD6;
	port = rule_port(p, port);
	if (admin) {
		tb_tier(policy_id, identity, dir | TB_TIER_ADMIN << 1, port);
		found = said(p);
		if (found == 2)
			return DROP(p, TB_DROP_POLICY_DENY, "a rule of the admin tier denies it", "tombolo show rules; change the AdminNetworkPolicy or ClusterNetworkPolicy that denies");
		if (found)
			return TB_GO;
	}
	if (normal) {
		tb_tier(policy_id, identity, dir | TB_TIER_NORMAL << 1, port);
		found = said(p);
		if (found == 2)
			return DROP(p, TB_DROP_POLICY_DENY, "a deny rule matches", "tombolo show rules; change the policy that denies");
		if (found)
			return TB_GO;
	}
	if (enforced) {
		p->cookie = 0;
		p->match = TB_MATCH_NONE;
		return DROP(p, TB_DROP_POLICY, "no rule allows it", "tombolo show rules; add a NetworkPolicy that allows it");
	}
	if (baseline) {
		tb_tier(policy_id, identity, dir | TB_TIER_BASELINE << 1, port);
		if (said(p) == 2)
			return DROP(p, TB_DROP_POLICY_DENY, "a rule of the baseline tier denies it", "add a NetworkPolicy that allows it, or change the baseline");
	}
	return TB_GO;
}

/*
 * dir: 0 ingress (identity is that of the flow's opener), 1 egress (of whom it was opened to). port is the one the flow was
 * opened to, in network order: of an answer it is the source port.
 */
GLOBAL int tb_verdict(__u32 policy_id, __u32 identity, __u32 dir, __u32 port)
{
	struct tb_pkt *p = tb_pkt();
	struct tb_policy *policy;
	int act;

	if (!p)
		return TC_ACT_SHOT;
	p->policy_revision = 0;
	if (!policy_id)
		return TB_GO;
	policy = bpf_map_lookup_elem(&tb_policies, &policy_id);
	if (!policy)
		return DROP(p, TB_DROP_POLICY, "the endpoint's policy is not written", "tombolo show policies; wait for the agent or restart it");
	p->policy_revision = policy->revision;
	p->cookie = 0;
	p->match = TB_MATCH_NONE;
	act = judge(p, policy, policy_id, identity, dir & 1, (__be16)port);
	if (act != TB_GO && policy->flags & TB_POL_AUDIT) {
		p->audited = p->reason;
		p->reason = 0;
		p->site = 0;
		return TB_GO;
	}
	return act;
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
