//! Reads layers of YAML into one [`Config`], gathering every mistake instead of stopping at the first.

use super::validate::{Problem, validate};
use super::{Config, Identity};
use serde::Deserialize;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Largest configuration file that is read, in bytes.
const MAX_BYTES: u64 = 1 << 20;
/// Mistakes after which a file is not looked at any further.
const MAX_PROBLEMS: usize = 50;

/// Reads the files in order, later ones over earlier ones (maps merge, everything else replaces).
///
/// # Errors
/// All mistakes of all files, each with file or key, reason and remedy.
pub(crate) fn load(files: &[PathBuf]) -> Result<(Config, Identity), Vec<Problem>> {
    let mut problems = Vec::new();
    let mut merged = Value::Object(serde_json::Map::new());
    let mut layers = Vec::new();
    for file in files {
        match read(file) {
            Ok(Value::Null) => {}
            Ok(layer @ Value::Object(_)) => {
                layers.push((file.clone(), layer.clone()));
                merge(&mut merged, layer);
            }
            Ok(_) => {
                problems.push(Problem::file(file, "the top level is no map", "write `key: value` lines"))
            }
            Err(problem) => problems.push(problem),
        }
    }
    let config = decode(merged, &mut problems);
    let identity = validate(&config, &mut problems);
    for problem in problems.iter_mut().filter(|problem| problem.file.is_none()) {
        problem.file = layer_of(&layers, &problem.place).or(match files {
            [only] => Some(only.clone()),
            _ => None,
        });
    }
    match identity {
        Some(identity) if problems.is_empty() => Ok((config, identity)),
        _ => Err(problems),
    }
}

/// The layer whose value at a key path counts: the last that has it, or what is nearest above it.
fn layer_of(layers: &[(PathBuf, Value)], path: &str) -> Option<PathBuf> {
    let path = format!("/{}", path.replace(['.', '['], "/").replace(']', ""));
    let mut pointer = path.as_str();
    while !pointer.is_empty() {
        let has = |(_, layer): &&(PathBuf, Value)| layer.pointer(pointer).is_some();
        if let Some((file, _)) = layers.iter().rev().find(has) {
            return Some(file.clone());
        }
        pointer = pointer.rsplit_once('/').map_or("", |(above, _)| above);
    }
    None
}

fn read(file: &Path) -> Result<Value, Problem> {
    let unreadable = |error: std::io::Error| {
        Problem::file(file, &format!("cannot be read: {error}"), "check path and permissions")
    };
    let size = std::fs::metadata(file).map_err(unreadable)?.len();
    if size > MAX_BYTES {
        return Err(Problem::file(
            file,
            &format!("{size} bytes is too large"),
            "an agent.yaml has some 2 KiB",
        ));
    }
    let text = std::fs::read_to_string(file).map_err(unreadable)?;
    serde_saphyr::from_str(&text).map_err(|error| {
        // Without a snippet of the file the text is one line.
        let text = error.without_snippet().to_string();
        let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
        Problem::file(file, &format!("is no YAML: {text}"), "correct the line named, or the one above it")
    })
}

/// Lays `layer` over `base`.
fn merge(base: &mut Value, layer: Value) {
    match (base, layer) {
        (Value::Object(base), Value::Object(layer)) => {
            for (key, value) in layer {
                merge(base.entry(key).or_insert(Value::Null), value);
            }
        }
        (base, layer) => *base = layer,
    }
}

/// Decodes; a value that does not fit is recorded, taken out, and the rest is decoded again.
fn decode(mut tree: Value, problems: &mut Vec<Problem>) -> Config {
    for _ in 0..MAX_PROBLEMS {
        let result: Result<Config, _> = serde_path_to_error::deserialize(&tree);
        let error = match result {
            Ok(config) => return config,
            Err(error) => error,
        };
        let mut path: Vec<String> = error.path().iter().map(ToString::to_string).collect();
        let text = error.inner().to_string();
        let unknown = text.strip_prefix("unknown field `").and_then(|rest| rest.split('`').next());
        if let Some(field) = unknown
            && path.last().map(String::as_str) != Some(field)
        {
            path.push(field.to_owned());
        }
        let remedy = if unknown.is_some() { "remove it or correct its name" } else { "correct the value" };
        problems.push(Problem::key(&path.join(".").replace(".[", "["), &text, remedy));
        if !remove(&mut tree, &path) {
            break;
        }
    }
    Config::deserialize(Value::Object(serde_json::Map::new())).unwrap_or_default()
}

/// Takes the value at `path` out of the tree; a list element takes its whole list with it.
fn remove(tree: &mut Value, path: &[String]) -> bool {
    let mut at = tree;
    let Some((last, parents)) = path.split_last() else { return false };
    for key in parents {
        let list_next = at.get(key).is_some_and(Value::is_array);
        if list_next {
            return at.as_object_mut().is_some_and(|map| map.remove(key).is_some());
        }
        match at.get_mut(key) {
            Some(next) => at = next,
            None => return false,
        }
    }
    at.as_object_mut().is_some_and(|map| map.remove(last).is_some())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn file(text: &str) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        file
    }

    const GOOD: &str = "cluster: {name: east, id: 1}\nnode: {name: n1, underlay_interface: eth1}\nmanifests: {folder: /etc/m}\netcd: {endpoints: [\"https://e:2379\"], ca: a, cert: b, key: c}\n";

    #[test]
    fn later_layers_win_and_maps_merge() {
        let (base, variant) = (file(GOOD), file("datapath: {path: direct}\n"));
        let files = [base.path().to_owned(), variant.path().to_owned()];
        let (config, identity) = load(&files).unwrap();
        assert_eq!(config.datapath.path, super::super::Path::Direct);
        assert_eq!(config.datapath.vxlan_port, 8472);
        assert_eq!((identity.cluster.as_str(), &*identity.node), ("east", "n1"));
    }

    #[test]
    fn all_mistakes_come_at_once_with_their_keys() {
        let bad = file(
            "cluster: {name: East, id: 900}\ndatapath: {path: magic, vxlan_prot: 1}\nbgp: {long_lived_secs: 0, import: {allow: [{prefix: 10.0.0.0/8}, {prefix: x}]}}\nidentities: {labels: [app, \"!(\"]}\nlog: {level: 3}\n",
        );
        let problems = load(&[bad.path().to_owned()]).unwrap_err();
        let keys: Vec<_> = problems.iter().map(|problem| problem.place.as_str()).collect();
        for key in [
            "cluster.name",
            "datapath.path",
            "datapath.vxlan_prot",
            "bgp.import.allow[1].prefix",
            "cluster.id",
            "identities.labels[1]",
            "bgp.long_lived_secs",
        ] {
            assert!(keys.contains(&key), "{key} missing in {keys:?}");
        }
        assert!(problems.iter().all(|problem| !problem.remedy.is_empty()));
    }

    #[test]
    fn ports_for_translations_are_a_range_that_no_tunnel_has() {
        let (good, over) =
            (file(GOOD), file("datapath: {snat_ports: 20000-29999, masquerade: {ipv4: true}}\n"));
        let (config, _) = load(&[good.path().to_owned(), over.path().to_owned()]).unwrap();
        assert_eq!(config.datapath.snat_ports.0, 20_000..=29_999);
        assert!(config.datapath.masquerade.ipv4 && !config.datapath.masquerade.ipv6);
        for wrong in ["5", "9-5", "0-9", "1-70000", "8000-9000"] {
            let (good, over) = (file(GOOD), file(&format!("datapath: {{snat_ports: {wrong:?}}}\n")));
            let problems = load(&[good.path().to_owned(), over.path().to_owned()]).unwrap_err();
            let places: Vec<_> = problems.iter().map(|problem| problem.place.as_str()).collect();
            assert!(places.iter().all(|place| place.contains("datapath.snat_ports")), "{wrong}: {places:?}");
        }
    }

    #[test]
    fn zones_upstreams_and_ranges_must_fit_each_other() {
        let places = |text: &str| {
            let problems =
                load(&[file(&format!("{GOOD}{text}\n")).path().to_owned()]).err().unwrap_or_default();
            problems.into_iter().map(|problem| problem.place).collect::<Vec<_>>()
        };
        let fine = "dns: {enabled: true, listen: ['192.0.2.1:53'], upstreams: ['192.0.2.2:53']}";
        assert_eq!(places(fine), [] as [String; 0]);
        for (text, place) in [
            ("dns: {cluster_domain: Cluster.local}", "dns.cluster_domain"),
            ("dns: {clusterset_domain: set.cluster.local}", "dns.clusterset_domain"),
            ("dns: {listen: ['192.0.2.1:53'], upstreams: ['192.0.2.1:53']}", "dns.upstreams[0]"),
            ("dns: {ttl_secs: 9999}", "dns.ttl_secs"),
            ("clustermesh: {clusterset_cidrs: [10.0.0.0/8, 10.1.0.0/16]}", "clustermesh.clusterset_cidrs[1]"),
        ] {
            assert_eq!(places(text), [place], "{text}");
        }
    }

    #[test]
    fn broken_yaml_names_the_line() {
        let bad = file("cluster:\n  name: [east\n");
        let problems = load(&[bad.path().to_owned()]).unwrap_err();
        let first = problems.first().unwrap();
        assert!(first.reason.contains("line"), "{problems:?}");
        assert!(!first.to_string().contains('\n'), "{first}");
        assert_eq!(first.file.as_deref(), Some(bad.path()));
    }

    #[test]
    fn a_mistake_names_the_layer_it_is_in() {
        let base = file(&GOOD.replace("id: 1", "id: 900"));
        let variant =
            file("datapath: {path: magic}\nbgp: {import: {allow: [{prefix: 10.0.0.0/8, ge: 4}]}}\n");
        let files = [base.path().to_owned(), variant.path().to_owned()];
        let problems = load(&files).unwrap_err();
        let of = |place: &str| {
            let found = problems.iter().find(|problem| problem.place == place);
            found.unwrap_or_else(|| panic!("{place} missing in {problems:?}")).file.as_deref()
        };
        assert_eq!(of("cluster.id"), Some(base.path()));
        assert_eq!(of("datapath.path"), Some(variant.path()));
        assert_eq!(of("bgp.import.allow[0]"), Some(variant.path()));
        let none = load(&[variant.path().to_owned(), variant.path().to_owned()]).unwrap_err();
        assert!(
            none.iter().any(|problem| problem.place == "manifests.folder" && problem.file.is_none()),
            "{none:?}"
        );
    }

    #[test]
    fn etcd_without_tls_must_be_asked_for() {
        let plain = GOOD.replace("https://", "http://").replace(", ca: a, cert: b, key: c", "");
        let text = load(&[file(&plain).path().to_owned()]).unwrap_err();
        assert!(text.iter().any(|problem| problem.place == "etcd.endpoints[0]"), "{text:?}");
        let allowed = file(&plain.replace("http://e:2379\"]", "http://e:2379\"], allow_plaintext: true"));
        assert!(load(&[allowed.path().to_owned()]).is_ok());
        let missing = load(&[file(&GOOD.replace(", key: c", "")).path().to_owned()]).unwrap_err();
        assert!(missing.iter().any(|problem| problem.place == "etcd.key"), "{missing:?}");
    }

    #[test]
    fn the_cluster_name_default_is_refused() {
        let problems =
            load(&[file(&GOOD.replace("name: east", "name: default")).path().to_owned()]).unwrap_err();
        assert!(problems.iter().any(|problem| problem.to_string().contains("default")), "{problems:?}");
    }
}
