use super::*;
use crate::Tables;
use tombolo_base::ids::{ClusterId, ClusterName, MaxClusters};

fn folder(limits: Limits) -> Folder {
    let id = ClusterId::new(1, MaxClusters::C255).unwrap();
    Folder::new(ClusterIdentity { name: ClusterName::new("east").unwrap(), id }, limits)
}

fn namespace(name: &str, tier: &str) -> String {
    format!("---\napiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}, labels: {{tier: '{tier}'}}}}\n")
}

fn shown(tables: &Tables) -> Vec<String> {
    let label = |labels: &std::collections::BTreeMap<std::sync::Arc<str>, std::sync::Arc<str>>| {
        labels.get("tier").map(ToString::to_string).unwrap_or_default()
    };
    tables.namespaces.snapshot().iter().map(|row| format!("{}={}", row.name, label(&row.labels))).collect()
}

#[test]
fn a_change_of_one_file_touches_its_rows_only() {
    let (tables, writers) = Tables::new();
    let mut state = folder(Limits::default());
    state.put(Path::new("a.yaml"), &(namespace("a", "1") + &namespace("b", "1")));
    state.put(Path::new("c.yaml"), &namespace("c", "1"));
    state.write(&writers);
    assert_eq!(shown(&tables), ["a=1", "b=1", "c=1"]);
    let mut changes = tables.namespaces.changes();
    changes.drain();
    state.put(Path::new("a.yaml"), &(namespace("a", "1") + &namespace("d", "1")));
    state.write(&writers);
    let keys: Vec<_> = changes.drain().unwrap().keys.into_iter().map(|key| key.to_string()).collect();
    assert_eq!(keys, ["b", "d"]);
    state.remove(Path::new("c.yaml"));
    state.write(&writers);
    assert_eq!(shown(&tables), ["a=1", "d=1"]);
}

#[test]
fn a_broken_document_keeps_its_last_good_object() {
    let (tables, writers) = Tables::new();
    let mut state = folder(Limits::default());
    let node = |cidr: &str| {
        format!("---\napiVersion: v1\nkind: Node\nmetadata: {{name: n1}}\nspec: {{podCIDRs: [{cidr}]}}\n")
    };
    state.put(Path::new("a.yaml"), &(node("10.0.0.0/24") + &namespace("a", "1") + &namespace("gone", "1")));
    state.write(&writers);
    // The node is broken and known by name: it stays. The namespace changes, the other goes.
    state.put(Path::new("a.yaml"), &(node("nonsense") + &namespace("a", "2")));
    state.write(&writers);
    assert_eq!(shown(&tables), ["a=2"]);
    assert_eq!(tables.nodes.snapshot().iter().next().unwrap().pod_cidrs[0].to_string(), "10.0.0.0/24");
    assert_eq!(state.problems().len(), 1);
    // Syntax: nobody knows which object it was, so all of the file stay.
    state.put(Path::new("a.yaml"), "kind: [");
    state.write(&writers);
    assert_eq!((shown(&tables).len(), tables.nodes.snapshot().len()), (1, 1));
    state.put(Path::new("a.yaml"), &node("10.9.0.0/24"));
    state.write(&writers);
    assert!(state.problems().is_empty() && shown(&tables).is_empty());
}

#[test]
fn one_object_in_two_files_belongs_to_the_first() {
    let (tables, writers) = Tables::new();
    let mut state = folder(Limits::default());
    state.put(Path::new("b.yaml"), &namespace("x", "b"));
    state.put(Path::new("a.yaml"), &namespace("x", "a"));
    state.write(&writers);
    assert_eq!(shown(&tables), ["x=a"]);
    assert!(
        state.problems()[0].to_string().contains("b.yaml: Namespace x: the object also stands in a.yaml")
    );
    state.remove(Path::new("a.yaml"));
    state.write(&writers);
    assert_eq!(shown(&tables), ["x=b"]);
    assert!(state.problems().is_empty());
}

#[test]
fn the_number_of_objects_is_bounded() {
    let (tables, writers) = Tables::new();
    let mut state = folder(Limits { objects: 2, ..Limits::default() });
    state.put(Path::new("a.yaml"), &namespace("a", "1"));
    state.put(Path::new("b.yaml"), &(namespace("b", "1") + &namespace("c", "1")));
    state.write(&writers);
    assert_eq!((shown(&tables).len(), state.problems().len(), state.objects()), (2, 1, 2));
}

#[test]
fn a_kind_that_is_not_used_is_told_once_and_policies_come_first() {
    let mut state = folder(Limits::default());
    let policy = "apiVersion: crd.projectcalico.org/v1\nkind: NetworkPolicy\nmetadata: {name: p}\n";
    let deployment = "---\napiVersion: apps/v1\nkind: Deployment\nmetadata: {name: d}\n";
    state.put(Path::new("a.yaml"), &(namespace("a", "1") + deployment));
    state.put(Path::new("b.yaml"), &deployment.repeat(2));
    state.put(Path::new("c.yaml"), policy);
    state.put(Path::new("d.yaml"), "kind: [");
    let told: Vec<_> = state.problems().iter().map(ToString::to_string).collect();
    assert_eq!(told.len(), 3, "{told:?}");
    assert!(
        told[0]
            .starts_with("c.yaml:2: kind: 1 document of crd.projectcalico.org/v1/NetworkPolicy is ignored"),
        "{told:?}"
    );
    assert!(told[0].contains("NOT enforced") && told[1].starts_with("d.yaml:1"), "{told:?}");
    assert!(told[2].starts_with("a.yaml:7: kind: 3 documents of apps/v1/Deployment are ignored"), "{told:?}");
}

#[test]
fn a_policy_that_loses_a_spec_loses_its_row() {
    let (tables, writers) = Tables::new();
    let mut state = folder(Limits::default());
    let policy = |specs: &[&str]| {
        let specs = specs
            .iter()
            .map(|app| format!("{{endpointSelector: {{matchLabels: {{app: {app}}}}}, ingress: [{{}}]}}"));
        format!(
            "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {{name: p}}\nspecs: [{}]\n",
            specs.collect::<Vec<_>>().join(", ")
        )
    };
    let mut specs = |text: Option<String>| {
        match text {
            Some(text) => drop(state.put(Path::new("p.yaml"), &text)),
            None => state.remove(Path::new("p.yaml")),
        }
        state.write(&writers);
        tables.rules.snapshot().iter().map(|row| row.spec).collect::<Vec<_>>()
    };
    assert_eq!(specs(Some(policy(&["a", "b", "c"]))), [0, 1, 2]);
    assert_eq!(specs(Some(policy(&["a", "c"]))), [0, 1]);
    assert_eq!(specs(None), [0_u16; 0]);
}
