/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/* The seven programs. Each fills the scratch packet, decides, and ends in finish(). */
#include "parse.h"
#include "forward.h"
#include "host.h"
#include "egress.h"

#define TB_FILE_ID 10

INLINE struct tb_pkt *begin(struct __sk_buff *skb, __u8 l2, __u8 dir, __u8 point)
{
	struct tb_pkt *p = tb_pkt();
	struct tb_config *cfg = tb_cfg();

	if (!p || !cfg)
		return 0;
	__builtin_memset(p, 0, __builtin_offsetof(struct tb_pkt, key));
	p->now = bpf_ktime_get_ns() + cfg->clock_offset_ns;
	p->moves = tb_moves;
	p->l2 = l2;
	p->l3_off = l2 ? TB_ETH_HLEN : 0;
	p->dir = dir;
	p->point = point;
	p->hook = point;
	p->encrypted = (skb->mark & TB_MARK_MASK) == TB_MARK_DECRYPTED;
	return p;
}

INLINE int is_ip(struct __sk_buff *skb)
{
	return skb->protocol == bswap16(TB_ETH_P_IP) || skb->protocol == bswap16(TB_ETH_P_IPV6);
}

/* The packet is judged; nsrc/ndst, vni and identities are set. */
INLINE int onward(struct __sk_buff *skb, struct tb_pkt *p)
{
	int act;

	if (p->where == TB_POD) {
		act = tb_ingress(p->out_ifindex);
		return act == TB_GO ? tb_deliver(skb) : act;
	}
	if (p->where == TB_HOST) {
		act = tb_host(0);
		return act == TB_GO ? to_stack(skb, p, TB_POINT_TO_HOST) : act;
	}
	return tb_forward(skb);
}

/* From another node or the network: for a pod it may name a frontend. */
INLINE int inward(struct __sk_buff *skb, struct tb_pkt *p)
{
	int act;

	if (p->where == TB_POD && p->fronted) {
		act = tb_fronted();
		if (act != TB_GO)
			return act;
	}
	return onward(skb, p);
}

/*
 * On from a pod: through the node's stack where that led the flow here, for it may have translated it, or where the
 * interface has queues. The stack's device into the tunnel must know whose the packet is. The stack takes no packet that
 * got an address of its own, and knows of no gateway.
 */
INLINE int pod_onward(struct __sk_buff *skb, struct tb_pkt *p)
{
	__u32 id = p->src_identity;
	int act;

	if (p->where == TB_HOST || p->loopback || !(p->by_stack | p->queued))
		return onward(skb, p);
	if (p->by_tunnel || !addr_zero(&p->snat_to))
		return onward(skb, p);
	act = to_stack(skb, p, TB_POINT_TO_STACK);
	if (act == TC_ACT_OK)
		skb->mark = TB_MARK_IDENTITY | (id & 0xffff) << 16 | (id >> 16 & 0xff);
	return act;
}

/* A pod's packet that is no answer. */
INLINE int sent_on_its_way(struct __sk_buff *skb, struct tb_pkt *p)
{
	int act;

	/* Neither a pod nor a node of the mesh, nor where pods are that nobody has named. */
	if (p->where == TB_AWAY && !p->node && !(p->pfx_flags & TB_PFX_STRICT)) {
		act = tb_leave();
		if (act != TB_GO)
			return act;
	}
	return pod_onward(skb, p);
}

INLINE int answer_of_pod(struct __sk_buff *skb, struct tb_pkt *p)
{
	int act;

	if (p->loopback && tb_unsnat() != 1)
		return DROP(p, TB_DROP_NAT_NO_MAPPING, "the mapping of a pod's flow to itself was evicted", "raise datapath.maps.nat");
	act = tb_locate();
	return act == TB_GO ? pod_onward(skb, p) : act;
}

INLINE int own_address(struct tb_pkt *p, const struct tb_iface *iface)
{
	const union tb_addr *own = p->family == 4 ? &iface->addr4 : &iface->addr6;

	/* An error must speak of a packet that this pod received, too. */
	return addr_eq(&p->outer_src, own) && (p->reason || addr_eq(&p->src, own));
}

/* fe80::/10, or a group that no router forwards (ff02::/16). */
INLINE int on_link(const union tb_addr *addr)
{
	return (addr->b[0] == 0xfe && (addr->b[1] & 0xc0) == 0x80) || (addr->b[0] == 0xff && addr->b[1] == 0x02);
}

/*
 * Neighbour discovery of a pod is between it and the node: the stack must not carry it on, and a pod is no router. No
 * policy judges it, so what is not this goes no further.
 */
INLINE int pod_discovers(struct tb_pkt *p, const struct tb_iface *iface)
{
	int unnamed = addr_zero(&p->src); /* it asks whether its address is taken */

	if (p->icmp_type == 134 || p->icmp_type == 137)
		return DROP(p, TB_DROP_FORBIDDEN_ICMP6, "a pod is no router and may not advertise or redirect", "stop the router daemon in the pod");
	if (!unnamed && !addr_eq(&p->src, &iface->addr6) && !(on_link(&p->src) && p->src.b[0] == 0xfe))
		return DROP(p, TB_DROP_INVALID_SOURCE, "neighbour discovery under an address that is not the pod's", "use the address that the pod was given");
	if (on_link(&p->dst))
		return TC_ACT_OK;
	if (is_host(&p->dst))
		return TC_ACT_OK;
	return DROP(p, TB_DROP_FORBIDDEN_ICMP6, "neighbour discovery of a pod that is not for the node", "none; a pod's only neighbour is its node");
}

/* Whoever writes tunnel packets says any identity he likes, so nobody is translated to where they are read. */
INLINE int to_tunnel(const struct tb_pkt *p, const struct tb_config *cfg)
{
	return p->tproto == TB_UDP && !p->is_error && p->ndport == bswap16(cfg->vxlan_port);
}

INLINE int pod_sends(struct __sk_buff *skb, struct tb_pkt *p)
{
	__u32 ifindex = skb->ifindex, policy_id;
	struct tb_config *cfg = tb_cfg();
	struct tb_iface *iface;
	int act;

	iface = bpf_map_lookup_elem(&tb_ifaces, &ifindex);
	if (!iface || !(iface->flags & TB_IF_READY))
		return DROP(p, TB_DROP_EP_NOT_READY, "the sending pod is not ready yet", "wait for the pod; tombolo show endpoints");
	if (!cfg || !(cfg->flags & TB_CFG_READY))
		return DROP(p, TB_DROP_HOST_NOT_READY, "the node's configuration is not written yet", "tombolo status; wait for the agent");
	p->src_identity = iface->identity;
	p->src_endpoint = iface->endpoint_id;
	p->vni = iface->identity;
	p->shaped = (iface->flags & (TB_IF_LIMIT_OUT | TB_IF_PRIORITY)) != 0;
	p->queued = (iface->flags & TB_IF_QUEUED) != 0;
	policy_id = iface->policy_id;
	if (!is_ip(skb))
		return TC_ACT_OK;
	act = tb_parse(skb);
	if (p->nd == 1)
		return pod_discovers(p, iface);
	if (p->nd)
		return DROP(p, TB_DROP_FORBIDDEN_ICMP6, "listener report of a pod: its node forwards no multicast", "none; every IPv6 host sends them");
	if (p->family && !own_address(p, iface))
		return DROP(p, TB_DROP_INVALID_SOURCE, "the source is not the pod's address", "use the address that the pod was given");
	if (act != TB_GO)
		return act;
	if (p->fronted)
		return DROP(p, TB_DROP_INVALID, "a pod names a service's frontend in its packet, as nodes do", "none; somebody in the pod forges the option");
	if (addr_multicast(&p->dst, p->family))
		return DROP(p, TB_DROP_UNKNOWN_TARGET, "a pod sends to a multicast or broadcast address", "none; pods have no link in common, so nobody would hear it");
	if (to_tunnel(p, cfg))
		return DROP(p, TB_DROP_ENCAP_PROHIBITED, "a pod may not send tunnel packets", "use another UDP port");
	act = tb_running(policy_id);
	if (act != TB_GO)
		return act == 1 ? sent_on_its_way(skb, p) : act;
	act = tb_answer(policy_id);
	if (act != TB_GO)
		return act == 1 ? answer_of_pod(skb, p) : act;
	act = tb_service(TB_SCOPE_INTERNAL);
	if (act != TB_GO && act != 1)
		return p->refuse ? tb_refuse(skb) : act;
	if (act == 1 && to_tunnel(p, cfg))
		return DROP(p, TB_DROP_ENCAP_PROHIBITED, "a service leads a pod to the tunnel's port", "give the service's backends another UDP port");
	act = tb_locate();
	if (act != TB_GO)
		return act;
	if (p->where == TB_POD && p->out_ifindex == ifindex && p->translated) {
		p->loopback = 1;
		act = tb_snat();
		return act == TB_GO ? onward(skb, p) : act;
	}
	act = tb_egress(skb, policy_id);
	return act == TB_GO ? sent_on_its_way(skb, p) : act;
}

/* What was decided, if the pod's rate lets it be. */
INLINE int shaped(struct __sk_buff *skb, struct tb_pkt *p, int act)
{
	struct tb_config *cfg = tb_cfg();
	__u32 ifindex = skb->ifindex, way = TB_RATE_OUT;
	struct tb_iface *iface;
	int limited;

	if (!p->shaped || (act != TC_ACT_OK && act != TC_ACT_REDIRECT))
		return act;
	iface = bpf_map_lookup_elem(&tb_ifaces, &ifindex);
	if (!iface || !cfg)
		return act;
	if (iface->flags & TB_IF_PRIORITY)
		skb->priority = iface->priority;
	if (!(iface->flags & TB_IF_LIMIT_OUT))
		return act;
	/* Only what leaves the node passes the uplink's queue. */
	if (cfg->flags & TB_CFG_PACED && p->where == TB_AWAY && act == TC_ACT_REDIRECT)
		way = TB_RATE_PACED;
	limited = tb_limit(skb, ifindex, way);
	if (limited == TB_GO)
		return act;
	/* Where it was to go does not matter: the sender has sent too much. */
	p->dir = 1;
	p->point = TB_POINT_FROM_ENDPOINT;
	return limited;
}

SEC("classifier") int from_endpoint(struct __sk_buff *skb)
{
	struct tb_pkt *p = begin(skb, 1, 1, TB_POINT_FROM_ENDPOINT);
	int act;

	if (!p)
		return TC_ACT_SHOT;
	act = finish(skb, p, shaped(skb, p, pod_sends(skb, p)));
	/* The queues of what the pod sends are behind filters that come after this program. */
	return p->queued && act == TC_ACT_OK ? TC_ACT_UNSPEC : act;
}

/* What the stack sends to a pod: the node's own packets, and what it forwards. */
INLINE int pod_receives(struct __sk_buff *skb, struct tb_pkt *p)
{
	__u32 ifindex = skb->ifindex, asked;
	struct tb_iface *iface;
	int act;

	iface = bpf_map_lookup_elem(&tb_ifaces, &ifindex);
	if (!iface || !(iface->flags & TB_IF_READY))
		return DROP(p, TB_DROP_EP_NOT_READY, "the pod is not ready for the node's packets", "wait for the pod; tombolo show endpoints");
	if (!is_ip(skb))
		return TC_ACT_OK;
	act = tb_parse(skb);
	if (p->nd)
		return TC_ACT_OK;
	if (act != TB_GO)
		return act;
	/* Only from other nodes. */
	p->fronted = 0;
	if (addr_multicast(&p->dst, p->family))
		return DROP(p, TB_DROP_UNKNOWN_TARGET, "the node sends a pod a multicast or broadcast packet", "none; pods get none");
	tb_identify(0);
	if (p->src_identity == TB_ID_HOST) {
		p->dst_identity = iface->identity;
		act = tb_host(1);
		if (act != TB_GO)
			return act;
		p->reply = 0;
	}
	p->by_stack = p->src_identity != TB_ID_HOST;
	act = tb_ingress(ifindex);
	if (act != TB_GO)
		return act;
	if (iface->flags & TB_IF_LIMIT_IN) {
		act = tb_limit(skb, ifindex, TB_RATE_IN);
		if (act != TB_GO)
			return act;
	}
	if (p->report && !p->reply)
		name_service(skb, p, &asked);
	act = tb_rewrite(skb);
	if (act != TB_GO)
		return act;
	p->point = TB_POINT_TO_ENDPOINT;
	return TC_ACT_OK;
}

SEC("classifier") int to_endpoint(struct __sk_buff *skb)
{
	struct tb_pkt *p;

	/* It was let in already, and goes through the interface's queue. */
	if ((skb->mark & TB_MARK_MASK) == TB_MARK_JUDGED) {
		skb->mark &= ~TB_MARK_MASK;
		return TC_ACT_OK;
	}
	p = begin(skb, 1, 0, TB_POINT_FROM_HOST);
	return p ? finish(skb, p, pod_receives(skb, p)) : TC_ACT_SHOT;
}

INLINE int is_internal(struct tb_pkt *p, struct tb_config *cfg)
{
	return addr_eq(&p->dst, internal_addr(cfg, p->family));
}

/* Whether an answer from outside the mesh goes to the pod's node as its flow came from there. */
INLINE int tunnelled_back(const struct tb_pkt *p)
{
	struct tb_config *cfg = tb_cfg();

	return cfg && cfg->flags & TB_CFG_ENCRYPT && !p->rev_nat && p->where == TB_AWAY && p->node && !(p->pfx_flags & TB_PFX_SKIP_TUNNEL);
}

/* An answer to a flow that this node SNATed: back to the client. One from outside the mesh stays so. */
INLINE int answer_of_backend(struct __sk_buff *skb, struct tb_pkt *p)
{
	int act = tb_locate();

	if (act != TB_GO)
		return act;
	/* The number of a prefix is this node's own, and longer than a VNI: the receiver goes by the address. */
	p->vni = p->rev_nat ? TB_ID_REMOTE_NODE : p->src_identity >> 24 ? 0 : p->src_identity;
	/* The other end of WireGuard on a route takes no address of the world. */
	p->by_tunnel = tunnelled_back(p);
	return onward(skb, p);
}

/* A service's client outside: local backends, the node itself too, see its address, remote ones the node's, or its own. */
INLINE int outside_client(struct __sk_buff *skb, struct tb_pkt *p, struct tb_config *cfg)
{
	int act;

	if (to_tunnel(p, cfg))
		return DROP(p, TB_DROP_ENCAP_PROHIBITED, "a service leads an outside client to the tunnel's port", "give the service's backends another UDP port");
	act = tb_locate();
	if (act != TB_GO)
		return act;
	if (p->where == TB_HOST && !(cfg->flags & TB_CFG_HOST_SERVES))
		__sync_fetch_and_or(&cfg->flags, TB_CFG_HOST_SERVES);
	if (p->where != TB_AWAY) {
		p->in_rev_nat = p->rev_nat;
		return onward(skb, p);
	}
	if (answered_there(p, cfg)) {
		/* The receiver knows the client by its address. */
		p->vni = 0;
		if (may_open(p))
			p->room = p->family == 4 ? TB_DSR4_ROOM : TB_DSR6_ROOM;
		return tb_forward(skb);
	}
	p->vni = TB_ID_REMOTE_NODE;
	act = tb_snat();
	return act == TB_GO ? tb_forward(skb) : act;
}

/* Set in a copy of the programs that runs captured packets again (src/replay.rs), whose test run can give no tunnel key. */
const volatile __u32 tb_replay = 0;

/* A function of its own: joined with the look-up below, the loads would go through a pointer into the context. */
static __attribute__((noinline)) int replayed_key(struct __sk_buff *skb, struct tb_pkt *p)
{
	p->tunnel_id = skb->cb[0];
	p->tunnel_src.w[0] = skb->cb[1];
	p->tunnel_src.w[1] = skb->cb[2];
	p->tunnel_src.w[2] = skb->cb[3];
	p->tunnel_src.w[3] = skb->cb[4];
	return 0;
}

/* The key and the outer source. A replay has them in the control block. */
INLINE int tunnel_key(struct __sk_buff *skb, struct tb_pkt *p)
{
	struct bpf_tunnel_key key = {};
	union tb_addr *outer = &p->tunnel_src;

	if (tb_replay)
		return replayed_key(skb, p);
	if (bpf_skb_get_tunnel_key(skb, &key, sizeof(key), 0) == 0)
		addr_v4(outer, bswap32(key.remote_ipv4));
	else if (bpf_skb_get_tunnel_key(skb, &key, sizeof(key), BPF_F_TUNINFO_IPV6) == 0)
		__builtin_memcpy(outer->b, key.remote_ipv6, 16);
	else
		return -1;
	p->tunnel_id = key.tunnel_id;
	return 0;
}

/* Known senders: the identity is the tunnel's, or that of the address. */
INLINE int overlay_receives(struct __sk_buff *skb, struct tb_pkt *p)
{
	struct tb_config *cfg = tb_cfg();
	int act;

	if (!is_ip(skb))
		return DROP(p, TB_DROP_UNKNOWN_L3, "a frame out of the tunnel that is not IP", "capture on the tunnel device; no node sends such");
	if (!cfg || !(cfg->flags & TB_CFG_READY))
		return DROP(p, TB_DROP_HOST_NOT_READY, "tunnel packet before the node is ready", "tombolo status; wait for the agent");
	if (tunnel_key(skb, p) < 0)
		return DROP(p, TB_DROP_NO_TUNNEL_KEY, "packet on the VXLAN device without a tunnel key", "make the device in collect-metadata mode");
	act = tb_parse(skb);
	if (p->nd)
		return DROP(p, TB_DROP_FORBIDDEN_ICMP6, "neighbour discovery out of the tunnel, which is no link", "capture on the tunnel device; no node sends such");
	/* The identity is the sender's word, so only a node's counts. */
	if (!is_node(&p->tunnel_src))
		return DROP(p, TB_DROP_UNKNOWN_SENDER, "tunnel packet from an address that is no known node's", "tombolo show nodes; the node must send from an address that its Node object names");
	if (act != TB_GO)
		return act;
	p->src_identity = p->tunnel_id == TB_ID_HOST ? TB_ID_REMOTE_NODE : p->tunnel_id;
	/* A sender that says no identity is known by its address, and only by one that others can have. */
	if (!p->src_identity) {
		tb_identify(1);
		if (p->local_source)
			return DROP(p, TB_DROP_INVALID_SOURCE, "it comes out of the tunnel with an address of this node", "look for a spoofing machine among the nodes");
	}
	if (is_internal(p, cfg) && tb_unsnat() == 1)
		return answer_of_backend(skb, p);
	act = tb_locate();
	if (act != TB_GO)
		return act;
	if (p->where == TB_AWAY) {
		act = tb_leave_here();
		return act == TB_GO ? tb_forward(skb) : act;
	}
	/* Pods of other nodes reach the internal address this way, and its node ports. */
	if (p->where == TB_HOST && !to_tunnel(p, cfg)) {
		act = tb_service(TB_SCOPE_EXTERNAL);
		if (act != TB_GO)
			return act == 1 ? outside_client(skb, p, cfg) : act;
	}
	return inward(skb, p);
}

SEC("classifier") int from_overlay(struct __sk_buff *skb)
{
	struct tb_pkt *p = begin(skb, 1, 0, TB_POINT_FROM_OVERLAY);

	return p ? finish(skb, p, overlay_receives(skb, p)) : TC_ACT_SHOT;
}

/* The sender of the node's own tunnelled frames: locally administered, and nobody's. */
static const __u8 other_mac[6] = { 0x02, 0x74, 0x6f, 0x6d, 0x62, 0x00 };

/* The node's own packets to pods of other nodes; those of pods carry their key already. */
INLINE int overlay_sends(struct __sk_buff *skb, struct tb_pkt *p)
{
	struct tb_config *cfg = tb_cfg();
	__u32 index, vni = TB_ID_REMOTE_NODE, mark = skb->mark;
	struct tb_node *node;
	int act, parsed;

	if (!cfg)
		return DROP(p, TB_DROP_HOST_NOT_READY, "packet into the tunnel before the node is ready", "tombolo status; wait for the agent");
	if ((mark & TB_MARK_MASK) == TB_MARK_KEYED)
		return TC_ACT_OK;
	if (!is_ip(skb))
		return DROP(p, TB_DROP_UNKNOWN_L3, "the node sends a frame that is not IP into the tunnel", "ip link set the tunnel device arp off");
	act = tb_parse(skb);
	if (act != TB_GO && p->proto == 0)
		return act;
	if (p->nd)
		return DROP(p, TB_DROP_FORBIDDEN_ICMP6, "the node's neighbour discovery on the tunnel, which is no link", "none; the kernel tries it on every device");
	if (addr_multicast(&p->dst, p->family))
		return DROP(p, TB_DROP_UNKNOWN_TARGET, "the node sends a multicast or broadcast packet into the tunnel", "none; the tunnel has single nodes as ends");
	p->reason = 0;
	p->src_identity = TB_ID_HOST;
	parsed = act == TB_GO;
	act = tb_locate();
	if (act != TB_GO)
		return act;
	if ((mark & TB_MARK_MASK) == TB_MARK_IDENTITY) {
		/* A pod's, judged when it sent it. */
		vni = mark >> 16 | (mark & 0xff) << 16;
		p->src_identity = vni;
	} else {
		act = parsed ? tb_host(1) : tb_host_untracked(p->dst_identity, 1);
		if (act != TB_GO)
			return act;
	}
	/* What the node answers as a backend has the frontend's address outside. */
	act = tb_rewrite(skb);
	if (act != TB_GO)
		return act;
	index = p->node;
	node = p->where == TB_AWAY && index ? bpf_map_lookup_elem(&tb_nodes, &index) : 0;
	if (!node || addr_zero(&node->tunnel))
		return DROP(p, TB_DROP_NO_TUNNEL_ENDPOINT, "no tunnel endpoint for a packet of the node", "tombolo show prefixes, tombolo show nodes; a stale route may lead into the tunnel");
	/* Every node's device has the same address, and the kernel drops a tunnelled frame that comes from its own. */
	if (bpf_skb_store_bytes(skb, 6, other_mac, sizeof(other_mac), 0) < 0)
		return DROP(p, TB_DROP_WRITE_ERROR, "cannot rewrite the sender's MAC", "report it: this does not happen");
	act = encapsulate(skb, p, cfg, node, vni);
	return act == TB_GO ? TC_ACT_OK : act;
}

SEC("classifier") int to_overlay(struct __sk_buff *skb)
{
	struct tb_pkt *p = begin(skb, 1, 1, TB_POINT_TO_OVERLAY);

	return p ? finish(skb, p, overlay_sends(skb, p)) : TC_ACT_SHOT;
}

/* A packet that could not be parsed is the stack's business, unless a pod or service is meant. */
INLINE int ours(struct tb_pkt *p)
{
	struct tb_endpoint *ep = bpf_map_lookup_elem(&tb_endpoints, &p->dst);
	struct tb_service_key key = { .addr = p->dst };

	if (ep)
		return !(ep->flags & TB_EP_HOST);
	return bpf_map_lookup_elem(&tb_services, &key) != 0;
}

INLINE int uplink_receives(struct __sk_buff *skb, struct tb_pkt *p)
{
	struct tb_config *cfg = tb_cfg();
	int act;

	if (!is_ip(skb) || !cfg || !(cfg->flags & TB_CFG_READY))
		return TC_ACT_OK;
	act = tb_parse(skb);
	if (p->nd || addr_multicast(&p->dst, p->family))
		return TC_ACT_OK;
	if (act != TB_GO) {
		if (ours(p))
			return act;
		p->reason = 0;
		if (!cfg->host_policy_id || !is_host(&p->dst))
			return TC_ACT_OK;
		tb_identify(1);
		act = tb_host_untracked(p->src_identity, 0);
		return act == TB_GO ? TC_ACT_OK : act;
	}
	tb_identify(1);
	if (p->local_source == TB_POD)
		return DROP(p, TB_DROP_INVALID_SOURCE, "it comes from the network with the address of a pod of this node", "look for another machine with the address, or a spoofing one");
	/* RFC 1122, section 3.2.1.3; a service would answer to the group. */
	if (addr_multicast(&p->outer_src, p->family))
		return DROP(p, TB_DROP_INVALID_SOURCE, "it comes from the network with a group's address as source", "look for a machine that forges its source");
	if (may_turn_back(p, cfg) && tb_unsnat() == 1)
		return answer_of_backend(skb, p);
	act = tb_locate();
	if (act != TB_GO)
		return act;
	/* An address of the node may be a service's, too; but the tunnel's packets spare the look-up. */
	if (p->where == TB_AWAY || (p->where == TB_HOST && !to_tunnel(p, cfg))) {
		act = tb_service(TB_SCOPE_EXTERNAL);
		if (act == 1)
			return outside_client(skb, p, cfg);
		if (act != TB_GO)
			return p->refuse ? tb_refuse(skb) : act;
		if (p->where == TB_AWAY)
			return TC_ACT_OK;
	}
	/* Only a router that sends the node's own packets to a service back does this, and those were translated above. */
	if (p->local_source)
		return DROP(p, TB_DROP_INVALID_SOURCE, "it comes from the network with an address of this node", "look for another machine with the address, or a spoofing one");
	if (p->where != TB_HOST)
		return inward(skb, p);
	act = tb_host(0);
	return act == TB_GO ? TC_ACT_OK : act;
}

SEC("classifier") int from_uplink(struct __sk_buff *skb)
{
	struct tb_pkt *p = begin(skb, 1, 0, TB_POINT_FROM_NETWORK);

	return p ? finish(skb, p, uplink_receives(skb, p)) : TC_ACT_SHOT;
}

SEC("classifier") int from_wireguard(struct __sk_buff *skb)
{
	struct tb_pkt *p = begin(skb, 0, 0, TB_POINT_FROM_CRYPTO);

	/* The mark stays with a VXLAN packet until its inner packet comes out of the tunnel device. */
	skb->mark = (skb->mark & ~TB_MARK_MASK) | TB_MARK_DECRYPTED;
	if (!p)
		return TC_ACT_SHOT;
	p->encrypted = 1;
	return finish(skb, p, uplink_receives(skb, p));
}

/* Whether what leaves must leave encrypted: by the prefix, or because it is the tunnel to such a node. */
INLINE int must_encrypt(struct tb_pkt *p, struct tb_config *cfg)
{
	struct tb_prefix *pfx = prefix_of(p, &p->dst);
	struct tb_node *node;
	__u32 index;

	if (!pfx)
		return 0;
	if (pfx->flags & TB_PFX_ENCRYPT)
		return 1;
	index = pfx->node;
	node = index ? bpf_map_lookup_elem(&tb_nodes, &index) : 0;
	if (!node || !(node->flags & TB_NODE_ENCRYPT))
		return 0;
	if (!(pfx->flags & TB_PFX_SKIP_TUNNEL))
		return 1;
	return p->proto == TB_UDP && p->dport == bswap16(cfg->vxlan_port);
}

/* Whether it would tell the network what is meant for a pod that nobody has named. The node's own is no pod's. */
INLINE int would_leak(struct tb_pkt *p, __u32 mark)
{
	struct tb_prefix *pfx = prefix_of(p, &p->dst);
	/* Under the node's address, and yet not its own. */
	int lent = mark == TB_MARK_FORWARDED || mark == TB_MARK_IDENTITY;

	return pfx && pfx->flags & TB_PFX_STRICT && (lent || !is_host(&p->outer_src));
}

/* What the node itself sends to the network. parsed: down to the ports. */
INLINE int node_sends(struct tb_pkt *p, int parsed)
{
	struct tb_prefix *pfx;

	if (!is_host(&p->outer_src))
		return TB_GO;
	pfx = prefix_of(p, &p->dst);
	p->dst_identity = pfx ? pfx->identity : TB_ID_WORLD;
	return parsed ? tb_host(1) : tb_host_untracked(p->dst_identity, 1);
}

INLINE int uplink_sends(struct __sk_buff *skb, struct tb_pkt *p)
{
	struct tb_config *cfg = tb_cfg();
	__u32 mark = skb->mark & TB_MARK_MASK;
	int act;

	if (!is_ip(skb) || !cfg || !(cfg->flags & (TB_CFG_ENCRYPT | TB_CFG_HOST_SERVES) || cfg->host_policy_id))
		return TC_ACT_OK;
	if (mark == TB_MARK_CIPHERTEXT)
		return TC_ACT_OK;
	/* For the question of encryption the addresses alone decide; a packet that parses no further is judged all the same. */
	act = tb_parse(skb);
	p->reason = 0;
	if (p->nd || addr_multicast(&p->dst, p->family))
		return TC_ACT_OK;
	if ((cfg->host_policy_id || cfg->flags & TB_CFG_HOST_SERVES) && mark != TB_MARK_FORWARDED && mark != TB_MARK_IDENTITY) {
		act = node_sends(p, act == TB_GO);
		if (act == TB_GO)
			act = tb_rewrite(skb);
		if (act != TB_GO)
			return act;
	}
	if (!(cfg->flags & TB_CFG_ENCRYPT))
		return TC_ACT_OK;
	if (!must_encrypt(p, cfg)) {
		if (would_leak(p, mark))
			return DROP(p, TB_DROP_UNENCRYPTED, "it goes to where pods are, on no node that is known, and would leave in clear", "tombolo show prefix-entries, tombolo mesh status; datapath.strict_encryption says where pods are");
		return TC_ACT_OK;
	}
	if (!cfg->wireguard_ifindex)
		return DROP(p, TB_DROP_UNENCRYPTED, "it must leave encrypted, but there is no WireGuard device", "tombolo status; start tombolo wireguard");
	p->point = TB_POINT_TO_CRYPTO;
	return bpf_redirect(cfg->wireguard_ifindex, 0);
}

SEC("classifier") int to_uplink(struct __sk_buff *skb)
{
	struct tb_pkt *p = begin(skb, 1, 1, TB_POINT_TO_NETWORK);

	return p ? finish(skb, p, uplink_sends(skb, p)) : TC_ACT_SHOT;
}

/* Run once on a packet of zeros: 0 if the kernel knows BPF_F_IPV6. Never hooked. */
SEC("classifier") int probe_csum6(struct __sk_buff *skb)
{
	return bpf_l4_csum_replace(skb, TB_ETH_HLEN + 40 + 16, 0, 1, BPF_F_PSEUDO_HDR | TB_F_IPV6) == 0 ? TC_ACT_OK : TC_ACT_SHOT;
}

char _license[] SEC("license") = "Dual BSD/GPL";
