//! ServiceExport and ServiceImport of the Multi-Cluster Services API, v1alpha1 and v1beta1 alike.

use super::{labels, routed_address, word};
use crate::crd::{ExportObject, ImportSpec};
use crate::object::{Object, ObjectId};
use crate::problem::Issue;
use tombolo_base::source::Source;
use tombolo_service::ServiceName;
use tombolo_service::mcs::{ExportRow, ImportRequest};

fn name(id: &ObjectId) -> ServiceName {
    ServiceName { namespace: id.namespace.clone(), name: id.name.clone() }
}

/// An export: this cluster's Service of the same name is offered to the others.
pub(super) fn export(id: &ObjectId, object: ExportObject) -> Result<Object, Issue> {
    let spec = object.spec.unwrap_or_default();
    // The crate's own time type is of another library; its text is RFC 3339.
    let created = object.metadata.creation_timestamp.map(|time| time.0.as_second());
    Ok(Object::Export(Box::new(ExportRow {
        source: Source::Manifests,
        name: name(id),
        created_unix_secs: created,
        labels: labels(spec.exported_labels),
        annotations: labels(spec.exported_annotations),
    })))
}

/// An import as somebody writes it by hand: the addresses that it is to have. Everything else follows from the exports.
pub(super) fn import(id: &ObjectId, spec: ImportSpec) -> Result<Object, Issue> {
    word(
        "spec.type",
        spec.kind.as_deref().unwrap_or("ClusterSetIP"),
        &[("ClusterSetIP", ()), ("Headless", ())],
    )?;
    let mut ips = Vec::new();
    for (position, text) in spec.ips.iter().enumerate() {
        let at = format!("spec.ips[{position}]");
        let ip = routed_address(at.clone(), text)?;
        if ips.iter().any(|other: &std::net::IpAddr| other.is_ipv4() == ip.is_ipv4()) {
            return Err(Issue::new(at, "a second address of one family", "give one of each family at most"));
        }
        ips.push(ip);
    }
    Ok(Object::Import(Box::new(ImportRequest { source: Source::Manifests, name: name(id), ips })))
}
