//! The verbs against a real kernel, in private network namespaces. Needs root: without it the tests fail.

#![cfg(test)]

use std::net::{IpAddr, TcpListener, UdpSocket};
use std::time::Duration;

use tombolo_netlink::{
    AddressOptions, Change, DefaultRoutes, Error, Family, LinkSettings, MacAddr, NetNs, Netlink, NextHop,
    NextHopKind, NextHopObject, Route, RouteFilter, RouteKind, Rule, TABLE_MAIN, VethEnd, VxlanSettings,
    VxlanSpec, Watch, Write,
};

const PROTOCOL: u8 = 0x54;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn net(text: &str) -> ipnet::IpNet {
    text.parse().unwrap()
}

/// A fresh namespace, its loopback up.
async fn namespace() -> (NetNs, Netlink) {
    let ns = NetNs::anonymous().expect("making a network namespace needs root");
    let netlink = Netlink::in_namespace(&ns).unwrap();
    netlink.set_up(1).await.unwrap();
    (ns, netlink)
}

/// Two namespaces joined by a veth pair with addresses of both families, both ends up.
async fn pair() -> ((NetNs, Netlink, u32), (NetNs, Netlink, u32)) {
    let (a_ns, a) = namespace().await;
    let (b_ns, b) = namespace().await;
    let left = VethEnd { mac: Some(MacAddr([2, 0, 0, 0, 0, 1])), mtu: Some(1400), ..VethEnd::new("left") };
    let right = VethEnd {
        mac: Some(MacAddr([2, 0, 0, 0, 0, 2])),
        namespace: Some(b_ns.clone()),
        ..VethEnd::new("right")
    };
    let (left, right) = a.create_veth(&left, &right).await.unwrap();
    let options = AddressOptions { no_dad: true, ..AddressOptions::default() };
    for (netlink, link, v4, v6) in [
        (&a, left.index, "192.0.2.1/24", "2001:db8::1/64"),
        (&b, right.index, "192.0.2.2/24", "2001:db8::2/64"),
    ] {
        netlink.add_address(link, net(v4), options).await.unwrap();
        netlink.add_address(link, net(v6), options).await.unwrap();
        let settings =
            LinkSettings { up: Some(true), ipv6_link_local: Some(false), ..LinkSettings::default() };
        netlink.set_link(link, &settings).await.unwrap();
    }
    ((a_ns, a, left.index), (b_ns, b, right.index))
}

#[tokio::test]
async fn a_veth_pair_is_made_across_namespaces_and_making_it_again_changes_only_what_differs() {
    let (_, a) = namespace().await;
    let (b_ns, b) = namespace().await;
    let mut end = VethEnd { mtu: Some(1400), ..VethEnd::new("left") };
    let peer =
        VethEnd { namespace: Some(b_ns), mac: Some(MacAddr([2, 0, 0, 0, 0, 2])), ..VethEnd::new("right") };
    let (left, right) = a.create_veth(&end, &peer).await.unwrap();
    assert_eq!((left.mtu, left.kind.as_deref(), left.up), (1400, Some("veth"), false));
    assert_eq!(right.mac, Some(MacAddr([2, 0, 0, 0, 0, 2])));
    assert_eq!(b.link("right").await.unwrap().index, right.index);

    end.mtu = Some(1300);
    let (again, right_again) = a.create_veth(&end, &peer).await.unwrap();
    assert_eq!((again.index, again.mtu), (left.index, 1300));
    assert_eq!(right_again.index, right.index);

    // The same names in one namespace, but not that pair.
    let other = a.create_veth(&end, &VethEnd::new("third")).await;
    assert!(matches!(other, Err(Error::Conflict { .. })), "{other:?}");

    assert!(a.delete_link("left").await.unwrap());
    assert!(!a.delete_link("left").await.unwrap(), "a second delete finds nothing");
    assert!(b.find_link("right").await.unwrap().is_none(), "the other end went with it");
    assert!(matches!(a.link("left").await, Err(Error::NotFound { .. })));
}

#[tokio::test]
async fn a_long_or_strange_name_is_refused_before_the_kernel_is_asked() {
    let (_, a) = namespace().await;
    for name in ["", "sixteen-bytes-xx", "a/b", "a b", ".."] {
        let refused = a.create_veth(&VethEnd::new(name), &VethEnd::new("peer")).await;
        assert!(matches!(refused, Err(Error::Invalid { .. })), "{name}: {refused:?}");
    }
    assert_eq!(a.links().await.unwrap().len(), 1, "only the loopback");
}

#[tokio::test]
async fn packets_of_both_families_cross_a_pair_that_was_set_up_here() {
    let ((a_ns, a, left), (b_ns, _, _)) = pair().await;
    for (address, reply_to) in [("192.0.2.2", "192.0.2.1"), ("2001:db8::2", "2001:db8::1")] {
        let listener = b_ns.run(|| UdpSocket::bind((ip(address), 7000)).unwrap()).unwrap();
        listener.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let sender = a_ns.run(|| UdpSocket::bind((ip(reply_to), 0)).unwrap()).unwrap();
        sender.send_to(b"sand", (ip(address), 7000)).unwrap();
        let mut buffer = [0; 16];
        let (length, from) = listener.recv_from(&mut buffer).unwrap();
        assert_eq!((&buffer[..length], from.ip()), (&b"sand"[..], ip(reply_to)));
    }
    let stats = a.find_link_by_index(left).await.unwrap().unwrap().stats;
    assert!(stats.tx_packets >= 2 && stats.tx_bytes > 0, "{stats:?}");
}

#[tokio::test]
async fn addresses_are_added_once_listed_and_deleted() {
    let ((_, a, left), _) = pair().await;
    let options = AddressOptions { no_dad: true, no_prefix_route: true };
    for address in ["198.51.100.7/32", "2001:db8:1::7/128"] {
        a.add_address(left, net(address), options).await.unwrap();
        a.add_address(left, net(address), options).await.unwrap();
        let listed = a.addresses(Some(left)).await.unwrap();
        let same: Vec<_> = listed.iter().filter(|a| a.address == net(address)).collect();
        assert_eq!(same.len(), 1, "{listed:?}");
        assert!(!same[0].tentative && !same[0].link_scope);
    }
    let conflict = a.add_address(left, net("2001:db8:1::7/64"), options).await;
    assert!(matches!(conflict, Err(Error::Conflict { .. })), "{conflict:?}");
    for address in ["198.51.100.7/32", "2001:db8:1::7/128"] {
        assert!(a.delete_address(left, net(address)).await.unwrap());
        assert!(!a.delete_address(left, net(address)).await.unwrap());
    }
    assert_eq!(a.addresses(Some(left)).await.unwrap().len(), 2, "no link-local address: its mode is none");
    assert!(a.addresses(None).await.unwrap().len() >= 4, "the loopback's too");
}

#[tokio::test]
async fn routes_come_back_from_the_kernel_as_they_were_asked_for() {
    let ((_, a, left), _) = pair().await;
    let route = |destination: &str, next_hops: Vec<NextHop>| Route {
        protocol: PROTOCOL,
        ..Route::unicast(net(destination), next_hops)
    };
    let several = |one: &str, two: &str| {
        vec![
            NextHop { weight: 3, ..NextHop::on_link(ip(one), left) },
            NextHop { link: Some(left), ..NextHop::via(ip(two)) },
        ]
    };
    let wanted = [
        Route { mtu: Some(1320), ..route("10.1.0.0/16", vec![NextHop::on_link(ip("192.0.2.2"), left)]) },
        Route { mtu: Some(1300), ..route("fd00:10::/32", vec![NextHop::on_link(ip("2001:db8::2"), left)]) },
        Route { metric: 77, ..route("10.2.0.0/16", several("192.0.2.3", "192.0.2.4")) },
        Route { metric: 77, ..route("fd00:20::/32", several("2001:db8::3", "2001:db8::4")) },
        Route { source: Some(ip("192.0.2.1")), ..route("10.3.0.1/32", vec![NextHop::link(left)]) },
        Route { source: Some(ip("2001:db8::1")), ..route("fd00:30::1/128", vec![NextHop::link(left)]) },
        Route { table: 5400, ..route("10.4.0.0/16", vec![NextHop::link(left)]) },
        Route { table: 5400, ..route("0.0.0.0/0", vec![NextHop::on_link(ip("192.0.2.2"), left)]) },
        Route { table: 5400, ..route("::/0", vec![NextHop::on_link(ip("2001:db8::2"), left)]) },
        Route { kind: RouteKind::Blackhole, ..route("10.5.0.0/16", vec![]) },
        Route { kind: RouteKind::Unreachable, ..route("fd00:50::/32", vec![]) },
        // IPv4 through an IPv6 neighbour.
        route("10.6.0.0/16", vec![NextHop { link: Some(left), ..NextHop::via(ip("2001:db8::2")) }]),
    ];
    for route in &wanted {
        a.replace_route(route).await.unwrap();
        a.replace_route(route).await.unwrap();
    }
    let mut expected: Vec<Route> = wanted.iter().cloned().map(Route::normalised).collect();
    expected.sort();
    let ours = RouteFilter { protocol: Some(PROTOCOL), ..RouteFilter::default() };
    assert_eq!(a.routes(ours).await.unwrap(), expected);

    let table = a.routes(RouteFilter { table: Some(5400), ..ours }).await.unwrap();
    assert_eq!(table.len(), 3, "{table:?}");
    let empty = a.routes(RouteFilter { table: Some(5401), ..ours }).await.unwrap();
    assert_eq!(empty, [], "a table that was never used is empty, not an error");

    for route in &wanted {
        assert!(a.delete_route(route).await.unwrap(), "{route}");
        assert!(!a.delete_route(route).await.unwrap(), "{route}");
    }
    assert_eq!(a.routes(ours).await.unwrap(), []);
    let others = a.routes(RouteFilter::default()).await.unwrap();
    assert!(others.iter().any(|route| route.destination == net("192.0.2.0/24")), "the kernel's own stay");
}

#[tokio::test]
async fn replacing_a_route_changes_its_hops_and_leaves_other_owners_alone() {
    let ((_, a, left), _) = pair().await;
    for (destination, first, second) in
        [("10.1.0.0/16", "192.0.2.2", "192.0.2.3"), ("fd00:10::/32", "2001:db8::2", "2001:db8::3")]
    {
        let mut route = Route {
            protocol: PROTOCOL,
            ..Route::unicast(
                net(destination),
                vec![NextHop::on_link(ip(first), left), NextHop::on_link(ip(second), left)],
            )
        };
        a.replace_route(&route).await.unwrap();
        route.next_hops.remove(0);
        a.replace_route(&route).await.unwrap();
        let filter = RouteFilter { protocol: Some(PROTOCOL), ..RouteFilter::default() };
        let listed = a.routes(filter).await.unwrap();
        assert_eq!(listed.iter().filter(|r| r.destination == net(destination)).count(), 1);
        assert!(listed.contains(&route.clone().normalised()), "{listed:?}");
        // Another owner's route of that destination is not ours to delete.
        let foreign = Route { protocol: 186, ..route.clone() };
        assert!(!a.delete_route(&foreign).await.unwrap());
        assert!(a.delete_route(&route).await.unwrap());
    }
    let nowhere = Route::unicast(net("10.9.0.0/16"), vec![NextHop::via(ip("203.0.113.9"))]);
    let error = a.replace_route(&nowhere).await.unwrap_err();
    assert!(error.to_string().contains("10.9.0.0/16") && error.to_string().contains("next hop"), "{error}");
    let hopless = a.replace_route(&Route::unicast(net("10.9.0.0/16"), vec![])).await;
    assert!(matches!(hopless, Err(Error::Invalid { .. })));
}

#[tokio::test]
async fn rules_are_added_once_and_deleted() {
    let (_, a) = namespace().await;
    for family in [Family::V4, Family::V6] {
        let from = if family == Family::V4 { net("10.1.0.0/16") } else { net("fd00:10::/32") };
        let rule = Rule {
            mark: Some((0x1e00, 0xff00)),
            from: Some(from),
            protocol: PROTOCOL,
            ..Rule::new(family, 100, 5400)
        };
        a.add_rule(&rule).await.unwrap();
        a.add_rule(&rule).await.unwrap();
        let same = a.rules().await.unwrap().into_iter().filter(|listed| *listed == rule).count();
        assert_eq!(same, 1, "{:?}", a.rules().await.unwrap());
        assert!(a.delete_rule(&rule).await.unwrap());
        assert!(!a.delete_rule(&rule).await.unwrap());
    }
}

#[tokio::test]
async fn permanent_neighbours_of_both_families_replace_and_go() {
    let ((_, a, left), _) = pair().await;
    for address in ["192.0.2.9", "2001:db8::9"] {
        a.set_neighbour(left, ip(address), MacAddr([2, 0, 0, 0, 0, 8])).await.unwrap();
        a.set_neighbour(left, ip(address), MacAddr([2, 0, 0, 0, 0, 9])).await.unwrap();
        let listed = a.neighbours(Some(left)).await.unwrap();
        let entry = listed.iter().find(|entry| entry.address == ip(address)).unwrap();
        assert_eq!((entry.mac, entry.permanent), (Some(MacAddr([2, 0, 0, 0, 0, 9])), true));
        assert!(a.delete_neighbour(left, ip(address)).await.unwrap());
        assert!(!a.delete_neighbour(left, ip(address)).await.unwrap());
    }
}

#[tokio::test]
async fn a_vxlan_device_collects_metadata_and_is_adopted_only_if_it_is_the_one_meant() {
    let (_, a) = namespace().await;
    let spec =
        VxlanSpec { name: "vx0".into(), port: 8472, mtu: 1450, mac: Some(MacAddr([2, 0, 0, 0, 0, 1])) };
    let made = a.create_vxlan(&spec).await.unwrap();
    assert_eq!(made.vxlan, Some(VxlanSettings { port: 8472, collect_metadata: true }));
    assert_eq!((made.mtu, made.mac), (1450, spec.mac));
    let adopted = a.create_vxlan(&VxlanSpec { mtu: 1400, ..spec.clone() }).await.unwrap();
    assert_eq!((adopted.index, adopted.mtu), (made.index, 1400));
    let other_port = a.create_vxlan(&VxlanSpec { port: 4789, ..spec.clone() }).await;
    assert!(matches!(other_port, Err(Error::Conflict { .. })), "{other_port:?}");
    let settings = LinkSettings { no_arp: Some(true), up: Some(true), ..LinkSettings::default() };
    a.set_link(made.index, &settings).await.unwrap();
    let up = a.link("vx0").await.unwrap();
    assert!(up.up && up.no_arp);
    a.set_down(up.index).await.unwrap();
    let renamed = LinkSettings { name: Some("vx1".into()), ..LinkSettings::default() };
    a.set_link(up.index, &renamed).await.unwrap();
    assert_eq!(a.link("vx1").await.unwrap().index, up.index);
}

#[tokio::test]
async fn an_interface_moves_to_another_namespace() {
    let (_, a) = namespace().await;
    let (b_ns, b) = namespace().await;
    let (_, peer) = a.create_veth(&VethEnd::new("stays"), &VethEnd::new("moves")).await.unwrap();
    a.move_link(peer.index, &b_ns).await.unwrap();
    assert!(a.find_link("moves").await.unwrap().is_none());
    assert_eq!(b.link("moves").await.unwrap().mac, peer.mac);
}

#[tokio::test]
async fn sysctls_are_those_of_the_namespace() {
    let (_, a) = namespace().await;
    let (_, b) = namespace().await;
    assert_eq!(a.sysctl("net/ipv4/ip_forward").await.unwrap(), "0");
    a.set_sysctl("net/ipv4/ip_forward", "1").await.unwrap();
    assert_eq!(a.sysctl("net/ipv4/ip_forward").await.unwrap(), "1");
    assert_eq!(b.sysctl("net/ipv4/ip_forward").await.unwrap(), "0");
    let missing = a.set_sysctl("net/ipv4/conf/eth0.100/rp_filter", "0").await.unwrap_err();
    assert!(missing.is_not_found(), "{missing}");
    assert!(a.set_sysctl("kernel/hostname", "x").await.is_err());
}

#[tokio::test]
async fn a_bound_namespace_is_found_by_its_path_until_it_is_removed() {
    let directory = tempfile_directory();
    let path = directory.join("ns");
    let made = NetNs::create(&path).unwrap();
    assert!(NetNs::create(&path).is_err(), "a name is used once");
    let found = NetNs::open(&path).unwrap();
    assert_eq!(found.inode().unwrap(), made.inode().unwrap());
    assert_ne!(found.inode().unwrap(), NetNs::current().unwrap().inode().unwrap());
    NetNs::remove(&path).unwrap();
    NetNs::remove(&path).unwrap();
    assert!(!path.exists());
    assert!(NetNs::open(&path).unwrap_err().is_not_found());
    std::fs::write(&path, "").unwrap();
    assert!(NetNs::open(&path).is_err(), "a plain file is no namespace");
    std::fs::remove_file(&path).unwrap();
    std::fs::remove_dir(&directory).unwrap();
}

/// A directory of this test's own.
fn tempfile_directory() -> std::path::PathBuf {
    let seed = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos();
    let directory = std::env::temp_dir().join(format!("tombolo-netns-{}-{seed:x}", std::process::id()));
    std::fs::create_dir(&directory).unwrap();
    directory
}

#[tokio::test]
async fn work_inside_a_namespace_leaves_the_caller_outside() {
    let (ns, _) = namespace().await;
    let outside = NetNs::current().unwrap().inode().unwrap();
    let inside = ns.run(|| NetNs::current().unwrap().inode().unwrap()).unwrap();
    assert_eq!(inside, ns.inode().unwrap());
    let called = ns.call(|| NetNs::current().unwrap().inode().unwrap()).await.unwrap();
    assert_eq!(called, inside);
    assert_eq!(NetNs::current().unwrap().inode().unwrap(), outside);
    assert!(ns.run(|| -> () { panic!("the work fails") }).is_err());
    assert!(ns.call(|| -> () { panic!("the work fails") }).await.is_err());
    ns.run(|| TcpListener::bind("[::1]:80").unwrap()).unwrap();
}

#[tokio::test]
async fn changes_are_reported_as_they_happen() {
    let ((_, a, left), _) = pair().await;
    let mut changes =
        a.changes(Watch { links: true, addresses: true, routes: true, ..Watch::default() }).unwrap();
    a.set_link(left, &LinkSettings { mtu: Some(1334), ..LinkSettings::default() }).await.unwrap();
    let options = AddressOptions { no_dad: true, no_prefix_route: true };
    a.add_address(left, net("198.51.100.1/32"), options).await.unwrap();
    let route =
        Route { protocol: PROTOCOL, ..Route::unicast(net("fd00:10::/32"), vec![NextHop::link(left)]) };
    a.replace_route(&route).await.unwrap();
    a.delete_route(&route).await.unwrap();
    a.delete_address(left, net("198.51.100.1/32")).await.unwrap();
    a.delete_link("left").await.unwrap();

    let mut seen = Vec::new();
    let all = async {
        while let Some(change) = changes.next().await {
            let last = matches!(&change, Change::LinkGone(link) if link.name == "left");
            seen.push(change);
            if last {
                break;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(5), all).await.expect("the link's end is reported");
    let route = route.normalised();
    assert!(
        seen.iter().any(|c| matches!(c, Change::Link(l) if l.name == "left" && l.mtu == 1334)),
        "{seen:?}"
    );
    assert!(seen.iter().any(|c| matches!(c, Change::Address(a) if a.address == net("198.51.100.1/32"))));
    assert!(seen.iter().any(|c| matches!(c, Change::AddressGone(a) if a.address == net("198.51.100.1/32"))));
    assert!(seen.contains(&Change::Route(route.clone())), "{seen:?}");
    assert!(seen.contains(&Change::RouteGone(route)), "{seen:?}");
}

#[tokio::test]
async fn a_reader_that_falls_behind_is_told_that_changes_were_lost() {
    let (_, a) = namespace().await;
    let mut changes = a.changes(Watch { routes: true, ..Watch::default() }).unwrap();
    // More changes than the queue and the socket's buffer hold, while nobody reads.
    let mut count = 0u32;
    while count < 12_000 {
        let destination = format!("10.{}.{}.0/24", count / 256 % 256, count % 256);
        let route = Route { kind: RouteKind::Blackhole, ..Route::unicast(net(&destination), vec![]) };
        a.replace_route(&route).await.unwrap();
        count += 1;
    }
    let lost = async {
        while let Some(change) = changes.next().await {
            if change == Change::Lost {
                return true;
            }
        }
        false
    };
    assert!(tokio::time::timeout(Duration::from_secs(20), lost).await.expect("the loss is reported"));
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_taken_side_by_side_by_clones_of_one_handle_do_not_disturb_each_other() {
    let (_, a) = namespace().await;
    for third in 0..200 {
        let route = Route {
            kind: RouteKind::Blackhole,
            ..Route::unicast(net(&format!("10.7.{third}.0/24")), vec![])
        };
        a.replace_route(&route).await.unwrap();
    }
    let lists = (0..16).map(|n| {
        let a = a.clone();
        tokio::spawn(async move {
            // Every other one is given up at once; the next must not suffer from it.
            let all = a.routes(RouteFilter::default());
            if n % 2 == 0 {
                all.await.map(|routes| routes.len())
            } else {
                drop(futures_poll_once(all).await);
                Ok(0)
            }
        })
    });
    for list in lists.collect::<Vec<_>>() {
        let found = list.await.unwrap().unwrap();
        assert!(found == 0 || found >= 200, "{found}");
    }
}

/// Polls once and gives the future up.
async fn futures_poll_once<F: Future>(future: F) -> Option<F::Output> {
    let mut future = Box::pin(future);
    std::future::poll_fn(move |context| {
        let outcome = future.as_mut().poll(context);
        std::task::Poll::Ready(match outcome {
            std::task::Poll::Ready(value) => Some(value),
            std::task::Poll::Pending => None,
        })
    })
    .await
}

/// The kernel accepts an IPv6 address before it delivers to it: the first packet would be lost.
#[tokio::test(flavor = "multi_thread")]
async fn an_address_is_delivered_to_when_the_call_returns() {
    for _ in 0..20 {
        let ((a_ns, a, left), (b_ns, b, right)) = pair().await;
        let options = AddressOptions { no_dad: true, no_prefix_route: true };
        let (near, far) = (ip("2001:db8:9::1"), ip("2001:db8:9::2"));
        for (netlink, link, own, other) in [(&a, left, near, far), (&b, right, far, near)] {
            netlink.replace_route(&Route::unicast(other.into(), vec![NextHop::link(link)])).await.unwrap();
            netlink.add_address(link, own.into(), options).await.unwrap();
        }
        let receiver = b_ns.run(|| UdpSocket::bind((far, 7000)).unwrap()).unwrap();
        receiver.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let sender = a_ns.run(|| UdpSocket::bind((near, 0)).unwrap()).unwrap();
        sender.send_to(b"first", (far, 7000)).unwrap();
        assert_eq!(receiver.recv(&mut [0; 16]).unwrap(), 5);
    }
}

#[tokio::test]
async fn a_batch_is_carried_in_order_and_each_write_has_its_own_outcome() {
    // More than fit into one message to the kernel.
    const PREFIXES: u8 = 200;
    let ((_a, netlink, link), _b) = pair().await;
    let single = |id, via: &str| NextHopObject {
        id,
        protocol: PROTOCOL,
        kind: NextHopKind::Single { via: ip(via), link },
    };
    let over = |destination: String, object| Route {
        protocol: PROTOCOL,
        object: Some(object),
        ..Route::unicast(net(&destination), vec![])
    };
    // Objects before the routes that name them, in one batch.
    let mut writes =
        vec![Write::ReplaceNextHop(single(7, "192.0.2.2")), Write::ReplaceNextHop(single(8, "2001:db8::2"))];
    for index in 0..PREFIXES {
        writes.push(Write::ReplaceRoute(over(format!("10.0.{index}.0/24"), 7)));
        writes.push(Write::ReplaceRoute(over(format!("fd00:{index:x}::/32"), 8)));
    }
    // Bad ones among them: a next hop that is on no link, an object that does not exist, none at all, what is not there.
    let lost = Route::unicast(net("10.9.0.0/16"), vec![NextHop::via(ip("198.51.100.1"))]);
    let bad = [
        Write::ReplaceRoute(lost.clone()),
        Write::ReplaceRoute(over("fd00:ffff::/32".into(), 99)),
        Write::ReplaceRoute(Route::unicast(net("10.8.0.0/16"), vec![])),
        Write::DeleteRoute(lost),
        Write::DeleteNextHop(99),
    ];
    let at = [0, 3, 127, 128, writes.len() + 4];
    for (place, write) in at.iter().zip(&bad) {
        writes.insert(*place, write.clone());
    }
    let outcomes = netlink.write_all(&writes).await;
    assert_eq!(outcomes.len(), writes.len());
    for (place, (write, outcome)) in writes.iter().zip(&outcomes).enumerate() {
        match (at.iter().position(|bad| *bad == place), outcome) {
            (None, Ok(true)) | (Some(3 | 4), Ok(false)) => {}
            (Some(0), Err(error)) => assert!(error.to_string().contains("10.9.0.0/16"), "{error}"),
            (Some(1), Err(error)) => assert!(error.to_string().contains("fd00:ffff::/32"), "{error}"),
            (Some(2), Err(Error::Invalid { .. })) => {}
            _ => panic!("{place}: {write:?}: {outcome:?}"),
        }
    }
    let ours = RouteFilter { protocol: Some(PROTOCOL), ..RouteFilter::default() };
    assert_eq!(netlink.routes(ours).await.unwrap().len(), 2 * usize::from(PREFIXES));

    // Routes go before what they name: the kernel would else take them along, and each delete find nothing.
    let mut writes: Vec<Write> =
        netlink.routes(ours).await.unwrap().into_iter().map(Write::DeleteRoute).collect();
    writes.extend([7, 8].map(Write::DeleteNextHop));
    let outcomes = netlink.write_all(&writes).await;
    assert!(outcomes.iter().all(|outcome| matches!(outcome, Ok(true))), "{outcomes:?}");
    assert_eq!(netlink.routes(ours).await.unwrap(), []);
    assert!(netlink.next_hop_objects().unwrap().list(PROTOCOL).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_batch_that_is_wholly_refused_loses_no_answer() {
    let (_namespace, netlink) = namespace().await;
    let refused = |index: u16| {
        let [high, low] = index.to_be_bytes();
        let destination = format!("10.{high}.{low}.0/24");
        Write::ReplaceRoute(Route::unicast(net(&destination), vec![NextHop::via(ip("198.51.100.1"))]))
    };
    let writes: Vec<Write> = (0..1000).map(refused).collect();
    for outcome in netlink.write_all(&writes).await {
        let error = outcome.unwrap_err();
        assert_ne!(error.errno(), Some(libc::ENOBUFS), "{error}");
    }
}

#[tokio::test]
async fn default_routes_are_followed_without_listing_the_table_they_are_in() {
    const PREFIXES: u16 = 2000;
    let ((_a, netlink, link), _b) = pair().await;
    let watch = Watch { links: true, addresses: true, default_routes: true, ..Watch::default() };
    let mut changes = netlink.changes(watch).unwrap();
    let default = |destination: &str, via: &str| {
        Route::unicast(net(destination), vec![NextHop { link: Some(link), ..NextHop::via(ip(via)) }])
            .normalised()
    };
    let (v4, v6) = (default("0.0.0.0/0", "192.0.2.2"), default("::/0", "2001:db8::2"));
    netlink.replace_route(&v4).await.unwrap();
    let mut defaults = DefaultRoutes::of(TABLE_MAIN);
    defaults.read(&netlink).await.unwrap();
    assert!(defaults.iter().eq([&v4]));

    // A long table, of which nothing is told.
    let writes: Vec<Write> = (0..PREFIXES)
        .map(|index| format!("10.{}.{}.0/24", index >> 8, index & 255))
        .map(|prefix| Write::ReplaceRoute(Route::unicast(net(&prefix), vec![NextHop::link(link)])))
        .collect();
    assert!(netlink.write_all(&writes).await.iter().all(Result::is_ok));
    let listed = netlink.listed();
    netlink.replace_route(&v6).await.unwrap();
    // A pod comes: interfaces and addresses, on which no default route is.
    let far = VethEnd::new("pod-far");
    let (near, _far) = netlink.create_veth(&VethEnd::new("pod"), &far).await.unwrap();
    netlink.set_up(near.index).await.unwrap();
    let address = net("10.200.0.1/32");
    netlink.add_address(near.index, address, AddressOptions::default()).await.unwrap();
    let mut told = Vec::new();
    let until = |told: &mut Vec<Change>, defaults: &mut DefaultRoutes, change: Change| {
        defaults.note(&change);
        told.push(change);
    };
    while !matches!(told.last(), Some(Change::Address(found)) if found.address == address) {
        until(&mut told, &mut defaults, changes.next().await.unwrap());
    }
    defaults.read(&netlink).await.unwrap();
    assert!(defaults.iter().eq([&v4, &v6]), "{defaults:?}");
    let routes = told.iter().filter(|change| matches!(change, Change::Route(_) | Change::RouteGone(_)));
    assert!(routes.eq([&Change::Route(v4.clone()), &Change::Route(v6.clone())]), "{told:?}");
    // Making the pair lists links; the routes are not among what was listed.
    assert!(
        netlink.listed() - listed < u64::from(PREFIXES) / 10,
        "{} objects listed",
        netlink.listed() - listed
    );

    // Its interface goes down, and the kernel does not say that the IPv4 route went with it.
    let down = LinkSettings { up: Some(false), ..LinkSettings::default() };
    netlink.set_link(link, &down).await.unwrap();
    while !matches!(told.last(), Some(Change::Link(found)) if found.index == link && !found.up) {
        until(&mut told, &mut defaults, changes.next().await.unwrap());
    }
    defaults.read(&netlink).await.unwrap();
    assert_eq!(defaults.iter().count(), 0);
}
