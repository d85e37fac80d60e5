//! Root tests of the lab runner on tiny topologies. They run one after the other, print a line each, and fail where
//! they cannot run. The lab's processes are this binary itself, started with the hidden commands.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test without the test harness, which the lints do not see as one"
)]

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use tombolo_containerlab::cli::{HiddenCommand, LabArgs};
use tombolo_containerlab::runner::progress::Progress;
use tombolo_containerlab::runner::protocol::NodeAction;
use tombolo_containerlab::runner::{Lab, Outcome};
use tombolo_containerlab::workload::WorkloadCommand;

#[derive(Parser)]
enum Command {
    Lab(LabArgs),
    #[command(flatten)]
    Hidden(HiddenCommand),
    #[command(flatten)]
    Workload(WorkloadCommand),
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    if arguments.get(1).is_some_and(|word| word.starts_with("lab")) {
        return match Command::parse() {
            Command::Lab(lab) => lab.run(),
            Command::Hidden(hidden) => hidden.run(),
            Command::Workload(workload) => block_on(workload.run()),
        };
    }
    let filter = arguments.iter().skip(1).find(|word| !word.starts_with('-')).cloned().unwrap_or_default();
    if arguments.iter().any(|word| word == "--list") {
        return ExitCode::SUCCESS;
    }
    assert!(nix::unistd::geteuid().is_root(), "these tests make namespaces: run them as root");
    let tests: &[(&str, fn())] = &[
        ("two_hosts_reach_each_other", two_hosts_reach_each_other),
        ("a_failing_node_is_undone", a_failing_node_is_undone),
        ("a_command_that_cannot_run_is_told", a_command_that_cannot_run_is_told),
        ("what_cannot_be_deployed_is_left_out", what_cannot_be_deployed_is_left_out),
        ("a_command_says_when_it_is_ready", a_command_says_when_it_is_ready),
        ("commands_are_supervised", commands_are_supervised),
        ("a_running_lab_follows_its_file", a_running_lab_follows_its_file),
        ("nodes_go_off_and_on", nodes_go_off_and_on),
        ("up_starts_what_does_not_run", up_starts_what_does_not_run),
        ("a_killed_supervisor_leaves_nothing", a_killed_supervisor_leaves_nothing),
        ("the_kubelet_runs_pods", the_kubelet_runs_pods),
        ("a_node_that_dies_is_not_ready", a_node_that_dies_is_not_ready),
    ];
    for (name, test) in tests.iter().filter(|(name, _)| name.contains(&filter)) {
        let began = Instant::now();
        test();
        println!("test {name} ... ok ({:.1} s)", began.elapsed().as_secs_f64());
    }
    ExitCode::SUCCESS
}

fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}

/// A topology file in a directory of its own; the lab is taken down whatever happens.
struct Bench {
    folder: tempfile::TempDir,
    name: String,
}

impl Bench {
    fn new(text: &str) -> Self {
        let folder = tempfile::Builder::new().prefix("tombolo-lab-test-").tempdir().unwrap();
        let name = format!("t{}", std::process::id());
        let bench = Self { folder, name };
        bench.write(text);
        bench
    }

    fn write(&self, text: &str) {
        std::fs::write(self.file(), text.replace("NAME", &self.name)).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn file(&self) -> PathBuf {
        self.path("tiny.clab.yml")
    }

    fn lab(&self) -> Lab {
        Lab::open(&self.file()).unwrap()
    }

    fn up(&self) -> Outcome {
        block_on(self.lab().up(&mut Progress::quiet())).unwrap_or_else(|error| panic!("up: {error}"))
    }

    fn down(&self) {
        let lab = self.lab();
        let residue = block_on(lab.down()).unwrap_or_else(|error| panic!("down: {error}"));
        assert!(residue.is_clean(), "left behind: {residue}");
        assert!(!lab.layout().dir().exists());
    }

    fn exec(&self, node: &str, argv: &[&str]) -> (bool, String) {
        let output = self.lab().exec_command(node, None, argv).unwrap().output().unwrap();
        let text =
            format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        (output.status.success(), text)
    }

    #[track_caller]
    fn check(&self, node: &str, argv: &[&str]) -> String {
        let (done, text) = self.exec(node, argv);
        assert!(done, "{node}: {argv:?} failed: {text}");
        text
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        if std::thread::panicking()
            && let Ok(lab) = Lab::open(&self.file())
        {
            for node in lab.topology.nodes.keys() {
                eprintln!("--- {node}\n{}", lab.log_tail(node, 20).unwrap_or_default());
                let init = std::fs::read_to_string(lab.layout().init_log(node)).unwrap_or_default();
                eprintln!("--- {node} init\n{init}");
            }
            let supervisor = std::fs::read_to_string(lab.layout().supervisor_log()).unwrap_or_default();
            eprintln!("--- supervisor\n{supervisor}");
            drop(block_on(lab.down()));
        }
    }
}

/// One echo request, answered or not within a second.
fn ping(address: &str) -> Vec<&str> {
    vec!["tombolo", "lab-probe", "ping", "--timeout-ms", "1000", address]
}

const TWO_HOSTS: &str = r"
name: NAME
topology:
  nodes:
    a:
      kind: linux
      exec:
        - ip addr add 192.0.2.1/24 dev eth1
        - ip addr add 2001:db8::1/64 dev eth1
    b:
      kind: linux
      exec:
        - ip addr add 192.0.2.2/24 dev eth1
        - ip addr add 2001:db8::2/64 dev eth1
  links:
    - endpoints: [a:eth1, b:eth1]
";

fn two_hosts_reach_each_other() {
    let bench = Bench::new(TWO_HOSTS);
    assert!(matches!(bench.up(), Outcome::Started(_)));
    bench.check("a", &ping("192.0.2.2"));
    bench.check("b", &ping("2001:db8::1"));
    assert_eq!(bench.check("a", &["hostname"]).trim(), "a");
    // Namespaces and file systems of its own.
    assert_eq!(
        bench.check("a", &["sh", "-c", "cat /proc/1/comm; ls /sys/class/net | xargs"]).lines().last(),
        Some("eth1 lo")
    );
    bench.check("a", &["sh", "-c", "echo only here > /etc/only-in-a && touch /run/x /tmp/x"]);
    assert!(!Path::new("/etc/only-in-a").exists());
    assert!(!bench.exec("b", &["test", "-e", "/etc/only-in-a"]).0);
    bench.check("a", &["test", "-d", "/sys/fs/bpf"]);
    assert_eq!(
        bench.check("a", &["stat", "-f", "-c", "%T", "/sys/fs/bpf", "/sys/fs/cgroup"]).trim(),
        "bpf_fs\ncgroup2fs"
    );
    // The command is in the node's cgroup, which is the root of what it sees.
    assert!(bench.check("a", &["cat", "/proc/self/cgroup"]).lines().any(|line| line == "0::/"));
    let exit = bench.lab().exec_command("a", None, &["sh", "-c", "exit 7"]).unwrap().status().unwrap();
    assert_eq!(exit.code(), Some(7));
    assert!(matches!(bench.up(), Outcome::Changed(text) if text == "nothing has changed"));
    let state = block_on(bench.lab().inspect()).unwrap();
    assert_eq!(state.nodes["a"].state, "running");
    assert_eq!(state.nodes["a"].interfaces, ["eth1"]);
    bench.down();
}

fn a_failing_node_is_undone() {
    let bench = Bench::new(
        "name: NAME\ntopology:\n  nodes:\n    good: {kind: linux, cmd: sleep infinity}\n    bad:\n      kind: linux\n      cmd: sh -c 'echo about to fail; exit 3'\n  links:\n    - endpoints: [good:eth1, bad:eth1]\n",
    );
    let lab = bench.lab();
    let error = block_on(lab.up(&mut Progress::quiet())).unwrap_err().to_string();
    assert!(error.contains("node bad") && error.contains("exit status 3"), "{error}");
    assert!(error.contains("about to fail"), "the node's log is missing: {error}");
    assert!(!block_on(lab.is_running()));
    bench.down();
}

fn a_command_that_cannot_run_is_told() {
    let text =
        |node: &str| format!("name: NAME\ntopology:\n  nodes:\n    good: {{kind: linux}}\n    bad: {node}\n");
    let bench = Bench::new("");
    for (node, parts) in [
        (
            "{kind: linux, cmd: no-such-program --now}",
            &["node bad", "start no-such-program", "installed on the host"][..],
        ),
        (
            "{kind: linux, cmd: sleep infinity, exec: [\"sh -c 'echo what it said; exit 4'\"]}",
            &["node bad", "exit status 4", "end of its log", "what it said"],
        ),
        // On failure it is tried again; a success is an end, not a failure.
        ("{kind: linux, restart-policy: on-failure, cmd: sh -c 'exit 5'}", &["node bad", "exit status 5"]),
    ] {
        bench.write(&text(node));
        let error = block_on(bench.lab().up(&mut Progress::quiet())).unwrap_err().to_string();
        for part in parts {
            assert!(error.contains(part), "{part:?} is missing in {error}");
        }
        assert!(!block_on(bench.lab().is_running()));
        assert!(!bench.lab().layout().dir().exists(), "a failed start is undone");
    }
    bench.write(&text("{kind: linux, restart-policy: on-failure, cmd: 'true'}"));
    bench.up();
    let command = block_on(bench.lab().inspect()).unwrap().nodes["bad"].command.clone();
    assert_eq!((command.state.as_str(), command.restarts), ("ended", 0));
    // What ended as it may is well.
    assert!(matches!(bench.up(), Outcome::Changed(text) if text == "nothing has changed"));
    bench.down();
}

fn what_cannot_be_deployed_is_left_out() {
    let bench = Bench::new(
        "name: NAME
topology:
  nodes:
    a:
      kind: linux
      volumes: [data:/var/lib/data]
      exec: [ip addr add 192.0.2.1/24 dev eth1, ip addr add 198.51.100.1/24 dev eth2]
    b: {kind: linux, exec: [ip addr add 192.0.2.2/24 dev eth1]}
    srl: {kind: nokia_srlinux, binds: [license.key:/license]}
    other: {kind: linux, image: unheard-of}
  links:
    - endpoints: [a:eth1, b:eth1]
    - endpoints: [a:eth2, srl:e1-1]
    - endpoints: [a:eth3, other:eth1]
    - endpoints: [a:a-name-longer-than-linux-allows, b:eth3]
    - endpoints: [a:eth4, mgmt-net:a-mgmt]
",
    );
    std::fs::write(bench.path("lab.yaml"), "images: {frr: {}}\n").unwrap();
    let lab = bench.lab();
    for part in [
        "tiny.clab.yml:9: node srl",
        "tiny.clab.yml:10: node other: image \"unheard-of\" is not in the image table",
        "tiny.clab.yml:14: link a:eth3 - other:eth1 (veth): its node other is not deployed",
        "tiny.clab.yml:6: node a: volumes has no effect here",
    ] {
        assert!(lab.warnings.iter().any(|line| line.contains(part)), "{part} among {:#?}", lab.warnings);
    }
    let Outcome::Started(text) = bench.up() else { panic!("was running") };
    assert!(text.starts_with("2 nodes, 1 links; not deployed: node srl, node other, link"), "{text}");
    bench.check("a", &ping("192.0.2.2"));
    // The exec line that speaks of eth2 failed, which was to be expected.
    assert!(bench.check("a", &["ip", "-o", "link"]).lines().count() == 2);
    let refused = lab.exec_command("srl", None, &["true"]).unwrap_err().to_string();
    assert!(refused.contains("node srl: is not deployed"), "{refused}");
    assert!(matches!(bench.up(), Outcome::Changed(text) if text == "nothing has changed"));
    bench.down();
}

fn a_command_says_when_it_is_ready() {
    let says = |pause: &str| {
        let perl = format!(
            "socket(S, AF_UNIX, SOCK_DGRAM, 0); sleep {pause}; send(S, qq(STATUS=x\\nREADY=1), 0, sockaddr_un($ENV{{NOTIFY_SOCKET}})); sleep 1000"
        );
        format!(
            "name: NAME\ntopology:\n  nodes:\n    a:\n      kind: linux\n      image: i\n      cmd: perl -MSocket -e '{perl}'\n"
        )
    };
    let bench = Bench::new(&says("1"));
    std::fs::write(bench.path("lab.yaml"), "images: {i: {ready: {notify: true, timeout_secs: 5}}}\n")
        .unwrap();
    let began = Instant::now();
    bench.up();
    assert!(began.elapsed() >= Duration::from_secs(1), "up after {:?}", began.elapsed());
    assert!(block_on(bench.lab().inspect()).unwrap().nodes["a"].command.said_ready);
    bench.down();
    bench.write(&says("900"));
    std::fs::write(bench.path("lab.yaml"), "images: {i: {ready: {notify: true, timeout_secs: 1}}}\n")
        .unwrap();
    let error = block_on(bench.lab().up(&mut Progress::quiet())).unwrap_err().to_string();
    assert!(error.contains("node a: not ready after 1 s") && error.contains("READY=1"), "{error}");
    // One that dies before it has said anything does not count as up.
    bench.write(
        "name: NAME\ntopology: {nodes: {a: {kind: linux, image: i, cmd: sh -c 'sleep 0.2; exit 9'}}}\n",
    );
    std::fs::write(bench.path("lab.yaml"), "images: {i: {ready: {notify: true, timeout_secs: 20}}}\n")
        .unwrap();
    let error = block_on(bench.lab().up(&mut Progress::quiet())).unwrap_err().to_string();
    assert!(error.contains("does not stay up (exit status 9)"), "{error}");
    bench.down();
}

fn commands_are_supervised() {
    let bench = Bench::new(
        "name: NAME\ntopology:\n  nodes:\n    a:\n      kind: linux\n      env: {GREETING: hello}\n      cmd: sh -c 'echo $GREETING; echo $$ >> /var/lib/starts; exec sleep infinity'\n",
    );
    bench.up();
    let lab = bench.lab();
    assert_eq!(bench.check("a", &["wc", "-l", "/var/lib/starts"]).trim(), "1 /var/lib/starts");
    assert!(lab.log_tail("a", 10).unwrap().contains("hello"));
    let pid = |lab: &Lab| block_on(lab.inspect()).unwrap().nodes["a"].command.pid;
    let first = pid(&lab).unwrap();
    block_on(lab.kill_agent("a", false)).unwrap();
    until("the command runs again", || pid(&lab).is_some_and(|now| now != first));
    assert_eq!(block_on(lab.inspect()).unwrap().nodes["a"].command.restarts, 1);
    block_on(lab.stop_cmd("a")).unwrap();
    assert_eq!(block_on(lab.inspect()).unwrap().nodes["a"].command.state, "stopped");
    block_on(lab.start_cmd("a")).unwrap();
    until("the command runs after its start", || pid(&lab).is_some());
    block_on(lab.kill_agent("a", true)).unwrap();
    assert_eq!(block_on(lab.inspect()).unwrap().nodes["a"].command.state, "stopped");
    bench.down();
}

fn a_running_lab_follows_its_file() {
    let text = |greeting: &str, file: &str| {
        format!(
            "name: NAME\ntopology:\n  nodes:\n    a:\n      kind: linux\n      env: {{GREETING: {greeting}}}\n      binds: [\"{file}:/etc/bound:ro\"]\n      cmd: sh -c 'echo $GREETING $(cat /etc/bound) > /run/said; exec sleep infinity'\n    b:\n      kind: linux\n      cmd: sleep infinity\n"
        )
    };
    let bench = Bench::new("");
    std::fs::write(bench.path("one"), "first file").unwrap();
    std::fs::write(bench.path("two"), "second file").unwrap();
    bench.write(&text("hello", "one"));
    bench.up();
    let said = |expected: &str| {
        until(expected, || bench.exec("a", &["cat", "/run/said"]).1.trim() == expected);
    };
    said("hello first file");
    let untouched = block_on(bench.lab().inspect()).unwrap().nodes["b"].command.pid;
    bench.write(&text("goodbye", "two"));
    assert!(matches!(bench.up(), Outcome::Changed(text) if text == "changed: a"));
    said("goodbye second file");
    assert!(!bench.exec("a", &["sh", "-c", "echo x > /etc/bound"]).0, "a read-only bind was written");
    // The same path with another content counts as changed too.
    std::fs::write(bench.path("two"), "third file").unwrap();
    bench.up();
    said("goodbye third file");
    assert_eq!(block_on(bench.lab().inspect()).unwrap().nodes["b"].command.pid, untouched);
    bench.down();
}

fn nodes_go_off_and_on() {
    let bench = Bench::new(TWO_HOSTS);
    bench.up();
    let lab = bench.lab();
    bench.check("a", &ping("192.0.2.2"));
    bench.check("b", &["sh", "-c", "echo kept > /var/lib/kept"]);
    block_on(lab.power_off("b")).unwrap();
    assert!(bench.check("a", &["ip", "link", "show", "eth1"]).contains("NO-CARRIER"));
    assert!(bench.check("a", &["ip", "addr", "show", "eth1"]).contains("2001:db8::1/64"));
    assert!(!bench.exec("a", &ping("192.0.2.2")).0);
    assert!(!bench.exec("b", &["true"]).0, "a node that is off runs nothing");
    assert_eq!(block_on(lab.inspect()).unwrap().nodes["b"].state, "off");
    block_on(lab.power_on("b")).unwrap();
    bench.check("a", &ping("192.0.2.2"));
    bench.check("a", &ping("2001:db8::2"));
    assert_eq!(bench.check("b", &["cat", "/var/lib/kept"]).trim(), "kept");
    bench.down();
}

fn up_starts_what_does_not_run() {
    let text = TWO_HOSTS.replace("    b:\n", "    c: {kind: linux, cmd: sleep infinity}\n    b:\n").replace(
        "2001:db8::2/64 dev eth1\n",
        "2001:db8::2/64 dev eth1\n        - test ! -e /var/lib/broken\n",
    );
    let bench = Bench::new(&text);
    bench.up();
    let lab = bench.lab();
    block_on(lab.power_off("b")).unwrap();
    block_on(lab.stop_cmd("c")).unwrap();
    let Outcome::Changed(done) = bench.up() else { panic!("was built anew") };
    assert_eq!(done, "started again: c; switched on: b");
    bench.check("a", &ping("192.0.2.2"));
    assert_eq!(block_on(lab.inspect()).unwrap().nodes["c"].command.state, "running");
    // What a node is after it was off is written down for `down` to look for.
    let namespace = bench.check("b", &["readlink", "/proc/self/ns/net"]);
    let record = std::fs::read_to_string(lab.layout().namespaces()).unwrap();
    let inode = namespace.trim().trim_start_matches("net:[").trim_end_matches(']');
    assert!(record.lines().any(|line| line == format!("net {inode}")), "{namespace} in {record}");
    assert!(matches!(bench.up(), Outcome::Changed(text) if text == "nothing has changed"));
    // A node that does not start stays off, so that the next `up` tries again instead of taking it for running.
    bench.check("b", &["touch", "/var/lib/broken"]);
    block_on(lab.power_off("b")).unwrap();
    for _ in 0..2 {
        let error = block_on(bench.lab().up(&mut Progress::quiet())).unwrap_err().to_string();
        assert!(error.contains("node b") && error.contains("test ! -e"), "{error}");
        assert_eq!(block_on(lab.inspect()).unwrap().nodes["b"].state, "off");
    }
    bench.write(&text.replace("test ! -e", "echo"));
    assert!(matches!(bench.up(), Outcome::Changed(text) if text == "switched on: b"));
    bench.check("a", &ping("192.0.2.2"));
    // An init that dies takes its links with it, and with them the neighbours' ends.
    kill_init(&lab, "b");
    until("the node has died", || block_on(lab.inspect()).unwrap().nodes["b"].state.starts_with("failed"));
    assert!(matches!(bench.up(), Outcome::Started(_)));
    bench.check("a", &ping("2001:db8::2"));
    bench.down();
}

/// SIGKILL to a node's init, as if it had crashed.
fn kill_init(lab: &Lab, node: &str) {
    let boot = lab.layout().boot(node).display().to_string();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let command = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let Ok(pid) = entry.file_name().to_string_lossy().parse() else { continue };
        if String::from_utf8_lossy(&command).split('\0').any(|word| word == boot) {
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL)
                .unwrap();
            return;
        }
    }
    panic!("node {node} has no init");
}

fn a_node_that_dies_is_not_ready() {
    let bench = cluster_of_one_node();
    std::fs::write(bench.path("manifests/node.yaml"), "kind: Node\nmetadata: {name: n1}\n").unwrap();
    bench.up();
    let lab = bench.lab();
    let ready = || {
        let pods = block_on(lab.inspect()).unwrap().nodes["n1"].pods.clone();
        pods.len() == 2 && pods.iter().all(|pod| pod.ready)
    };
    until("both pods are ready", ready);
    let node = || std::fs::read_to_string(lab.layout().dir().join("one/manifests/node.yaml")).unwrap();
    kill_init(&lab, "n1");
    until("the node is marked", || node().contains("LabNodePoweredOff"));
    assert!(matches!(bench.up(), Outcome::Changed(text) if text == "switched on: n1"));
    until("the node is ready again", || node().contains("LabNodeUp"));
    until("the pods are ready again", ready);
    bench.down();
}

fn a_killed_supervisor_leaves_nothing() {
    let bench = Bench::new(
        "name: NAME\ntopology:\n  nodes:\n    a: {kind: linux, cmd: sleep infinity}\n    b: {kind: linux}\n  links:\n    - endpoints: [a:eth1, b:eth1]\n    - endpoints: [a:eth2, host:outside]\n",
    );
    bench.up();
    bench.check("a", &["ip", "link", "show", "eth2"]);
    assert!(!Path::new("/sys/class/net/outside").exists(), "a host link ends in the lab's own namespace");
    let supervisor = block_on(bench.lab().inspect()).unwrap().supervisor_pid;
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(supervisor), nix::sys::signal::Signal::SIGKILL)
        .unwrap();
    bench.down();
}

/// A cluster of one node; Debian's own plugins make the pods' network.
fn cluster_of_one_node() -> Bench {
    let bench = Bench::new(
        "name: NAME\ntopology:\n  nodes:\n    n1:\n      kind: linux\n      binds:\n        - __clabDir__/one/manifests:/etc/tombolo/manifests\n        - net.conflist:/etc/cni/net.d/10-net.conflist:ro\n",
    );
    let text = "clusters:\n  - {name: one, id: 1, manifests: [manifests], nodes: [n1], etcd: none}\n";
    std::fs::write(bench.path("lab.yaml"), text).unwrap();
    let chain = r#"{"cniVersion": "1.0.0", "name": "net", "plugins": [
        {"type": "ptp", "ipam": {"type": "host-local",
            "ranges": [[{"subnet": "10.9.0.0/24"}], [{"subnet": "fd09::/64"}]],
            "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]}},
        {"type": "tuning", "sysctl": {"net.core.somaxconn": "777"}}]}"#;
    std::fs::write(bench.path("net.conflist"), chain).unwrap();
    std::fs::create_dir(bench.path("manifests")).unwrap();
    let service = "kind: Service\nmetadata: {name: web, namespace: demo}\nspec: {clusterIPs: [10.99.0.1, \"fd99::1\"]}\n";
    std::fs::write(bench.path("manifests/service.yaml"), service).unwrap();
    for name in ["web", "client"] {
        std::fs::write(bench.path(&format!("manifests/pod-{name}.yaml")), echo_pod(name)).unwrap();
    }
    bench
}

fn echo_pod(name: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: demo, labels: {{access: \"yes\"}}}}\nspec:\n  nodeName: n1\n  terminationGracePeriodSeconds: 5\n  containers:\n    - name: echo\n      command: [tombolo, lab-echo, --http, \"8080\"]\n      args: [--tcp, $(PORT)]\n      env: [{{name: PORT, value: \"9000\"}}, {{name: NODE_NAME, valueFrom: {{fieldRef: {{fieldPath: spec.nodeName}}}}}}]\n      ports: [{{name: http, containerPort: 8080}}]\n      readinessProbe: {{httpGet: {{port: http}}, periodSeconds: 1}}\n"
    )
}

fn the_kubelet_runs_pods() {
    let bench = cluster_of_one_node();
    bench.up();
    let lab = bench.lab();
    let pods = || block_on(lab.inspect()).unwrap().nodes["n1"].pods.clone();
    let ready = |count: usize| {
        let pods = pods();
        pods.len() == count && pods.iter().all(|pod| pod.ready)
    };
    until("both pods are ready", || ready(2));
    let address = |name: &str| pods().into_iter().find(|pod| pod.name == name).unwrap().addresses;
    let manifest = |name: &str| lab.layout().dir().join(format!("one/manifests/pod-{name}.yaml"));
    let in_pod = |pod: &str, argv: &[&str]| {
        let output = lab.exec_command("n1", Some(("demo", pod)), argv).unwrap().output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{pod}: {argv:?}: {error}");
        String::from_utf8(output.stdout).unwrap()
    };

    // The status is in the manifest, and the manifest is otherwise as it was.
    let document: serde_json::Value =
        serde_saphyr::from_str(&std::fs::read_to_string(manifest("web")).unwrap()).unwrap();
    assert_eq!(document["status"]["phase"], "Running");
    assert_eq!(document["status"]["podIPs"][1]["ip"], address("web")[1]);
    assert_eq!(document["metadata"]["labels"]["access"], "yes");
    assert_eq!(document["status"]["conditions"][0]["status"], "True");

    // A namespace, host name, hosts file, cgroup and the chained plugin's setting of its own.
    assert_eq!(in_pod("client", &["hostname"]).trim(), "client");
    assert!(in_pod("client", &["cat", "/etc/hosts"]).contains("10.99.0.1 web.demo.svc.cluster.local"));
    assert_eq!(in_pod("client", &["cat", "/proc/sys/net/core/somaxconn"]).trim(), "777");
    assert!(in_pod("client", &["cat", "/proc/self/cgroup"]).contains("0::/pods/"));
    assert_eq!(
        in_pod("client", &["ls", "/sys/class/net"]).split_whitespace().collect::<Vec<_>>(),
        ["eth0", "lo"]
    );
    for web in address("web") {
        let url =
            if web.contains(':') { format!("http://[{web}]:8080/") } else { format!("http://{web}:8080/") };
        let answer = in_pod("client", &["tombolo", "lab-probe", "http", &url]);
        assert!(answer.contains("n1"), "the node is missing in {answer}");
    }

    // CNI CHECK agrees, as long as nobody has taken the address away.
    let asked = block_on(lab.node("n1", NodeAction::CniCheck)).unwrap();
    assert!(asked.contains("demo/web") && asked.contains("demo/client"), "{asked}");
    let gone = address("client").remove(0);
    in_pod("client", &["ip", "addr", "del", &format!("{gone}/24"), "dev", "eth0"]);
    let refused = block_on(lab.node("n1", NodeAction::CniCheck)).unwrap_err().to_string();
    assert!(refused.contains("demo/client") && refused.contains("CHECK"), "{refused}");
    in_pod("client", &["ip", "addr", "add", &format!("{gone}/24"), "dev", "eth0"]);

    // A container that dies is started again; the pod keeps its address.
    let before = address("web");
    let cgroup = pods().into_iter().find(|pod| pod.name == "web").unwrap().cgroup;
    bench.check("n1", &["sh", "-c", &format!("kill -9 $(cat {cgroup}/cgroup.procs)")]);
    until("the container was started again", || {
        std::fs::read_to_string(manifest("web")).unwrap().contains("restartCount: 1") && ready(2)
    });
    assert_eq!(address("web"), before);

    // A new service reaches the running pods' hosts files; a broken manifest costs nothing.
    let folder = lab.layout().dir().join("one/manifests");
    std::fs::write(
        folder.join("service-b.yaml"),
        "kind: Service\nmetadata: {name: b, namespace: x}\nspec: {clusterIP: 10.99.0.2}\n",
    )
    .unwrap();
    std::fs::write(folder.join("broken.yaml"), "kind: [Pod\n").unwrap();
    until("the new service has a name", || in_pod("web", &["cat", "/etc/hosts"]).contains("10.99.0.2 b.x"));

    // A removed manifest removes the pod; a new one makes another.
    std::fs::remove_file(manifest("web")).unwrap();
    until("the pod is gone", || pods().len() == 1);
    until("its interface and namespace are gone", || {
        bench.exec("n1", &["sh", "-c", "ls /sys/class/net | grep -c veth; ls /run/netns | wc -l; ls /sys/fs/cgroup/pods | grep -vc '\\.'"]).1.split_whitespace().eq(["1", "1", "1"])
    });
    std::fs::write(manifest("late"), echo_pod("late")).unwrap();
    until("the new pod is ready", || ready(2));

    // A node that was off and on again runs its pods anew, on addresses that its plugin has got back.
    block_on(lab.power_off("n1")).unwrap();
    block_on(lab.power_on("n1")).unwrap();
    until("the pods run again", || ready(2));
    until("what was attached before is given back", || {
        bench
            .exec(
                "n1",
                &[
                    "sh",
                    "-c",
                    "ls /var/lib/cni/networks/net | grep -c '^10'; ls /var/lib/cni/results | wc -l",
                ],
            )
            .1
            .split_whitespace()
            .eq(["2", "2"])
    });
    bench.down();
}

/// Asks until the answer is yes, ten seconds at most.
#[track_caller]
fn until(what: &str, mut answer: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !answer() {
        assert!(Instant::now() < deadline, "not within 10 s: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}
