//! The walk to another cluster names the step that fails, over a real etcd with TLS and roles.
#![cfg(test)]

mod rig;

use rig::agent::{Agent, id, name};
use rig::relay::World;
use rig::{Etcd, Pki, until};
use std::path::Path;
use tombolo_base::ids::MaxClusters;
use tombolo_clustermesh::troubleshoot::{Viewpoint, Walk, Way, walk};
use tombolo_clustermesh::wire::ServicePreference;

fn from(folder: &Path) -> Viewpoint {
    Viewpoint {
        folder: folder.to_owned(),
        own: name("b"),
        own_id: Some(id(2)),
        max: MaxClusters::C255,
        allow_plaintext: false,
        preference: ServicePreference::default(),
        relay: None,
    }
}

/// The steps that were taken, and the failing ones with what they say.
async fn walked(view: &Viewpoint) -> (Vec<String>, Vec<(String, String)>) {
    let walks = walk(view, Some("a")).await.unwrap();
    assert_eq!(walks.len(), 1);
    let steps = &walks[0].steps;
    let failing = steps.iter().filter(|step| !step.ok);
    let failing = failing.map(|step| (step.step.clone(), step.detail.clone())).collect();
    (steps.iter().map(|step| step.step.clone()).collect(), failing)
}

/// The last step is the one that fails, and says this.
async fn ends_at(view: &Viewpoint, step: &str, text: &str) {
    let (steps, failing) = walked(view).await;
    assert_eq!(steps.last().map(String::as_str), Some(step), "{failing:?}");
    let told = failing.last().unwrap();
    assert!(told.1.contains(text) && !told.1.contains('\n'), "{told:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_broken_step_is_named_with_what_to_do() {
    let (pki, folder) = (Pki::new(), tempfile::tempdir().unwrap());
    let remotes = folder.path().join("remotes");
    let view = from(&remotes);
    let told = walk(&view, None).await.unwrap_err().to_string();
    assert!(told.contains("cannot list the folder"), "{told}");
    std::fs::create_dir(&remotes).unwrap();
    assert_eq!(walk(&view, None).await.unwrap(), Vec::<Walk>::new());
    ends_at(&view, "file", "there is no file for it").await;
    let file = remotes.join("a.yaml");
    std::fs::write(&file, "endpoints: [").unwrap();
    ends_at(&view, "file", "a.yaml").await;

    let etcd = Etcd::start(&pki, "a").await;
    let good = etcd.file_text(&pki, "remote");
    let write = |text: &str| std::fs::write(&file, text).unwrap();
    write(&good.replace("remote.crt", "missing.crt"));
    ends_at(&view, "certificates", "missing.crt").await;
    let port = etcd.port.to_string();
    write(&good.replace(&format!("127.0.0.1:{port}"), &format!("no-such-host.invalid:{port}")));
    ends_at(&view, "name", "check the name").await;
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    write(&good.replace(&port, &closed.to_string()));
    ends_at(&view, "tcp", "does etcd run").await;
    let stranger = Pki::new();
    write(
        &good.replace(
            &pki.path("ca.crt").display().to_string(),
            &stranger.path("ca.crt").display().to_string(),
        ),
    );
    ends_at(&view, "tls", "no CA in trusted-ca-file").await;
    write(&good.replace("remote.crt", "nobody.crt").replace("remote.key", "nobody.key"));
    ends_at(&view, "etcd", "permission denied").await;

    write(&good);
    let (steps, failing) = walked(&view).await;
    assert_eq!(steps.last().map(String::as_str), Some("configuration"));
    let failing: Vec<&str> = failing.iter().map(|(step, _)| step.as_str()).collect();
    assert_eq!(failing, ["heartbeat", "configuration"], "an empty etcd");

    let agent = Agent::start(&etcd, &pki, 1, folder.path(), |_| {});
    agent.publish(&["n1", "never"]).await;
    let mut status = agent.handle.status();
    status.wait_for(|status| status.published && status.leader).await.unwrap();
    let (_, failing) = walked(&view).await;
    assert!(failing.iter().all(|(step, _)| step == "canaries") && failing.len() == 4, "{failing:?}");
    agent.handle.set_nodes(["n1".into()]);
    status.wait_for(|status| status.canaries).await.unwrap();
    let (steps, failing) = walked(&view).await;
    assert_eq!(failing, []);
    assert_eq!(steps[..6], ["file", "certificates", "name", "tcp", "tls", "etcd"]);
    // One address that does not answer is told, and the walk goes on at the other.
    write(&good.replace("endpoints:\n", &format!("endpoints:\n- https://127.0.0.1:{closed}\n")));
    let (steps, failing) = walked(&view).await;
    assert_eq!((steps.last().map(String::as_str), failing.len()), (Some("canaries"), 1));
    // A name that no resolver knows, with its address in the file.
    let port = format!(":{}", etcd.port);
    let named = good.replace(&format!("127.0.0.1{port}"), &format!("a.mesh.invalid{port}"));
    write(&format!("{named}cilium-host-aliases: [{{hostname: a.mesh.invalid, ips: [127.0.0.1]}}]\n"));
    assert_eq!(walked(&view).await.1, []);
    write(&named);
    ends_at(&view, "name", "check the name in the file").await;
    write(&good);
    let same = Viewpoint { own_id: Some(id(1)), ..view };
    ends_at(&same, "configuration", "our own id 1").await;
    agent.stop().await;
}

/// An agent with `clustermesh.relay`, and one whose file names the own etcd, walk where they read: the mirror.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn through_a_relay_the_mirror_is_walked_to_and_its_relay_is_asked() {
    let mut world = World::new().await;
    let set = Viewpoint { relay: Some(world.b.config(&world.pki, "admin-b")), ..from(&world.remotes()) };
    let named = from(&world.through("agent"));
    // A word of nobody, and no mirror.
    let (steps, failing) = walked(&set).await;
    assert_eq!(steps.last().map(String::as_str), Some("configuration"));
    assert!(failing.last().unwrap().1.contains("no relay has mirrored"), "{failing:?}");
    let relay = world.relay("r1").await;
    relay.complete("a").await;
    until("its word and its heartbeat", async || walked(&set).await.1.is_empty()).await;
    for view in [&set, &named] {
        let walks = walk(view, Some("a")).await.unwrap();
        let step = walks[0].steps.iter().find(|step| step.step == "relay").unwrap();
        assert_eq!((walks[0].way, step.ok), (Way::Mirror, true), "{walks:?}");
        assert!(step.detail.contains("the relay r1 confirms the mirror"), "{step:?}");
        assert!(walks[0].ok() && walks[0].steps.iter().any(|step| step.at.starts_with("cilium/cache/")));
        assert!(walks[0].steps.iter().all(|step| !step.at.contains(&world.a.port.to_string())), "{walks:?}");
    }
    let direct = walk(&from(&world.remotes()), Some("a")).await.unwrap();
    assert_eq!(direct[0].way, Way::Direct);
    // What the relay cannot reach fails here, too.
    world.a.stop();
    for view in [&set, &named] {
        until("the relay's word", async || walked(view).await.1.iter().any(|(step, _)| step == "relay"))
            .await;
        let (_, failing) = walked(view).await;
        assert!(failing[0].1.contains("the relay r1 does not confirm it"), "{failing:?}");
    }
    relay.kill().await;
    let gone = async |view| walked(view).await.1.iter().any(|(_, told)| told.contains("no relay is elected"));
    until("the last report to end", async || gone(&set).await && gone(&named).await).await;
}
