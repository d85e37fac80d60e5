/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/* The last step: into a pod, into the tunnel, along the routing table, or to the node's stack. */
#ifndef TB_FORWARD_H
#define TB_FORWARD_H

#include "dsr.h"
#include "rewrite.h"
#include "toobig.h"
#include "endpoint.h"
#include "rate.h"

#define TB_FILE_ID 9
#define TB_AF_INET 2
#define TB_AF_INET6 10

/* The node's own stack goes on with it. */
INLINE int to_stack(struct __sk_buff *skb, struct tb_pkt *p, __u8 point)
{
	int act = tb_rewrite(skb);

	if (act != TB_GO)
		return act;
	p->point = point;
	bpf_skb_change_type(skb, 0);
	return TC_ACT_OK;
}

/* The last changes to a packet that leaves the node: translation, hop, and the frontend's name. */
INLINE int dress(struct __sk_buff *skb, struct tb_pkt *p)
{
	int act = add_l2(skb, p);

	if (act != TB_GO)
		return act;
	act = tb_rewrite(skb);
	if (act != TB_GO)
		return act;
	act = hop(skb, p);
	if (act != TB_GO || !p->room)
		return act;
	return tb_name_frontend(skb);
}

/* A packet at the end of its hops: the stack answers an untouched one with time exceeded. */
INLINE int expired(struct __sk_buff *skb, struct tb_pkt *p)
{
	if (!translated(p))
		return to_stack(skb, p, TB_POINT_TO_STACK);
	return DROP(p, TB_DROP_TTL_EXCEEDED, "hop limit used up on a translated packet", "look for a routing loop with traceroute to the backend");
}

/* tb_ingress() has let it pass: across to the pod's end, without the stack. */
GLOBAL int tb_deliver(struct __sk_buff *skb)
{
	struct tb_pkt *p = tb_pkt();
	struct tb_iface *iface;
	__u8 macs[12];
	__u32 ifindex, flags;
	int act;

	if (!p)
		return TC_ACT_SHOT;
	if (p->ttl <= 1)
		return expired(skb, p);
	act = add_l2(skb, p);
	if (act != TB_GO)
		return act;
	act = tb_rewrite(skb);
	if (act != TB_GO)
		return act;
	act = hop(skb, p);
	if (act != TB_GO)
		return act;
	if (p->fronted) {
		act = tb_strip_frontend(skb);
		if (act != TB_GO)
			return act;
	}
	ifindex = p->out_ifindex;
	iface = bpf_map_lookup_elem(&tb_ifaces, &ifindex);
	if (!iface)
		return DROP(p, TB_DROP_EP_NOT_READY, "the receiving pod went away", "none; the pod is being deleted");
	flags = iface->flags;
	__builtin_memcpy(macs, iface->mac, 6);
	__builtin_memcpy(macs + 6, iface->host_mac, 6);
	if (bpf_skb_store_bytes(skb, 0, macs, 12, 0) < 0)
		return DROP(p, TB_DROP_WRITE_ERROR, "the Ethernet header could not be written", "report it with a capture of the packet");
	bpf_skb_change_type(skb, 0);
	p->point = TB_POINT_TO_ENDPOINT;
	p->dir = 0;
	if (flags & TB_IF_LIMIT_IN) {
		act = tb_limit(skb, ifindex, TB_RATE_IN);
		if (act != TB_GO)
			return act;
	}
	if (flags & TB_IF_QUEUED) {
		skb->mark = (skb->mark & ~TB_MARK_MASK) | TB_MARK_JUDGED;
		return bpf_redirect(ifindex, 0);
	}
	return bpf_redirect_peer(ifindex, 0);
}

/* The outer source is the address that the other nodes know this one by: they take no tunnel packets from others. */
INLINE int encapsulate(struct __sk_buff *skb, struct tb_pkt *p, const struct tb_config *cfg, const struct tb_node *node, __u32 vni)
{
	struct bpf_tunnel_key key = {};
	__u64 flags = 0;

	key.tunnel_id = vni;
	key.tunnel_ttl = 64;
	if (node->tunnel.w[0] == 0 && node->tunnel.w[1] == 0 && node->tunnel.w[2] == bswap32(0xffff)) {
		key.remote_ipv4 = bswap32(node->tunnel.w[3]);
		key.local_ipv4 = bswap32(cfg->underlay4.w[3]);
		flags = BPF_F_ZERO_CSUM_TX;
	} else {
		__builtin_memcpy(key.remote_ipv6, node->tunnel.b, 16);
		__builtin_memcpy(key.local_ipv6, cfg->underlay6.b, 16);
		flags = BPF_F_TUNINFO_IPV6;
	}
	if (bpf_skb_set_tunnel_key(skb, &key, sizeof(key), flags) < 0)
		return DROP(p, TB_DROP_NO_TUNNEL_KEY, "the tunnel key could not be set", "report it with the kernel's version");
	return TB_GO;
}

INLINE int to_overlay_device(struct __sk_buff *skb, struct tb_pkt *p, const struct tb_config *cfg, const struct tb_node *node)
{
	__u32 device = cfg->overlay_ifindex;
	int act;

	if (!device)
		return DROP(p, TB_DROP_NO_DEVICE, "there is no VXLAN device", "tombolo status; the agent makes it in overlay mode");
	if (addr_zero(&node->tunnel))
		return DROP(p, TB_DROP_NO_TUNNEL_ENDPOINT, "the node's tunnel endpoint is not known", "tombolo show nodes; the node must publish an underlay address");
	if (p->ttl <= 1)
		return expired(skb, p);
	act = dress(skb, p);
	if (act != TB_GO)
		return act;
	act = encapsulate(skb, p, cfg, node, p->vni);
	if (act != TB_GO)
		return act;
	skb->mark = (skb->mark & ~TB_MARK_MASK) | TB_MARK_KEYED;
	p->point = TB_POINT_TO_OVERLAY;
	return bpf_redirect(device, 0);
}

INLINE long route(struct __sk_buff *skb, struct tb_pkt *p, struct bpf_fib_lookup *fib)
{
	fib->ifindex = p->leave_by ? p->leave_by : skb->ifindex;
	fib->tot_len = p->seg_len + p->room;
	fib->l4_protocol = p->proto;
	if (p->family == 4) {
		fib->family = TB_AF_INET;
		fib->ipv4_src = p->nsrc.w[3];
		fib->ipv4_dst = p->ndst.w[3];
	} else {
		fib->family = TB_AF_INET6;
		__builtin_memcpy(fib->ipv6_src, p->nsrc.b, 16);
		__builtin_memcpy(fib->ipv6_dst, p->ndst.b, 16);
	}
	return bpf_fib_lookup(skb, fib, sizeof(*fib), p->leave_by ? BPF_FIB_LOOKUP_OUTPUT : 0);
}

/* Whether it got an address of this node as source. */
INLINE int as_own(struct tb_pkt *p)
{
	return !addr_eq(&p->nsrc, &p->src) && (!addr_zero(&p->snat_to) || is_host(&p->nsrc));
}

INLINE int along_route(struct __sk_buff *skb, struct tb_pkt *p)
{
	struct bpf_fib_lookup fib = {};
	long rc;
	int act;

	if (p->ttl <= 1)
		return expired(skb, p);
	rc = route(skb, p, &fib);
	/* The stack takes no packet from outside under an address of its own, so it cannot cut a translated one either. */
	if (rc == BPF_FIB_LKUP_RET_FRAG_NEEDED && (p->df || as_own(p)))
		return tb_too_big(skb, fib.mtu_result - p->room);
	/* An address of this node that is in no row: no masquerading there. */
	if (rc == BPF_FIB_LKUP_RET_NOT_FWDED && p->masked) {
		p->nsrc = p->src;
		p->nsport = p->sport;
	}
	if (rc == BPF_FIB_LKUP_RET_BLACKHOLE || rc == BPF_FIB_LKUP_RET_UNREACHABLE || rc == BPF_FIB_LKUP_RET_PROHIBIT) {
		/* The stack answers an untouched packet by itself. */
		if (!translated(p))
			return to_stack(skb, p, TB_POINT_TO_STACK);
		return DROP(p, TB_DROP_FIB, "no route to the backend or client", "ip route get its address on the node; check BGP and the tunnel routes");
	}
	if (rc != BPF_FIB_LKUP_RET_SUCCESS && rc != BPF_FIB_LKUP_RET_NO_NEIGH && as_own(p))
		return DROP(p, TB_DROP_FIB, "no way out for a packet that got the node's address", "ip route get its destination from the node's address; check forwarding on the interfaces");
	if (rc != BPF_FIB_LKUP_RET_SUCCESS && rc != BPF_FIB_LKUP_RET_NO_NEIGH)
		return to_stack(skb, p, TB_POINT_TO_STACK);
	act = dress(skb, p);
	if (act != TB_GO)
		return act;
	/* Under the node's address it would be taken for the node's own. */
	if (!addr_eq(&p->nsrc, &p->src))
		skb->mark = (skb->mark & ~TB_MARK_MASK) | TB_MARK_FORWARDED;
	p->point = TB_POINT_TO_NETWORK;
	return bpf_redirect_neigh(fib.ifindex, 0, 0, 0);
}

/* To a gateway packets go through the tunnel also where pods are routed: outer headers, UDP, VXLAN and inner Ethernet. */
INLINE __u32 path_mtu(const struct tb_pkt *p, const struct tb_node *node)
{
	__u32 room = node->tunnel.w[2] == bswap32(0xffff) ? 50 : 70;

	if (!p->by_tunnel || node->path == TB_PATH_OVERLAY || node->mtu <= room)
		return node->mtu;
	return node->mtu - room;
}

/* ndst is not on this node. */
GLOBAL int tb_forward(struct __sk_buff *skb)
{
	struct tb_pkt *p = tb_pkt();
	struct tb_config *cfg = tb_cfg();
	struct tb_node *node = 0;
	__u32 index, plain;
	int act;

	if (!p || !cfg)
		return TC_ACT_SHOT;
	index = p->node;
	if (index)
		node = bpf_map_lookup_elem(&tb_nodes, &index);
	plain = p->pfx_flags & TB_PFX_SKIP_TUNNEL;
	if (cfg->flags & TB_CFG_ENCRYPT)
		p->encrypted = p->pfx_flags & TB_PFX_ENCRYPT || (node && node->flags & TB_NODE_ENCRYPT && !plain);
	/* A node's own address is not tunnelled; its path is narrower only if encrypted. */
	if (node && (!plain || p->encrypted)) {
		act = fits(skb, p, path_mtu(p, node));
		if (act != TB_GO)
			return act;
	}
	if (!node && p->by_tunnel)
		return DROP(p, TB_DROP_NO_EGRESS_GATEWAY, "the egress gateway's node is not known", "tombolo show egress-gateways, tombolo show nodes");
	if (node && !plain && (p->by_tunnel || node->path == TB_PATH_OVERLAY))
		return to_overlay_device(skb, p, cfg, node);
	return along_route(skb, p);
}

#undef TB_FILE_ID
#endif
