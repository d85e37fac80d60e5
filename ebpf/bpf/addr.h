/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
/* Addresses of both families in one shape. */
#ifndef TB_ADDR_H
#define TB_ADDR_H

#include "abi.h"
#include "helpers.h"

#define TB_TCP 6
#define TB_UDP 17
#define TB_SCTP 132

INLINE int addr_eq(const union tb_addr *a, const union tb_addr *b)
{
	return a->d[0] == b->d[0] && a->d[1] == b->d[1];
}

INLINE int addr_zero(const union tb_addr *a)
{
	return (a->d[0] | a->d[1]) == 0;
}

INLINE void addr_v4(union tb_addr *a, __be32 v4)
{
	a->d[0] = 0;
	a->w[2] = bswap32(0xffff);
	a->w[3] = v4;
}

INLINE int addr_is_v4(const union tb_addr *a)
{
	return a->d[0] == 0 && a->w[2] == bswap32(0xffff);
}

#endif
