//! Cilium's names for its numbers.

/// What a drop reason number means, in Cilium's wording; see the numbers in `DROP_*` of its datapath.
#[must_use]
pub const fn drop_reason(reason: u8) -> &'static str {
    match reason {
        0 => "",
        132 => "INVALID_SOURCE_IP",
        133 => "POLICY_DENIED",
        134 => "INVALID_PACKET_DROPPED",
        135 => "CT_TRUNCATED_OR_INVALID_HEADER",
        136 => "FRAG_NEEDED",
        137 => "CT_UNKNOWN_L4_PROTOCOL",
        139 => "UNSUPPORTED_L3_PROTOCOL",
        140 => "MISSED_TAIL_CALL",
        141 => "ERROR_WRITING_TO_PACKET",
        142 => "UNKNOWN_L4_PROTOCOL",
        143 => "UNKNOWN_ICMPV4_CODE",
        144 => "UNKNOWN_ICMPV4_TYPE",
        145 => "UNKNOWN_ICMPV6_CODE",
        146 => "UNKNOWN_ICMPV6_TYPE",
        147 => "ERROR_RETRIEVING_TUNNEL_KEY",
        150 => "UNKNOWN_L3_TARGET_ADDRESS",
        151 => "STALE_OR_UNROUTABLE_IP",
        153 => "ERROR_WHILE_CORRECTING_L3_CHECKSUM",
        154 => "ERROR_WHILE_CORRECTING_L4_CHECKSUM",
        155 => "CT_MAP_INSERTION_FAILED",
        156 => "INVALID_IPV6_EXTENSION_HEADER",
        157 => "IP_FRAGMENTATION_NOT_SUPPORTED",
        158 => "SERVICE_BACKEND_NOT_FOUND",
        159 => "UNSUPPORTED_SERVICE_PROTOCOL",
        160 => "NO_TUNNEL_OR_ENCAPSULATION_ENDPOINT",
        162 => "REACHED_EDT_RATE_LIMITING_DROP_HORIZON",
        163 => "UNKNOWN_CONNECTION_TRACKING_STATE",
        164 => "LOCAL_HOST_IS_UNREACHABLE",
        165 => "NO_CONFIGURATION_AVAILABLE",
        166 => "UNSUPPORTED_L2_PROTOCOL",
        167 => "NO_MAPPING_FOR_NAT_MASQUERADE",
        168 => "UNSUPPORTED_PROTOCOL_FOR_NAT_MASQUERADE",
        169 => "FIB_LOOKUP_FAILED",
        170 => "ENCAPSULATION_TRAFFIC_IS_PROHIBITED",
        171 => "INVALID_IDENTITY",
        172 => "UNKNOWN_SENDER",
        174 => "IS_A_CLUSTERIP",
        175 => "FIRST_LOGICAL_DATAGRAM_FRAGMENT_NOT_FOUND",
        176 => "FORBIDDEN_ICMPV6_MESSAGE",
        177 => "DENIED_BY_LB_SRC_RANGE_CHECK",
        181 => "POLICY_DENY",
        184 => "INVALID_TC_BUFFER",
        194 => "NO_EGRESS_GATEWAY",
        195 => "UNENCRYPTED_TRAFFIC",
        196 => "TTL_EXCEEDED",
        198 => "DROP_RATE_LIMITED",
        202 => "DROP_HOST_NOT_READY",
        203 => "DROP_EP_NOT_READY",
        204 => "DROP_NO_EGRESS_IP",
        _ => "UNKNOWN",
    }
}

/// The name of an observation point, in Cilium's wording.
#[must_use]
pub const fn trace_point(point: u8) -> &'static str {
    match point {
        0 => "to-endpoint",
        1 => "to-proxy",
        2 => "to-host",
        3 => "to-stack",
        4 => "to-overlay",
        5 => "from-endpoint",
        6 => "from-proxy",
        7 => "from-host",
        8 => "from-stack",
        9 => "from-overlay",
        10 => "from-network",
        11 => "to-network",
        12 => "from-crypto",
        13 => "to-crypto",
        _ => "unknown",
    }
}

/// What a policy entry has, in Cilium's words for its match types; empty: no entry decided.
#[must_use]
pub const fn match_type(number: u8) -> &'static str {
    match number {
        1 => "l3-only",
        2 => "l3-l4",
        3 => "l4-only",
        4 => "all",
        5 => "l3-proto",
        6 => "proto-only",
        _ => "",
    }
}

/// The usual name of an IP protocol.
#[must_use]
pub fn protocol(number: u8) -> String {
    match number {
        1 => "ICMPv4".to_owned(),
        6 => "TCP".to_owned(),
        17 => "UDP".to_owned(),
        58 => "ICMPv6".to_owned(),
        132 => "SCTP".to_owned(),
        other => other.to_string(),
    }
}
