//! What must be refused, each with its counted reason.

use super::*;
use tombolo_clustermesh::wire::slice::{EndpointSlice, Port};
use tombolo_clustermesh::wire::{MAX_VALUE_BYTES, Reason, Rejections};

/// Refused values of one key: a part of the golden value and what stands in its place.
struct Case {
    kind: Kind,
    name: &'static str,
    golden: &'static str,
    edits: &'static [(&'static str, &'static str, Reason)],
}

const CASES: &[Case] = &[
    Case {
        kind: Kind::Nodes,
        name: "n1",
        golden: "node.txt",
        edits: &[
            (r#""Cluster":"c1""#, r#""Cluster":"c2""#, Reason::ClusterName),
            (r#""Cluster":"c1","#, "", Reason::ClusterName),
            (r#""ClusterID":1"#, r#""ClusterID":2"#, Reason::ClusterId),
            (r#""ClusterID":1,"#, "", Reason::ClusterId),
            (r#""ClusterID":1"#, r#""ClusterID":1.0"#, Reason::Malformed),
            (r#""ClusterID":1"#, r#""ClusterID":-1"#, Reason::Malformed),
            (r#""ClusterID":1"#, r#""ClusterID":"1""#, Reason::Malformed),
            (r#""Name":"n1""#, r#""Name":"n2""#, Reason::KeyMismatch),
            (r#""Name":"n1","#, "", Reason::KeyMismatch),
            (r#""Name":"n1""#, r#""Name":7"#, Reason::Malformed),
            ("10.1.0.1", "300.1.0.1", Reason::Malformed),
            ("10.1.0.1", "10.1.0.01", Reason::Malformed),
            (r#""IP":"192.0.2.11""#, r#""IP":"127.0.0.1""#, Reason::Address),
            (r#""IP":"192.0.2.11""#, r#""IP":"ff02::1""#, Reason::Address),
            (r#""IP":"192.0.2.11""#, r#""IP":"fe80::1%eth0""#, Reason::Malformed),
            ("////AA==", "/wD/AA==", Reason::Address),
            ("////AA==", "//////////8AAAAAAAAAAA==", Reason::Address),
            ("////AA==", "AAAAAA==", Reason::Address),
            ("////AA==", "////AA", Reason::Malformed),
            (r#"{"IP":"10.1.0.0","Mask":"////AA=="}"#, r#""10.1.0.0""#, Reason::Malformed),
            (r#"{"IP":"10.1.0.0","Mask":"////AA=="}"#, r#""fd00::/64""#, Reason::Malformed),
            (r#""EncryptionKey":0"#, r#""EncryptionKey":256"#, Reason::Malformed),
            (r#""Labels":{"kubernetes.io/hostname":"n1"}"#, r#""Labels":{"a":1}"#, Reason::Malformed),
            (r#""IPv4HealthIP":"10.1.0.2""#, r#""IPv4HealthIP":{"IP":"10.1.0.2"}"#, Reason::Malformed),
        ],
    },
    Case {
        kind: Kind::Identities,
        name: "66001",
        golden: "identity.txt",
        edits: &[
            ("policy.cluster=c1", "policy.cluster=c2", Reason::ClusterLabel),
            ("policy.cluster=c1", "policy.cluster=", Reason::ClusterLabel),
            ("k8s:io.cilium.k8s.policy.cluster=c1;", "", Reason::ClusterLabel),
            ("k8s:io.cilium.k8s.policy.cluster", "any:io.cilium.k8s.policy.cluster", Reason::ClusterLabel),
            // Every cluster label has to match.
            ("k8s:app=web;", "k8s:io.cilium.k8s.policy.cluster=c2;", Reason::Labels),
            ("k8s:app=web;", "app=web;", Reason::Labels),
            ("k8s:app=web;", "k8s:=web;", Reason::Labels),
        ],
    },
    Case {
        kind: Kind::Ips,
        name: "10.1.0.7",
        golden: "ip.txt",
        edits: &[
            ("10.1.0.7", "10.1.0.8", Reason::KeyMismatch),
            ("null", "\"/////w==\"", Reason::KeyMismatch),
            ("null", "\"////\"", Reason::Address),
            ("null", "7", Reason::Malformed),
            ("10.1.0.7", "ten", Reason::Malformed),
            ("192.0.2.11", "host", Reason::Malformed),
            ("66001", "131072", Reason::IdentityRange),
            ("66001", "256", Reason::IdentityRange),
            ("66001", "65535", Reason::IdentityRange),
            // Scopes that are local to a node: CIDRs and remote nodes.
            ("66001", "16777217", Reason::IdentityRange),
            ("66001", "33554433", Reason::IdentityRange),
            ("66001", "4294967296", Reason::Malformed),
            ("\"Key\":0", "\"Key\":256", Reason::Malformed),
            ("\"web-0\"", "\"web-0\",\"NamedPorts\":[{\"Port\":65536}]", Reason::Malformed),
            ("\"web-0\"", "\"web-0\",\"NamedPorts\":{}", Reason::Malformed),
        ],
    },
    Case {
        kind: Kind::Services,
        name: "shop/web",
        golden: "service.txt",
        edits: &[
            (r#""clusterID":1"#, r#""clusterID":2"#, Reason::ClusterId),
            (r#""cluster":"c1""#, r#""cluster":"c2""#, Reason::ClusterName),
            (r#""name":"web""#, r#""name":"web2""#, Reason::KeyMismatch),
            (r#""name":"web""#, r#""name":"""#, Reason::KeyMismatch),
            (r#""namespace":"shop""#, r#""namespace":"""#, Reason::KeyMismatch),
            (r#""10.1.0.7":{"http""#, r#""not-an-ip":{"http""#, Reason::Malformed),
            (r#""10.96.0.20""#, r#""10.96.0.20/32""#, Reason::Malformed),
            (r#""10.1.0.7":{"zone""#, r#""zone-a":{"zone""#, Reason::Malformed),
            (r#""10.1.0.7":{"http""#, r#""127.0.0.1":{"http""#, Reason::Address),
            (r#""Port":8080"#, r#""Port":65536"#, Reason::Malformed),
            (r#""Port":8080"#, r#""Port":"http""#, Reason::Malformed),
            (r#""shared":true"#, r#""shared":"true""#, Reason::Malformed),
            (r#""labels":{"app":"web"}"#, r#""labels":[]"#, Reason::Malformed),
        ],
    },
    Case {
        kind: Kind::ServiceExports,
        name: "shop/web",
        golden: "export.txt",
        edits: &[
            (r#""cluster":"c1""#, r#""cluster":"c2""#, Reason::ClusterName),
            (r#""cluster":"c1","#, "", Reason::ClusterName),
            (r#""name":"web","#, "", Reason::KeyMismatch),
            (r#""namespace":"shop""#, r#""namespace":"other""#, Reason::KeyMismatch),
            ("2026-01-02T03:04:05Z", "yesterday", Reason::Malformed),
            ("2026-01-02T03:04:05Z", "0001-01-01T00:00:00Z", Reason::Malformed),
            (r#""2026-01-02T03:04:05Z""#, "null", Reason::Malformed),
            (r#""exportCreationTimestamp":"2026-01-02T03:04:05Z","#, "", Reason::Malformed),
            ("ClusterSetIP", "ExternalName", Reason::Malformed),
            (r#""type":"ClusterSetIP","#, "", Reason::Malformed),
            (r#""sessionAffinity":"None","#, "", Reason::Malformed),
            (r#""sessionAffinity":"None""#, r#""sessionAffinity":"Cookie""#, Reason::Malformed),
            (r#"["IPv4"]"#, r#"["IPv5"]"#, Reason::Malformed),
            (r#"["IPv4"]"#, r#"["IPv4"],"internalTrafficPolicy":"""#, Reason::Malformed),
            (r#"["IPv4"]"#, r#"["IPv4"],"internalTrafficPolicy":"Node""#, Reason::Malformed),
            (r#"["IPv4"]"#, r#"["IPv4"],"trafficDistribution":"PreferFar""#, Reason::Malformed),
            (r#""port":80"#, r#""port":-1"#, Reason::Malformed),
            (r#""port":80"#, r#""port":65536"#, Reason::Malformed),
            (
                r#""ipFamilies""#,
                r#""sessionAffinityConfig":{"clientIP":{"timeoutSeconds":2147483648}},"ipFamilies""#,
                Reason::Malformed,
            ),
        ],
    },
];

fn reason(kind: Kind, name: &str, value: &[u8]) -> Reason {
    let reject = decode(kind, name, value).unwrap_err();
    assert!(reject.detail.chars().count() <= 200 && !reject.detail.is_empty());
    let mut rejections = Rejections::default();
    rejections.count("key", &reject);
    assert_eq!((rejections.of(reject.reason), rejections.total()), (1, 1));
    reject.reason
}

#[test]
fn values_that_must_be_refused() {
    for Case { kind, name, golden: file, edits } in CASES {
        let value = golden(file);
        assert!(decode(*kind, name, value.as_bytes()).unwrap().is_some());
        for (from, to, expected) in *edits {
            let edited = value.replacen(from, to, 1);
            assert_ne!(edited, value, "{from} does not stand in {file}");
            assert_eq!(reason(*kind, name, edited.as_bytes()), *expected, "{file}: {from} -> {to}");
        }
        if *kind != Kind::Identities {
            for text in ["", "{", "[]", "7", "\"x\"", "{}x", "\u{feff}{}"] {
                assert_eq!(reason(*kind, name, text.as_bytes()), Reason::Malformed, "{file}: {text}");
            }
        }
        let big = vec![b' '; MAX_VALUE_BYTES + 1];
        assert_eq!(reason(*kind, name, &big), Reason::TooBig);
        // The value of another kind, of another key, and under a name that would leave the prefix.
        assert!(decode(*kind, "other/name", value.as_bytes()).is_err());
        for unsound in ["../../cluster-config/intruder", "a//b", "/a", "a/", ".", "", "a\nb", "a\u{fffd}"] {
            assert_eq!(reason(*kind, unsound, value.as_bytes()), Reason::KeyName, "{file}: {unsound:?}");
        }
    }
}

#[test]
fn keys_that_must_be_refused() {
    let labels = golden("identity.txt");
    for (name, expected) in [
        ("70000000", Reason::IdentityRange),
        ("1000", Reason::IdentityRange),
        ("65535", Reason::IdentityRange),
        ("131072", Reason::IdentityRange),
        ("4294967296", Reason::IdentityRange),
        ("18446744073709551616", Reason::KeyName),
        ("066001", Reason::KeyName),
        ("0", Reason::KeyName),
        ("+66001", Reason::KeyName),
        ("66001x", Reason::KeyName),
        ("66001/x", Reason::KeyName),
    ] {
        assert_eq!(reason(Kind::Identities, name, labels.as_bytes()), expected, "{name}");
    }
    assert_eq!(reason(Kind::Identities, "66001", b"k8s:a=\xff;"), Reason::Labels);
    assert_eq!(reason(Kind::Nodes, "n2", golden("node.txt").as_bytes()), Reason::KeyMismatch);
    let ip = golden("ip.txt");
    for alias in ["10.1.0.7/32", "010.1.0.7", "::ffff:10.1.0.7", "10.1.0.7 "] {
        assert_eq!(reason(Kind::Ips, alias, ip.as_bytes()), Reason::KeyMismatch, "{alias}");
    }
    let six = golden("ip-v6.txt");
    for alias in ["FD00:10:1::7", "fd00:10:1:0::7", "fd00:10:1::7/128"] {
        assert_eq!(reason(Kind::Ips, alias, six.as_bytes()), Reason::KeyMismatch, "{alias}");
    }
    for name in ["shop", "shop/web/x", "web/shop"] {
        assert_eq!(reason(Kind::Services, name, golden("service.txt").as_bytes()), Reason::KeyMismatch);
        assert_eq!(reason(Kind::ServiceExports, name, golden("export.txt").as_bytes()), Reason::KeyMismatch);
    }
    for (name, expected) in [("shop", Reason::KeyName), ("a/b/c", Reason::KeyName)] {
        assert_eq!(reason(Kind::Assignments, name, b"{}"), expected);
    }
}

#[test]
fn prefixes_that_no_cluster_may_own() {
    let cidr = golden("ip-cidr.txt");
    let edit = |ip: &str, mask: &str| cidr.replace("10.1.0.0", ip).replace("////AA==", mask);
    for (name, ip, mask) in [
        ("0.0.0.0/0", "0.0.0.0", "AAAAAA=="),
        ("127.0.0.0/8", "127.0.0.0", "/wAAAA=="),
        ("224.0.0.0/8", "224.0.0.0", "/wAAAA=="),
        // Bits set past the length.
        ("10.1.0.3/24", "10.1.0.3", "////AA=="),
        // A mask with a hole.
        ("10.0.0.0/0", "10.0.0.0", "/wD/AA=="),
    ] {
        assert_eq!(reason(Kind::Ips, name, edit(ip, mask).as_bytes()), Reason::Address, "{name}");
    }
    let six = golden("ip-v6.txt");
    for ip in ["::1", "ff02::1", "::"] {
        let value = six.replace("fd00:10:1::7", ip);
        assert_eq!(reason(Kind::Ips, ip, value.as_bytes()), Reason::Address, "{ip}");
    }
}

#[test]
fn lists_past_their_bounds_are_refused() {
    let items = |item: &str, count: usize| vec![item; count].join(",");
    let node = golden("node.txt");
    let address = r#"{"Type":"InternalIP","IP":"192.0.2.11"}"#;
    let many = node.replace(address, &items(address, 257));
    assert_eq!(reason(Kind::Nodes, "n1", many.as_bytes()), Reason::TooMany);
    let cidrs = format!("\"IPv4SecondaryAllocCIDRs\":[{}]", items("\"10.2.0.0/16\"", 1025));
    let many = node.replace("\"IPv4SecondaryAllocCIDRs\":null", &cidrs);
    assert_eq!(reason(Kind::Nodes, "n1", many.as_bytes()), Reason::TooMany);
    let labels = format!("\"Annotations\":{{{}}}", items("\"a\":\"\"", 8193));
    let many = node.replace("\"Annotations\":null", &labels);
    assert_eq!(reason(Kind::Nodes, "n1", many.as_bytes()), Reason::TooMany);
    let ports = format!("\"web-0\",\"NamedPorts\":[{}]", items("{}", 1025));
    let many = golden("ip.txt").replace("\"web-0\"", &ports);
    assert_eq!(reason(Kind::Ips, "10.1.0.7", many.as_bytes()), Reason::TooMany);
    let service = golden("service.txt");
    for (from, to) in [
        (r#""forZones":["#, format!("\"forZones\":[{},", items("null", 64))),
        (r#""10.1.0.7":{"http""#, format!("\"10.1.0.7\":{{{},\"http\"", items("\"\":null", 1024))),
        (r#""backends":{"#, format!("\"backends\":{{{},", items("\"10.1.0.7\":null", 20_000))),
    ] {
        let many = service.replace(from, &to);
        assert_eq!(reason(Kind::Services, "shop/web", many.as_bytes()), Reason::TooMany, "{from}");
    }
    let export = golden("export.txt");
    for (from, to) in [
        (r#""ports":["#, format!("\"ports\":[{},", items("{}", 1024))),
        (r#""ipFamilies":["#, format!("\"ipFamilies\":[{},", items("\"IPv6\"", 16))),
    ] {
        let many = export.replace(from, &to);
        assert_eq!(reason(Kind::ServiceExports, "shop/web", many.as_bytes()), Reason::TooMany, "{from}");
    }
}

/// A field of a protobuf message with a length before its content.
fn field(number: u8, content: &[u8]) -> Vec<u8> {
    let length = u8::try_from(content.len()).unwrap();
    assert!(number < 16 && length < 128);
    [&[number << 3 | 2, length], content].concat()
}

fn slice_reason(message: &[u8]) -> Reason {
    EndpointSlice::from_message(&c1(), "shop/web-0", message).unwrap_err().reason
}

#[test]
fn slices_that_must_be_refused() {
    let slice = || EndpointSlice::new("c1", 1, "shop", "web-0", true);
    let accepted = |slice: &EndpointSlice| EndpointSlice::decode(&c1(), "shop/web-0", &slice.encode());
    assert_eq!(accepted(&slice()).as_ref(), Ok(&slice()));
    type Edit = fn(&mut EndpointSlice);
    let edits: [(Edit, Reason); 5] = [
        (|slice| slice.cluster = "c2".into(), Reason::ClusterName),
        (|slice| slice.cluster_id = 2, Reason::ClusterId),
        (|slice| slice.name = "web-1".into(), Reason::KeyMismatch),
        (|slice| slice.namespace = "".into(), Reason::KeyMismatch),
        (|slice| slice.ports = vec![Port::default(); 101], Reason::TooMany),
    ];
    for (edit, expected) in edits {
        let mut slice = slice();
        edit(&mut slice);
        assert_eq!(accepted(&slice).unwrap_err().reason, expected);
    }
    let message = slice().to_message();
    let with = |more: &[u8]| [&message, more].concat();
    for (more, expected) in [
        // An address of the other family, one that is none, one that nobody may own, a zone.
        (field(8, &field(1, b"fd00::7")), Reason::Address),
        (field(8, &field(1, b"web")), Reason::Address),
        (field(8, &field(1, b"127.0.0.1")), Reason::Address),
        (field(7, b"FQDN"), Reason::Malformed),
        (field(7, b""), Reason::Malformed),
        (field(1, b"\xff"), Reason::Malformed),
        (vec![8 << 3, 1], Reason::Malformed),
        (vec![2 << 3 | 2, 0], Reason::Malformed),
        (field(9, &[3 << 3, 0x80, 0x80, 0x04]), Reason::Malformed),
        (field(8, &[]).repeat(1001), Reason::TooMany),
    ] {
        assert_eq!(slice_reason(&with(&more)), expected, "{more:02x?}");
    }
    // A length of two bytes: more addresses than an endpoint may have.
    let addresses = field(1, b"10.1.0.7").repeat(101);
    let (low, high) =
        (u8::try_from(addresses.len() % 128).unwrap(), u8::try_from(addresses.len() / 128).unwrap());
    let endpoint = [&[8 << 3 | 2, low | 0x80, high], &addresses[..]].concat();
    assert_eq!(slice_reason(&with(&endpoint)), Reason::TooMany);
    for cut in 1..message.len() {
        assert!(EndpointSlice::from_message(&c1(), "shop/web-0", &message[..cut]).is_err(), "{cut}");
    }
    for text in [b"{}".as_slice(), b"", b"\x28\xb5\x2f\xfd"] {
        assert!(decode(Kind::EndpointSlices, "shop/web-0", text).is_err(), "{text:02x?}");
    }
    assert_eq!(reason(Kind::EndpointSlices, "shop/web-0", &vec![0; MAX_VALUE_BYTES + 1]), Reason::TooBig);
}

/// 64 MiB of zeros that come as some 8 KiB: in run-length blocks of 128 KiB, the announced size missing, wrong or right.
#[test]
fn zip_bombs_are_refused() {
    let run = |last: u32| {
        let header = (128 * 1024) << 3 | 1 << 1 | last;
        [&header.to_le_bytes()[..3], &[0]].concat()
    };
    let blocks = [run(0).repeat(511), run(1)].concat();
    // Magic; a window of 128 KiB and no size; a window of 8 MiB; a single segment of 64 MiB; a window of 2 GiB.
    for (header, expected, what) in [
        (vec![0x00, 7 << 3], Reason::TooBig, "no size"),
        (vec![0x00, 13 << 3], Reason::TooBig, "a large window"),
        (vec![0xa0, 0, 0, 0, 4], Reason::TooBig, "the right size"),
        // A single segment is its own window, and no block may be larger.
        (vec![0x20, 1], Reason::Malformed, "the wrong size"),
        (vec![0x00, 21 << 3], Reason::TooBig, "a huge window"),
    ] {
        let bomb = [&[0x28, 0xb5, 0x2f, 0xfd][..], &header, &blocks].concat();
        assert_eq!(reason(Kind::EndpointSlices, "shop/web-0", &bomb), expected, "{what}");
    }
}
