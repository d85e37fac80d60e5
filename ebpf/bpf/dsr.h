/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/*
 * Direct server return: the node that an outside client asks hands the packet to the backend's node under the client's own
 * address, and names the frontend in the IP header. That node remembers it with the flow and answers the client itself.
 * The option has Cilium's form: of IPv4 type 0x9a, of IPv6 a destination option 0x1b. Pods never see it.
 */
#ifndef TB_DSR_H
#define TB_DSR_H

#include "choose.h"
#include "ct.h"

#define TB_FILE_ID 12

#define TB_DSR4_TYPE 0x9a
#define TB_DSR6_TYPE 0x1b
#define TB_DSR4_ROOM 8
#define TB_DSR6_ROOM 24
#define TB_NEXT_OPTIONS 60

/* As Cilium writes it: port and address turned round, lowest byte first. */
struct tb_dsr4 {
	__u8 type;
	__u8 len;
	__u8 port[2];
	__u8 addr[4];
};

/* The whole extension header. */
struct tb_dsr6 {
	__u8 next;
	__u8 words; /* of eight bytes, behind the first */
	__u8 type;
	__u8 len;
	__u8 addr[16];
	__be16 port;
	__u16 pad;
};

_Static_assert(sizeof(struct tb_dsr4) == TB_DSR4_ROOM, "tb_dsr4");
_Static_assert(sizeof(struct tb_dsr6) == TB_DSR6_ROOM, "tb_dsr6");

/* What the first option of an IPv4 header names. */
INLINE void dsr_read4(TB_CTX *skb, struct tb_pkt *p)
{
	struct tb_dsr4 o;

	if (bpf_skb_load_bytes(skb, p->l3_off + 20, &o, sizeof(o)) < 0 || o.type != TB_DSR4_TYPE || o.len != sizeof(o))
		return;
	addr_v4(&p->front, 0);
	p->front.b[12] = o.addr[3];
	p->front.b[13] = o.addr[2];
	p->front.b[14] = o.addr[1];
	p->front.b[15] = o.addr[0];
	p->front_port = bswap16((__u16)o.port[1] << 8 | o.port[0]);
	p->fronted = 1;
}

/* What the first option names of destination options right behind the IPv6 header. */
INLINE void dsr_read6(TB_CTX *skb, struct tb_pkt *p)
{
	struct tb_dsr6 o;

	if (bpf_skb_load_bytes(skb, p->l3_off + 40, &o, sizeof(o)) < 0 || o.words != 2 || o.type != TB_DSR6_TYPE || o.len != 20)
		return;
	__builtin_memcpy(p->front.b, o.addr, 16);
	p->front_port = o.port;
	p->fronted = 1;
}

/*
 * A packet for a pod of this node names a frontend. Anybody can write that, and would have the pod answer under a false
 * address: so the frontend must be known here, with this backend, and take this client.
 */
GLOBAL int tb_fronted(void)
{
	struct tb_pkt *p = tb_pkt();
	struct tb_service_key key = {};
	struct tb_front_key front = {};
	struct tb_service *svc;

	if (!p)
		return TC_ACT_SHOT;
	if (p->tproto == TB_SCTP)
		return DROP(p, TB_DROP_INVALID, "it names a frontend, and SCTP is not answered directly", "none; no node sends it, somebody forges it");
	key.addr = p->front;
	key.port = p->front_port;
	key.proto = p->tproto;
	svc = bpf_map_lookup_elem(&tb_services, &key);
	if (!svc)
		return DROP(p, TB_DROP_NO_SERVICE, "it names a frontend that this node does not know", "tombolo show frontends on both nodes; if no node sends it, somebody forges it");
	if (svc->flags & TB_SVC_SOURCE_RANGE && !in_ranges(&p->src, svc->rev_nat))
		return DROP(p, TB_DROP_NOT_IN_RANGE, "the service it names does not take clients with this address", "add it to spec.loadBalancerSourceRanges of the Service; tombolo show frontends");
	front.addr = p->ndst;
	front.port = p->ndport;
	front.proto = p->tproto;
	front.rev_nat = svc->rev_nat;
	if (!bpf_map_lookup_elem(&tb_fronts, &front))
		return DROP(p, TB_DROP_INVALID, "it names a frontend that does not have this backend", "wait for the agents to agree: tombolo show frontends; if no node sends it, somebody forges it");
	p->in_rev_nat = svc->rev_nat;
	p->rev_nat = svc->rev_nat;
	p->orig_dst = p->front;
	p->orig_dport = p->front_port;
	p->named = 1;
	return TB_GO;
}

/*
 * Whether the backend's node may answer the client by itself. Not for clients in the mesh, whose address may be that
 * node's own; nor where the frontend is not known, as in other clusters; nor where the packet would have to pass
 * WireGuard under the client's address, which the other end does not take.
 */
INLINE int may_be_direct(const struct tb_pkt *p, const struct tb_config *cfg)
{
	__u32 wanted = p->tproto == TB_TCP ? TB_CFG_DSR_TCP : p->tproto == TB_UDP ? TB_CFG_DSR_UDP : 0;
	__u32 never = TB_PFX_REMOTE_CLUSTER | TB_PFX_SKIP_TUNNEL | (cfg->flags & TB_CFG_ENCRYPT ? TB_PFX_ENCRYPT : 0);

	if (!(cfg->flags & wanted) || !p->outsider || !p->node || p->pfx_flags & never)
		return 0;
	/* Of this node's own addresses no other node knows the frontends: node ports, host ports. */
	return !bpf_map_lookup_elem(&tb_endpoints, &p->dst);
}

/* Whether it does. The flow's first packet decides it for all. */
INLINE int answered_there(struct tb_pkt *p, const struct tb_config *cfg)
{
	struct tb_ct *ct;

	if (p->guessed || p->one_sided)
		return 1;
	if (!p->fresh || !may_be_direct(p, cfg))
		return 0;
	ct = bpf_map_lookup_elem(&tb_ct_half, &p->key);
	if (ct)
		ct_mark(ct, TB_CTF_ONE_SIDED);
	return 1;
}

/* Whether the backend's node needs this packet to name the frontend: it may be the flow's first there. */
INLINE int may_open(const struct tb_pkt *p)
{
	if (p->is_error || p->frag == TB_FRAG_LATER)
		return 0;
	return p->tproto != TB_TCP || (p->tcp_flags & (TB_SYN | TB_ACK)) == TB_SYN;
}

/* The first word of an IPv4 header that is `more` bytes longer; more is a multiple of four. */
INLINE __be32 resized(__be32 word, __s32 more)
{
	__u32 w = bswap32(word) + (more >> 2 << 24) + more;

	return bswap32(w);
}

INLINE long dsr_push4(TB_CTX *skb, struct tb_pkt *p)
{
	struct tb_dsr4 o = { .type = TB_DSR4_TYPE, .len = sizeof(o) };
	__u16 port = bswap16(p->orig_dport);
	__be32 was, is;
	__s64 sum;
	long err;

	if (bpf_skb_load_bytes(skb, p->l3_off, &was, 4) < 0)
		return -1;
	is = resized(was, sizeof(o));
	o.port[0] = port;
	o.port[1] = port >> 8;
	o.addr[0] = p->orig_dst.b[15];
	o.addr[1] = p->orig_dst.b[14];
	o.addr[2] = p->orig_dst.b[13];
	o.addr[3] = p->orig_dst.b[12];
	sum = bpf_csum_diff(&was, 4, &is, 4, 0);
	sum = bpf_csum_diff(0, 0, (__be32 *)&o, sizeof(o), sum);
	err = bpf_skb_adjust_room(skb, sizeof(o), BPF_ADJ_ROOM_NET, BPF_F_ADJ_ROOM_FIXED_GSO);
	err |= bpf_skb_store_bytes(skb, p->l3_off, &is, 4, 0);
	err |= bpf_skb_store_bytes(skb, p->l3_off + 20, &o, sizeof(o), 0);
	return err | bpf_l3_csum_replace(skb, p->l3_off + 10, 0, sum, 0);
}

/* Payload length and next header of an IPv6 packet. */
struct tb_ip6_mid {
	__be16 plen;
	__u8 next;
	__u8 hops;
};

INLINE long dsr_push6(TB_CTX *skb, struct tb_pkt *p)
{
	struct tb_dsr6 o = { .words = 2, .type = TB_DSR6_TYPE, .len = 20, .port = p->orig_dport };
	struct tb_ip6_mid mid;
	long err;

	if (bpf_skb_load_bytes(skb, p->l3_off + 4, &mid, sizeof(mid)) < 0)
		return -1;
	o.next = mid.next;
	__builtin_memcpy(o.addr, p->orig_dst.b, 16);
	mid.next = TB_NEXT_OPTIONS;
	mid.plen = bswap16((__u16)(bswap16(mid.plen) + sizeof(o)));
	err = bpf_skb_adjust_room(skb, sizeof(o), BPF_ADJ_ROOM_NET, BPF_F_ADJ_ROOM_FIXED_GSO);
	err |= bpf_skb_store_bytes(skb, p->l3_off + 4, &mid, sizeof(mid), 0);
	return err | bpf_skb_store_bytes(skb, p->l3_off + 40, &o, sizeof(o), 0);
}

/* Names the frontend in a packet that is otherwise as it leaves. */
GLOBAL int tb_name_frontend(TB_CTX *skb)
{
	struct tb_pkt *p = tb_pkt();
	__u8 first;

	if (!p)
		return TC_ACT_SHOT;
	/* Of IPv4 the header's length; of IPv6 hop-by-hop options, which must stay in front. */
	if (bpf_skb_load_bytes(skb, p->family == 4 ? p->l3_off : p->l3_off + 6, &first, 1) < 0 ||
	    (p->family == 4 ? (first & 0xf) > 13 : first == 0))
		return DROP(p, TB_DROP_CT_INVALID_HDR, "its IP header has no room for the frontend's address", "the client should send fewer IP options, or set datapath.load_balancer.mode: snat");
	if (p->family == 4 ? dsr_push4(skb, p) : dsr_push6(skb, p))
		return DROP(p, TB_DROP_WRITE_ERROR, "the frontend could not be written into the IP header", "report it with a capture of the packet");
	return TB_GO;
}

INLINE long dsr_strip4(TB_CTX *skb, struct tb_pkt *p)
{
	struct tb_dsr4 o;
	__be32 was, is;
	__s64 sum;
	long err;

	if (bpf_skb_load_bytes(skb, p->l3_off, &was, 4) < 0 || bpf_skb_load_bytes(skb, p->l3_off + 20, &o, sizeof(o)) < 0)
		return -1;
	is = resized(was, -(__s32)sizeof(o));
	sum = bpf_csum_diff(&was, 4, &is, 4, 0);
	sum = bpf_csum_diff((__be32 *)&o, sizeof(o), 0, 0, sum);
	err = bpf_skb_adjust_room(skb, -(__s32)sizeof(o), BPF_ADJ_ROOM_NET, BPF_F_ADJ_ROOM_FIXED_GSO);
	err |= bpf_skb_store_bytes(skb, p->l3_off, &is, 4, 0);
	return err | bpf_l3_csum_replace(skb, p->l3_off + 10, 0, sum, 0);
}

INLINE long dsr_strip6(TB_CTX *skb, struct tb_pkt *p)
{
	struct tb_ip6_mid mid;
	__u8 next;
	long err;

	if (bpf_skb_load_bytes(skb, p->l3_off + 4, &mid, sizeof(mid)) < 0 || bpf_skb_load_bytes(skb, p->l3_off + 40, &next, 1) < 0)
		return -1;
	mid.next = next;
	mid.plen = bswap16((__u16)(bswap16(mid.plen) - sizeof(struct tb_dsr6)));
	err = bpf_skb_adjust_room(skb, -(__s32)sizeof(struct tb_dsr6), BPF_ADJ_ROOM_NET, BPF_F_ADJ_ROOM_FIXED_GSO);
	return err | bpf_skb_store_bytes(skb, p->l3_off + 4, &mid, sizeof(mid), 0);
}

/* What was read of the frontend's name leaves the packet. */
GLOBAL int tb_strip_frontend(TB_CTX *skb)
{
	struct tb_pkt *p = tb_pkt();

	if (!p)
		return TC_ACT_SHOT;
	if (p->family == 4 ? dsr_strip4(skb, p) : dsr_strip6(skb, p))
		return DROP(p, TB_DROP_WRITE_ERROR, "the frontend's name could not be taken out of the IP header", "report it with a capture of the packet");
	return TB_GO;
}

#undef TB_FILE_ID
#endif
