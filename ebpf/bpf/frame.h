/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/*
 * Stand-ins for what a bare frame has no helper for, under the names of the socket buffer's. There is no offload here: a
 * frame is one packet, and its sums are whole, so they are kept right by the differences (RFC 1624).
 */
#ifndef TB_FRAME_H
#define TB_FRAME_H

static __u64 (*const bpf_xdp_get_buff_len)(struct xdp_md *ctx) = (void *)BPF_FUNC_xdp_get_buff_len;
static long (*const bpf_xdp_adjust_head)(struct xdp_md *ctx, int delta) = (void *)BPF_FUNC_xdp_adjust_head;

INLINE __u32 ctx_ifindex(const TB_CTX *ctx)
{
	return ctx->ingress_ifindex;
}

INLINE __u32 ctx_len(TB_CTX *ctx)
{
	return bpf_xdp_get_buff_len(ctx);
}

INLINE __be16 ctx_protocol(TB_CTX *ctx)
{
	__be16 type = 0;

	bpf_skb_load_bytes(ctx, 12, &type, sizeof(type));
	return type;
}

INLINE __u32 ctx_mark(const TB_CTX *ctx)
{
	(void)ctx;
	return 0;
}

INLINE __u32 ctx_gso_size(const TB_CTX *ctx)
{
	(void)ctx;
	return 0;
}

/* A checksum after a change of what it covers, whose difference (bpf_csum_diff) is given. */
INLINE __u16 frame_sum(__u16 sum, __u32 diff)
{
	__u32 s = (__u16)~sum;

	s += (diff & 0xffff) + (diff >> 16);
	s = (s & 0xffff) + (s >> 16);
	s = (s & 0xffff) + (s >> 16);
	return ~s;
}

INLINE __u32 frame_diff(__u64 from, __u64 to, __u64 flags)
{
	return flags & 0xf ? (__u32)(__u16)~from + (__u16)to : (__u32)to;
}

INLINE long bpf_l3_csum_replace(TB_CTX *ctx, __u32 off, __u64 from, __u64 to, __u64 flags)
{
	__u16 sum;

	if (bpf_skb_load_bytes(ctx, off, &sum, sizeof(sum)) < 0)
		return -1;
	sum = frame_sum(sum, frame_diff(from, to, flags));
	return bpf_skb_store_bytes(ctx, off, &sum, sizeof(sum), 0);
}

/* UDP without a checksum stays so, and none becomes zero by chance. */
INLINE long bpf_l4_csum_replace(TB_CTX *ctx, __u32 off, __u64 from, __u64 to, __u64 flags)
{
	__u16 sum;

	if (bpf_skb_load_bytes(ctx, off, &sum, sizeof(sum)) < 0)
		return -1;
	if (flags & BPF_F_MARK_MANGLED_0 && !sum)
		return 0;
	sum = frame_sum(sum, frame_diff(from, to, flags));
	if (flags & BPF_F_MARK_MANGLED_0 && !sum)
		sum = 0xffff;
	return bpf_skb_store_bytes(ctx, off, &sum, sizeof(sum), 0);
}

/* Room behind the fixed IP header, as BPF_ADJ_ROOM_NET makes it: the headers before it move. */
INLINE long bpf_skb_adjust_room(TB_CTX *ctx, __s32 more, __u32 mode, __u64 flags)
{
	int v4 = ctx_protocol(ctx) == bswap16(0x0800);
	__u8 head[54];

	(void)mode;
	(void)flags;
	if (v4 ? bpf_skb_load_bytes(ctx, 0, head, 34) : bpf_skb_load_bytes(ctx, 0, head, 54))
		return -1;
	if (bpf_xdp_adjust_head(ctx, -more))
		return -1;
	return v4 ? bpf_skb_store_bytes(ctx, 0, head, 34, 0) : bpf_skb_store_bytes(ctx, 0, head, 54, 0);
}

#endif
