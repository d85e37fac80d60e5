/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/*
 * Answers a packet that does not fit its path with ICMP fragmentation needed (RFC 792, RFC 1191) or ICMPv6
 * packet too big (RFC 4443 section 3.2), and one to a service that takes nothing with a reset (RFC 9293), of UDP with
 * port unreachable (RFC 792, RFC 4443 section 3.1), sent back through the interface it came from. The packet is still as its sender knows it, so the
 * quoted header needs no translation.
 */
#ifndef TB_TOOBIG_H
#define TB_TOOBIG_H

#include "rewrite.h"
#include "nat.h"

#define TB_FILE_ID 8
#define TB_QUOTE 128 /* room for the quoted headers; the rest is zero, which a checksum does not see */

INLINE __u16 fold(__s64 sum)
{
	__u32 s = (__u32)sum;

	s = (s & 0xffff) + (s >> 16);
	s = (s & 0xffff) + (s >> 16);
	return (__u16)~s;
}

INLINE int write_header4(struct __sk_buff *skb, struct tb_pkt *p, union tb_addr *self, __u32 quote, __u32 kind, __u32 mtu)
{
	struct {
		struct tb_ip4 ip;
		__u8 type, code;
		__be16 csum, unused, mtu;
	} h = {};
	__s64 sum;

	h.type = kind >> 8;
	h.code = kind;
	h.mtu = bswap16((__u16)mtu);
	sum = bpf_csum_diff(0, 0, (__be32 *)p->buf, TB_QUOTE, 0);
	sum = bpf_csum_diff(0, 0, (__be32 *)&h.type, 8, sum);
	h.csum = fold(sum);
	h.ip.vihl = 0x45;
	h.ip.tot_len = bswap16((__u16)(28 + quote));
	h.ip.ttl = 64;
	h.ip.proto = TB_ICMP;
	h.ip.src = self->w[3];
	h.ip.dst = p->src.w[3];
	h.ip.csum = fold(bpf_csum_diff(0, 0, (__be32 *)&h.ip, 20, 0));
	return bpf_skb_store_bytes(skb, p->l3_off, &h, 28, 0);
}

INLINE int write_header6(struct __sk_buff *skb, struct tb_pkt *p, union tb_addr *self, __u32 quote, __u32 kind, __u32 mtu)
{
	struct {
		struct tb_ip6 ip;
		__u8 type, code;
		__be16 csum;
		__be32 mtu;
	} h = {};
	__be32 pseudo[2];
	__s64 sum;

	h.type = kind >> 8;
	h.code = kind;
	h.mtu = bswap32(mtu);
	__builtin_memcpy(h.ip.src, self->b, 16);
	__builtin_memcpy(h.ip.dst, p->src.b, 16);
	pseudo[0] = bswap32(8 + quote);
	pseudo[1] = bswap32(TB_ICMPV6);
	sum = bpf_csum_diff(0, 0, (__be32 *)p->buf, TB_QUOTE, 0);
	sum = bpf_csum_diff(0, 0, (__be32 *)&h.type, 8, sum);
	sum = bpf_csum_diff(0, 0, (__be32 *)h.ip.src, 32, sum);
	sum = bpf_csum_diff(0, 0, pseudo, 8, sum);
	h.csum = fold(sum);
	h.ip.flow = bswap32(0x60000000);
	h.ip.plen = bswap16((__u16)(8 + quote));
	h.ip.next = TB_ICMPV6;
	h.ip.hops = 64;
	return bpf_skb_store_bytes(skb, p->l3_off, &h, 48, 0);
}

/* The way back: to the pod that sent it, or to whoever handed it to the uplink. */
INLINE int send_back(struct __sk_buff *skb, struct tb_pkt *p)
{
	__u32 ifindex = skb->ifindex;
	struct tb_iface *iface = bpf_map_lookup_elem(&tb_ifaces, &ifindex);
	__u8 macs[12], swapped[12];

	if (iface) {
		__builtin_memcpy(macs, iface->mac, 6);
		__builtin_memcpy(macs + 6, iface->host_mac, 6);
		bpf_skb_store_bytes(skb, 0, macs, 12, 0);
		bpf_skb_change_type(skb, 0);
		return bpf_redirect_peer(ifindex, 0);
	}
	if (p->l2 && bpf_skb_load_bytes(skb, 0, macs, 12) == 0) {
		__builtin_memcpy(swapped, macs + 6, 6);
		__builtin_memcpy(swapped + 6, macs, 6);
		bpf_skb_store_bytes(skb, 0, swapped, 12, 0);
	}
	return bpf_redirect(ifindex, 0);
}

/* How many bytes an answer quotes: up to the ports. 0: the packet must not be answered, or cannot. */
INLINE __u32 quotable(const struct tb_pkt *p, const union tb_addr *self)
{
	__u32 quote = p->l4_off - p->l3_off + (p->proto == TB_TCP ? 20 : 8);

	if (p->is_error || p->frag == TB_FRAG_LATER || addr_zero(self) || quote > TB_QUOTE || quote < 28)
		return 0;
	return quote;
}

/* The packet is dropped, and something else goes back in its place. */
INLINE void told(struct __sk_buff *skb, struct tb_pkt *p)
{
	count(p, skb->len);
	tb_emit(skb, TB_EV_DROP);
	p->reason = 0;
	p->report = 0;
	p->fresh = 0;
	p->shaped = 0;
}

/* Makes the packet the answer to itself; kind is ICMP type and code. Its drop is counted and reported whatever becomes of that. */
INLINE int answer(struct __sk_buff *skb, struct tb_pkt *p, union tb_addr *self, __u32 quote, __u32 kind, __u32 mtu)
{
	long err;
	__u32 i;

	told(skb, p);
	__builtin_memset(p->buf, 0, sizeof(p->buf));
	for (i = 0; i < TB_QUOTE / 4; i++) {
		if (i * 4 >= quote)
			break;
		if (bpf_skb_load_bytes(skb, p->l3_off + i * 4, p->buf + i * 4, 4) < 0)
			return TC_ACT_SHOT;
	}
	err = bpf_skb_change_tail(skb, p->l3_off + quote, 0);
	err |= bpf_skb_adjust_room(skb, p->family == 4 ? 28 : 48, BPF_ADJ_ROOM_MAC, 0);
	if (err)
		return TC_ACT_SHOT;
	err = p->family == 4 ? write_header4(skb, p, self, quote, kind, mtu) : write_header6(skb, p, self, quote, kind, mtu);
	if (err)
		return TC_ACT_SHOT;
	return send_back(skb, p);
}

GLOBAL int tb_too_big(struct __sk_buff *skb, __u32 mtu)
{
	struct tb_pkt *p = tb_pkt();
	struct tb_config *cfg = tb_cfg();
	union tb_addr *self;
	__u32 quote;

	if (!p || !cfg)
		return TC_ACT_SHOT;
	self = internal_addr(cfg, p->family);
	quote = quotable(p, self);
	if (!quote)
		return DROP(p, TB_DROP_FRAG_NEEDED, "larger than the path to the destination, and the sender cannot be told", "give the node a pod CIDR of the family; errors, later fragments and long headers are never answered");
	(void) DROP(p, TB_DROP_FRAG_NEEDED, "larger than the path to the destination", "the sender is told the MTU; check that its firewall lets ICMP in");
	return answer(skb, p, self, quote, p->family == 4 ? 0x0304 : 0x0200, mtu);
}

/* Refusals a second and CPU: RFC 4443 section 2.4 (f) asks for a limit, and whoever forges his source makes others get them. */
#define TB_REFUSALS 1000

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, __u32);
	__type(value, struct tb_allowance);
	__uint(max_entries, 1);
} tb_refusals SEC(".maps");

INLINE int may_refuse(const struct tb_pkt *p)
{
	__u32 zero = 0;
	struct tb_allowance *allowance = bpf_map_lookup_elem(&tb_refusals, &zero);

	return allowance && allowed(allowance, p->now, TB_REFUSALS);
}

struct tb_tcp {
	__be16 sport, dport;
	__be32 seq, ack;
	__u8 offset, flags;
	__be16 window, csum, urgent;
};

INLINE int write_reset4(struct __sk_buff *skb, struct tb_pkt *p, struct tb_tcp *tcp)
{
	struct tb_ip4 ip = { .vihl = 0x45, .tot_len = bswap16(40), .ttl = 64, .proto = TB_TCP, .src = p->dst.w[3], .dst = p->src.w[3] };
	__be32 pseudo[3] = { ip.src, ip.dst, bswap32(TB_TCP << 16 | sizeof(*tcp)) };

	tcp->csum = fold(bpf_csum_diff(0, 0, pseudo, 12, bpf_csum_diff(0, 0, (__be32 *)tcp, sizeof(*tcp), 0)));
	ip.csum = fold(bpf_csum_diff(0, 0, (__be32 *)&ip, 20, 0));
	return bpf_skb_store_bytes(skb, p->l3_off, &ip, 20, 0) | bpf_skb_store_bytes(skb, p->l3_off + 20, tcp, sizeof(*tcp), 0);
}

INLINE int write_reset6(struct __sk_buff *skb, struct tb_pkt *p, struct tb_tcp *tcp)
{
	struct tb_ip6 ip = { .flow = bswap32(0x60000000), .plen = bswap16(sizeof(*tcp)), .next = TB_TCP, .hops = 64 };
	__be32 pseudo[2] = { bswap32(sizeof(*tcp)), bswap32(TB_TCP) };
	__s64 sum;

	__builtin_memcpy(ip.src, p->dst.b, 16);
	__builtin_memcpy(ip.dst, p->src.b, 16);
	sum = bpf_csum_diff(0, 0, (__be32 *)tcp, sizeof(*tcp), 0);
	sum = bpf_csum_diff(0, 0, (__be32 *)ip.src, 32, sum);
	tcp->csum = fold(bpf_csum_diff(0, 0, pseudo, 8, sum));
	return bpf_skb_store_bytes(skb, p->l3_off, &ip, 40, 0) | bpf_skb_store_bytes(skb, p->l3_off + 40, tcp, sizeof(*tcp), 0);
}

/*
 * Makes a TCP segment the reset that a host without listener sends (RFC 9293, section 3.10.7.1); a reset has none. It bears
 * its whole sum: where the kernel still owes one, whom it goes to is on this machine and trusts it.
 */
INLINE int reset(struct __sk_buff *skb, struct tb_pkt *p)
{
	struct tb_tcp asked, tcp = { .sport = p->dport, .dport = p->sport, .offset = sizeof(tcp) / 4 << 4 };
	__u32 headers;
	long err;

	if (p->frag || bpf_skb_load_bytes(skb, p->l4_off, &asked, sizeof(asked)) < 0 || asked.flags & TB_RST)
		return TC_ACT_SHOT;
	if (asked.flags & TB_ACK) {
		tcp.seq = asked.ack;
		tcp.flags = TB_RST;
	} else {
		headers = p->l4_off - p->l3_off + (asked.offset >> 4) * 4;
		tcp.ack = bswap32(bswap32(asked.seq) + !!(asked.flags & TB_SYN) + !!(asked.flags & TB_FIN) + p->len - headers);
		tcp.flags = TB_RST | TB_ACK;
	}
	told(skb, p);
	if (bpf_skb_change_tail(skb, p->l3_off + (p->family == 4 ? 40 : 60), 0) < 0)
		return TC_ACT_SHOT;
	err = p->family == 4 ? write_reset4(skb, p, &tcp) : write_reset6(skb, p, &tcp);
	return err ? TC_ACT_SHOT : send_back(skb, p);
}

/* For a packet that was dropped with p->refuse: a reset of a TCP connection, else port unreachable, as Kubernetes' own proxy rejects. */
GLOBAL int tb_refuse(struct __sk_buff *skb)
{
	struct tb_pkt *p = tb_pkt();
	struct tb_config *cfg = tb_cfg();
	union tb_addr *self;
	__u32 quote;

	if (!p || !cfg)
		return TC_ACT_SHOT;
	self = internal_addr(cfg, p->family);
	quote = quotable(p, self);
	if (!quote || (p->proto != TB_TCP && p->proto != TB_UDP) || !may_refuse(p))
		return TC_ACT_SHOT;
	if (p->proto == TB_TCP)
		return reset(skb, p);
	return answer(skb, p, self, quote, p->family == 4 ? 0x0303 : 0x0104, 0);
}

/* TB_GO: it fits. */
INLINE int fits(struct __sk_buff *skb, struct tb_pkt *p, __u32 mtu)
{
	if (!mtu || p->seg_len + p->room <= mtu || !p->df)
		return TB_GO;
	return tb_too_big(skb, mtu - p->room);
}

#undef TB_FILE_ID
#endif
