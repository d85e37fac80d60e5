//! CiliumCIDRGroup, and prefixes with parts cut out.

use super::closed::Reader;
use crate::convert::{labels, prefix};
use crate::crd::Object as Written;
use crate::crd_policy::CidrGroupSpec;
use crate::object::{Object, ObjectId};
use crate::problem::Issue;
use std::collections::BTreeSet;
use tombolo_base::prefix::Prefix;
use tombolo_base::source::Source;
use tombolo_policy::CidrGroupRow;

/// Prefixes of one group.
const MAX_PREFIXES: usize = 16_384;

pub(in crate::convert) fn group(id: &ObjectId, object: Written<CidrGroupSpec>) -> Result<Object, Issue> {
    let written = object.spec.external_cidrs;
    if written.len() > MAX_PREFIXES {
        let reason = format!("{} prefixes", written.len());
        return Err(Issue::new("spec.externalCIDRs", reason, format!("use at most {MAX_PREFIXES}")));
    }
    let prefixes = written.iter().enumerate();
    let prefixes = prefixes.map(|(position, text)| prefix(format!("spec.externalCIDRs[{position}]"), text));
    Ok(Object::CidrGroup(Box::new(CidrGroupRow {
        source: Source::Manifests,
        name: id.name.clone(),
        labels: labels(object.metadata.labels),
        prefixes: prefixes.collect::<Result<_, _>>()?,
    })))
}

/// What is cut out of `whole`; without it (a group) anything may be.
pub(super) fn excepts(
    reader: &mut Reader<'_>,
    at: &str,
    whole: Option<&Prefix>,
    texts: &[String],
) -> Result<BTreeSet<Prefix>, Issue> {
    reader.entries(at, texts.len())?;
    let mut out = BTreeSet::new();
    for (position, text) in texts.iter().enumerate() {
        let at = format!("{at}[{position}]");
        let cut = prefix(at.clone(), text)?;
        if let Some(whole) = whole.filter(|whole| !whole.covers(&cut)) {
            let reason = format!("{cut} does not lie within {whole}");
            return Err(Issue::new(at, reason, "except may only cut out of cidr"));
        }
        out.insert(cut);
    }
    Ok(out)
}
