/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/* Services: frontend to backend by Maglev, remembered per client in a SERVICE entry. */
#ifndef TB_LB_H
#define TB_LB_H

#include "choose.h"
#include "ct.h"

#define TB_FILE_ID 6

INLINE int to_backend(struct tb_pkt *p, const struct tb_backend *b, __u32 rev_nat)
{
	/* Its checksum covers the ports and cannot be made right without reading all of the packet. */
	if (p->tproto == TB_SCTP && b->port != p->dport)
		return DROP(p, TB_DROP_NAT_PROTO, "the ports of SCTP cannot be translated", "give the Service's port the number of its targetPort");
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

INLINE struct tb_affinity_key client_of(const struct tb_pkt *p, const struct tb_service *svc)
{
	struct tb_affinity_key who = { .client = p->src, .rev_nat = svc->rev_nat };

	return who;
}

/* The slot of the flow, or of the client alone: then all nodes choose alike for it. */
INLINE struct tb_backend *hashed(const struct tb_pkt *p, const struct tb_service *svc, __u32 *id)
{
	__be16 sport = svc->affinity_secs ? 0 : p->sport;

	return in_slot(svc, flow_hash(&p->src, &p->dst, sport, p->dport, p->tproto), id);
}

INLINE int choose_backend(struct tb_pkt *p, const struct tb_service *svc, __u32 scope)
{
	struct tb_affinity_key who = client_of(p, svc);
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
		b = met_before(&who, svc, scope, p->now, &id);
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
		remember(&who, p->now, id, b);
	return to_backend(p, b, svc->rev_nat);
}

/*
 * An error about an answer, of a flow that another node leads: routers send it to any node that announces the frontend. All
 * choose alike, so the flow's backend is the one that this node would give it. Whether there is such a flow its node knows.
 */
INLINE int guess(struct tb_pkt *p, const struct tb_service *svc)
{
	struct tb_backend *b = 0;
	__u32 id = 0;

	if (svc->maglev_size)
		b = hashed(p, svc, &id);
	if (!b)
		return DROP(p, TB_DROP_UNKNOWN_CT, "ICMP error to a service that has no backend", "none; the flow is gone");
	p->guessed = 1;
	return to_backend(p, b, svc->rev_nat);
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
	if (p->fronted)
		return DROP(p, TB_DROP_INVALID, "a client names a service's frontend in its packet, as nodes do", "none; somebody forges the option");
	/* Each packet is asked, so that a flow ends with what let it in. */
	if (svc->flags & TB_SVC_SOURCE_RANGE && !in_ranges(&p->src, svc->rev_nat))
		return DROP(p, TB_DROP_NOT_IN_RANGE, "the service does not take clients with this address", "add it to spec.loadBalancerSourceRanges of the Service; tombolo show frontends");
	key_set(&p->key, &p->src, &p->dst, p->sport, p->dport, p->tproto, TB_CT_SERVICE);
	ct = ct_get(p, &half);
	if (ct) {
		b = still(ct->backend, &ct->backend_addr, ct->backend_port);
		if (b) {
			p->one_sided = !!(ct->flags & TB_CTF_ONE_SIDED);
			ct_touch(p, ct, half, 0);
			return to_backend(p, b, svc->rev_nat);
		}
		p->stale = !half;
	}
	if (p->is_error && scope == TB_SCOPE_EXTERNAL)
		return guess(p, svc);
	if (p->is_error)
		return DROP(p, TB_DROP_UNKNOWN_CT, "ICMP error to a service address belongs to no flow", "none; the flow is gone");
	return choose_backend(p, svc, scope);
}

#undef TB_FILE_ID
#endif
