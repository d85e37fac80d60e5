/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/* Brings the decided translation into the packet. */
#ifndef TB_REWRITE_H
#define TB_REWRITE_H

#include "pkt.h"

#define TB_FILE_ID 4

INLINE __s64 addr_diff(union tb_addr *from, union tb_addr *to, __s64 seed)
{
	/* The ::ffff of IPv4 is on both sides, so sixteen bytes serve both families. */
	return bpf_csum_diff(from->w, 16, to->w, 16, seed);
}

INLINE int store_addr(TB_CTX *skb, struct tb_pkt *p, __u32 v4_off, __u32 v6_off, union tb_addr *to)
{
	if (p->family == 4)
		return bpf_skb_store_bytes(skb, v4_off, &to->w[3], 4, 0);
	return bpf_skb_store_bytes(skb, v6_off, to->b, 16, 0);
}

/* Flags for a sum over a pseudo header in which addresses change. Older kernels do not know the one for IPv6. */
INLINE __u64 pseudo_flags(struct tb_pkt *p)
{
	struct tb_config *cfg = tb_cfg();

	return BPF_F_PSEUDO_HDR | (p->family == 6 && cfg && cfg->flags & TB_CFG_CSUM6 ? TB_F_IPV6 : 0);
}

/* Offset of the checksum in the transport header; 0: none. */
INLINE __u32 l4_csum_off(__u8 proto)
{
	if (proto == TB_TCP)
		return 16;
	return proto == TB_UDP ? 6 : 2;
}

INLINE int rewrite_ports(TB_CTX *skb, struct tb_pkt *p)
{
	__u32 csum = p->l4_off + l4_csum_off(p->proto);
	__u64 flags = 2 | (p->proto == TB_UDP ? BPF_F_MARK_MANGLED_0 : 0);
	long err = 0;

	if (p->proto == TB_ICMP || p->proto == TB_ICMPV6) {
		__be16 from = p->sport ? p->sport : p->dport;
		__be16 to = p->sport ? p->nsport : p->ndport;

		if (from == to)
			return 0;
		err |= bpf_l4_csum_replace(skb, csum, from, to, 2);
		err |= bpf_skb_store_bytes(skb, p->l4_off + 4, &to, 2, 0);
		return err;
	}
	if (p->sport != p->nsport) {
		err |= bpf_l4_csum_replace(skb, csum, p->sport, p->nsport, flags);
		err |= bpf_skb_store_bytes(skb, p->l4_off, &p->nsport, 2, 0);
	}
	if (p->dport != p->ndport) {
		err |= bpf_l4_csum_replace(skb, csum, p->dport, p->ndport, flags);
		err |= bpf_skb_store_bytes(skb, p->l4_off + 2, &p->ndport, 2, 0);
	}
	return err;
}

INLINE int rewrite_packet(TB_CTX *skb, struct tb_pkt *p)
{
	__s64 diff = 0;
	long err = 0;

	if (!addr_eq(&p->src, &p->nsrc)) {
		diff = addr_diff(&p->src, &p->nsrc, diff);
		err |= store_addr(skb, p, p->l3_off + 12, p->l3_off + 8, &p->nsrc);
	}
	if (!addr_eq(&p->dst, &p->ndst)) {
		diff = addr_diff(&p->dst, &p->ndst, diff);
		err |= store_addr(skb, p, p->l3_off + 16, p->l3_off + 24, &p->ndst);
	}
	if (p->family == 4)
		err |= bpf_l3_csum_replace(skb, p->l3_off + 10, 0, diff, 0);
	/*
	 * A later fragment has no transport header: the first one's checksum took the difference. SCTP's covers the ports, which
	 * stay, and no addresses.
	 */
	if (p->frag == TB_FRAG_LATER || p->proto == TB_SCTP)
		return err;
	if (p->proto != TB_ICMP) {
		__u64 flags = pseudo_flags(p) | (p->proto == TB_UDP ? BPF_F_MARK_MANGLED_0 : 0);

		err |= bpf_l4_csum_replace(skb, p->l4_off + l4_csum_off(p->proto), 0, diff, flags);
	}
	return err | rewrite_ports(skb, p);
}

INLINE int rewrite_inner_port(TB_CTX *skb, struct tb_pkt *p, __u32 off, __be16 from, __be16 to)
{
	long err;

	if (from == to)
		return 0;
	err = bpf_l4_csum_replace(skb, p->l4_off + 2, from, to, 2);
	return err | bpf_skb_store_bytes(skb, off, &to, 2, 0);
}

/* An ICMP error: the tuple is that of the quoted packet turned round, so inner source is our dst. */
INLINE int rewrite_error(TB_CTX *skb, struct tb_pkt *p)
{
	__s64 outer = 0, inner = 0;
	long err = 0;

	if (addr_eq(&p->outer_src, &p->src) && !addr_eq(&p->src, &p->nsrc)) {
		outer = addr_diff(&p->src, &p->nsrc, outer);
		err |= store_addr(skb, p, p->l3_off + 12, p->l3_off + 8, &p->nsrc);
	}
	if (!addr_eq(&p->dst, &p->ndst)) {
		outer = addr_diff(&p->dst, &p->ndst, outer);
		inner = addr_diff(&p->dst, &p->ndst, inner);
		err |= store_addr(skb, p, p->l3_off + 16, p->l3_off + 24, &p->ndst);
		err |= store_addr(skb, p, p->in_l3 + 12, p->in_l3 + 8, &p->ndst);
	}
	if (!addr_eq(&p->src, &p->nsrc)) {
		inner = addr_diff(&p->src, &p->nsrc, inner);
		err |= store_addr(skb, p, p->in_l3 + 16, p->in_l3 + 24, &p->nsrc);
	}
	if (p->family == 4) {
		err |= bpf_l3_csum_replace(skb, p->l3_off + 10, 0, outer, 0);
		/* The inner header's checksum takes up the change, so that the ICMP checksum over both stays. */
		err |= bpf_l3_csum_replace(skb, p->in_l3 + 10, 0, inner, 0);
	} else {
		err |= bpf_l4_csum_replace(skb, p->l4_off + 2, 0, outer, pseudo_flags(p));
		err |= bpf_l4_csum_replace(skb, p->l4_off + 2, 0, inner, 0);
	}
	if (p->tproto == TB_TCP || p->tproto == TB_UDP) {
		err |= rewrite_inner_port(skb, p, p->in_l4, p->dport, p->ndport);
		err |= rewrite_inner_port(skb, p, p->in_l4 + 2, p->sport, p->nsport);
	} else if (p->dport) {
		err |= rewrite_inner_port(skb, p, p->in_l4 + 4, p->dport, p->ndport);
	} else {
		err |= rewrite_inner_port(skb, p, p->in_l4 + 4, p->sport, p->nsport);
	}
	return err;
}

INLINE int translated(struct tb_pkt *p)
{
	return !addr_eq(&p->src, &p->nsrc) || !addr_eq(&p->dst, &p->ndst) || p->sport != p->nsport ||
	       p->dport != p->ndport;
}

GLOBAL int tb_rewrite(TB_CTX *skb)
{
	struct tb_pkt *p = tb_pkt();
	long err;

	if (!p)
		return TC_ACT_SHOT;
	if (!translated(p))
		return TB_GO;
	err = p->is_error ? rewrite_error(skb, p) : rewrite_packet(skb, p);
	if (err)
		return DROP(p, TB_DROP_WRITE_ERROR, "the translation could not be written", "report it with a capture of the packet");
	return TB_GO;
}

/* One hop less. The caller has made sure that ttl > 1. */
INLINE int hop(TB_CTX *skb, struct tb_pkt *p)
{
	__u8 ttl = p->ttl - 1;
	long err;

	if (p->family == 4) {
		/* ttl is the first byte of the 16-bit word it shares with the protocol. */
		err = bpf_l3_csum_replace(skb, p->l3_off + 10, bswap16((__u16)p->ttl << 8), bswap16((__u16)ttl << 8), 2);
		err |= bpf_skb_store_bytes(skb, p->l3_off + 8, &ttl, 1, 0);
	} else {
		err = bpf_skb_store_bytes(skb, p->l3_off + 7, &ttl, 1, 0);
	}
	if (err)
		return DROP(p, TB_DROP_WRITE_ERROR, "the hop limit could not be written", "report it with a capture of the packet");
	return TB_GO;
}

#ifndef TB_XDP
/* Gives a packet of a device without link layer an Ethernet header, for a device that has one. */
INLINE int add_l2(TB_CTX *skb, struct tb_pkt *p)
{
	__be16 type = ctx_protocol(skb);

	if (p->l2)
		return TB_GO;
	if (bpf_skb_change_head(skb, TB_ETH_HLEN, 0) < 0 || bpf_skb_store_bytes(skb, 12, &type, 2, 0) < 0)
		return DROP(p, TB_DROP_WRITE_ERROR, "no room for an Ethernet header", "report it with the kernel's version");
	p->l2 = 1;
	p->l3_off += TB_ETH_HLEN;
	p->l4_off += TB_ETH_HLEN;
	p->in_l3 += TB_ETH_HLEN;
	p->in_l4 += TB_ETH_HLEN;
	return TB_GO;
}
#endif

#undef TB_FILE_ID
#endif
