/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/*
 * What a pod may send and receive in a second. One number is kept for each way: when all that was let through would be
 * through at the rate. Where the uplink's queue sends packets at their time, a packet gets that moment as its time;
 * elsewhere one that comes while the moment is still ahead is dropped.
 *
 * A sender that was silent may be ahead by BURST_NS: a TCP sender whose packets are dropped together hears nothing and
 * waits for its timeout, 200 ms at least, and what it could not send meanwhile it must be able to send afterwards.
 */
#ifndef TB_RATE_H
#define TB_RATE_H

#include "pkt.h"

#define TB_FILE_ID 21
#define BURST_NS (SEC_NS / 4)
#define HORIZON_NS (2 * SEC_NS)

/* Bytes on the wire, where a packet that is cut later has headers for each piece. */
INLINE __u64 wire_bytes(const struct __sk_buff *skb, const struct tb_pkt *p)
{
	__u32 headers = p->seg_len > skb->gso_size ? p->seg_len - skb->gso_size + p->l3_off : 0;

	return skb->gso_size && skb->gso_segs > 1 ? skb->len + (__u64)(skb->gso_segs - 1) * headers : skb->len;
}

/* A packet of the pod at ifindex: whether its rate lets it pass now. */
GLOBAL int tb_limit(struct __sk_buff *skb, __u32 ifindex, __u32 way)
{
	struct tb_rate_key key = { .ifindex = ifindex, .way = way };
	struct tb_pkt *p = tb_pkt();
	struct tb_rate *rate;
	__u64 now, next, floor;

	if (!p)
		return TC_ACT_SHOT;
	rate = bpf_map_lookup_elem(&tb_rates, &key);
	if (!rate || !rate->bytes_per_sec)
		return TB_GO;
	now = bpf_ktime_get_ns();
	floor = way == TB_RATE_PACED ? now : now - BURST_NS;
	next = rate->next_ns;
	if (next < floor) {
		/* Of CPUs that see it at once one lifts it, and all add to what it lifted. */
		__sync_val_compare_and_swap(&rate->next_ns, next, floor);
		next = floor;
	}
	if (way == TB_RATE_PACED) {
		if (next > now + HORIZON_NS)
			return DROP(p, TB_DROP_HORIZON, "what the pod sends has to wait for more than 2 s at its rate", "raise the pod's annotation kubernetes.io/egress-bandwidth, or send less");
		bpf_skb_set_tstamp(skb, next, BPF_SKB_TSTAMP_DELIVERY_MONO);
	} else if (next > now) {
		return DROP(p, TB_DROP_RATE, "more than the pod's rate", "raise the pod's annotation kubernetes.io/egress-bandwidth or ingress-bandwidth, or send less");
	}
	__sync_fetch_and_add(&rate->next_ns, wire_bytes(skb, p) * SEC_NS / rate->bytes_per_sec);
	return TB_GO;
}

#undef TB_FILE_ID
#endif
