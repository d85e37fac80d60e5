/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/* From bytes to the tuple. Everything read here comes from outside: bounded, and each failure has a reason. */
#ifndef TB_PARSE_H
#define TB_PARSE_H

#include "dsr.h"

#define TB_FILE_ID 1

INLINE int icmp4_is_error(__u8 type)
{
	return type == 3 || type == 11 || type == 12;
}

INLINE int icmp6_is_error(__u8 type)
{
	return type >= 1 && type <= 4;
}

/* Neighbour and router discovery. */
INLINE int icmp6_is_nd(__u8 type)
{
	return type >= 133 && type <= 137;
}

/* Listener queries and reports. */
INLINE int icmp6_is_mld(__u8 type)
{
	return (type >= 130 && type <= 132) || type == 143;
}

/* Finds the transport header of an IPv6 packet: at most five extension headers. */
INLINE int walk_exthdrs(TB_CTX *skb, struct tb_pkt *p, __u8 next, __u32 off)
{
	__u8 h[8];
	int i;

	if (next == TB_NEXT_OPTIONS)
		dsr_read6(skb, p);
	for (i = 0; i < 6; i++) {
		if (next != 0 && next != 43 && next != 44 && next != 51 && next != 60) {
			p->proto = next;
			p->l4_off = off;
			return TB_GO;
		}
		if (bpf_skb_load_bytes(skb, off, h, 8) < 0)
			return DROP(p, TB_DROP_INVALID_EXTHDR, "IPv6 extension header is cut short", "capture at the sender; the packet is broken");
		if (next == 44) {
			__u16 frag = (__u16)h[2] << 8 | h[3];

			__builtin_memcpy(&p->lpm.prefixlen, h + 4, 4);
			if (frag >> 3)
				p->frag = TB_FRAG_LATER;
			else if (frag & 1)
				p->frag = TB_FRAG_FIRST;
			off += 8;
		} else if (next == 51) {
			off += ((__u32)h[1] + 2) << 2;
		} else {
			off += ((__u32)h[1] + 1) << 3;
		}
		next = h[0];
	}
	return DROP(p, TB_DROP_INVALID_EXTHDR, "more than five IPv6 extension headers", "send fewer extension headers");
}

/* Ports of later fragments come from the first; lpm.prefixlen serves as the datagram's id. */
INLINE int fragment_ports(struct tb_pkt *p)
{
	struct tb_frag_key key = {};
	struct tb_frag ports, *known;

	key.src = p->src;
	key.dst = p->dst;
	key.id = p->lpm.prefixlen;
	key.proto = p->proto;
	if (p->frag == TB_FRAG_FIRST) {
		ports.sport = p->sport;
		ports.dport = p->dport;
		bpf_map_update_elem(&tb_frags, &key, &ports, BPF_ANY);
		return TB_GO;
	}
	known = bpf_map_lookup_elem(&tb_frags, &key);
	if (!known)
		return DROP(p, TB_DROP_FRAG_NOT_FOUND, "fragment came before the datagram's first one", "lower the sender's packet size below the path MTU");
	p->sport = known->sport;
	p->dport = known->dport;
	return TB_GO;
}

INLINE int echo_ports(struct tb_pkt *p, __u8 type, __be16 id)
{
	__u8 request = p->family == 4 ? 8 : 128;
	__u8 reply = p->family == 4 ? 0 : 129;

	p->sport = type == request ? id : 0;
	p->dport = type == reply ? id : 0;
	return type == request || type == reply;
}

/* The packet an ICMP error speaks of: its tuple, turned round. */
INLINE int parse_inner(TB_CTX *skb, struct tb_pkt *p)
{
	union tb_addr isrc, idst;
	__u32 off = p->l4_off + 8;
	__be16 l4[4];
	__u8 proto;

	p->is_error = 1;
	p->in_l3 = off;
	if (p->family == 4) {
		struct tb_ip4 ip;

		if (bpf_skb_load_bytes(skb, off, &ip, sizeof(ip)) < 0 || (ip.vihl & 0xf) < 5)
			return DROP(p, TB_DROP_CT_INVALID_HDR, "ICMP error quotes no whole IPv4 header", "capture at its sender; the error is broken");
		addr_v4(&isrc, ip.src);
		addr_v4(&idst, ip.dst);
		proto = ip.proto;
		off += (ip.vihl & 0xf) * 4;
	} else {
		struct tb_ip6 ip;

		if (bpf_skb_load_bytes(skb, off, &ip, sizeof(ip)) < 0)
			return DROP(p, TB_DROP_CT_INVALID_HDR, "ICMPv6 error quotes no whole IPv6 header", "capture at its sender; the error is broken");
		__builtin_memcpy(&isrc, ip.src, 16);
		__builtin_memcpy(&idst, ip.dst, 16);
		proto = ip.next;
		off += sizeof(ip);
		if (proto == 44) {
			__u8 h[8];

			if (bpf_skb_load_bytes(skb, off, h, 8) < 0)
				return DROP(p, TB_DROP_CT_INVALID_HDR, "ICMPv6 error quotes a cut fragment header", "capture at its sender; the error is broken");
			proto = h[0];
			off += 8;
		}
	}
	if (!addr_eq(&isrc, &p->dst))
		return DROP(p, TB_DROP_INVALID, "ICMP error goes to a host that did not send the quoted packet", "capture at its sender; it may be forged");
	p->in_l4 = off;
	if (bpf_skb_load_bytes(skb, off, l4, 8) < 0)
		return DROP(p, TB_DROP_CT_INVALID_HDR, "ICMP error quotes less than eight bytes of transport header", "capture at its sender; the error is broken");
	p->tproto = proto;
	p->src = idst;
	p->dst = isrc;
	if (proto == TB_TCP || proto == TB_UDP || proto == TB_SCTP) {
		p->sport = l4[1];
		p->dport = l4[0];
		return TB_GO;
	}
	if ((proto == TB_ICMP && p->family == 4) || (proto == TB_ICMPV6 && p->family == 6)) {
		__be16 swap;

		if (echo_ports(p, *(__u8 *)&l4[0], l4[2])) {
			swap = p->sport;
			p->sport = p->dport;
			p->dport = swap;
			return TB_GO;
		}
	}
	return DROP(p, TB_DROP_UNKNOWN_L4, "ICMP error quotes a protocol that is not tracked", "use TCP, UDP, SCTP or ICMP echo");
}

INLINE int parse_icmp(TB_CTX *skb, struct tb_pkt *p)
{
	__u8 h[8];
	__be16 id;

	if (bpf_skb_load_bytes(skb, p->l4_off, h, 8) < 0)
		return DROP(p, TB_DROP_CT_INVALID_HDR, "ICMP header is cut short", "capture at the sender; the packet is broken");
	p->icmp_type = h[0];
	p->icmp_code = h[1];
	if (p->family == 4 ? icmp4_is_error(h[0]) : icmp6_is_error(h[0]))
		return parse_inner(skb, p);
	if (p->family == 6 && icmp6_is_nd(h[0])) {
		/* A hop limit of 255 proves that no router forwarded it (RFC 4861); all else that bears these types is made up. */
		if (p->ttl != 255 || h[1] || p->frag)
			return DROP(p, TB_DROP_FORBIDDEN_ICMP6, "neighbour discovery that did not come from the link", "capture at the sender; somebody forges it");
		p->nd = 1;
		return TB_GO;
	}
	if (p->family == 6 && icmp6_is_mld(h[0])) {
		p->nd = 2;
		return TB_GO;
	}
	__builtin_memcpy(&id, h + 4, 2);
	if (echo_ports(p, h[0], id))
		return TB_GO;
	return DROP(p, TB_DROP_UNKNOWN_L4, "ICMP message that is neither echo, error nor discovery", "use echo requests");
}

INLINE int parse_l4(TB_CTX *skb, struct tb_pkt *p)
{
	__u8 h[14];
	int act;

	p->tproto = p->proto;
	if (p->frag == TB_FRAG_LATER)
		return fragment_ports(p);
	if (p->proto == TB_TCP) {
		if (bpf_skb_load_bytes(skb, p->l4_off, h, 14) < 0)
			return DROP(p, TB_DROP_CT_INVALID_HDR, "TCP header is cut short", "capture at the sender; the packet is broken");
		p->tcp_flags = h[13];
		p->seg_len = (h[12] >> 4) * 4;
	} else if (p->proto == TB_UDP) {
		if (bpf_skb_load_bytes(skb, p->l4_off, h, 8) < 0)
			return DROP(p, TB_DROP_CT_INVALID_HDR, "UDP header is cut short", "capture at the sender; the packet is broken");
		p->seg_len = 8;
	} else if (p->proto == TB_SCTP) {
		if (bpf_skb_load_bytes(skb, p->l4_off, h, 12) < 0)
			return DROP(p, TB_DROP_CT_INVALID_HDR, "SCTP header is cut short", "capture at the sender; the packet is broken");
		p->seg_len = 12;
	} else if ((p->proto == TB_ICMP && p->family == 4) || (p->proto == TB_ICMPV6 && p->family == 6)) {
		act = parse_icmp(skb, p);
		if (act != TB_GO || p->is_error || p->nd)
			return act;
		return p->frag ? fragment_ports(p) : TB_GO;
	} else {
		return DROP(p, TB_DROP_UNKNOWN_L4, "transport protocol that is not tracked", "use TCP, UDP, SCTP or ICMP echo");
	}
	__builtin_memcpy(&p->sport, h, 2);
	__builtin_memcpy(&p->dport, h + 2, 2);
	return p->frag ? fragment_ports(p) : TB_GO;
}

INLINE int parse_l3(TB_CTX *skb, struct tb_pkt *p)
{
	if (p->family == 4) {
		struct tb_ip4 ip;
		__u16 frag;

		if (bpf_skb_load_bytes(skb, p->l3_off, &ip, sizeof(ip)) < 0 || (ip.vihl & 0xf) < 5 || ip.vihl >> 4 != 4)
			return DROP(p, TB_DROP_INVALID, "IPv4 header is broken", "capture at the sender; the packet is broken");
		addr_v4(&p->src, ip.src);
		addr_v4(&p->dst, ip.dst);
		p->ttl = ip.ttl;
		p->proto = ip.proto;
		p->len = bswap16(ip.tot_len);
		p->l4_off = p->l3_off + (ip.vihl & 0xf) * 4;
		if ((ip.vihl & 0xf) >= 7)
			dsr_read4(skb, p);
		frag = bswap16(ip.frag);
		p->df = (frag & 0x4000) != 0;
		p->lpm.prefixlen = ip.id;
		if (frag & 0x1fff)
			p->frag = TB_FRAG_LATER;
		else if (frag & 0x2000)
			p->frag = TB_FRAG_FIRST;
		return TB_GO;
	} else {
		struct tb_ip6 ip;

		if (bpf_skb_load_bytes(skb, p->l3_off, &ip, sizeof(ip)) < 0 || (bswap32(ip.flow) >> 28) != 6)
			return DROP(p, TB_DROP_INVALID, "IPv6 header is broken", "capture at the sender; the packet is broken");
		__builtin_memcpy(&p->src, ip.src, 16);
		__builtin_memcpy(&p->dst, ip.dst, 16);
		p->ttl = ip.hops;
		p->df = 1;
		p->len = bswap16(ip.plen) + sizeof(ip);
		return walk_exthdrs(skb, p, ip.next, p->l3_off + sizeof(ip));
	}
}

INLINE void parsed(TB_CTX *skb, struct tb_pkt *p)
{
	__u32 header = p->seg_len;

	p->seg_len = ctx_gso_size(skb) ? (__u32)p->l4_off - p->l3_off + header + ctx_gso_size(skb) : p->len;
	p->nsrc = p->src;
	p->ndst = p->dst;
	p->esrc = p->src;
	p->edst = p->dst;
	p->nsport = p->sport;
	p->ndport = p->dport;
	p->esport = p->sport;
	p->edport = p->dport;
}

/* Fills the tuple. On a drop after the IP header, family, src and dst are valid all the same. */
GLOBAL int tb_parse(TB_CTX *skb)
{
	struct tb_pkt *p = tb_pkt();
	int act;

	if (!p)
		return TC_ACT_SHOT;
	if (ctx_protocol(skb) == bswap16(TB_ETH_P_IP))
		p->family = 4;
	else
		p->family = 6;
	act = parse_l3(skb, p);
	p->outer_src = p->src;
	if (act == TB_GO)
		act = parse_l4(skb, p);
	parsed(skb, p);
	return act;
}

#undef TB_FILE_ID
#endif
