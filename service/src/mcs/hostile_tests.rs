//! A cluster that exports what it likes harms its own imports and nothing else; objects of this cluster take no Service's
//! address.

use super::*;

fn many(ports: usize) -> ExportSpec {
    let port = |n: usize| port(&format!("p{n}"), u16::try_from(n + 1).unwrap());
    ExportSpec {
        ports: (0..ports).map(port).collect(),
        families_ipv4: vec![true, false],
        ..ExportSpec::default()
    }
}

fn world() -> World {
    World { namespaces: [("demo".into(), true)].into(), ..World::new() }
}

/// Steps of planner and elected agent until nothing moves.
fn settle(world: &World, run: &mut Run, range: &ClusterSetRange) -> Vec<String> {
    run.step(world, 0);
    world.lead(run, range);
    run.step(world, 0);
    world.lead(run, range)
}

#[test]
fn exports_beyond_a_clusters_part_are_left_out_and_told() {
    let (world, range) = (world(), range());
    let mut run = Run::new(&world, range.clone());
    let name = |n: usize| named("demo", &format!("m{n:03}"));
    for n in 0..100 {
        world.remote.1.upsert(theirs(&name(n), "aa", 1, many(1024)));
    }
    // Others' come after it in every order there is; one is the same name.
    let (honest, both) = (named("demo", "web"), name(0));
    world.remote.1.upsert(theirs(&honest, "west", 9, spec(&[("http", 80)])));
    world.remote.1.upsert(theirs(&both, "west", 9, spec(&[("mine", 9999)])));
    settle(&world, &mut run, &range);
    let imports = run.imports.snapshot();
    assert_eq!(imports.get(&honest).map(|row| row.ips.len()), Some(2));
    assert!(imports.get(&both).unwrap().spec.ports.iter().any(|port| port.port == 9999));
    // 32 of 128 ports each are 4096.
    assert!(imports.get(&name(31)).is_some() && imports.get(&name(32)).is_none());
    let ports: usize = rows(&world.services.0, |_| true).iter().map(|row| row.ports.len()).sum();
    assert_eq!(ports, 4096 + 2);
    let problems = run.planner.problems();
    assert_eq!(problems.len(), 1);
    assert!(
        problems[0].starts_with("cluster:aa: 68 of its 100 exports are left out, demo/m032"),
        "{problems:?}"
    );
    // Less of one makes room for others.
    world.remote.1.upsert(theirs(&name(0), "aa", 1, many(0)));
    run.step(&world, 0);
    assert!(run.imports.snapshot().get(&name(32)).is_none());
    world.remote.1.upsert(theirs(&name(1), "aa", 1, many(1)));
    run.step(&world, 0);
    assert!(run.imports.snapshot().get(&name(32)).is_some());
    for n in 32..100 {
        world.remote.1.remove(&(name(n), cluster("aa")));
    }
    run.step(&world, 0);
    assert_eq!(run.planner.problems(), [] as [String; 0]);
}

#[test]
fn what_one_cluster_alone_exports_gets_half_of_the_range() {
    let (world, range) = (world(), range());
    let mut run = Run::new(&world, range.clone());
    let name = |n: usize| named("demo", &format!("m{n:03}"));
    for n in 0..300 {
        world.remote.1.upsert(theirs(&name(n), "aa", 1, spec(&[("http", 80)])));
    }
    let problems = settle(&world, &mut run, &range);
    let four = |run: &Run| {
        let imports = run.imports.snapshot();
        imports.iter().filter(|row| row.ips.iter().any(IpAddr::is_ipv4)).count()
    };
    assert_eq!(four(&run), 127);
    assert!(
        problems.iter().any(|p| p.contains("cluster aa: 173 imports get no IPv4 address")),
        "{problems:?}"
    );
    // The rest is for others, and for what this cluster exports itself.
    for n in 0..100 {
        world.remote.1.upsert(theirs(&named("demo", &format!("z{n}")), "west", 9, spec(&[("http", 80)])));
    }
    for n in 0..27 {
        let name = named("demo", &format!("own{n}"));
        world.services.1.upsert(ServiceRow { cluster_ips: vec![], ..service(name.clone()) });
        world.exports.1.upsert(own(&name));
    }
    settle(&world, &mut run, &range);
    assert_eq!(four(&run), 254);
    // What was given stays, also where the other exporters go and leave one alone.
    let shared = named("demo", "both");
    world.services.1.remove(&named("demo", "own0"));
    for from in ["aa", "west"] {
        world.remote.1.upsert(theirs(&shared, from, 1, spec(&[("http", 80)])));
    }
    settle(&world, &mut run, &range);
    let ips = |run: &Run| run.imports.snapshot().get(&shared).unwrap().ips.clone();
    let before = ips(&run);
    assert_eq!(before.len(), 2);
    world.remote.1.remove(&(shared.clone(), cluster("west")));
    settle(&world, &mut run, &range);
    assert_eq!(ips(&run), before);
}

#[test]
fn an_import_has_no_address_of_a_service() {
    let (world, range, web) = (world(), range(), named("demo", "web"));
    let mut run = Run::new(&world, range.clone());
    let dns = named("kube-system", "kube-dns");
    let address = |text: &str| text.parse::<IpAddr>().unwrap();
    let ask = |text: &str| {
        let row = ImportRequest { source: Source::Manifests, name: web.clone(), ips: vec![address(text)] };
        world.requests.1.upsert(row);
    };
    let condition = |run: &Run| run.imports.snapshot().get(&web).unwrap().conditions[0].clone();
    world.remote.1.upsert(theirs(&web, "west", 5, spec(&[("http", 80)])));
    let external = vec![address("198.51.100.9"), address("10.111.0.1")];
    world.services.1.upsert(ServiceRow { external_ips: external, ..service(dns.clone()) });
    for text in ["10.101.0.9", "198.51.100.9"] {
        ask(text);
        let problems = settle(&world, &mut run, &range);
        assert!(
            problems.iter().any(|p| p.contains("belongs to service kube-system/kube-dns")),
            "{problems:?}"
        );
        let said = condition(&run);
        assert_eq!((said.status, said.reason.as_str()), ("False", "AddressInUse"));
        assert!(said.message.contains(text) && said.message.contains("kube-system/kube-dns"), "{said:?}");
        assert!(run.imports.snapshot().get(&web).unwrap().ips.is_empty());
    }
    // Nor one of the range that a Service has.
    world.requests.1.remove(&web);
    settle(&world, &mut run, &range);
    let ips = |run: &Run| run.imports.snapshot().get(&web).unwrap().ips.clone();
    assert!(ips(&run).contains(&address("10.111.0.2")), "{:?}", ips(&run));
    // A Service that comes later has it, whatever was given before.
    world
        .services
        .1
        .upsert(ServiceRow { cluster_ips: vec![address("10.111.0.2")], ..service(named("demo", "late")) });
    run.step(&world, 0);
    assert!(!ips(&run).contains(&address("10.111.0.2")));
    settle(&world, &mut run, &range);
    assert!(ips(&run).contains(&address("10.111.0.3")), "{:?}", ips(&run));
}
