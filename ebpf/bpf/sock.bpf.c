/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/*
 * Services at the socket, of all processes below a cgroup: connect and sendmsg lead to a backend of the service that was
 * asked for, recvmsg and getpeername tell of the service. No packet needs translation then, and policy sees the backend.
 *
 * What is not translated here goes on as it is and meets the programs on the packets' way, which know the same services.
 *
 * These programs run in process context, where a packet's may interrupt them on the same CPU: they must not touch
 * tb_scratch, nor call what does. All they need is on their stack.
 */
#include "choose.h"

/* What becomes of an address. */
#define TB_AS_IS 0
#define TB_LED 1 /* elsewhere: the address has changed */
#define TB_REFUSED 2

struct tb_ask {
	union tb_addr addr;
	__be16 port;
	__u8 proto;
	__u8 host; /* by a socket of the node's own network namespace */
	__u32 backend;
	__u64 cookie;
	__u64 netns;
};

INLINE int is_loopback(const union tb_addr *a)
{
	if (addr_is_v4(a))
		return a->b[12] == 127;
	return a->d[0] == 0 && a->w[2] == 0 && a->w[3] == bswap32(1);
}

/* Whether services are translated at this socket. */
INLINE int asks(struct bpf_sock_addr *ctx, const struct tb_config *cfg, struct tb_ask *ask)
{
	__u32 proto = ctx->protocol;

	if (!(cfg->flags & TB_CFG_READY) || (proto != TB_TCP && proto != TB_UDP))
		return 0;
	ask->proto = proto;
	ask->netns = bpf_get_netns_cookie(ctx);
	ask->host = ask->netns == cfg->netns_cookie;
	return (cfg->flags & (ask->host ? TB_CFG_SOCK_HOST : TB_CFG_SOCK_PODS)) != 0;
}

/* The service at an address. The host's loopback addresses have the node and host ports of its internal ones. */
INLINE struct tb_service *asked_for(const struct tb_config *cfg, const struct tb_ask *ask)
{
	struct tb_service_key key = { .addr = ask->addr, .port = ask->port, .proto = ask->proto,
				      .scope = TB_SCOPE_INTERNAL };
	int loopback = is_loopback(&ask->addr);
	struct tb_service *svc;

	/* A pod's loopback addresses are its own. */
	if (loopback && !ask->host)
		return 0;
	svc = bpf_map_lookup_elem(&tb_services, &key);
	if (svc || !loopback)
		return svc;
	key.addr = addr_is_v4(&ask->addr) ? cfg->internal4 : cfg->internal6;
	svc = bpf_map_lookup_elem(&tb_services, &key);
	return svc && svc->flags & (TB_SVC_NODEPORT | TB_SVC_HOSTPORT) ? svc : 0;
}

/* A backend for a socket that asks: the one that its namespace met last, if the service wants that, else by hash. */
INLINE struct tb_backend *choose(const struct tb_config *cfg, const struct tb_service *svc, const struct tb_ask *ask,
				 __u32 *id)
{
	struct tb_affinity_key who = { .client.d[0] = ask->netns, .rev_nat = svc->rev_nat, .by_cookie = 1 };
	__u64 now = bpf_ktime_get_ns() + cfg->clock_offset_ns;
	struct tb_backend *b;

	if (!svc->affinity_secs)
		return in_slot(svc, cookie_hash(ask->cookie), id);
	b = met_before(&who, svc, TB_SCOPE_INTERNAL, now, id);
	if (!b)
		b = in_slot(svc, cookie_hash(ask->netns), id);
	if (b)
		remember(&who, now, *id, b);
	return b;
}

/* Writes a row about the socket: 0 if there is one now. */
INLINE int note(const struct tb_ask *ask, __u8 kind, const struct tb_backend *b, __u32 rev_nat)
{
	int to_frontend = kind == TB_SOCK_FRONTEND;
	struct tb_sock_key key = { .cookie = ask->cookie, .addr = to_frontend ? b->addr : ask->addr,
				   .port = to_frontend ? b->port : ask->port, .proto = ask->proto, .kind = kind };
	struct tb_sock row = { .addr = to_frontend ? ask->addr : b->addr, .port = to_frontend ? ask->port : b->port,
			       .rev_nat = rev_nat, .backend = ask->backend, .netns = ask->netns };
	struct tb_sock *old = bpf_map_lookup_elem(&tb_sock_rev, &key);

	if (old && old->rev_nat == rev_nat && old->backend == ask->backend && old->port == row.port &&
	    addr_eq(&old->addr, &row.addr))
		return 0;
	return bpf_map_update_elem(&tb_sock_rev, &key, &row, BPF_ANY) < 0;
}

/* The backend that an unconnected socket was given for this frontend, as long as it is there. */
INLINE struct tb_backend *given(struct tb_ask *ask, const struct tb_service *svc)
{
	struct tb_sock_key key = { .cookie = ask->cookie, .addr = ask->addr, .port = ask->port, .proto = ask->proto,
				   .kind = TB_SOCK_BACKEND };
	struct tb_sock *row = bpf_map_lookup_elem(&tb_sock_rev, &key);

	if (!row || row->rev_nat != svc->rev_nat)
		return 0;
	ask->backend = row->backend;
	return still(row->backend, &row->addr, row->port);
}

/* message: a datagram of a socket that is not connected, which shall keep its backend from one to the next. */
INLINE int lead(struct bpf_sock_addr *ctx, struct tb_ask *ask, int message)
{
	struct tb_config *cfg = tb_cfg();
	struct tb_service *svc;
	struct tb_backend *b = 0;

	if (!cfg || !asks(ctx, cfg, ask))
		return TB_AS_IS;
	svc = asked_for(cfg, ask);
	if (!svc)
		return TB_AS_IS;
	/* A pod's packets are refused with an ICMP error and an event; the host's meet nobody who would. */
	if (!svc->maglev_size)
		return ask->host ? TB_REFUSED : TB_AS_IS;
	ask->cookie = bpf_get_socket_cookie(ctx);
	if (message)
		b = given(ask, svc);
	if (!b) {
		b = choose(cfg, svc, ask, &ask->backend);
		if (!b || addr_is_v4(&b->addr) != addr_is_v4(&ask->addr))
			return TB_AS_IS;
		if (message && note(ask, TB_SOCK_BACKEND, b, svc->rev_nat))
			return TB_AS_IS;
	}
	if (note(ask, TB_SOCK_FRONTEND, b, svc->rev_nat))
		return TB_AS_IS;
	ask->addr = b->addr;
	ask->port = b->port;
	return TB_LED;
}

/* The service that the socket asked for, instead of the backend that answers. */
INLINE int tell(struct bpf_sock_addr *ctx, union tb_addr *addr, __be16 *port)
{
	struct tb_sock_key key = { .addr = *addr, .port = *port, .proto = ctx->protocol, .kind = TB_SOCK_FRONTEND };
	struct tb_sock *row;

	key.cookie = bpf_get_socket_cookie(ctx);
	row = bpf_map_lookup_elem(&tb_sock_rev, &key);
	if (!row)
		return TB_AS_IS;
	*addr = row->addr;
	*port = row->port;
	return TB_LED;
}

INLINE int verdict(int what)
{
	if (what != TB_REFUSED)
		return 1;
	bpf_set_retval(-ECONNREFUSED);
	return 0;
}

INLINE void load6(const struct bpf_sock_addr *ctx, union tb_addr *addr)
{
	addr->w[0] = ctx->user_ip6[0];
	addr->w[1] = ctx->user_ip6[1];
	addr->w[2] = ctx->user_ip6[2];
	addr->w[3] = ctx->user_ip6[3];
}

INLINE void store6(struct bpf_sock_addr *ctx, const union tb_addr *addr)
{
	ctx->user_ip6[0] = addr->w[0];
	ctx->user_ip6[1] = addr->w[1];
	ctx->user_ip6[2] = addr->w[2];
	ctx->user_ip6[3] = addr->w[3];
}

INLINE int lead4(struct bpf_sock_addr *ctx, int message)
{
	struct tb_ask ask = { .port = ctx->user_port };
	int what;

	addr_v4(&ask.addr, ctx->user_ip4);
	what = lead(ctx, &ask, message);
	if (what == TB_LED) {
		ctx->user_ip4 = ask.addr.w[3];
		ctx->user_port = ask.port;
	}
	return verdict(what);
}

/* IPv4 by a socket of IPv6 is here too, as ::ffff:a.b.c.d: just what the maps have. */
INLINE int lead6(struct bpf_sock_addr *ctx, int message)
{
	struct tb_ask ask = { .port = ctx->user_port };
	int what;

	load6(ctx, &ask.addr);
	what = lead(ctx, &ask, message);
	if (what == TB_LED) {
		store6(ctx, &ask.addr);
		ctx->user_port = ask.port;
	}
	return verdict(what);
}

INLINE int tell4(struct bpf_sock_addr *ctx)
{
	union tb_addr addr;
	__be16 port = ctx->user_port;

	addr_v4(&addr, ctx->user_ip4);
	if (tell(ctx, &addr, &port) == TB_LED) {
		ctx->user_ip4 = addr.w[3];
		ctx->user_port = port;
	}
	return 1;
}

INLINE int tell6(struct bpf_sock_addr *ctx)
{
	union tb_addr addr;
	__be16 port = ctx->user_port;

	load6(ctx, &addr);
	if (tell(ctx, &addr, &port) == TB_LED) {
		store6(ctx, &addr);
		ctx->user_port = port;
	}
	return 1;
}

SEC("cgroup/connect4") int sock_connect4(struct bpf_sock_addr *ctx)
{
	return lead4(ctx, 0);
}

SEC("cgroup/connect6") int sock_connect6(struct bpf_sock_addr *ctx)
{
	return lead6(ctx, 0);
}

SEC("cgroup/sendmsg4") int sock_sendmsg4(struct bpf_sock_addr *ctx)
{
	return lead4(ctx, 1);
}

SEC("cgroup/sendmsg6") int sock_sendmsg6(struct bpf_sock_addr *ctx)
{
	return lead6(ctx, 1);
}

SEC("cgroup/recvmsg4") int sock_recvmsg4(struct bpf_sock_addr *ctx)
{
	return tell4(ctx);
}

SEC("cgroup/recvmsg6") int sock_recvmsg6(struct bpf_sock_addr *ctx)
{
	return tell6(ctx);
}

SEC("cgroup/getpeername4") int sock_getpeer4(struct bpf_sock_addr *ctx)
{
	return tell4(ctx);
}

SEC("cgroup/getpeername6") int sock_getpeer6(struct bpf_sock_addr *ctx)
{
	return tell6(ctx);
}

char _license[] SEC("license") = "Dual BSD/GPL";
