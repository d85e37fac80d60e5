/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/* Who is at an address, and what a pod may send and receive. */
#ifndef TB_ENDPOINT_H
#define TB_ENDPOINT_H

#include "ct.h"
#include "policy.h"

#define TB_FILE_ID 7

INLINE struct tb_prefix *prefix_of(struct tb_pkt *p, const union tb_addr *addr)
{
	struct tb_prefix *pfx = bpf_map_lookup_elem(&tb_hosts, addr);

	if (pfx)
		return pfx;
	p->lpm.prefixlen = 128;
	__builtin_memcpy(p->lpm.addr, addr->b, 16);
	return bpf_map_lookup_elem(&tb_prefixes, &p->lpm);
}

/* Whether an address is one of this node itself. */
INLINE int is_host(const union tb_addr *addr)
{
	struct tb_endpoint *ep = bpf_map_lookup_elem(&tb_endpoints, addr);

	return ep && ep->flags & TB_EP_HOST;
}

/* Where ndst is, and which identity it has. */
GLOBAL int tb_locate(void)
{
	struct tb_pkt *p = tb_pkt();
	struct tb_endpoint *ep;
	struct tb_iface *iface;
	struct tb_prefix *pfx;

	if (!p)
		return TC_ACT_SHOT;
	ep = bpf_map_lookup_elem(&tb_endpoints, &p->ndst);
	if (ep && ep->flags & TB_EP_HOST) {
		p->where = TB_HOST;
		p->dst_identity = TB_ID_HOST;
		return TB_GO;
	}
	if (ep) {
		p->where = TB_POD;
		p->out_ifindex = ep->ifindex;
		iface = bpf_map_lookup_elem(&tb_ifaces, &ep->ifindex);
		if (!iface || !(iface->flags & TB_IF_READY))
			return DROP(p, TB_DROP_EP_NOT_READY, "the receiving pod is not ready yet", "wait for the pod; tombolo show endpoints");
		p->dst_identity = iface->identity;
		p->dst_endpoint = iface->endpoint_id;
		return TB_GO;
	}
	p->where = TB_AWAY;
	p->dst_identity = TB_ID_WORLD;
	/* Nothing of a frontend that was looked up before. */
	p->node = 0;
	p->pfx_flags = 0;
	pfx = prefix_of(p, &p->ndst);
	if (pfx) {
		p->dst_identity = pfx->identity;
		p->node = pfx->node;
		p->pfx_flags = pfx->flags;
	}
	return TB_GO;
}

/*
 * The sender's identity by its address, where neither interface nor tunnel says it. A packet from the network that
 * names an address of this node is not from there: local_source is set, and it is nobody's but the world's.
 */
GLOBAL int tb_identify(__u32 from_network)
{
	struct tb_pkt *p = tb_pkt();
	union tb_addr *addr;
	struct tb_endpoint *ep;
	struct tb_iface *iface;
	struct tb_prefix *pfx;

	if (!p)
		return TC_ACT_SHOT;
	addr = &p->outer_src;
	ep = bpf_map_lookup_elem(&tb_endpoints, addr);
	if (ep && from_network) {
		p->local_source = ep->flags & TB_EP_HOST ? TB_HOST : TB_POD;
		p->src_identity = TB_ID_WORLD;
		return TB_GO;
	}
	if (ep && ep->flags & TB_EP_HOST) {
		p->src_identity = TB_ID_HOST;
		return TB_GO;
	}
	if (ep) {
		iface = bpf_map_lookup_elem(&tb_ifaces, &ep->ifindex);
		p->src_identity = iface ? iface->identity : 0;
		p->src_endpoint = iface ? iface->endpoint_id : 0;
		return TB_GO;
	}
	pfx = prefix_of(p, addr);
	p->src_identity = pfx ? pfx->identity : TB_ID_WORLD;
	p->outsider = from_network && p->src_identity != TB_ID_HOST && !(pfx && pfx->node);
	/* Addresses of this node that are in no endpoint row. */
	if (from_network && p->src_identity == TB_ID_HOST) {
		p->local_source = TB_HOST;
		p->src_identity = TB_ID_WORLD;
	}
	return TB_GO;
}

/* Whether an address is that of a node of the mesh. */
INLINE int is_node(const union tb_addr *addr)
{
	struct tb_prefix *pfx = bpf_map_lookup_elem(&tb_hosts, addr);

	return pfx && pfx->node &&
	       (pfx->identity == TB_ID_REMOTE_NODE || pfx->identity == TB_ID_KUBE_APISERVER || pfx->identity >> 24 == TB_SCOPE_NODE);
}

/* The node itself may always reach its pods, and a pod itself. */
INLINE int exempt(__u32 identity, __u32 loopback)
{
	return identity == TB_ID_HOST || loopback;
}

/*
 * 1: an answer to a flow that came into this pod; its translation is undone. TB_GO: not one. Else dropped: its flow is no
 * longer allowed.
 */
GLOBAL int tb_answer(__u32 policy_id)
{
	struct tb_pkt *p = tb_pkt();
	__u32 rev_nat, loopback;
	struct tb_ct *ct;
	__u16 signs;
	__u8 half;
	int act;

	if (!p)
		return TC_ACT_SHOT;
	key_set(&p->key, &p->dst, &p->src, p->dport, p->sport, p->tproto, TB_CT_INGRESS);
	ct = ct_get(p, &half);
	if (!ct)
		return TB_GO;
	rev_nat = ct->rev_nat;
	loopback = ct->flags & TB_CTF_LOOPBACK;
	/* Of what is translated here netfilter knows nothing. */
	p->by_stack = ct->flags & TB_CTF_BY_STACK && !rev_nat;
	p->reply = 1;
	p->dst_identity = ct->identity;
	act = answer_verdict(p, ct, exempt(ct->identity, loopback) ? 0 : policy_id, 0, p->sport);
	if (act != TB_GO)
		return act;
	ct_touch(p, ct, half, 1);
	if (loopback) {
		p->loopback = 1;
	} else if (rev_nat) {
		signs = ct_signs(p, 1, 0);
		unmask(p, rev_nat);
		if (half || signs != TB_CTF_REPLIED)
			service_answered(p, &p->dst, p->dport, signs);
	}
	return 1;
}

/*
 * The service that the sending socket asked for, if it was translated there (sock.bpf.c): the packet has the backend
 * already. Names the flow in events, and changes nothing of its way. The socket stays with the packet on a veth.
 */
INLINE void name_service(TB_CTX *skb, struct tb_pkt *p, __u32 *rev_nat)
{
	struct tb_sock_key key = { .addr = p->dst, .port = p->dport, .proto = p->tproto };
	struct tb_sock *sock;
	struct tb_rev_nat *rev;

	key.cookie = bpf_get_socket_cookie(skb);
	sock = key.cookie && !p->is_error ? bpf_map_lookup_elem(&tb_sock_rev, &key) : 0;
	if (!sock)
		return;
	*rev_nat = sock->rev_nat;
	/* The socket's own word may be a loopback address of the node. */
	rev = bpf_map_lookup_elem(&tb_rev_nat, rev_nat);
	p->orig_dst = rev ? rev->addr : sock->addr;
	p->orig_dport = rev ? rev->port : sock->port;
	p->named = 1;
}

/* The same, of a flow that was named when it began. */
INLINE void name_again(struct tb_pkt *p, const struct tb_ct *ct)
{
	if (!ct->backend || p->translated)
		return;
	p->orig_dst = ct->backend_addr;
	p->orig_dport = ct->backend_port;
	p->named = 1;
}

/* A further packet of a flow that this pod opened, of which p->key is the key. */
INLINE int sent_on(struct tb_pkt *p, struct tb_ct *ct, __u8 half, __u32 policy_id)
{
	__u16 signs;
	int act;

	name_again(p, ct);
	if (!verdict_cached(ct, policy_id, p->dst_identity)) {
		act = tb_verdict(policy_id, p->dst_identity, 1, p->ndport);
		if (act != TB_GO)
			return act;
		ct->identity = p->dst_identity;
		ct->policy_id = policy_id;
		ct->policy_revision = p->policy_revision;
	}
	ct_renumber(p, ct, p->rev_nat);
	signs = ct_touch(p, ct, half, 0) & (TB_CTF_REPLIED | TB_CTF_CONFIRMED);
	if (p->fresh && signs & TB_CTF_REPLIED && p->rev_nat)
		service_answered(p, &p->src, p->sport, signs);
	return TB_GO;
}

/*
 * 1: of an established flow that this pod opened, without translation: judged, and it is known where it goes. TB_GO: that
 * has to be found out. Else dropped.
 */
GLOBAL int tb_running(__u32 policy_id)
{
	struct tb_pkt *p = tb_pkt();
	struct tb_ct *ct;
	int act;

	if (!p)
		return TC_ACT_SHOT;
	key_set(&p->key, &p->src, &p->dst, p->sport, p->dport, p->tproto, TB_CT_EGRESS);
	ct = ct_running(p);
	if (!ct || ct->rev_nat)
		return TB_GO;
	act = tb_locate();
	if (act != TB_GO)
		return act;
	act = sent_on(p, ct, 0, policy_id);
	return act == TB_GO ? 1 : act;
}

/* A packet a pod sends, no answer: egress policy and conntrack. p->rev_nat tells of service translation. */
GLOBAL int tb_egress(TB_CTX *skb, __u32 policy_id)
{
	struct tb_pkt *p = tb_pkt();
	__u32 asked = 0;
	struct tb_ct *ct;
	__u8 half;
	int act;

	if (!p)
		return TC_ACT_SHOT;
	key_set(&p->key, &p->src, &p->ndst, p->sport, p->ndport, p->tproto, TB_CT_EGRESS);
	ct = ct_find(p, &half, p->absent && !p->translated);
	if (ct)
		return sent_on(p, ct, half, policy_id);
	if (p->is_error)
		return DROP(p, TB_DROP_UNKNOWN_CT, "ICMP error from a pod belongs to no flow", "none; the flow is gone");
	if (!p->translated)
		name_service(skb, p, &asked);
	act = tb_verdict(policy_id, p->dst_identity, 1, p->ndport);
	if (act != TB_GO)
		return act;
	ct_blank(p);
	p->ct.identity = p->dst_identity;
	p->ct.rev_nat = p->rev_nat;
	p->ct.policy_id = policy_id;
	p->ct.policy_revision = p->policy_revision;
	p->ct.endpoint_id = p->src_endpoint;
	p->ct.ifindex = ctx_ifindex(skb);
	if (p->named) {
		p->ct.backend = asked;
		p->ct.backend_addr = p->orig_dst;
		p->ct.backend_port = p->orig_dport;
	}
	return ct_create(p);
}

/* 1: an answer to a flow this pod opened; the frontend's address is put back. TB_GO: not one. Else dropped. */
INLINE int opened_here(struct tb_pkt *p, __u32 policy_id)
{
	struct tb_ct *ct;
	__u32 rev_nat;
	__u16 signs;
	__u8 half;
	int act;

	key_set(&p->key, &p->ndst, &p->nsrc, p->ndport, p->nsport, p->tproto, TB_CT_EGRESS);
	ct = ct_get(p, &half);
	if (!ct)
		return TB_GO;
	rev_nat = ct->rev_nat;
	p->reply = 1;
	name_again(p, ct);
	act = answer_verdict(p, ct, policy_id, 1, p->nsport);
	if (act != TB_GO)
		return act;
	ct_touch(p, ct, half, 1);
	if (rev_nat) {
		signs = ct_signs(p, 1, 0);
		unmask(p, rev_nat);
		if (half || signs != TB_CTF_REPLIED)
			service_answered(p, &p->ndst, p->ndport, signs);
	}
	return 1;
}

/* A packet for a pod of this node: conntrack and ingress policy. */
GLOBAL int tb_ingress(__u32 ifindex)
{
	struct tb_pkt *p = tb_pkt();
	struct tb_iface *iface;
	struct tb_ct *ct;
	__u32 policy_id;
	__u8 half = 0;
	__u16 signs;
	int act;

	if (!p)
		return TC_ACT_SHOT;
	iface = bpf_map_lookup_elem(&tb_ifaces, &ifindex);
	if (!iface || !(iface->flags & TB_IF_READY))
		return DROP(p, TB_DROP_EP_NOT_READY, "the pod's interface is not ready yet", "wait for the pod; tombolo show endpoints");
	p->dst_identity = iface->identity;
	p->dst_endpoint = iface->endpoint_id;
	p->out_ifindex = ifindex;
	if (p->loopback && p->reply)
		return TB_GO;
	policy_id = exempt(p->src_identity, p->loopback) ? 0 : iface->policy_id;
	key_set(&p->key, &p->nsrc, &p->ndst, p->nsport, p->ndport, p->tproto, TB_CT_INGRESS);
	ct = ct_running(p);
	if (!ct && !p->loopback) {
		act = opened_here(p, iface->policy_id);
		if (act != TB_GO)
			return act == 1 ? TB_GO : act;
		key_set(&p->key, &p->nsrc, &p->ndst, p->nsport, p->ndport, p->tproto, TB_CT_INGRESS);
	}
	if (!ct)
		ct = ct_find(p, &half, p->absent);
	if (ct) {
		if (!verdict_cached(ct, policy_id, p->src_identity)) {
			act = tb_verdict(policy_id, p->src_identity, 0, p->ndport);
			if (act != TB_GO)
				return act;
			ct->identity = p->src_identity;
			ct->policy_id = policy_id;
			ct->policy_revision = p->policy_revision;
		}
		ct_renumber(p, ct, p->in_rev_nat);
		signs = ct_touch(p, ct, half, 0) & (TB_CTF_REPLIED | TB_CTF_CONFIRMED);
		if (p->fresh && signs & TB_CTF_REPLIED && p->in_rev_nat)
			service_answered(p, &p->nsrc, p->nsport, signs);
		return TB_GO;
	}
	if (p->is_error)
		return DROP(p, TB_DROP_UNKNOWN_CT, "ICMP error to a pod belongs to no flow", "none; the flow is gone");
	act = tb_verdict(policy_id, p->src_identity, 0, p->ndport);
	if (act != TB_GO)
		return act;
	ct_blank(p);
	p->ct.identity = p->src_identity;
	p->ct.rev_nat = p->in_rev_nat;
	p->ct.policy_id = policy_id;
	p->ct.policy_revision = p->policy_revision;
	p->ct.endpoint_id = p->dst_endpoint;
	p->ct.ifindex = ifindex;
	p->ct.flags = (p->loopback ? TB_CTF_LOOPBACK : 0) | (p->by_stack ? TB_CTF_BY_STACK : 0) | (p->fronted ? TB_CTF_NAMED : 0);
	return ct_create(p);
}

#undef TB_FILE_ID
#endif
