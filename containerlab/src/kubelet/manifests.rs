//! What the kubelet reads from the cluster's manifests: the pods of its node, and the services' names.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::IpAddr;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, Pod, Probe, Service};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::runner::plan::Restart;
use crate::settings::Dns;

/// Namespace and name.
pub(super) type PodKey = (String, String);

/// A pod to run.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct PodSpec {
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) uid: String,
    /// The manifest's file name.
    pub(super) file: String,
    pub(super) init_containers: Vec<ContainerSpec>,
    pub(super) containers: Vec<ContainerSpec>,
    pub(super) restart: Restart,
    /// How long containers may take to end.
    pub(super) grace: Duration,
    /// Why it cannot be run here, if so.
    pub(super) refused: Option<String>,
}

/// One container.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct ContainerSpec {
    pub(super) name: String,
    pub(super) argv: Vec<String>,
    pub(super) env: Vec<(String, EnvValue)>,
    pub(super) readiness: Option<ProbeSpec>,
}

/// The value of a variable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum EnvValue {
    Text(String),
    /// `valueFrom.fieldRef.fieldPath`.
    Field(String),
}

/// A readiness probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ProbeSpec {
    pub(super) what: ProbeKind,
    pub(super) initial_delay: Duration,
    pub(super) period: Duration,
    pub(super) timeout: Duration,
    pub(super) failures: u32,
}

/// What a probe asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ProbeKind {
    Tcp { port: u16 },
    Http { port: u16, path: String },
    Exec { argv: Vec<String> },
}

/// A service's name and addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ServiceName {
    namespace: String,
    name: String,
    addresses: Vec<IpAddr>,
}

/// The pods of `node` among the documents, and what is wrong with single ones.
pub(super) fn pods<'a>(
    documents: impl Iterator<Item = (&'a str, &'a Value)>,
    node: &str,
    problems: &mut Vec<String>,
) -> BTreeMap<PodKey, PodSpec> {
    let mut found = BTreeMap::new();
    for (file, document) in documents.filter(|(_, document)| kind(document) == "Pod") {
        match serde_json::from_value::<Pod>(document.clone()) {
            Ok(pod) => {
                let here = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()) == Some(node);
                if here && pod.metadata.deletion_timestamp.is_none() {
                    match pod_spec(file, &pod) {
                        Ok(spec) => {
                            found.insert((spec.namespace.clone(), spec.name.clone()), spec);
                        }
                        Err(problem) => problems.push(format!("{file}: {problem}")),
                    }
                }
            }
            Err(error) => problems.push(format!("{file}: is no Pod: {error}")),
        }
    }
    found
}

/// The services among the documents.
pub(super) fn services<'a>(documents: impl Iterator<Item = (&'a str, &'a Value)>) -> Vec<ServiceName> {
    let services = documents.filter(|(_, document)| kind(document) == "Service");
    services.filter_map(|(_, document)| serde_json::from_value(document.clone()).ok()).map(service).collect()
}

fn kind(document: &Value) -> &str {
    document.get("kind").and_then(Value::as_str).unwrap_or_default()
}

fn service(service: Service) -> ServiceName {
    let spec = service.spec.unwrap_or_default();
    let mut texts = spec.cluster_ips.unwrap_or_default();
    if texts.is_empty() {
        texts.extend(spec.cluster_ip);
    }
    ServiceName {
        namespace: service.metadata.namespace.unwrap_or_else(|| "default".to_owned()),
        name: service.metadata.name.unwrap_or_default(),
        // "None" of a headless service is no address.
        addresses: texts.iter().filter_map(|text| text.parse().ok()).collect(),
    }
}

/// The hosts file of a pod: its own name and those of all services, the short ones of its namespace's.
pub(super) fn hosts_file(pod: &PodSpec, addresses: &[IpAddr], services: &[ServiceName]) -> String {
    let mut text = "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n".to_owned();
    for address in addresses {
        // Writing to a String cannot fail.
        writeln!(text, "{address} {}", pod.name).ok();
    }
    for service in services {
        let (name, namespace) = (&service.name, &service.namespace);
        let short = if *namespace == pod.namespace { format!(" {name}") } else { String::new() };
        for address in &service.addresses {
            writeln!(
                text,
                "{address} {name}.{namespace}.svc.cluster.local {name}.{namespace}.svc {name}.{namespace}{short}"
            )
            .ok();
        }
    }
    text
}

/// The `resolv.conf` of a pod, as a kubelet writes it: names of the pod's namespace are short.
pub(super) fn resolv_conf(pod: &PodSpec, dns: Option<&Dns>) -> String {
    let Some(Dns { servers, domain }) = dns else { return String::new() };
    let servers: String = servers.iter().map(|server| format!("nameserver {server}\n")).collect();
    let namespace = &pod.namespace;
    format!("{servers}search {namespace}.svc.{domain} svc.{domain} {domain}\noptions ndots:5\n")
}

fn pod_spec(file: &str, pod: &Pod) -> Result<PodSpec, String> {
    let name = pod.metadata.name.clone().unwrap_or_default();
    let namespace = pod.metadata.namespace.clone().unwrap_or_else(|| "default".to_owned());
    if !plain(&name) || !plain(&namespace) {
        return Err(format!(
            "pod {namespace:?}/{name:?}: names must be 1 to 253 lower case letters, digits, '-' and '.'"
        ));
    }
    let spec = pod.spec.clone().unwrap_or_default();
    let refused =
        spec.host_network.unwrap_or_default().then(|| "hostNetwork is not run by the lab".to_owned());
    let restart = match spec.restart_policy.as_deref() {
        None | Some("Always") => Restart::Always,
        Some("OnFailure") => Restart::OnFailure,
        Some("Never") => Restart::Never,
        Some(other) => {
            return Err(format!("pod {name}: restartPolicy {other:?} is not Always, OnFailure or Never"));
        }
    };
    let all = |containers: &[Container]| containers.iter().map(container).collect::<Result<Vec<_>, _>>();
    let grace = spec.termination_grace_period_seconds.and_then(|secs| u64::try_from(secs).ok()).unwrap_or(30);
    Ok(PodSpec {
        uid: pod.metadata.uid.clone().unwrap_or_else(|| uid(&namespace, &name)),
        init_containers: all(spec.init_containers.as_deref().unwrap_or_default())?,
        containers: all(&spec.containers)?,
        grace: Duration::from_secs(grace.min(300)),
        file: file.to_owned(),
        namespace,
        name,
        restart,
        refused,
    })
}

/// Names become paths: only what Kubernetes itself allows.
fn plain(name: &str) -> bool {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '.');
    !name.is_empty() && name.len() <= 253 && !name.starts_with('.') && name.chars().all(allowed)
}

/// A UID for a pod whose manifest has none: the same whenever it is asked for.
fn uid(namespace: &str, name: &str) -> String {
    let digest = Sha256::digest(format!("{namespace}/{name}"));
    let hex: String = digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
    let mut parts = Vec::new();
    let mut rest = hex.as_str();
    for length in [8, 4, 4, 4, 12] {
        let (part, left) = rest.split_at_checked(length).unwrap_or((rest, ""));
        parts.push(part);
        rest = left;
    }
    parts.join("-")
}

fn container(container: &Container) -> Result<ContainerSpec, String> {
    let name = container.name.clone();
    let mut argv = container.command.clone().unwrap_or_default();
    if argv.is_empty() {
        return Err(format!("container {name}: the lab runs no images; give it a command"));
    }
    argv.extend(container.args.clone().unwrap_or_default());
    let env = container.env.iter().flatten().map(|variable| {
        let field = variable.value_from.as_ref().and_then(|from| from.field_ref.as_ref());
        let value = match field {
            Some(field) => EnvValue::Field(field.field_path.clone()),
            None => EnvValue::Text(variable.value.clone().unwrap_or_default()),
        };
        (variable.name.clone(), value)
    });
    let readiness = match &container.readiness_probe {
        Some(probe) => Some(probe_spec(container, probe)?),
        None => None,
    };
    Ok(ContainerSpec { env: env.collect(), name, argv, readiness })
}

fn probe_spec(container: &Container, probe: &Probe) -> Result<ProbeSpec, String> {
    let seconds = |value: Option<i32>, default: u32| {
        Duration::from_secs(u64::from(value.and_then(|value| u32::try_from(value).ok()).unwrap_or(default)))
    };
    let port = |port: &IntOrString| resolve_port(container, port);
    let what = if let Some(socket) = &probe.tcp_socket {
        ProbeKind::Tcp { port: port(&socket.port)? }
    } else if let Some(get) = &probe.http_get {
        ProbeKind::Http { port: port(&get.port)?, path: get.path.clone().unwrap_or_else(|| "/".to_owned()) }
    } else if let Some(exec) = &probe.exec {
        ProbeKind::Exec { argv: exec.command.clone().unwrap_or_default() }
    } else {
        return Err(format!("container {}: readinessProbe needs tcpSocket, httpGet or exec", container.name));
    };
    Ok(ProbeSpec {
        what,
        initial_delay: seconds(probe.initial_delay_seconds, 0),
        period: seconds(probe.period_seconds, 10).max(Duration::from_secs(1)),
        timeout: seconds(probe.timeout_seconds, 1).max(Duration::from_secs(1)),
        failures: probe.failure_threshold.and_then(|value| u32::try_from(value).ok()).unwrap_or(3).max(1),
    })
}

fn resolve_port(container: &Container, port: &IntOrString) -> Result<u16, String> {
    let number = match port {
        IntOrString::Int(number) => Some(*number),
        IntOrString::String(name) => {
            let named = container.ports.iter().flatten().find(|port| port.name.as_deref() == Some(name));
            named.map(|port| port.container_port)
        }
    };
    number.and_then(|number| u16::try_from(number).ok()).ok_or_else(|| {
        format!("container {}: the probe's port {port:?} is none of its ports", container.name)
    })
}

/// Replaces `$(NAME)` by the value of a variable, as Kubernetes does; `$$` is one dollar sign, an unknown name stays.
pub(super) fn expand(text: &str, env: &BTreeMap<String, String>) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('$') {
        out.push_str(before);
        if let Some(tail) = after.strip_prefix('$') {
            out.push('$');
            rest = tail;
        } else if let Some((name, tail)) = after.strip_prefix('(').and_then(|inner| inner.split_once(')')) {
            match env.get(name) {
                Some(value) => out.push_str(value),
                None => write!(out, "$({name})").unwrap_or_default(),
            }
            rest = tail;
        } else {
            out.push('$');
            rest = after;
        }
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn documents(text: &str) -> Vec<Value> {
        serde_saphyr::from_multiple(text).unwrap()
    }

    const POD: &str = r#"
kind: Pod
metadata: {name: web, namespace: demo, labels: {access: "yes"}}
spec:
  nodeName: n1
  containers:
    - name: c
      command: [tombolo, lab-echo]
      args: ["--http", "$(PORT)"]
      env: [{name: PORT, value: "8080"}, {name: NODE, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}]
      ports: [{name: http, containerPort: 8080}]
      readinessProbe: {tcpSocket: {port: http}, periodSeconds: 1}
"#;

    #[test]
    fn the_pods_of_a_node_are_found() {
        let all = documents(&format!(
            "{POD}---\nkind: Pod\nmetadata: {{name: elsewhere}}\nspec: {{nodeName: n2, containers: [{{name: c, command: [x]}}]}}\n---\nkind: Pod\nmetadata: {{name: ../bad}}\nspec: {{nodeName: n1, containers: []}}\n"
        ));
        let mut problems = Vec::new();
        let found = pods(all.iter().map(|document| ("f.yaml", document)), "n1", &mut problems);
        let pod = &found[&("demo".to_owned(), "web".to_owned())];
        assert_eq!(found.len(), 1);
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert!(problems[0].contains("../bad"));
        assert_eq!(pod.containers[0].argv, ["tombolo", "lab-echo", "--http", "$(PORT)"]);
        assert_eq!(pod.containers[0].env[1].1, EnvValue::Field("spec.nodeName".to_owned()));
        assert_eq!(pod.containers[0].readiness.as_ref().unwrap().what, ProbeKind::Tcp { port: 8080 });
        assert_eq!(pod.uid.len(), 36);
    }

    #[test]
    fn hosts_name_services() {
        let all = documents(&format!(
            "{POD}---\nkind: Service\nmetadata: {{name: web, namespace: demo}}\nspec: {{clusterIPs: [10.0.0.1, \"fd00::1\"]}}\n---\nkind: Service\nmetadata: {{name: api, namespace: other}}\nspec: {{clusterIP: 10.0.0.2}}\n---\nkind: Service\nmetadata: {{name: headless, namespace: demo}}\nspec: {{clusterIP: None}}\n"
        ));
        let named = || all.iter().map(|document| ("f.yaml", document));
        let found = pods(named(), "n1", &mut Vec::new());
        let pod = found.values().next().unwrap();
        let text = hosts_file(pod, &["10.1.1.2".parse().unwrap()], &services(named()));
        assert!(text.contains("10.1.1.2 web\n"));
        assert!(text.contains("10.0.0.1 web.demo.svc.cluster.local web.demo.svc web.demo web\n"));
        assert!(text.contains("fd00::1 web.demo.svc.cluster.local web.demo.svc web.demo web\n"));
        assert!(text.contains("10.0.0.2 api.other.svc.cluster.local api.other.svc api.other\n"));
        assert!(!text.contains("headless"));
    }

    #[test]
    fn short_names_are_those_of_the_namespace() {
        let all = documents(POD);
        let found = pods(all.iter().map(|document| ("f.yaml", document)), "n1", &mut Vec::new());
        let pod = found.values().next().unwrap();
        let servers = ["10.101.0.10", "fd00:101::a"].map(|text| text.parse().unwrap()).to_vec();
        let dns = Dns { servers, domain: "cluster.local".to_owned() };
        assert_eq!(
            resolv_conf(pod, Some(&dns)),
            "nameserver 10.101.0.10\nnameserver fd00:101::a\n\
             search demo.svc.cluster.local svc.cluster.local cluster.local\noptions ndots:5\n"
        );
        assert_eq!(resolv_conf(pod, None), "");
    }

    #[test]
    fn variables_are_expanded() {
        let env = BTreeMap::from([("A".to_owned(), "1".to_owned())]);
        assert_eq!(expand("x$(A)y $(B) $$(A) $ $(", &env), "x1y $(B) $(A) $ $(");
    }
}
